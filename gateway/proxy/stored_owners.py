"""Who made what vendors keep: recorded in the background, looked up before anyone gets at it.

The first org for which an id is recorded has it for ever; the database sees to that. An id is
recorded as it is seen in an answer, and at once: this worker knows it from then on, the others a
moment later. What a worker had not written when it was killed, or when more waits than fits, is
unknown to everybody: a 404 for its maker, and never anybody else's.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import asyncpg
from cachetools import LRUCache

from gateway.auth.caller import Caller
from gateway.errors import DatabaseAway
from gateway.proxy.errand import as_a_task
from gateway.proxy.stored_ids import Stored
from gateway.sql import DATABASE_FAULTS, load_queries

KNOWN_MAX: Final = 100_000  # ids remembered, about 40 MB
UNKNOWN_MAX: Final = 10_000  # ids remembered that were not the caller's
UNKNOWN_SECONDS: Final = 1.0  # and for so long
SECOND_LOOK_SECONDS: Final = 0.5  # another worker may be about to record it
QUEUE_MAX: Final = 10_000  # ids that wait for the database; the oldest go first
BATCH_MAX: Final = 500
QUERY_SECONDS_MAX: Final = 5.0
LOOKUPS_MAX: Final = 2  # at a time, of the worker's few connections
LOOKUPS_WAITING_MAX: Final = 256  # more: 503
RETRY_SECONDS_MIN: Final = 0.1
RETRY_SECONDS_MAX: Final = 2.0
PRUNE_ROUNDS_MAX: Final = 100  # of 10,000 rows each

_QUERIES: Final = load_queries(__package__, "stored_owners.sql")
_ADD: Final = _QUERIES["add"]
_FIND: Final = _QUERIES["find"]
_PRUNE: Final = _QUERIES["prune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """That an org has an object at a vendor."""

    vendor_id: str
    org_id: str
    kind: str
    parent_id: str | None = None


class _Noted(NamedTuple):
    """A row that waits, in the order of the query's parameters."""

    object_id: str
    vendor_id: str
    kind: str
    parent_id: str | None
    org_id: str
    workspace_id: str
    user_id: str
    token_id: str
    call_id: str


