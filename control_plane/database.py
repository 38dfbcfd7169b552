"""The owner's connection to the database: the operator's own server, or the data folder's."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncpg

from control_plane.errors import BadArgument, DatabaseUnreachable
from control_plane.migrate import check_migrated
from control_plane.postgres import EmbeddedPostgres, wheel_binaries

CONNECT_SECONDS_MAX: Final = 10.0
URL_SETTING: Final = "KAIXU_DATABASE_URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabasePlace:
    """Where the database is: at `url`, or (None) embedded in the data folder."""

    data_dir: Path
    url: str | None = field(repr=False)

    @property
    def is_embedded(self) -> bool:
        """Whether the data folder has the server."""
        return self.url is None


@contextlib.asynccontextmanager
async def open_database(
    place: DatabasePlace, *, migrated: bool = True
) -> AsyncIterator[asyncpg.Connection]:
    """Connect as the owner, for one command.

    An embedded server that is not running is started for as long as the command takes. `migrated`:
    the database must have this release's schema. Raises DatabaseUnreachable, BadArgument, Refused.
    """
    if place.url is not None:
        async with connected(place.url, migrated=migrated) as connection:
            yield connection
        return
    postgres = EmbeddedPostgres(place.data_dir, binaries=wheel_binaries())
    if migrated and not postgres.exists:
        raise DatabaseUnreachable(
            f"There is no database in {place.data_dir}: `kaixu up` or `kaixu migrate` makes one.",
            field="data",
        )
    url = await asyncio.to_thread(postgres.start)
    try:
        async with connected(url, migrated=migrated) as connection:
            yield connection
    finally:
        await asyncio.to_thread(postgres.stop)


@contextlib.asynccontextmanager
async def connected(url: str, *, migrated: bool) -> AsyncIterator[asyncpg.Connection]:
    """Connect to a URL; what goes wrong with the connection is a DatabaseUnreachable."""
    with translated():
        connection = await connect(url)
        try:
            if migrated:
                await check_migrated(connection)
            yield connection
        finally:
            with contextlib.suppress(OSError, TimeoutError, asyncpg.InterfaceError):
                await connection.close(timeout=CONNECT_SECONDS_MAX)


async def connect(url: str) -> asyncpg.Connection:
    """Return a connection to a URL, which no message quotes: it has a password."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise BadArgument("The database's URL begins with postgresql://.", field=URL_SETTING)
    try:
        return await asyncpg.connect(
            url,
            timeout=CONNECT_SECONDS_MAX,
            server_settings={"application_name": "kaixu", "timezone": "UTC"},
        )
    except (ValueError, asyncpg.ClientConfigurationError) as error:
        raise BadArgument(
            "The database's URL can't be read: write it as postgresql://user:password@host/name.",
            field=URL_SETTING,
        ) from error


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn what asyncpg and the network raise about a connection into DatabaseUnreachable."""
    try:
        yield
    except OSError as error:  # TimeoutError is one
        raise DatabaseUnreachable(f"The database can't be reached: {error}") from error
    except (
        asyncpg.PostgresConnectionError,
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.InsufficientPrivilegeError,
        asyncpg.OperatorInterventionError,
        asyncpg.InsufficientResourcesError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
    ) as error:
        raise DatabaseUnreachable(f"The database refuses: {error}") from error
