"""A condition that somebody forgets shows nobody another org's rows: the database keeps them apart.

Each query of the control plane is run without each of its conditions, as the control plane's role
in a transaction of one org, with that org's and the other's ids; once where the other org is, and
once where it isn't. What comes of it must be the same, and the other org's rows must not change.
"""

import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Network
from typing import Any, Final

import asyncpg
import pytest

from tests.conftest import Database
from tests.control_plane.query_mutations import (
    Mutation,
    Query,
    all_queries,
    mutations_of,
    parameter_places,
)
from tests.control_plane.tenants import (
    ROWS,
    Tenant,
    isolated_tables,
    make_accounts,
    make_tenant,
)

OURS: Final = Tenant("ours")
THEIRS: Final = Tenant("theirs")
UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
MUTATIONS_MIN: Final = 150  # less than there are: a test that finds none would say nothing
TOLD_APART_MIN: Final = 0.3  # of the mutations, without row security
OWN_STATEMENT: Final = re.compile(r"42(?!501)")  # SQLSTATE: the mutated query is no query


class Both:
    """Two databases: where the other org is, and where it isn't."""

    def __init__(self, together: asyncpg.Connection, alone: asyncpg.Connection) -> None:
        self.together = together
        self.alone = alone
        self.tables: list[str] = []
        self.before: object = None  # the other org's rows


@pytest.fixture
async def both(database: Database) -> AsyncIterator[Both]:
    alone = await asyncpg.connect(database.owner_url)
    await make_accounts(alone, OURS, THEIRS)
    await make_tenant(alone, OURS)
    await alone.close()
    name = f"{database.name}_both"
    admin = await asyncpg.connect(database.server.owner_url)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {database.name}")
    together = await asyncpg.connect(database.server.url(name))
    alone = await asyncpg.connect(database.owner_url)
    try:
        await make_tenant(together, THEIRS)
        # Every worker and every receipt reads the log of changes: it has ids, and no org's rows.
        for one in (together, alone):
            await one.execute("DELETE FROM change_log")
        found = Both(together, alone)
        found.tables = await isolated_tables(together)
        yield found
    finally:
        await together.close()
        await alone.close()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


@asynccontextmanager
async def attempt(
    connection: asyncpg.Connection, *, is_bound: bool
) -> AsyncIterator[asyncpg.Connection]:
    """Open a transaction of our org that is rolled back, as the control plane or a superuser."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        if is_bound:
            await connection.execute("SET LOCAL ROLE kaixu_control")
        await connection.execute(
            "SELECT set_config('app.org_id', $1, true), set_config('app.account_id', $2, true)",
            str(OURS.org),
            str(OURS.account),
        )
        yield connection
    finally:
        await transaction.rollback()


async def outcome(
    connection: asyncpg.Connection,
    text: str,
    arguments: Sequence[Any],
    *,
    is_bound: bool,
    after: Callable[[], Any] | None = None,
) -> Any:
    """Return what a query gives, without what differs each time; REFUSED where it is an error."""
    async with attempt(connection, is_bound=is_bound):
        try:
            rows = await connection.fetch(text, *arguments)
        except asyncpg.PostgresError as error:
            if OWN_STATEMENT.match(error.sqlstate):
                raise AssertionError(f"{error}\n{text}") from error
            return REFUSED
        told = sorted(repr([_plain(value) for value in row.values()]) for row in rows)
        return told if after is None else (told, await after())


def _plain(value: Any) -> Any:
    """Return a value; times and ids that were just made are all alike."""
    known = {OURS.org, THEIRS.org} | {
        one.id(word) for one in (OURS, THEIRS) for word in WORDS
    }  # fmt: skip
    match value:
        case uuid.UUID():
            return str(value) if value in known else "an id"
        case str():
            if value.isdigit():
                return "a number"  # of a transaction
            return UUID.sub(
                lambda match: match[0] if uuid.UUID(match[0]) in known else "an id", value
            )
        case datetime() | timedelta():
            return "a time"
        case bytes():
            return value.hex() if value in {OURS.digest, THEIRS.digest} else "bytes"
        case list() | tuple():
            return sorted(repr(_plain(one)) for one in value)
        case _:
            return value


REFUSED: Final = "refused"
WORDS: Final = (
    "workspace", "user", "second user", "account", "second account", "invitation", "token",
    "vendor", "event", "call",
)  # fmt: skip
# Whose id a column has.
COLUMNS: Final = {
    "org_id": "org", "workspace_id": "workspace", "user_id": "user", "token_id": "token",
    "account_id": "account", "invited_by": "user", "vendor_id": "vendor", "subject_id": "org",
    "orgs.id": "org", "workspaces.id": "workspace", "users.id": "user", "tokens.id": "token",
    "accounts.id": "account", "invitations.id": "invitation", "vendors.id": "vendor",
    "usage_events.id": "event",
}  # fmt: skip


def argument(kind: str, place: str, tenant: Tenant) -> Any:  # noqa: PLR0911, PLR0912 - a table of types
    """Return a parameter's value: of what a tenant has, where the place says so."""
    column = place.partition(".")[2]
    word = COLUMNS.get(place) or COLUMNS.get(column)
    named = tenant.id(word or "org")
    match kind:
        case "uuid":
            return named
        case "uuid[]":
            return [named]
        case "text" | "varchar" if word is not None:
            return str(named)
        case "text" | "varchar":
            return {"kind": "org", "role": "viewer", "effect": "dead"}.get(column, tenant.mark)
        case "text[]":
            return [tenant.mark]
        case "bytea":
            return tenant.digest
        case "int2" | "int4" | "int8":
            return 100 if column != "ordinal" else len(tenant.mark)
        case "float4" | "float8":
            return 1.0
        case "numeric":
            return Decimal(1)
        case "bool":
            return True
        case "interval":
            return timedelta(hours=1)
        case "timestamptz":
            return datetime(2026, 11, 2, tzinfo=UTC)
        case "date":
            return datetime(2026, 11, 1, tzinfo=UTC).date()
        case "cidr[]":
            return [IPv4Network("192.0.2.0/24")]
        case "json" | "jsonb":
            return "{}"
        case _:
            raise AssertionError(f"say what a parameter of type {kind} is here")