class StoredOwners:
    """One worker's."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        *,
        now: Callable[[], float],
        on_trouble: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`now` never steps; `on_trouble(problem)` is told when ids could not be written."""
        self._pool = pool
        self._now = now
        self._on_trouble = on_trouble
        self._sleep = sleep
        self._known: LRUCache[str, tuple[Holding, ...]] = LRUCache(KNOWN_MAX)
        self._unknown: LRUCache[tuple[str, str], float] = LRUCache(UNKNOWN_MAX)
        self._queue: deque[_Noted] = deque()
        self._waiting = asyncio.Event()
        self._lookups = asyncio.Semaphore(LOOKUPS_MAX)
        self._lookups_waiting = 0

    # recording

    def note(
        self, stored: Iterable[Stored], *, caller: Caller, vendor_id: str, call_id: str
    ) -> None:
        """Record that an answer to this caller told of something stored. Never waits."""
        for one in stored:
            holding = Holding(
                vendor_id=vendor_id,
                org_id=caller.org_id,
                kind=one.kind.value,
                parent_id=one.parent_id,
            )
            known: tuple[Holding, ...] = self._known.get(one.object_id, ())
            if any(held.vendor_id == vendor_id for held in known):
                continue  # the first one has it
            self._known[one.object_id] = (*known, holding)
            self._unknown.pop((caller.org_id, one.object_id), None)
            if len(self._queue) >= QUEUE_MAX:
                lost = self._queue.popleft()
                self._known.pop(lost.object_id, None)
                self._on_trouble("an id was not recorded: too many wait")
            self._queue.append(
                _Noted(
                    object_id=one.object_id,
                    vendor_id=vendor_id,
                    kind=holding.kind,
                    parent_id=one.parent_id,
                    org_id=caller.org_id,
                    workspace_id=caller.workspace_id,
                    user_id=caller.user_id,
                    token_id=caller.token_id,
                    call_id=call_id,
                )
            )
        if self._queue:
            self._waiting.set()

    async def run(self) -> None:
        """Write what was noted, at once, for ever; while the database is away, again and again."""
        wait = RETRY_SECONDS_MIN
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            while self._queue:
                if await self.write_some():
                    wait = RETRY_SECONDS_MIN
                    continue
                await self._sleep(wait)
                wait = min(2 * wait, RETRY_SECONDS_MAX)

    async def write_some(self) -> bool:
        """Write a batch; return whether the database took it. What it did not take waits."""
        batch = [self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))]
        if not batch:
            return True
        columns = [list(column) for column in zip(*batch, strict=True)]
        taken = False
        try:
            async with asyncio.timeout(QUERY_SECONDS_MAX):
                others = await self._pool.fetch(_ADD, *columns)
            taken = True
        except DATABASE_FAULTS as error:
            self._on_trouble(f"{type(error).__name__}: {error}")
            return False
        finally:
            if not taken:  # a cancellation too: it is written at the end, or not at all
                room = max(0, QUEUE_MAX - len(self._queue))
                self._queue.extendleft(reversed(batch[-room:] if room else []))
        for row in others:  # someone's already: what the database says is looked up when needed
            self._known.pop(row["object_id"], None)
        return True

    async def write_rest(self) -> None:
        """Write all that waits, once no call is open any more, as far as the database takes it."""
        while self._queue and await self.write_some():
            pass

    # looking up

    async def find(
        self, object_ids: Collection[str], *, org_id: str, vendor_ids: Collection[str]
    ) -> Mapping[str, Holding]:
        """Return those of the objects that the org has at one of the vendors.

        Unknown ones are asked for once more after a moment. Whether an id is another org's can't be
        told from how long that takes. Raises DatabaseAway.
        """
        now = self._now()
        found: dict[str, Holding] = {}
        due: list[str] = []
        for object_id in object_ids:
            holding = self._held(object_id, org_id, vendor_ids)
            if holding is not None:
                found[object_id] = holding
            elif self._unknown.get((org_id, object_id), 0.0) <= now:
                due.append(object_id)
        if not due:
            return found
        due = await self._look(due, found, org_id=org_id, vendor_ids=vendor_ids)
        if due:
            await self._sleep(SECOND_LOOK_SECONDS)
            due = await self._look(due, found, org_id=org_id, vendor_ids=vendor_ids)
        for object_id in due:
            self._unknown[org_id, object_id] = self._now() + UNKNOWN_SECONDS
        return found

    async def find_listed(
        self, object_ids: Collection[str], *, org_id: str, vendor_id: str
    ) -> Mapping[str, Holding]:
        """Return those of a list's objects that are the org's; one question, no second look."""
        found: dict[str, Holding] = {}
        due: list[str] = []
        for object_id in object_ids:
            holding = self._held(object_id, org_id, (vendor_id,))
            if holding is None:
                due.append(object_id)
            else:
                found[object_id] = holding
        if due:
            await self._look(due, found, org_id=org_id, vendor_ids=(vendor_id,))
        return found

    def _held(self, object_id: str, org_id: str, vendor_ids: Collection[str]) -> Holding | None:
        for held in self._known.get(object_id, ()):
            if held.org_id == org_id and held.vendor_id in vendor_ids:
                return held
        return None

    async def _look(
        self,
        object_ids: list[str],
        found: dict[str, Holding],
        *,
        org_id: str,
        vendor_ids: Collection[str],
    ) -> list[str]:
        """Ask the database; add what it finds, return what is not there."""
        rows = await self._fetch(object_ids)
        told: dict[str, list[Holding]] = {}
        for row in rows:
            holding = Holding(
                vendor_id=row["vendor_id"],
                org_id=row["org_id"],
                kind=row["kind"],
                parent_id=row["parent_id"],
            )
            told.setdefault(row["object_id"], []).append(holding)
        for object_id, holdings in told.items():
            waiting = [
                held
                for held in self._known.get(object_id, ())
                if all(held.vendor_id != one.vendor_id for one in holdings)
            ]
            self._known[object_id] = (*holdings, *waiting)
        missing = []
        for object_id in object_ids:
            held = self._held(object_id, org_id, vendor_ids)
            if held is None:
                missing.append(object_id)
            else:
                found[object_id] = held
        return missing

    async def _fetch(self, object_ids: list[str]) -> list[asyncpg.Record]:
        if self._lookups_waiting >= LOOKUPS_WAITING_MAX:
            raise DatabaseAway(_AWAY)
        self._lookups_waiting += 1
        try:
            await as_a_task()
            async with asyncio.timeout(QUERY_SECONDS_MAX), self._lookups:
                rows: list[asyncpg.Record] = await self._pool.fetch(_FIND, object_ids)
                return rows
        except DATABASE_FAULTS as error:
            raise DatabaseAway(_AWAY) from error
        finally:
            self._lookups_waiting -= 1

    async def prune(self) -> int:
        """Forget what is past its retention; return how much. While the database is away, none."""
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


_AWAY: Final = "The gateway can't check now whose this object is. Try again in a moment."
