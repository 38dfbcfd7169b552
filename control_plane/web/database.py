"""The control plane's connections, each transaction of which belongs to one org and one account.

Row-level policies read both, so that a query without a WHERE finds nothing of anyone else.
"""

import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Final, cast

import asyncpg

from control_plane.database import connect_arguments, translated
from control_plane.errors import DatabaseUnreachable
from gateway.sql import load_queries

POOL_CONNECTIONS_MAX: Final = 10
ASIDE_CONNECTIONS_MAX: Final = 2  # for looking something up while a transaction is open
ACQUIRE_SECONDS_MAX: Final = 2.0
STATEMENT_MILLISECONDS_MAX: Final = 2_000
IDLE_TRANSACTION_MILLISECONDS_MAX: Final = 5_000

_QUERIES: Final = load_queries(__package__, "database.sql")
_BELONG = _QUERIES["belong"]


class ControlDatabase:
    """The pool, and a small one beside it.

    Who holds a connection of the pool never waits for another one of it: where all did, none would
    come free. It takes one from beside, which nobody keeps.
    """

    def __init__(self, pool: asyncpg.Pool, aside: asyncpg.Pool) -> None:
        """`pool` and `aside` are the control plane's own, under its own role."""
        self.pool = pool
        self._aside = aside

    @contextlib.asynccontextmanager
    async def transaction(
        self, *, org_id: uuid.UUID | None = None, account_id: uuid.UUID | None = None
    ) -> AsyncIterator[asyncpg.Connection]:
        """Open a transaction in which rows of this org, and of this account, are to be seen.

        Raises DatabaseUnreachable, also where every connection is in use for too long.
        """
        async with self.connection() as connection, connection.transaction():
            await belong(connection, org_id=org_id, account_id=account_id)
            yield connection

    @contextlib.asynccontextmanager
    async def transaction_aside(
        self, *, org_id: uuid.UUID | None, account_id: uuid.UUID | None
    ) -> AsyncIterator[asyncpg.Connection]:
        """Open a transaction as `transaction` does, while another one is open, to read with it.

        Raises DatabaseUnreachable.
        """
        async with _taken(self._aside) as connection, connection.transaction(readonly=True):
            await belong(connection, org_id=org_id, account_id=account_id)
            yield connection

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Take a connection that belongs to nobody. Raises DatabaseUnreachable."""
        async with _taken(self.pool) as connection:
            yield connection


@contextlib.asynccontextmanager
async def _taken(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    with translated():
        try:
            proxy = await pool.acquire(timeout=ACQUIRE_SECONDS_MAX)
        except TimeoutError as error:
            raise DatabaseUnreachable("All connections are in use.") from error
        except asyncpg.PostgresError as error:  # there is none, whatever it gives as a reason
            raise DatabaseUnreachable(f"The database lets nobody in: {error}") from error
    try:
        # The pool's proxy does all that a connection does.
        connection = cast("asyncpg.Connection", proxy)
        with translated(connection):
            yield connection
    finally:
        await pool.release(proxy)


async def belong(
    connection: asyncpg.Connection, *, org_id: uuid.UUID | None, account_id: uuid.UUID | None
) -> None:
    """Have the rest of a transaction see the rows of this org, and of this account."""
    assert connection.is_in_transaction(), "nobody else's is the connection afterwards"
    await connection.execute(
        _BELONG,
        "" if org_id is None else str(org_id),
        "" if account_id is None else str(account_id),
    )


@contextlib.asynccontextmanager
async def open_control_database(url: str) -> AsyncIterator[ControlDatabase]:
    """Connect the pool to a URL. Raises DatabaseUnreachable, BadArgument."""
    arguments = connect_arguments(url, application_name="kaixu-control")
    arguments["server_settings"] |= {
        "statement_timeout": str(STATEMENT_MILLISECONDS_MAX),
        "idle_in_transaction_session_timeout": str(IDLE_TRANSACTION_MILLISECONDS_MAX),
    }
    with translated():
        pool = await asyncpg.create_pool(min_size=1, max_size=POOL_CONNECTIONS_MAX, **arguments)
        aside = await asyncpg.create_pool(min_size=0, max_size=ASIDE_CONNECTIONS_MAX, **arguments)
    try:
        yield ControlDatabase(pool, aside)
    finally:
        aside.terminate()
        pool.terminate()
