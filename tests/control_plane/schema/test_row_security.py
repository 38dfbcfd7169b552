# ruff: noqa: S608 - tables are named by this file and the catalogue
"""The database keeps orgs apart by itself: what the control plane sees, and who is exempt."""

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from control_plane.migrate import migrate
from control_plane.tenancy.tokens import NewToken, create_token, list_tokens, revoke_token
from gateway.auth.token import digest, generate
from gateway.ids import IdMaker
from tests.conftest import GATEWAY_PASSWORD, GATEWAY_ROLE, Database
from tests.control_plane.conftest import People

# Tables without an org whose rows, if they named one, would be nobody else's business.
HAVE_NO_ORG = {
    "accounts", "aliases", "blocks", "change_head", "change_log", "confirmations",
    "idempotency_keys", "ledger_head", "ledger_rejected", "mailed_links", "metered_objects",
    "permits_held", "permits_used", "recovery_codes", "retention", "schema_migrations",
    "sessions", "signups", "throttle", "vault_keys", "workers",
}  # fmt: skip
PLAIN_OWNER = "kaixu_plain_owner_test"


@asynccontextmanager
async def belonging(
    url: str, *, org_id: uuid.UUID | None, account_id: uuid.UUID | None = None
) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(
                "SELECT set_config('app.org_id', $1, true), set_config('app.account_id', $2, true)",
                str(org_id or ""),
                str(account_id or ""),
            )
            yield connection
    finally:
        await connection.close()


async def test_every_table_with_an_org_is_under_row_security_and_its_owner_too(
    owner: asyncpg.Connection,
) -> None:
    rows = await owner.fetch(
        """
        SELECT c.relname AS name, c.relrowsecurity AND c.relforcerowsecurity AS is_forced, EXISTS (
            SELECT FROM pg_attribute AS a
            WHERE a.attrelid = c.oid AND a.attname = 'org_id' AND NOT a.attisdropped
        ) AS has_org
        FROM pg_class AS c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
        """
    )
    open_to_all = {row["name"] for row in rows if not row["is_forced"]}
    with_org = {row["name"] for row in rows if row["has_org"]}

    assert {"orgs", "users", "tokens", "usage_events", "usage_events_default"} <= {
        row["name"] for row in rows
    }
    assert not open_to_all & (with_org | {"orgs", "allowances"})
    partitions = {row["name"] for row in rows if row["name"].startswith("usage_events_")}
    assert len(partitions) >= 5  # four months and the default
    # What came since has either an org, or a line above that says why it has none.
    assert open_to_all <= HAVE_NO_ORG, "say SELECT isolate('…', …) in the table's schema file"


async def test_a_transaction_sees_its_own_orgs_rows_and_nobody_elses(
    owner: asyncpg.Connection, people: People, control_url: str
) -> None:
    ours, theirs = await people.org("ours"), await people.org("theirs")
    for org in (ours, theirs):
        person = await people.member(org, "owner")
        await people.workspace_member(org, await people.workspace_id(org), "editor", person)
    tables = [
        row["name"]
        for row in await owner.fetch(
            """
            SELECT c.relname AS name FROM pg_class AS c
            JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'org_id'
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
                AND has_table_privilege('kaixu_control', c.oid, 'SELECT')
            """
        )
    ]
    assert len(tables) >= 10
    async with belonging(control_url, org_id=ours) as connection:
        seen = set()
        for table in tables:
            seen |= {row["org_id"] for row in await connection.fetch(f"SELECT org_id FROM {table}")}
        assert seen == {ours}
        assert [row["id"] for row in await connection.fetch("SELECT id FROM orgs")] == [ours]
    async with belonging(control_url, org_id=None) as connection:
        for table in (*tables, "orgs"):
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0, table


async def test_an_account_sees_in_which_orgs_it_is_and_changes_nothing_there(
    people: People, control_url: str
) -> None:
    first, second, other = [await people.org(name) for name in ("first", "second", "other")]
    person = await people.member(first, "owner")
    await people.member(second, "viewer", person)
    await people.member(other, "owner")

    async with belonging(control_url, org_id=None, account_id=person.account_id) as connection:
        found = {row["id"] for row in await connection.fetch("SELECT id FROM orgs")}
        assert found == {first, second}
        assert {row["org_id"] for row in await connection.fetch("SELECT org_id FROM users")} == (
            found
        )
        assert await connection.execute("UPDATE users SET role = 'owner'") == "UPDATE 0"
        assert await connection.execute("UPDATE orgs SET name = 'mine'") == "UPDATE 0"
    # What is about one of them is about that one only.
    async with belonging(control_url, org_id=first, account_id=person.account_id) as connection:
        assert {row["id"] for row in await connection.fetch("SELECT id FROM orgs")} == {first}
        assert {row["org_id"] for row in await connection.fetch("SELECT org_id FROM users")} == (
            {first}
        )


async def test_nothing_is_written_into_another_org(people: People, control_url: str) -> None:
    ours, theirs = await people.org("ours"), await people.org("theirs")
    for statement in (
        "INSERT INTO workspaces (org_id, name) VALUES ($1, 'x')",
        "INSERT INTO users (org_id, name, role) VALUES ($1, 'x', 'owner')",
        "UPDATE workspaces SET org_id = $1",
    ):
        async with belonging(control_url, org_id=ours) as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
                await connection.execute(statement, theirs)


