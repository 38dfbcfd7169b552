import asyncio
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import asyncpg
import pytest
from hypothesis import HealthCheck, settings

from control_plane.migrate import migrate
from control_plane.postgres import MAJOR_VERSION, EmbeddedPostgres, wheel_binaries
from gateway.auth.token import digest, generate, hint

# A machine that is busy, or that builds its tables of characters for the first time, is no failure.
settings.register_profile(
    "kaixu", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("kaixu")

POSTGRES_15: Final = Path("/usr/lib/postgresql/15/bin")
TEMPLATE: Final = "kaixu_template"
MEMORY_BYTES_MIN: Final = 2 * 1024**3  # containers have 64 MiB there
GATEWAY_ROLE: Final = "kaixu_gateway_test"
GATEWAY_PASSWORD: Final = "gateway-of-the-tests"


def required(name: str) -> bool:
    """Whether KAIXU_REQUIRE turns "skipped, not installed" into a failure for this one."""
    return name in os.environ.get("KAIXU_REQUIRE", "").split(",")


# What is asked over HTTP asks the same of every PostgreSQL. The schema, and every query of the
# control plane (test_query_mutations.py runs each), are tried on the oldest one as well.
ONE_POSTGRES: Final = ("control_plane", "corpus")
EVERY_POSTGRES: Final = (
    "control_plane/billing",
    "control_plane/schema",
    "control_plane/test_migrate.py",
    "control_plane/test_query_mutations.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave what one PostgreSQL is enough for to the slow tests, on the other one.

    No slow test has a deadline (`timeout` in pyproject.toml).
    """
    folder = Path(__file__).parent
    for item in items:
        where = item.path.relative_to(folder).as_posix()
        is_enough = where.startswith(ONE_POSTGRES) and not where.startswith(EVERY_POSTGRES)
        if is_enough and "pg15" in re.split(r"[\[\]-]", item.name):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A PostgreSQL with a migrated template database."""

    major_version: int
    owner_url: str  # of the owner's own database

    def url(self, database: str, *, user: str | None = None, password: str = "") -> str:
        base = self.owner_url.rpartition("/")[0]
        if user is not None:
            base = f"postgresql://{user}:{password}@{base.rpartition('@')[2]}"
        return f"{base}/{database}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A fresh migrated database: `owner_url` may do all, `gateway_url` what the gateway may."""

    server: Server
    name: str

    @property
    def owner_url(self) -> str:
        return self.server.url(self.name)

    @property
    def gateway_url(self) -> str:
        return self.server.url(self.name, user=GATEWAY_ROLE, password=GATEWAY_PASSWORD)


async def prepare(server: Server) -> None:
    connection = await asyncpg.connect(server.owner_url)
    await connection.execute(f"CREATE DATABASE {TEMPLATE}")
    template = await asyncpg.connect(server.url(TEMPLATE))
    await migrate(template)
    await template.close()
    await connection.execute(
        f"CREATE ROLE {GATEWAY_ROLE} LOGIN PASSWORD '{GATEWAY_PASSWORD}' IN ROLE kaixu_gateway"
    )
    await connection.close()


def _memory() -> Path | None:
    """Return a folder in memory, which makes a new database in a tenth of the time, if there is."""
    folder = Path("/dev/shm")  # noqa: S108 - mkdtemp makes the folder in it
    has_room = folder.is_dir() and shutil.disk_usage(folder).free >= MEMORY_BYTES_MIN
    return folder if has_room and os.access(folder, os.W_OK) else None


@pytest.fixture(scope="session", params=[MAJOR_VERSION, 15], ids=lambda version: f"pg{version}")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    version: int = request.param
    if version == 15 and not POSTGRES_15.exists():
        reason = f"PostgreSQL 15 is not installed in {POSTGRES_15}"
        if required("pg15"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="kaixu-test-", dir=_memory()))
    postgres = EmbeddedPostgres(
        folder,
        binaries=POSTGRES_15 if version == 15 else wheel_binaries(),
        major_version=version,
        settings={"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"},
    )
    try:
        server = Server(major_version=version, owner_url=postgres.start())
        asyncio.run(prepare(server))
        yield server
    finally:
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def database(postgres_server: Server) -> AsyncIterator[Database]:
    name = f"test_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(postgres_server.owner_url)
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY file_copy")
    try:
        yield Database(server=postgres_server, name=name)
    finally:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.close()


@pytest.fixture
async def owner(database: Database) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database.owner_url)
    yield connection
    await connection.close(timeout=5)


@pytest.fixture
async def gateway_pool(database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(database.gateway_url, min_size=1, max_size=4) as pool:
        yield pool


class Seed:
    """Puts rows into a test's database, in its default org."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def org(self) -> str:
        return str(await self._connection.fetchval("SELECT id FROM orgs"))

    async def workspace(self) -> str:
        return str(await self._connection.fetchval("SELECT id FROM workspaces"))

    async def user(self) -> str:
        return str(await self._connection.fetchval("SELECT id FROM users"))

    async def token(
        self,
        *,
        limit: int | None = None,
        models: Sequence[str] | None = None,
        scopes: Sequence[str] = ("calls",),
        expires_in: float = 3600,
        parent: str | None = None,
        name: str = "",
        text: str | None = None,
    ) -> tuple[str, str]:
        """Insert a token; return its text and its id. `parent` is a token's id."""
        text = text or generate("c" if parent else "g")
        token_id = str(uuid.uuid4())
        async with self._connection.transaction():
            await self._connection.execute(
                """
                INSERT INTO tokens (id, digest, hint, name, org_id, workspace_id, user_id,
                                    parent_id, scopes, models, expires_at)
                SELECT $1, $2, $3, $4, w.org_id, w.id, u.id, $5, $6, $7, $8
                FROM workspaces AS w JOIN users AS u ON u.org_id = w.org_id
                """,
                token_id,
                digest(text),
                hint(text),
                name,
                parent,
                list(scopes),
                None if models is None else list(models),
                datetime.now(UTC) + timedelta(seconds=expires_in),
            )
            if limit is not None:
                await self.limit("token", token_id, limit)
        return text, token_id

    async def limit(self, kind: str, subject_id: str, calls_a_month: int) -> None:
        """Set a monthly limit, or change it."""
        await self._connection.execute(
            """
            INSERT INTO call_limits (kind, subject_id, org_id, calls_a_month)
            SELECT $1, $2, id, $3 FROM orgs
            ON CONFLICT (kind, subject_id) DO UPDATE SET calls_a_month = EXCLUDED.calls_a_month
            """,
            kind,
            subject_id,
            calls_a_month,
        )


@pytest.fixture
def seed(owner: asyncpg.Connection) -> Seed:
    return Seed(owner)
