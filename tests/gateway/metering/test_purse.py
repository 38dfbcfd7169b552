"""Purses over a database of a few lines, which may be away: what a worker makes of its answers."""

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

import pytest

from gateway.clock import DatabaseClock
from gateway.errors import DatabaseAway
from gateway.metering import permits as permits_module
from gateway.metering.permit_store import PermitAsk, PermitGrant
from gateway.metering.permits import Permits
from gateway.metering.purse import Purse
from gateway.permit_limit import PermitKey, PermitLimit

CALLS = 100
TOKENS = 200
DEADLINE_SECONDS = 20.0


def open_calls(number: int, calls: int = CALLS) -> PermitLimit:
    return PermitLimit(
        subject_kind="token", subject=f"token {number}", calls=calls, window_seconds=None
    )


class Database:
    """Grants what is free to one worker, and keeps to the checks of `permits_held`."""

    def __init__(self) -> None:
        self.is_away = False
        self.held: dict[PermitKey, tuple[int, int]] = {}
        self.impossible: list[PermitAsk] = []

    async def exchange(
        self, worker_id: str, asks: Sequence[PermitAsk], *, may_recall: bool
    ) -> dict[PermitKey, PermitGrant]:
        await asyncio.sleep(0.002)
        if self.is_away:
            raise DatabaseAway
        self.impossible += [ask for ask in asks if not 0 <= ask.spare <= ask.held]
        return {ask.limit.key: self._granted(ask) for ask in asks}

    def _granted(self, ask: PermitAsk) -> PermitGrant:
        granted = max(0, min(ask.want, ask.limit.calls - ask.held))
        if ask.number <= self.held.get(ask.limit.key, (0, 0))[0]:
            granted = 0
        else:
            self.held[ask.limit.key] = ask.number, ask.held + granted
        return PermitGrant(granted=granted, outstanding=False, wait_seconds=None)


async def eventually(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not look():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)


async def test_a_purse_that_went_away_never_speaks_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As after an outage: all purses are idle, and each is both due and found by the sweep.
    monkeypatch.setattr(permits_module, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(permits_module, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(permits_module, "EXCHANGE_PURSES_MAX", 16)
    database, loop = Database(), asyncio.get_running_loop()
    permits = Permits(
        store=database, worker_id="worker", clock=cast("DatabaseClock", None), now=loop.time
    )
    opened = [0] * TOKENS

    async def begin(number: int) -> None:
        limits = (open_calls(number),)
        while not permits.take(limits):
            await permits.refill(limits)
        opened[number] += 1

    def end(number: int) -> None:
        opened[number] -= 1
        permits.release((open_calls(number),))

    async def comes_back(number: int) -> None:
        await asyncio.sleep(0.002 * number)  # while those of the outage are told, one by one
        for _ in range(3):
            await begin(number)
            await asyncio.sleep(0.03)
        _, held = database.held[open_calls(number).key]
        assert held >= opened[number], "the database knows of fewer calls than are open"
        for _ in range(3):
            end(number)

    async with asyncio.TaskGroup() as group:
        running = group.create_task(permits.run())
        await asyncio.sleep(0)
        for number in range(TOKENS):
            await begin(number)
            end(number)
        database.is_away = True
        await eventually(lambda: min(len(permits._due), len(permits._idle)) > TOKENS // 2)
        database.is_away = False
        async with asyncio.TaskGroup() as callers:
            for number in range(TOKENS):
                callers.create_task(comes_back(number))
        await eventually(lambda: not permits._purses)
        running.cancel()
    assert database.impossible == []
    assert {held for _, held in database.held.values()} == {0}


def test_what_was_granted_by_another_limit_is_not_used() -> None:
    purse = Purse(open_calls(1, calls=100_000), now=0.0)
    ask = purse.ask(number=1, needed=True, idle=False, now=0.0)
    purse.change(open_calls(1, calls=10))
    purse.answer(ask, granted=128)
    assert (purse.spare, purse.untold) == (0, True)
    again = purse.ask(number=2, needed=True, idle=False, now=0.0)
    assert (again.held, again.limit.calls) == (0, 10)
    purse.answer(again, granted=2)
    assert (purse.spare, purse.untold) == (2, False)


def test_what_was_granted_to_a_worker_that_may_count_as_dead_is_not_used() -> None:
    purse = Purse(open_calls(1), now=0.0)
    ask = purse.ask(number=1, needed=True, idle=False, now=0.0)
    purse.forget()
    purse.answer(ask, granted=16)
    assert (purse.spare, purse.untold) == (0, True)
