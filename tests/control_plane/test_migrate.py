import asyncio
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest

from control_plane.errors import Refused
from control_plane.migrate import Migration, check_migrated, load_migrations, migrate
from tests.conftest import Database, Server

ONE = Migration(number=1, name="0001_one.sql", source="CREATE TABLE one (id int);")
TWO = Migration(number=2, name="0002_two.sql", source="CREATE TABLE two (id int);")
BAD = Migration(number=2, name="0002_bad.sql", source="CREATE TABLE bad (id int); SELECT 1/0;")


@pytest.fixture
async def empty(postgres_server: Server) -> AsyncIterator[Database]:
    name = f"empty_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(postgres_server.owner_url)
    await connection.execute(f"CREATE DATABASE {name}")
    try:
        yield Database(server=postgres_server, name=name)
    finally:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.close()


@pytest.fixture
async def connection(empty: Database) -> AsyncIterator[asyncpg.Connection]:
    opened = await asyncpg.connect(empty.owner_url)
    yield opened
    await opened.close()


async def test_each_file_runs_once_in_order(connection: asyncpg.Connection) -> None:
    assert await migrate(connection, [ONE]) == ["0001_one.sql"]
    assert await migrate(connection, [ONE, TWO]) == ["0002_two.sql"]
    assert await migrate(connection, [ONE, TWO]) == []


async def test_two_migrators_at_once_do_the_work_of_one(empty: Database) -> None:
    both = [await asyncpg.connect(empty.owner_url) for _ in range(2)]
    done = await asyncio.gather(*(migrate(one) for one in both))
    assert sorted(map(len, done)) == [0, len(load_migrations())]
    for one in both:
        await check_migrated(one)
        await one.close()


async def test_a_database_newer_than_the_release_is_refused(
    connection: asyncpg.Connection,
) -> None:
    await migrate(connection, [ONE, TWO])
    with pytest.raises(Refused, match="newer") as refused:
        await migrate(connection, [ONE])
    assert refused.value.code == "database_newer"


async def test_a_file_that_was_edited_after_it_ran_is_refused(
    connection: asyncpg.Connection,
) -> None:
    await migrate(connection, [ONE])
    edited = Migration(number=1, name="0001_one.sql", source="CREATE TABLE one (id bigint);")
    with pytest.raises(Refused, match="another 0001_one"):
        await migrate(connection, [edited])


async def test_a_file_that_fails_leaves_nothing_behind(connection: asyncpg.Connection) -> None:
    with pytest.raises(Refused, match="0002_bad") as refused:
        await migrate(connection, [ONE, BAD])
    assert refused.value.code == "migration"
    assert await connection.fetchval("SELECT to_regclass('bad')") is None
    assert await migrate(connection, [ONE, TWO]) == ["0002_two.sql"]


async def test_a_database_that_was_not_migrated_is_told_apart(
    connection: asyncpg.Connection,
) -> None:
    with pytest.raises(Refused, match="kaixu migrate"):
        await check_migrated(connection)