async def test_the_allowances_that_are_seen_are_those_of_ones_own_subjects(
    owner: asyncpg.Connection, people: People, control_url: str
) -> None:
    ours, theirs = await people.org("ours"), await people.org("theirs")
    for org in (ours, theirs):
        user = await people.user_id(org, await people.member(org, "viewer"))
        workspace = await people.workspace_id(org)
        for kind, subject in (("org", org), ("user", user), ("workspace", workspace)):
            await owner.execute(
                "INSERT INTO allowances VALUES ($1, $2, 'calls', '2026-11-01', 1)", kind, subject
            )
    async with belonging(control_url, org_id=ours) as connection:
        rows = await connection.fetch("SELECT kind, subject_id FROM allowances")
    assert {row["kind"] for row in rows} == {"org", "user", "workspace"}
    assert len(rows) == 3
    assert ours in {row["subject_id"] for row in rows}


@pytest.fixture
async def plain_url(database: Database, owner: asyncpg.Connection) -> AsyncIterator[str]:
    """The URL of an empty database whose owner is no superuser."""
    if not await owner.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", PLAIN_OWNER):
        await owner.execute(f"CREATE ROLE {PLAIN_OWNER} LOGIN CREATEROLE PASSWORD 'plain'")
    name = f"{database.name}_plain"
    await owner.execute(f"CREATE DATABASE {name} OWNER {PLAIN_OWNER}")
    yield database.server.url(name, user=PLAIN_OWNER, password="plain")
    await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_an_owner_who_is_no_superuser_can_do_all_that_commands_and_gateways_need(
    plain_url: str, database: Database
) -> None:
    owner = await asyncpg.connect(plain_url)
    ids = IdMaker(lambda: datetime.now(UTC).timestamp())
    gateway_url = database.server.url(
        f"{database.name}_plain", user=GATEWAY_ROLE, password=GATEWAY_PASSWORD
    )
    try:
        await migrate(owner)
        assert not await owner.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = user")
        # Commands.
        text = generate("g")
        token = NewToken(text=text, life=timedelta(days=1), limit=5)
        created = await create_token(owner, token, ids=ids)
        assert [row["id"] for row in await list_tokens(owner)] == [created["id"]]
        org_id = await owner.fetchval("SELECT id FROM orgs")
        await owner.execute(
            "SELECT audit_append($1, 'system', NULL, '', '', '', 'a.b', 'c', 'd', NULL, NULL)",
            org_id,
        )
        assert await owner.fetchval("SELECT count(*) FROM audit_log WHERE action = 'a.b'") == 1
        # Gateways, under their own role, by functions that run as the owner.
        gateway = await asyncpg.connect(gateway_url)
        row = await gateway.fetchrow(
            "SELECT id, org_id, workspace_id, user_id FROM token_standings WHERE digest = $1",
            digest(text),
        )
        assert row is not None
        granted = await gateway.fetchval(
            "SELECT granted FROM grant_blocks($1, $2, '{token}', $3, '{5}')",
            uuid.uuid4(),
            [ids.new()],
            [row["id"]],
        )
        assert granted == 1
        event = {
            "id": ids.new(), "call_id": str(uuid.uuid4()), "time": datetime.now(UTC).isoformat(),
            "month": datetime.now(UTC).strftime("%Y-%m"), "org_id": str(row["org_id"]),
            "workspace_id": str(row["workspace_id"]), "user_id": str(row["user_id"]),
            "token_id": str(row["id"]), "vendor": "v", "endpoint": "e", "client_format": "f",
            "status": "complete", "counted": True, "usage_source": "none",
        }  # fmt: skip
        appended = "SELECT inserted FROM ledger_append($1::text::json)"
        assert await gateway.fetchval(appended, json.dumps([event])) == 1
        assert await owner.fetchval("SELECT count(*) FROM usage_events") == 1
        # A month's partition that is missing is made, with what strayed into the default one.
        name = f"usage_events_{datetime.now(UTC):%Y_%m}"
        await owner.execute(f"ALTER TABLE usage_events DETACH PARTITION {name}")
        await owner.execute(f"INSERT INTO usage_events SELECT * FROM {name}; DROP TABLE {name}")
        assert await gateway.fetchval("SELECT partitions_made FROM housekeep()") == 1
        assert await owner.fetchval(f"SELECT count(*) FROM {name}") == 1
        assert await owner.fetchval(
            "SELECT relforcerowsecurity FROM pg_class WHERE oid = $1::text::regclass", name
        )
        receipt = await revoke_token(owner, created["id"], is_embedded=True)
        assert receipt["complete"]
        assert await gateway.fetchval("SELECT ended FROM token_standings") == "revoked"
        await gateway.close()
    finally:
        await owner.close()


async def test_what_runs_as_the_owner_looks_names_up_in_one_place(
    owner: asyncpg.Connection,
) -> None:
    rows = await owner.fetch(
        """
        SELECT p.proname AS name, coalesce(p.proconfig, '{}') AS settings FROM pg_proc AS p
        WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef
        """
    )
    assert rows
    assert [
        row["name"] for row in rows if "search_path=public, pg_temp" not in row["settings"]
    ] == []


async def test_views_see_what_their_reader_may_see(owner: asyncpg.Connection) -> None:
    rows = await owner.fetch(
        """
        SELECT c.relname FROM pg_class AS c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('v', 'm')
            AND NOT coalesce(c.reloptions, '{}') && ARRAY['security_invoker=true']
            AND (
                has_table_privilege('kaixu_control', c.oid, 'SELECT')
                OR has_table_privilege('kaixu_gateway', c.oid, 'SELECT')
            )
        """
    )
    assert [row["relname"] for row in rows] == []
