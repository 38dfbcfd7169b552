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
    "refusals", "throttle", "idempotency_keys", "sessions", "mailed_links", "audit_log",
)  # fmt: skip

_QUERIES: Final = load_queries(__package__, "sweeper.sql")


async def sweep(database: ControlDatabase) -> dict[str, int] | None:
    """Forget some of what is old; return how many rows of what, None while another node is at it.

    Raises DatabaseUnreachable.
    """
    gone: dict[str, int] = {}
    async with database.transaction() as connection:
        if not await connection.fetchval(_QUERIES["lock"]):
            return None
        for part in PARTS:
            gone[part] = await connection.fetchval(_QUERIES[part])
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
