import re
from importlib import resources
from pathlib import Path

import asyncpg
import pytest

from control_plane.migrate import load_migrations
from gateway.schema import NEEDED, SchemaTooOld, check_schema
from tests.conftest import Database


def test_what_is_needed_is_the_newest_file_that_gives_the_gateway_something() -> None:
    given = [one.number for one in load_migrations() if re.search(r"\bkaixu_gateway\b", one.source)]
    assert max(given) == NEEDED, "gateway/schema.py has to name this file: gateways use it"


async def test_a_migrated_database_will_do(database: Database) -> None:
    connection = await asyncpg.connect(database.gateway_url)
    await check_schema(connection)
    await connection.close()


@pytest.mark.parametrize(
    "older",
    [
        f"DELETE FROM schema_migrations WHERE number >= {NEEDED}",  # noqa: S608 - our number
        "REVOKE SELECT ON schema_migrations FROM kaixu_gateway",
        "DROP TABLE schema_migrations",
    ],
)
async def test_an_older_schema_is_told_apart(
    database: Database, owner: asyncpg.Connection, older: str
) -> None:
    await owner.execute(older)
    connection = await asyncpg.connect(database.gateway_url)
    with pytest.raises(SchemaTooOld, match="kaixu migrate"):
        await check_schema(connection)
    await connection.close()


def test_the_gateway_has_no_migrations() -> None:
    what = r"(TABLE|INDEX|FUNCTION|TYPE|ROLE)"
    statement = re.compile(rf"\b(CREATE|ALTER|DROP)\s+{what}\b", re.IGNORECASE)
    for file in Path(str(resources.files("gateway"))).rglob("*.sql"):
        assert not statement.search(file.read_text()), file
