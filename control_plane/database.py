"""The owner's connection to the database: the operator's own server, or the data folder's."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg

from control_plane.errors import BadArgument, DatabaseUnreachable
from control_plane.migrate import check_migrated
from control_plane.postgres import EmbeddedPostgres, wheel_binaries

CONNECT_SECONDS_MAX: Final = 10.0
COMMAND_SECONDS_MAX: Final = 30.0  # for each statement, its waits for locks included
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
    async with running(place, migrated=migrated) as url, connected(url, migrated=migrated) as owner:
        yield owner


@contextlib.asynccontextmanager
async def running(place: DatabasePlace, *, migrated: bool = True) -> AsyncIterator[str]:
    """Give the owner's URL of a database that runs, as `open_database` does.

    Raises DatabaseUnreachable.
    """
    if place.url is not None:
        yield place.url
        return
    postgres = EmbeddedPostgres(place.data_dir, binaries=wheel_binaries())
    if migrated and not postgres.exists:
        raise DatabaseUnreachable(
            f"There is no database in {place.data_dir}: `kaixu up` or `kaixu migrate` makes one.",
            field="data",
        )
    url = await asyncio.to_thread(postgres.start)
    try:
        yield url
    finally:
        await asyncio.to_thread(postgres.stop)


@contextlib.asynccontextmanager
async def connected(url: str, *, migrated: bool) -> AsyncIterator[asyncpg.Connection]:
    """Connect to a URL; what goes wrong with the connection is a DatabaseUnreachable.

    `migrated`: the database must have this release's schema. Only where it may have yet to be made
    may a statement take as long as it takes.
    """
    with translated():
        connection = await connect(url, command_seconds=COMMAND_SECONDS_MAX if migrated else None)
    try:
        with translated(connection):
            if migrated:
                await check_migrated(connection)
            yield connection
    finally:
        with contextlib.suppress(OSError, TimeoutError, asyncpg.InterfaceError):
            await connection.close(timeout=CONNECT_SECONDS_MAX)


def connect_arguments(
    url: str, *, application_name: str, setting: str = URL_SETTING
) -> dict[str, Any]:
    """Return what asyncpg connects with. Raises BadArgument, which never quotes the URL."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise BadArgument("The database's URL begins with postgresql://.", field=setting)
    return {
        "dsn": url,
        "timeout": CONNECT_SECONDS_MAX,
        "server_settings": {"application_name": application_name, "timezone": "UTC"},
    }


async def connect(url: str, *, command_seconds: float | None = None) -> asyncpg.Connection:
    """Return a connection to a URL, which no message quotes: it has a password."""
    arguments = connect_arguments(url, application_name="kaixu")
    try:
        return await asyncpg.connect(command_timeout=command_seconds, **arguments)
    except (ValueError, OverflowError, asyncpg.ClientConfigurationError) as error:
        raise BadArgument(
            "The database's URL can't be read: write it as postgresql://user:password@host/name.",
            field=URL_SETTING,
        ) from error


@contextlib.contextmanager
def translated(connection: asyncpg.Connection | None = None) -> Iterator[None]:
    """Turn what asyncpg and the network raise about a connection into DatabaseUnreachable.

    `connection`: the one that is open. As long as it is, other errors of the system are not its.
    """
    try:
        yield
    except TimeoutError as error:
        told = "" if connection is None else " What was asked for may have been done, or not."
        raise DatabaseUnreachable(f"The database did not answer in time.{told}") from error
    except OSError as error:
        if connection is not None and not connection.is_closed():
            raise
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
