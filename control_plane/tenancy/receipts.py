"""Receipts: which workers hold a change, and when the others stop by themselves.

A change is one transaction. Its commit wakes every worker; each applies it, cuts the streams that
it ends, and confirms. A receipt says which workers have confirmed within a bounded wait; of the
others it says when they admit no more and when their streams end.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg
import msgspec

from control_plane.web.database import ControlDatabase
from gateway.sql import load_queries

CONFIRMATION_SECONDS_MAX: Final = 2.0  # that a change waits for its workers
POLL_SECONDS: Final = 0.005
POLL_SECONDS_MAX: Final = 0.05
LEASE_DEFAULT: Final = timedelta(seconds=15)  # of workers that the database may not know

_QUERIES: Final = load_queries(__package__, "receipts.sql")
_LAST_CHANGE = _QUERIES["last_change"]
_WORKERS = _QUERIES["workers"]
_STARTED_WITHIN_A_LEASE = _QUERIES["started_within_a_lease"]


# A connection of the caller's own; or the pool, of which one is taken for each look: requests that
# wait for a worker keep no connection from others.
Database = asyncpg.Connection | ControlDatabase


class ReceiptWorker(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker said of a change; who has not yet: when it stops by itself.

    `state`: confirmed, pending or unknown.
    """

    worker_id: str
    machine: str
    state: str
    confirmed_at: datetime | None
    streams_cut: int | None
    admission_stops_at: datetime | None
    streams_stop_at: datetime | None


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """How far a change is known; `complete`: every worker that lives holds it.

    `ordinal` null: the log was pruned since, or no worker had to hear of it.
    """

    ordinal: int | None
    committed_at: datetime
    complete: bool
    took_ms: float
    streams_cut: int
    workers: list[ReceiptWorker]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A place in the change log; without an `ordinal` it was pruned since."""

    ordinal: int | None
    committed_at: datetime


async def change_of(database: Database, xact: str) -> Change:
    """Return the last change that a committed transaction logged.

    `xact` is its `pg_current_xact_id()` as text. It has to have logged one.
    """
    async with _looking(database) as connection:
        row = await connection.fetchrow(_LAST_CHANGE, xact)
    assert row is not None, "this transaction changed nothing that a worker would hear of"
    return Change(ordinal=row["ordinal"], committed_at=row["at"])


async def wait_for_receipt(
    database: Database,
    change: Change,
    *,
    is_embedded: bool,
    began: float,
    wait_seconds: float = CONFIRMATION_SECONDS_MAX,
) -> dict[str, Any]:
    """Return the receipt of a change, once all live workers confirmed it or the wait is over.

    `is_embedded`: the database is this machine's own, so that it knows every worker there is.
    `began`: when the change was asked for, by `time.monotonic`.
    """
    workers = await _wait_for_workers(
        database, change.ordinal, change.committed_at, deadline=began + wait_seconds
    )
    complete = all(worker["state"] == "confirmed" for worker in workers)
    if complete and not is_embedded:
        async with _looking(database) as connection:
            complete = not await connection.fetchval(_STARTED_WITHIN_A_LEASE, LEASE_DEFAULT)
    return {
        "ordinal": change.ordinal,
        "committed_at": change.committed_at,
        "complete": complete,
        "took_ms": round((time.monotonic() - began) * 1000, 1),
        "streams_cut": sum(worker["streams_cut"] or 0 for worker in workers),
        "workers": workers,
    }


async def receipt_of(
    database: ControlDatabase, xact: str | None, *, is_embedded: bool, began: float
) -> Receipt | None:
    """Return the receipt of a transaction that has committed; None: no worker heard of it."""
    if xact is None:
        return None
    change = await change_of(database, xact)
    receipt = await wait_for_receipt(database, change, is_embedded=is_embedded, began=began)
    return msgspec.convert(receipt, Receipt)


def _looking(database: Database) -> contextlib.AbstractAsyncContextManager[asyncpg.Connection]:
    """Return a connection to look with."""
    if isinstance(database, ControlDatabase):
        return database.connection()
    return contextlib.nullcontext(database)


async def _wait_for_workers(
    database: Database,
    ordinal: int | None,
    committed_at: datetime,
    *,
    deadline: float,
) -> list[dict[str, Any]]:
    """Return every worker's part of the receipt, once all live ones confirmed or at the deadline.

    A change that the log has no more was applied by everyone long ago.
    """
    pause = POLL_SECONDS
    while True:
        async with _looking(database) as connection:
            rows = await connection.fetch(_WORKERS, ordinal or 0, committed_at)
        is_late = time.monotonic() + pause > deadline
        workers = [_worker(row, trust_applied=is_late or ordinal is None) for row in rows]
        if is_late or not any(worker["state"] == "pending" for worker in workers):
            return workers
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, POLL_SECONDS_MAX)


def _worker(row: asyncpg.Record, *, trust_applied: bool) -> dict[str, Any]:
    """Return a worker's part of the receipt.

    A worker confirms every change that it hears of. One that began later, or had to start over,
    holds the change without having heard of it: its heartbeats say up to where it has read.
    """
    confirmed_at = row["confirmed_at"]
    if confirmed_at is None and row["has_applied"] and (row["began_later"] or trust_applied):
        confirmed_at = row["heartbeat_at"]
    is_confirmed = confirmed_at is not None
    return {
        "worker_id": row["worker_id"],
        "machine": row["machine"],
        "state": "confirmed" if is_confirmed else "pending" if row["is_live"] else "unknown",
        "confirmed_at": confirmed_at,
        "streams_cut": (row["streams_cut"] or 0) if is_confirmed else None,
        "admission_stops_at": None if is_confirmed else row["admission_stops_at"],
        "streams_stop_at": None if is_confirmed else row["streams_stop_at"],
    }
