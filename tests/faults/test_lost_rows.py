"""A standby that lagged behind takes over: rows that were committed are gone, and come back."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from typing import Final

import pytest

from tests.faults.world import Settings, Token, World
from tests.journeys.client import FORMATS, call, send

pytestmark = [pytest.mark.journey, pytest.mark.slow]

CALLS: Final = 40
SECONDS_MAX: Final = 60.0

READ_ROWS: Final = """
    SELECT session_id, count(*) AS rows FROM usage_events WHERE token_id = $1 GROUP BY session_id
"""
READ_SUM: Final = "SELECT coalesce(sum(calls), 0)::int FROM usage_hourly WHERE token_id = $1"
READ_HEAD: Final = "SELECT last, last_id FROM change_head"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    settings = Settings(standby=True, standby_is_synchronous=False)
    async with World.running(settings=settings, chance=random.Random(0)) as world:
        yield world


async def make_calls(world: World, token: Token, *, name: str) -> set[str]:
    """Make calls on all machines; return their sessions."""
    sessions = {f"{name}/{number}" for number in range(CALLS)}
    answers = await asyncio.gather(
        *(
            send(
                world.machines[at % len(world.machines)].url,
                call(
                    FORMATS[at % len(FORMATS)], token=token.text, model="faults", stream=False,
                    words=3, session_id=session,
                ),
            )
            for at, session in enumerate(sessions)
        )
    )  # fmt: skip
    assert all(answer.is_whole for answer in answers)
    return sessions


async def wait_for_rows(world: World, token: Token, sessions: set[str]) -> None:
    """Return once each of these calls has its row, and the sums say so."""
    async with asyncio.timeout(SECONDS_MAX), world.owner() as owner:
        while True:
            rows = {
                row["session_id"]: row["rows"] for row in await owner.fetch(READ_ROWS, token.id)
            }
            if rows == dict.fromkeys(sessions, 1):
                break
            assert set(rows.values()) <= {1}
            await asyncio.sleep(0.05)
        assert await owner.fetchval(READ_SUM, token.id) == len(sessions)


async def test_rows_that_a_failover_lost_come_back_where_no_change_was_lost(world: World) -> None:
    assert world.standby is not None
    token = await world.token()
    before = await make_calls(world, token, name="before")
    await wait_for_rows(world, token, before)
    await world.standby.part()
    lost = await make_calls(world, token, name="lost")
    await wait_for_rows(world, token, before | lost)
    async with world.owner() as owner:
        head = await owner.fetchrow(READ_HEAD)

    await world.end_postgres(signal.SIGQUIT)
    await world.fail_over()
    async with world.owner() as owner:
        assert await owner.fetchrow(READ_HEAD) == head, "no change was lost"
        assert await owner.fetchval(READ_SUM, token.id) == len(before)

    await wait_for_rows(world, token, before | lost)
    for machine in world.machines:
        await machine.wait_until_ready()
    after = await make_calls(world, token, name="after")
    await wait_for_rows(world, token, before | lost | after)