def assignments(kinds: Sequence[str], places: dict[int, str]) -> Iterator[list[Any]]:
    """Yield the parameters of who asks for their own, for the other org's, and half for each."""
    for org_of, rest_of in ((OURS, OURS), (OURS, THEIRS), (THEIRS, THEIRS), (THEIRS, OURS)):
        values = []
        for number, kind in enumerate(kinds, start=1):
            place = places.get(number, "")
            is_org = place.endswith("org_id") or place == "orgs.id"
            values.append(argument(kind, place, org_of if is_org else rest_of))
        yield values


async def their_rows(both: Both) -> Any:
    """Return a digest of all that the other org has."""
    await both.together.execute("RESET ROLE")
    parts = ", ".join(
        f"(SELECT string_agg(t::text, '|' ORDER BY t::text) FROM {table} AS t "  # noqa: S608 - ours
        f"WHERE {_whose(table)} = $1)"
        for table in both.tables
    )
    return await both.together.fetchval(f"SELECT md5(concat_ws('|', {parts}))", THEIRS.org)


def _whose(table: str) -> str:
    return {"orgs": "id", "allowances": "subject_id"}.get(table, "org_id")


async def tells_apart(
    both: Both, mutation: Mutation, arguments: list[Any], *, is_bound: bool
) -> bool:
    """Return whether a mutated query shows, or changes, what the other org has."""

    async def rows() -> Any:
        return await their_rows(both)

    after = rows if mutation.query.writes else None
    together = await outcome(
        both.together, mutation.text, arguments, is_bound=is_bound, after=after
    )
    alone = await outcome(both.alone, mutation.text, arguments, is_bound=is_bound)
    if isinstance(together, tuple):  # the rows that it gave, and theirs afterwards
        if together[1] != both.before:
            return True
        together = together[0]
    # A refusal shows no row, though it may come of one: of a key that somebody guessed.
    return together not in (REFUSED, alone)


async def test_every_table_that_keeps_orgs_apart_has_rows_of_both(both: Both) -> None:
    missing = set(both.tables) - set(ROWS)
    assert not missing, f"add a row of {sorted(missing)} to ROWS in tests/control_plane/tenants.py"
    for table in both.tables:
        for tenant in (OURS, THEIRS):
            assert await both.together.fetchval(
                f"SELECT count(*) FROM {table} WHERE {_whose(table)} = $1",  # noqa: S608 - ours
                tenant.org,
            ), f"{table} has no row of {tenant.mark}"


async def test_a_query_without_any_one_of_its_conditions_finds_nothing_of_another_org(
    both: Both,
) -> None:
    both.before = await their_rows(both)
    ran, leaks, would_leak = 0, [], 0
    for query in all_queries():
        if not query.tables & set(both.tables):
            continue
        kinds = [one.name for one in (await both.together.prepare(query.text)).get_parameters()]
        places = parameter_places(query)
        mutations = [Mutation(query=query, dropped="nothing", text=query.text)]
        mutations += mutations_of(query, kinds)
        for mutation in mutations:
            ran += mutation.dropped != "nothing"
            would = False
            for arguments in assignments(kinds, places):
                if await tells_apart(both, mutation, arguments, is_bound=True):
                    leaks.append((mutation.query.name, mutation.dropped, arguments))
                would = would or await tells_apart(both, mutation, arguments, is_bound=False)
            would_leak += would and mutation.dropped != "nothing"
    print(
        f"\n{ran} mutations; {would_leak} of them would tell of the other org without row "
        f"security, {len(leaks)} do"
    )
    assert not leaks, "\n".join(map(str, leaks))
    assert ran >= MUTATIONS_MIN
    assert would_leak >= ran * TOLD_APART_MIN


def test_a_mutation_leaves_out_one_condition_and_keeps_the_parameters() -> None:
    query = Query(
        name="x",
        text="",
        tree=next(one.tree for one in all_queries() if one.name == "workspaces.sql read"),
    )
    texts = [one.text.partition("WHERE ")[2] for one in mutations_of(query, ["uuid", "uuid"])]
    assert texts[0] == "(TRUE OR CAST($1 AS UUID) IS NULL OR CAST($2 AS UUID) IS NULL)"
    assert texts[1] == ("(TRUE OR CAST($1 AS UUID) IS NULL) AND id = $2 AND archived_at IS NULL")
    assert len(texts) == 4
