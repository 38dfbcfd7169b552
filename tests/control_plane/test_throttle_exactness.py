import asyncio
import time
from datetime import timedelta

import asyncpg
import pytest

from control_plane.errors import TooManyRequests
from control_plane.server_settings import ServerSettings
from control_plane.throttle import WINDOWS, RateClass, Taking, address_key, take
from control_plane.web.database import ControlDatabase, open_control_database
from tests.control_plane.conftest import Node, People, started


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
        ("no address", "no address"),
    ],
)
def test_what_counts_as_one_address(address: str, key: str) -> None:
    assert address_key(address) == key


async def try_take(database: ControlDatabase, asked: list[Taking]) -> float | None:
    async with database.connection() as connection:
        try:
            await take(connection, asked)
        except TooManyRequests as error:
            return error.retry_after
    return None


async def test_a_hundred_at_once_on_two_nodes_are_admitted_exactly_as_often_as_may_be(
    control_url: str,
) -> None:
    window = timedelta(seconds=60)
    shared = [Taking(key="shared", limit=17, length=window)]
    both = [*shared, Taking(key="alone", limit=40, length=window)]
    async with open_control_database(control_url) as one, open_control_database(control_url) as two:
        began = time.monotonic()
        waits = await asyncio.gather(
            *(try_take(database, both) for database in (one, two) for _ in range(50))
        )
        took = time.monotonic() - began
        assert sum(wait is None for wait in waits) == 17
        refused = [wait for wait in waits if wait is not None]
        assert all(60 - took - 1 <= wait <= 60 for wait in refused), (min(refused), max(refused))
        # What was refused for one window was not counted in the other.
        rest = await asyncio.gather(
            *(try_take(two, [Taking(key="alone", limit=40, length=window)]) for _ in range(50))
        )
        assert sum(wait is None for wait in rest) == 40 - 17


async def test_who_waits_as_long_as_was_said_is_admitted_and_not_before(control_url: str) -> None:
    asked = [Taking(key="k", limit=2, length=timedelta(seconds=1))]
    async with open_control_database(control_url) as database:
        assert [await try_take(database, asked) for _ in range(2)] == [None, None]
        wait = await try_take(database, asked)
        assert wait is not None
        assert 0 < wait <= 1
        await asyncio.sleep(max(0, wait - 0.3))
        assert await try_take(database, asked) is not None
        await asyncio.sleep(0.3)
        assert await try_take(database, asked) is None


async def test_a_route_says_when_to_come_back(
    node: Node, people: People, server_settings: ServerSettings, owner: asyncpg.Connection
) -> None:
    person = await people.member(await people.org(), "owner")
    limit = WINDOWS[RateClass.READ][0].limit
    await owner.execute(
        "INSERT INTO throttle (key, admitted, until) "
        "SELECT $1, array_agg(now() - interval '40 s'), now() + interval '20 s' "
        "FROM generate_series(1, $2)",
        f"read:account:{person.account_id}",
        limit,
    )
    async with started(server_settings) as other:
        for each in (node, other):
            answer = await each.call("GET", "/api/v1/me", by=person)
            assert (answer.status, answer.json["code"]) == (429, "too_many_requests")
            assert abs(int(answer.headers["retry-after"]) - 20) <= 1
        assert (await other.call("GET", "/healthz")).status == 200
