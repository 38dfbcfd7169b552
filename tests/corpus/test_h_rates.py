"""Group H: how often a thing may be asked for, from whichever address and on whichever node."""

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network
from typing import Any, Final

import asyncpg

from control_plane.errors import TooManyRequests
from control_plane.server_settings import ServerSettings
from control_plane.throttle import Taking, take
from tests.control_plane.conftest import Node, People, started
from tests.corpus.attacks import TITLES
from tests.corpus.conftest import Outcomes

ALONE: Final = {80, 81, 83}
PATH: Final = "/api/v1/tokens"
PUBLIC_LIMIT: Final = 120  # a minute of an address
CLIENTS: Final = 100
WINDOW: Final = timedelta(seconds=1)


async def show(node: Node, **headers: str) -> Any:
    return await node.call("POST", f"{PATH}/revoke", json={"token": "x"}, headers=headers)


async def test_80_an_address_that_the_client_claims(
    server_settings: ServerSettings, owner: asyncpg.Connection, outcomes: Outcomes
) -> None:
    assert 80 in TITLES
    claims = ("x-forwarded-for", "forwarded", "x-real-ip", "x-client-ip", "true-client-ip")
    async with started(server_settings) as node:
        for number, claim in enumerate(claims):
            await show(node, **{claim: f"203.0.113.{number}"})
    keys = [row["key"] for row in await owner.fetch("SELECT key FROM throttle")]
    assert keys == ["public:address:127.0.0.1"]

    trusting = replace(server_settings, trusted_proxies=(ip_network("127.0.0.0/8"),))
    async with started(trusting) as node:
        for claim in (
            "203.0.113.7",
            "::ffff:203.0.113.7",
            "198.51.100.9, 203.0.113.7",  # what the client wrote stands before what the proxy did
            "2001:db8::1",
            "2001:db8::ffff",  # the same customer's /64
        ):
            await show(node, **{"x-forwarded-for": claim, "forwarded": "for=192.0.2.1"})
    rows = await owner.fetch("SELECT key, cardinality(admitted) AS times FROM throttle")
    assert {row["key"].removeprefix("public:address:"): row["times"] for row in rows} == {
        "127.0.0.1": 5,
        "203.0.113.7": 3,
        "2001:db8::/64": 2,
    }
    outcomes[80] = "ignored; a mapped IPv4 address is that one"


async def test_81_limits_at_the_edge_of_their_window_on_two_nodes(
    server_settings: ServerSettings, owner: asyncpg.Connection, outcomes: Outcomes
) -> None:
    assert 81 in TITLES
    async with started(server_settings) as one, started(server_settings) as other:
        answers = await asyncio.gather(
            *(show(node) for node in (one, other) for _ in range(PUBLIC_LIMIT))
        )
        statuses = [answer.status for answer in answers]
        assert statuses.count(202) == PUBLIC_LIMIT
        assert statuses.count(429) == PUBLIC_LIMIT
        # As if it had been so long ago that the first of them leaves the window in two seconds.
        await owner.execute(
            """
            UPDATE throttle SET admitted = array(
                SELECT at - (admitted[1] - clock_timestamp() + interval '58 s')
                FROM unnest(admitted) AS at ORDER BY at
            )
            """
        )
        began = time.monotonic()
        refused = await show(one)
        wait = int(refused.headers["retry-after"])
        assert (refused.status, wait in {1, 2, 3}) == (429, True)
        while (await show(other)).status == 429:  # noqa: ASYNC110 - it is asked
            await asyncio.sleep(0.02)
        assert abs(time.monotonic() - began - wait) <= 1

        admitted = await _hammer([one, other])
    limit = 5
    for earlier, later in zip(admitted, admitted[limit:], strict=False):
        # It was admitted somewhere between: so far apart they are at least.
        assert later[1] - earlier[0] >= WINDOW.total_seconds()
    assert len(admitted) >= 2 * limit, "whoever waits gets in"
    outcomes[81] = "none over the limit, retry-after to a second"


async def _hammer(nodes: list[Node]) -> list[tuple[float, float]]:
    """Ask for five in any second, by many at once; return between when each was admitted."""
    admitted: list[tuple[float, float]] = []
    waits: list[float] = []
    ends_at = time.monotonic() + 3
    slots = asyncio.Semaphore(16)  # the pools have ten connections each

    async def client(number: int) -> None:
        database = nodes[number % len(nodes)].services.database
        while time.monotonic() < ends_at:
            async with slots:
                began = time.monotonic()
                try:
                    async with database.connection() as connection:
                        await take(connection, [Taking(key="k", limit=5, length=WINDOW)])
                except TooManyRequests as refusal:
                    waits.append(refusal.retry_after)
                else:
                    admitted.append((began, time.monotonic()))
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as clients:
        for number in range(CLIENTS):
            clients.create_task(client(number))
    assert all(0 < wait <= WINDOW.total_seconds() for wait in waits)
    return sorted(admitted, key=lambda one: one[1])


async def test_83_a_request_that_comes_again_the_same_or_not(
    node: Node, people: People, owner: asyncpg.Connection, outcomes: Outcomes
) -> None:
    assert 83 in TITLES
    org = await people.org()
    editor = await people.workspace_member(org, await people.workspace_id(org), "editor")
    key = {"idempotency-key": "k"}

    async def ask(name: str) -> Any:
        return await node.call("POST", PATH, by=editor, json={"name": name}, headers=key)

    first, same, other = await ask("a"), await ask("a"), await ask("b")
    assert (first.status, same.status, other.status) == (201, 201, 422)
    assert same.json["id"] == first.json["id"]
    assert (same.json["token"], other.json["code"]) == (None, "idempotency_key_reused")
    assert await owner.fetchval("SELECT count(*) FROM tokens") == 1

    await owner.execute("UPDATE idempotency_keys SET created_at = now() - interval '25 hours'")
    anew = await ask("b")
    assert anew.status == 201
    assert anew.json["id"] != first.json["id"]
    twice = await asyncio.gather(*(ask("b") for _ in range(8)))
    assert {answer.json["id"] for answer in twice} == {anew.json["id"]}

    await owner.execute("DELETE FROM idempotency_keys")
    raced = await asyncio.gather(*(ask("c") for _ in range(8)))
    assert {answer.status for answer in raced} <= {201, 409}
    assert await owner.fetchval("SELECT count(*) FROM tokens WHERE name = 'c'") == 1
    outcomes[83] = "422 for another body; a new one after a day"
