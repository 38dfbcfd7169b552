"""The feed's own connection: what it asks and tells the database, each under a deadline.

Whatever goes wrong with it, a database that does not answer in time included, is a FeedLost; the
connection is given up then and another one made.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import asyncpg

from gateway.auth.recent_changes import Change
from gateway.sql import DATABASE_FAULTS, load_queries

CHANGES_CHANNEL: Final = "kaixu_changes"
RECALL_CHANNEL: Final = "kaixu_recall"
CHANGES_A_READ: Final = 1_000
CONNECT_SECONDS_MAX: Final = 10.0

_QUERIES: Final = load_queries(__package__, "feed.sql")
_HEARTBEAT = _QUERIES["heartbeat"]
_READ_CHANGES = _QUERIES["read_changes"]
_CONFIRM = _QUERIES["confirm"]
_END_WORKER = _QUERIES["end_worker"]

# "token:0193…", "rate-address:2001:db8::/64": anyone who may connect may notify.
_RECALL: Final = re.compile(
    r"((?:(?:rate|open)-)?(?:token|user|workspace|org)(?=:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-)|"
    r"rate-address):([0-9a-zA-Z.:/%-]{1,64})"
)

Answer = TypeVar("Answer")


class FeedLost(Exception):
    """The database is away, or this connection to it. The message is for the operator's log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Who sends the heartbeats, and for how long each of them is good."""

    id: str
    machine: str
    pid: int
    lease_seconds: float
    offline_grace_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """An answered heartbeat.

    `database_time` is Unix seconds, `head_id` the id of the change at the head. `ledger_follows`:
    the ledger has the row by which it was known.
    """

    database_time: float
    head: int
    head_id: str
    is_ended: bool
    ledger_follows: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The next changes, of one snapshot of the database.

    `follows`: the change that was read last is still there, so these are what came after it.
    `last_id` is the id of the last of them, `oldest_at` the Unix second at which the first was
    committed, by the database's clock; both None where there are none.
    """

    follows: bool
    head: int
    head_id: str
    changes: list[Change]
    last_id: str | None
    oldest_at: float | None

    @property
    def is_last(self) -> bool:
        """Whether there was nothing more to read."""
        return len(self.changes) < CHANGES_A_READ


class FeedConnection:
    """A connection that listens. Ends with its `async with`, at once."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        *,
        query_seconds: float,
        on_event: Callable[[], None],
        on_recall: Callable[[str, str], None],
    ) -> None:
        """`on_event`: the change log moved, or the connection is gone.

        `on_recall(kind, subject_id)`: blocks of this subject are wanted back.
        """
        self._connect = connect
        self._query_seconds = query_seconds
        self._on_event = on_event
        self._on_recall = on_recall
        self._connection: asyncpg.Connection | None = None

    async def __aenter__(self) -> Self:
        """Connect and listen: what commits from here on is told. Raises FeedLost."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                self._connection = connection = await self._connect()
        except DATABASE_FAULTS as error:
            raise _lost(error) from error
        try:
            connection.add_termination_listener(self._on_end)
            await self._answer(connection.add_listener(CHANGES_CHANNEL, self._on_change_notified))
            await self._answer(connection.add_listener(RECALL_CHANNEL, self._on_recall_notified))
            # Ready before they are needed: the first revocation takes no round trip more.
            self._read = await self._answer(connection.prepare(_READ_CHANGES))
            self._confirm = await self._answer(connection.prepare(_CONFIRM))
        except BaseException:
            connection.terminate()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close without waiting: the database may not answer."""
        assert self._connection is not None
        self._connection.terminate()

    def check(self) -> None:
        """Raise FeedLost if the connection has ended."""
        if self._open.is_closed():
            raise FeedLost("the database closed the connection")

    async def heartbeat(
        self,
        worker: Worker,
        *,
        applied: int,
        unshipped_since: float | None,
        ledger_place: tuple[int, str] | None,
    ) -> Heartbeat:
        """Tell that the worker lives. Raises FeedLost."""
        row = await self._answer(
            self._open.fetchrow(
                _HEARTBEAT,
                worker.id,
                worker.machine,
                worker.pid,
                worker.lease_seconds,
                worker.offline_grace_seconds,
                applied,
                unshipped_since,
                *(ledger_place or (None, None)),
            )
        )
        if row is None:
            raise FeedLost("the database has no head of its change log")
        return Heartbeat(
            database_time=row["database_time"],
            head=row["head"],
            head_id=str(row["head_id"]),
            is_ended=row["is_ended"],
            ledger_follows=row["ledger_follows"],
        )

    async def read_changes(self, *, after: int, after_id: str) -> Page:
        """Return what came after this change. Raises FeedLost."""
        rows = await self._answer(self._read.fetch(after, after_id, CHANGES_A_READ))
        if not rows:
            raise FeedLost("the database has no head of its change log")
        changed = [row for row in rows if row["ordinal"] is not None]
        return Page(
            follows=rows[0]["follows"],
            head=rows[0]["head"],
            head_id=str(rows[0]["head_id"]),
            changes=[_change(row) for row in changed],
            last_id=str(changed[-1]["id"]) if changed else None,
            oldest_at=changed[0]["at"] if changed else None,
        )

    async def confirm(self, worker: Worker, cuts: Mapping[int, int]) -> None:
        """Tell that these changes hold in the worker, with the streams cut. Raises FeedLost."""
        await self._answer(self._confirm.fetch(worker.id, list(cuts), list(cuts.values())))

    async def end_worker(self, worker: Worker, *, unshipped_since: float | None) -> None:
        """Tell that the worker is no more. Raises FeedLost."""
        await self._answer(mark_ended(self._open, worker.id, unshipped_since=unshipped_since))

    @property
    def _open(self) -> asyncpg.Connection:
        assert self._connection is not None
        return self._connection

    async def _answer(self, asked: Awaitable[Answer]) -> Answer:
        try:
            async with asyncio.timeout(self._query_seconds):
                return await asked
        except DATABASE_FAULTS as error:
            raise _lost(error) from error

    # Called by asyncpg

    def _on_change_notified(self, *_: object) -> None:
        self._on_event()

    def _on_end(self, *_: object) -> None:
        self._on_event()

    def _on_recall_notified(
        self, _connection: object, _pid: int, _channel: str, text: object
    ) -> None:
        match = _RECALL.fullmatch(str(text))
        if match:
            self._on_recall(match[1], match[2])


async def mark_ended(
    connection: "asyncpg.Connection | asyncpg.Pool",
    worker_id: str,
    *,
    unshipped_since: float | None,
) -> None:
    """Tell that a worker is no more; for itself, or for whoever holds the lock of its journal.

    `unshipped_since`: when the oldest call was admitted that has no row yet; None: all have theirs.
    Raises what asyncpg raises.
    """
    await connection.execute(_END_WORKER, worker_id, unshipped_since)


def _change(row: Any) -> Change:  # noqa: ANN401 - asyncpg's rows have no types
    subject_id = row["subject_id"]
    return Change(
        ordinal=row["ordinal"],
        kind=row["kind"],
        subject_id=None if subject_id is None else str(subject_id),
        effect=row["effect"],
    )


def _lost(error: Exception) -> FeedLost:
    """Return what became of the connection, without the text of a query or an address."""
    if isinstance(error, TimeoutError):
        return FeedLost("the database did not answer in time")
    return FeedLost(f"the database is away: {type(error).__name__}")
