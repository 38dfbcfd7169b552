"""Forgets what is old, some at a time, on one node at a time."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import asyncpg

from control_plane.errors import DatabaseUnreachable
from control_plane.web.database import ControlDatabase
from gateway.log import Log, told
from gateway.sql import load_queries

PAUSE_SECONDS: Final = 60.0
ROUNDS_MAX: Final = 100  # without a pause; each forgets 10,000 rows of a table at most
PARTS: Final = (
    "refusals", "throttle", "idempotency_keys", "sessions", "mailed_links", "signups", "audit_log",
)  # fmt: skip

_QUERIES: Final = load_queries(__package__, "sweeper.sql")


async def sweep(database: ControlDatabase) -> dict[str, int] | None:
    """Forget some of what is old; return how many rows of what, None while another node is at it.

    What one part can't forget, in the time that a statement has, keeps no other from it. Raises the
    first failure, DatabaseUnreachable or PostgresError, after the last part.
    """
    gone: dict[str, int] = {}
    failures: list[Exception] = []
    for part in PARTS:
        try:
            async with database.transaction() as connection:
                if not await connection.fetchval(_QUERIES["lock"]):
                    return None
                gone[part] = await connection.fetchval(_QUERIES[part])
        except (DatabaseUnreachable, asyncpg.PostgresError) as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return gone


async def sweep_for_ever(
    database: ControlDatabase,
    log: Log,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    jitter: Callable[[], float] = random.random,
) -> None:
    """Sweep now and then; nodes that start together don't do it together."""
    while True:
        await sleep(PAUSE_SECONDS * (0.5 + jitter()))
        try:
            for _ in range(ROUNDS_MAX):
                gone = await sweep(database)
                if not gone or not any(gone.values()):
                    break
        except (DatabaseUnreachable, asyncpg.PostgresError) as error:
            log.warning("not swept", error=told(error))


@contextlib.asynccontextmanager
async def sweeping(database: ControlDatabase, log: Log) -> AsyncIterator[None]:
    """Sweep in the background for as long as the context lasts."""
    async with asyncio.TaskGroup() as tasks:
        sweeper = tasks.create_task(sweep_for_ever(database, log))
        try:
            yield
        finally:
            sweeper.cancel()
