"""Bringing a database up to the schema: the numbered files of `schema/`, each once, in order.

One migrator works at a time (an advisory lock). Each file runs in a transaction of its own, which
also records its name and checksum. A file that has run is never edited: a checksum that differs is
refused, and so is a database that has run files which this release does not have.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final

import asyncpg

from control_plane.errors import DatabaseUnreachable, Refused
from gateway.sql import load_queries

SERVER_VERSION_MIN: Final = 150_000
LOCK_KEY: Final = 0x6B61_6978_7501  # "kaixu", 1

_FILE_NAME: Final = re.compile(r"(?P<number>[0-9]{4})_[a-z0-9_]+\.sql")
_QUERIES: Final = load_queries(__package__, "migrate.sql")
_LOCK = _QUERIES["lock"]
_UNLOCK = _QUERIES["unlock"]
_CREATE_TABLE = _QUERIES["create_table"]
_APPLIED = _QUERIES["applied"]
_RECORD = _QUERIES["record"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One file of the schema."""

    number: int
    name: str
    source: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file, in hex."""
        return hashlib.sha256(self.source.encode()).hexdigest()


def load_migrations() -> list[Migration]:
    """Return the schema's files in order; no two have the same number."""
    migrations = []
    for file in resources.files(__package__).joinpath("schema").iterdir():
        if match := _FILE_NAME.fullmatch(file.name):
            source = file.read_text(encoding="utf-8")
            number = int(match["number"])
            migrations.append(Migration(number=number, name=file.name, source=source))
    migrations.sort(key=lambda migration: migration.number)
    numbers = [migration.number for migration in migrations]
    assert len(set(numbers)) == len(numbers), f"schema files are numbered {numbers}"
    return migrations


async def migrate(
    connection: asyncpg.Connection, migrations: Sequence[Migration] | None = None
) -> list[str]:
    """Run what the database has not run yet; return the names of those files.

    Raises Refused for a database that is too old, newer than this release, or was made from other
    files, and where a file fails; DatabaseUnreachable where the database goes away meanwhile.
    """
    wanted = load_migrations() if migrations is None else migrations
    version = connection.get_server_version()
    if version.major * 10_000 < SERVER_VERSION_MIN:
        raise Refused(f"PostgreSQL 15 or newer is needed, this server is {version.major}.")
    await connection.execute(_LOCK, LOCK_KEY)
    try:
        await connection.execute(_CREATE_TABLE)
        applied = {row["number"]: row for row in await connection.fetch(_APPLIED)}
        _check(applied, wanted)
        missing = [migration for migration in wanted if migration.number not in applied]
        for migration in missing:
            await _apply(connection, migration)
    finally:
        if not connection.is_closed():
            await connection.execute(_UNLOCK, LOCK_KEY)
    return [migration.name for migration in missing]


def _check(applied: dict[int, asyncpg.Record], wanted: Sequence[Migration]) -> None:
    known = {migration.number: migration for migration in wanted}
    for number, row in sorted(applied.items()):
        if number not in known:
            raise Refused(
                f"This database is newer than this release: it has {row['name']}. "
                "Run the release that migrated it, or a later one.",
                code="database_newer",
            )
        if row["checksum"] != known[number].checksum:
            raise Refused(
                f"This database was made from another {known[number].name} than this release's.",
                code="schema_differs",
            )


async def check_migrated(connection: asyncpg.Connection) -> None:
    """Raise Refused unless the database has exactly this release's schema."""
    try:
        applied = {row["number"]: row for row in await connection.fetch(_APPLIED)}
    except asyncpg.UndefinedTableError:
        applied = {}
    wanted = load_migrations()
    _check(applied, wanted)
    if len(applied) < len(wanted):
        raise Refused(
            "This database does not have this release's schema yet: run `kaixu migrate`.",
            code="not_migrated",
        )


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    try:
        async with connection.transaction():
            await connection.execute(migration.source)
            await connection.execute(_RECORD, migration.number, migration.name, migration.checksum)
    except (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError) as error:
        raise DatabaseUnreachable(f"The database went away in {migration.name}: {error}") from error
    except asyncpg.PostgresError as error:
        raise Refused(f"{migration.name} fails: {error}", code="migration") from error
