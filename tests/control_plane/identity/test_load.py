"""Many who sign in at once hold up nobody else."""

import asyncio
import time
from collections import Counter
from dataclasses import replace
from ipaddress import ip_network

import pytest

from control_plane.identity.passwords import BCRYPT_COST, QUEUE_MAX, THREADS
from control_plane.server_settings import ServerSettings
from tests.control_plane.conftest import Node, People, started
from tests.control_plane.identity.accounts import Account, registered, sign_in

MANY = 60
LAG_SECONDS_MAX = 0.020
OTHERS_SECONDS_MAX = 1.0  # on a machine whose cores all hash; the queue takes four and more
A_SECOND_MAX = 5
SIGN_IN_SECONDS_MAX = 1.0  # with two cores to itself, where a hash takes 0.2 s


@pytest.fixture
def proxied(server_settings: ServerSettings) -> ServerSettings:
    return replace(server_settings, trusted_proxies=(ip_network("127.0.0.0/8"),))


async def attempt(node: Node, account: Account, at: int, password: str) -> tuple[int, float]:
    began = time.perf_counter()
    headers = {"x-forwarded-for": f"198.51.{at // 250}.{at % 250}"}
    answer = await sign_in(node, account.email, password, headers=headers)
    if answer.status == 429:
        assert int(answer.headers["retry-after"]) > 0
    return answer.status, time.perf_counter() - began


async def test_a_flood_of_sign_ins_is_turned_away_and_the_loop_goes_on(
    proxied: ServerSettings, people: People
) -> None:
    somebody = await people.person()
    async with started(proxied, password_cost=BCRYPT_COST) as node:
        account = await registered(node)
        lags, others = [], []
        async with asyncio.TaskGroup() as group:
            flood = [
                group.create_task(attempt(node, account, at, "not this one")) for at in range(MANY)
            ]
            looked = time.perf_counter()
            while not all(one.done() for one in flood):
                began = time.perf_counter()
                await asyncio.sleep(0.001)
                lags.append(time.perf_counter() - began - 0.001)
                if time.perf_counter() - looked > 0.1:
                    began = looked = time.perf_counter()
                    assert (await node.call("GET", "/api/v1/me", by=somebody)).status == 200
                    others.append(time.perf_counter() - began)
    found = Counter(status for status, _ in (one.result() for one in flood))
    assert found[429] == MANY - THREADS - QUEUE_MAX
    # On a machine that others use as well, some wait longer than any request may.
    assert found[401] + found[503] == THREADS + QUEUE_MAX
    assert found[401] > THREADS
    p99 = sorted(lags)[int(len(lags) * 0.99)]
    print(f"lag p99 {p99 * 1000:.1f} ms of {len(lags)}; others at most {max(others) * 1000:.0f} ms")
    assert p99 < LAG_SECONDS_MAX
    assert max(others) < OTHERS_SECONDS_MAX


@pytest.mark.slow
async def test_sign_ins_are_quick_at_half_of_what_the_machine_can_hash(
    proxied: ServerSettings,
) -> None:
    """Five a second on two cores; fewer where others use them too."""
    async with started(proxied, password_cost=BCRYPT_COST) as node:
        account = await registered(node)
        began = time.perf_counter()
        hasher = node.services.passwords
        await asyncio.gather(*(hasher.hash("x") for _ in range(THREADS * 10)))
        a_second = min(A_SECOND_MAX, THREADS * 5 / (time.perf_counter() - began))
        alone = min(
            [await attempt(node, account, at, account.password) for at in range(3)]
        )[1]  # fmt: skip
        async with asyncio.TaskGroup() as group:
            tried = []
            for at in range(MANY):
                tried.append(group.create_task(attempt(node, account, at, account.password)))
                await asyncio.sleep(1 / a_second)
    statuses, took = zip(*(one.result() for one in tried), strict=True)
    assert set(statuses) == {201}
    p99 = sorted(took)[int(len(took) * 0.99)]
    p50 = sorted(took)[len(took) // 2]
    print(f"{a_second:.1f} a second: p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms")
    assert p99 < max(SIGN_IN_SECONDS_MAX, alone * 5)
