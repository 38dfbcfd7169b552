"""From journals to the database: every row once, in whatever order and however often it is sent.

`run` ships a living journal's rows, a moment after each call closes and in bigger batches under
load. `recover` finishes the journals of processes that are gone. Both go on until the database has
taken the rows: while it is away, the journals hold them.

A batch is one statement and its own transaction, so that a gateway that stops in the middle of it
holds no lock: the pool's `server_settings` should set `statement_timeout` (30s) and
`idle_in_transaction_session_timeout`.

A database may lose what it had committed: a standby that lagged behind takes over, or an older copy
is restored. So the ledger is known by the row that was its last one, which goes along with each
batch and each heartbeat; where it is gone, all rows that journals keep are to be shipped again.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from gateway.metering.journal import Journal
from gateway.metering.journal_recovery import Findings, Orphan
from gateway.sql import CONNECTION_FAULTS, load_queries

BATCH_ROWS_MAX: Final = 500
BATCH_BYTES_MAX: Final = 1024 * 1024
GATHER_SECONDS: Final = 0.05  # from a close to its batch: one transaction for all that close in it
BUSY_ROWS: Final = 2  # where so many came in that time, the next ones gather longer
BUSY_GATHER_SECONDS: Final = 0.2
STATEMENT_SECONDS_MAX: Final = 30.0  # for a connection and the statement
# At first only so long: a connection that fell silent looks like a slow statement, and everything
# has to settle within 30 s of the database's return. Doubled each time that it is not enough.
PATIENCE_SECONDS: Final = 5.0
RETRY_SECONDS_MIN: Final = 0.1
RETRY_SECONDS_MAX: Final = 5.0
HOUSEKEEP_SECONDS: Final = 600.0
SETTLED_BLOCKS_MAX: Final = 256  # in one statement

_QUERIES: Final = load_queries(__package__, "ledger.sql")
_APPEND = _QUERIES["append"]
_REJECT = _QUERIES["reject"]
_HOUSEKEEP = _QUERIES["housekeep"]

# The row's fault, and not the database's: data exceptions, broken constraints, JSON too deep.
_DATA_FAULTS: Final = ("22", "23", "54")

Settle = Callable[[Sequence[str], Sequence[int | None]], Awaitable[None]]


class LedgerAway(Exception):
    """The database did not take the rows, for a reason that has nothing to do with them."""


class _BadData(Exception):
    """One of the rows can't be taken."""

    def __init__(self, *, sqlstate: str, message: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Housekeeping:
    """What the database's housekeeping found: events and rows that an operator should look at."""

    partitions_made: int
    strays: int  # events that no month's partition takes: a clock is wrong
    rejected: int  # rows that were put aside


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEvents:
    """Who counts what happens; each is called on the loop and must not block."""

    on_appended: Callable[[int], None] = lambda _: None  # rows that were new
    on_rejected: Callable[[str, str], None] = lambda _, __: None  # why: SQLSTATE, message
    on_away: Callable[[str], None] = lambda _: None  # the cause of one failed attempt
    on_recovered: Callable[[str, Findings], None] = lambda _, __: None  # a worker's journal
    on_housekeeping: Callable[[Housekeeping], None] = lambda _: None
    on_lost: Callable[[], None] = lambda: None  # rows that were committed may be gone


class Ledger:
    """Appends rows to the ledger through a pool of connections."""

    def __init__(
        self,
        pool: "asyncpg.Pool[Any]",
        *,
        events: LedgerEvents | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """`sleep` waits seconds; `jitter` gives 0 to 1, so that gateways don't retry in step."""
        self._pool = pool
        self._events = events or LedgerEvents()
        self._sleep = sleep
        self._jitter = jitter
        self._patience_seconds = patience_seconds
        self._patience = patience_seconds
        self._place: tuple[int, str] | None = None

    @property
    def place(self) -> tuple[int, str] | None:
        """Ordinal and id of the last row that the ledger is known to have had, or None."""
        return self._place

    def start_over(self) -> None:
        """Take the ledger for another one, which may lack rows that were committed."""
        self._place = None
        self._events.on_lost()

    async def append(self, rows: Sequence[bytes]) -> int:
        """Append rows (JSON objects); return how many were new. A bad row is put aside.

        Raises LedgerAway; some of the rows may be in the ledger then, and can be sent again.
        """
        if not rows:
            return 0
        try:
            inserted = await self._append_all(rows)
        except _BadData as error:
            if len(rows) == 1:
                await self._reject(rows[0], error)
                return 0
            middle = len(rows) // 2
            return await self.append(rows[:middle]) + await self.append(rows[middle:])
        self._events.on_appended(inserted)
        return inserted

    async def run(self, journal: Journal) -> None:
        """Ship a journal's rows for ever; while the database is away, try again and again."""
        is_busy = False
        while True:
            await journal.closed.wait()
            await self._sleep(BUSY_GATHER_SECONDS if is_busy else GATHER_SECONDS)
            journal.closed.clear()
            is_busy = await self._insist(lambda: self.ship(journal)) >= BUSY_ROWS

    async def ship(self, journal: Journal) -> int:
        """Ship what a journal has to ship now; return how many rows that were.

        Raises LedgerAway. Not beside `run`.
        """
        shipped = 0
        more = True
        while more:
            batch = journal.read_unshipped(rows_max=BATCH_ROWS_MAX, bytes_max=BATCH_BYTES_MAX)
            if not batch.rows:
                break
            await self.append(batch.rows)
            journal.shipped(batch)
            shipped += len(batch.rows)
            more = batch.more
        return shipped

    async def recover(
        self,
        orphans: Iterable[Orphan],
        *,
        settle: Settle,
        end_worker: Callable[[str], Awaitable[None]],
        keep_in: Journal | None = None,
    ) -> int:
        """Finish abandoned journals; return how many. Begins anew where a crash ended it.

        For each: its rows go to the ledger, its blocks back by `settle` (ids, and the units used
        of each, None: all), its worker ends by `end_worker`, its files to `keep_in` or away. What
        these raise ends the recovery, as does LedgerAway; the journal is then given up for anyone
        to take. So is one that can't be read or removed, after which the others have their turn and
        its OSError is raised.
        """
        recovered = 0
        unreadable: OSError | None = None
        for orphan in orphans:
            try:
                findings = await asyncio.to_thread(orphan.read)
                batches = orphan.batches(rows_max=BATCH_ROWS_MAX, bytes_max=BATCH_BYTES_MAX)
                while batch := await asyncio.to_thread(next, batches, None):
                    await self.append(batch)
                for start in range(0, len(findings.interrupted), BATCH_ROWS_MAX):
                    await self.append(findings.interrupted[start : start + BATCH_ROWS_MAX])
                blocks = list(findings.used)
                for start in range(0, len(blocks), SETTLED_BLOCKS_MAX):
                    ids = blocks[start : start + SETTLED_BLOCKS_MAX]
                    await settle(ids, [findings.used[block_id] for block_id in ids])
                await end_worker(orphan.worker_id)
            except BaseException as error:
                orphan.release()
                if not isinstance(error, OSError):
                    raise
                unreadable = error
                continue
            try:
                kept = await asyncio.to_thread(
                    orphan.discard,
                    keep_in=None if keep_in is None else keep_in.folder,
                    keep_rows=findings.interrupted,
                )
            except OSError as error:
                unreadable = error
                continue
            if keep_in is not None:
                keep_in.keep(kept)
            recovered += 1
            self._events.on_recovered(orphan.worker_id, findings)
        if unreadable is not None:
            raise unreadable
        return recovered

    async def housekeep(self) -> Housekeeping | None:
        """Do the database's housekeeping, or return None: someone is at it. Raises LedgerAway."""
        found = await self._fetch_one(_HOUSEKEEP)
        if found["partitions_made"] is None:
            return None
        return Housekeeping(
            partitions_made=found["partitions_made"],
            strays=found["strays"],
            rejected=found["rejected"],
        )

    async def run_housekeeping(self) -> None:
        """Do the housekeeping now and then, for ever; while the database is away, later."""
        while True:
            try:
                found = await self.housekeep()
            except (LedgerAway, _BadData) as error:
                self._events.on_away(str(error))
            else:
                if found is not None:
                    self._events.on_housekeeping(found)
            await self._sleep(HOUSEKEEP_SECONDS * (0.5 + self._jitter()))

    async def _insist(self, act: Callable[[], Awaitable[int]]) -> int:
        """Do it until the database takes it."""
        wait = RETRY_SECONDS_MIN
        while True:
            try:
                return await act()
            except LedgerAway as error:
                self._events.on_away(str(error))
            await self._sleep(wait * (0.5 + self._jitter() / 2))
            wait = min(wait * 2, RETRY_SECONDS_MAX)

    async def _append_all(self, rows: Sequence[bytes]) -> int:
        """Append rows, all or none. Raises LedgerAway and _BadData."""
        try:
            text = (b"[" + b",".join(rows) + b"]").decode()
        except UnicodeDecodeError as error:
            raise _BadData(sqlstate="22021", message=str(error)) from error
        appended = await self._fetch_one(_APPEND, text, *(self._place or (None, None)))
        if not appended["follows"]:
            self.start_over()
        # Two may append at once, and the one that committed first hear of it last.
        last: int = appended["last_ordinal"]
        if appended["last_id"] is not None and (self._place is None or last > self._place[0]):
            self._place = last, appended["last_id"]
        inserted: int = appended["inserted"]
        return inserted

    async def _reject(self, row: bytes, error: _BadData) -> None:
        """Put a row aside. Raises LedgerAway."""
        text = row.decode(errors="backslashreplace").replace("\0", "\\0")
        try:
            await self._fetch_one(_REJECT, text, error.sqlstate, error.message)
        except _BadData as again:
            raise LedgerAway("a row could not even be put aside") from again
        self._events.on_rejected(error.sqlstate, error.message)

    async def _fetch_one(self, query: str, *arguments: str | int | None) -> asyncpg.Record:
        try:
            # The pool's own deadline also ends its wait for the cancelling of a late statement.
            seconds = self._patience
            async with asyncio.timeout(seconds), self._pool.acquire(timeout=seconds) as connection:
                row: asyncpg.Record | None = await connection.fetchrow(query, *arguments)
            self._patience = self._patience_seconds
        except asyncpg.PostgresError as error:
            sqlstate = error.sqlstate or ""
            # The driver calls it a fault of the data too where there is no memory to encode it.
            is_short_of_memory = isinstance(error.__cause__, MemoryError)
            if sqlstate.startswith(_DATA_FAULTS) and not is_short_of_memory:
                raise _BadData(sqlstate=sqlstate, message=str(error)) from error
            raise LedgerAway(f"{sqlstate} {error}") from error
        except CONNECTION_FAULTS as error:
            if isinstance(error, TimeoutError):
                self._patience = min(2 * self._patience, STATEMENT_SECONDS_MAX)
                await self._pool.expire_connections()  # if one fell silent, so did the others
            raise LedgerAway(f"{type(error).__name__} {error}") from error
        assert row is not None, "each of the queries gives one row"
        return row
