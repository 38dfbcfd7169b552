"""Refusals, so that someone can be told why: a bounded sample, written in the background.

Clients hammer refusals, and nobody pays for them: a few a second are kept, the rest is counted on
the next one that is. While the database is away the oldest go first. Never a row in the ledger.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import asyncpg

from gateway.sql import DATABASE_FAULTS, load_queries

KEPT_A_SECOND_MAX: Final = 10
QUEUE_MAX: Final = 1_000  # kept refusals that wait for the database
BATCH_MAX: Final = 500
WRITE_SECONDS: Final = 1.0  # that refusals gather before they are written
QUERY_SECONDS_MAX: Final = 5.0
PRUNE_ROUNDS_MAX: Final = 100  # of 10,000 rows each, in one housekeeping

_QUERIES: Final = load_queries(__package__, "refusal_log.sql")
_ADD: Final = _QUERIES["add_refusals"]
_PRUNE: Final = _QUERIES["prune_refusals"]


class _Refusal(NamedTuple):
    at: float  # Unix seconds
    reason: str
    org_id: str | None
    token_id: str | None
    limit_kind: str | None
    unsampled: int


class RefusalLog:
    """One worker's."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        *,
        worker_id: str,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`now` gives Unix seconds."""
        self._pool = pool
        self._worker_id = worker_id
        self._now = now
        self._sleep = sleep
        self._queue: deque[_Refusal] = deque()
        self._second = 0
        self._kept_this_second = 0
        self._unsampled = 0

    def note(
        self,
        reason: str,
        *,
        org_id: str | None = None,
        token_id: str | None = None,
        limit_kind: str | None = None,
    ) -> None:
        """Keep a refusal, if there is room; `reason` is the value of `x-kaixu-reason`."""
        at = self._now()
        if int(at) != self._second:
            self._second = int(at)
            self._kept_this_second = 0
        if self._kept_this_second >= KEPT_A_SECOND_MAX:
            self._unsampled += 1
            return
        self._kept_this_second += 1
        if len(self._queue) >= QUEUE_MAX:
            self._unsampled += 1 + self._queue.popleft().unsampled
        refusal = _Refusal(at, reason, org_id, token_id, limit_kind, self._unsampled)
        self._queue.append(refusal)
        self._unsampled = 0

    async def run(self) -> None:
        """Write what is kept, for ever."""
        while True:
            await self._sleep(WRITE_SECONDS)
            while self._queue and await self.write_some():
                pass

    async def write_some(self) -> bool:
        """Write a batch; return whether the database took it. What it did not take waits."""
        batch = [self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))]
        if not batch:
            return True
        columns = [list(column) for column in zip(*batch, strict=True)]
        try:
            async with asyncio.timeout(QUERY_SECONDS_MAX):
                await self._pool.execute(_ADD, self._worker_id, *columns)
        except DATABASE_FAULTS:
            room = QUEUE_MAX - len(self._queue)
            lost = batch[: max(0, len(batch) - room)]
            self._unsampled += sum(1 + one.unsampled for one in lost)
            self._queue.extendleft(reversed(batch[len(lost) :]))
            return False
        return True

    async def prune(self) -> int:
        """Forget what is past its retention; return how many. While the database is away, none."""
        pruned = 0
        try:
            for _ in range(PRUNE_ROUNDS_MAX):
                async with asyncio.timeout(QUERY_SECONDS_MAX):
                    some = await self._pool.fetchval(_PRUNE)
                pruned += some
                if not some:
                    break
        except DATABASE_FAULTS:
            pass
        return pruned
