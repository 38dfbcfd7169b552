"""Lookups in a real PostgreSQL, as the role that the gateway has."""

import asyncio
import time
import uuid

import asyncpg
import pytest

from gateway.auth.authenticate import _REFUSALS
from gateway.auth.caller import Caller
from gateway.auth.token import digest, generate
from gateway.auth.token_store import FIRST_BLOCK_UNITS, Found, TokenStore
from gateway.errors import DatabaseAway
from tests.conftest import Database, Seed

WORKER_ID = str(uuid.uuid4())


@pytest.fixture
def store(gateway_pool: asyncpg.Pool) -> TokenStore:
    return TokenStore(gateway_pool)


def block_ids() -> list[str]:
    return [str(uuid.uuid4()) for _ in range(5)]


async def find(store: TokenStore, text: str, ids: list[str] | None = None) -> Found:
    return await store.find(
        digest(text), worker_id=WORKER_ID, block_ids=block_ids() if ids is None else ids
    )


async def test_a_live_token_is_found_with_whom_it_belongs_to(store: TokenStore, seed: Seed) -> None:
    text, token_id = await seed.token(models=["gpt-*"], scopes=["calls", "usage:read"])
    found = await find(store, text)
    assert found.why is None
    assert found.grants == ()
    assert isinstance(found.caller, Caller)
    assert found.caller == Caller(
        token_id=token_id,
        parent_id=None,
        org_id=await seed.org(),
        workspace_id=await seed.workspace(),
        user_id=await seed.user(),
        scopes=frozenset({"calls", "usage:read"}),
        models=("gpt-*",),
        expires_at=found.caller.expires_at,
        limits=(),
    )
    assert found.caller.expires_at == pytest.approx(time.time() + 3600, abs=60)
    assert found.subjects == found.caller.subjects


async def test_an_unknown_token_has_no_caller_and_no_subjects(
    store: TokenStore, seed: Seed
) -> None:
    await seed.token()
    found = await find(store, generate())
    assert (found.caller, found.why, found.subjects) == (None, "unknown", ())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("UPDATE tokens SET revoked_at = now() WHERE id = $1", "revoked"),
        ("UPDATE tokens SET expires_at = now() WHERE id = $1", "expired"),
        ("UPDATE users SET disabled_at = now() WHERE $1::uuid IS NOT NULL", "user_disabled"),
        ("UPDATE orgs SET suspended_at = now() WHERE $1::uuid IS NOT NULL", "org_suspended"),
        (
            "UPDATE workspaces SET archived_at = now() WHERE $1::uuid IS NOT NULL",
            "workspace_archived",
        ),
    ],
)
async def test_a_token_that_may_not_call_is_told_why_and_gets_no_block(
    store: TokenStore, seed: Seed, owner: asyncpg.Connection, change: str, why: str
) -> None:
    text, token_id = await seed.token(limit=100)
    before = await find(store, text)
    await owner.execute(change, token_id)
    found = await find(store, text)
    assert (found.caller, found.why, found.grants) == (None, why, ())
    assert before.caller is not None
    assert found.subjects == before.caller.subjects
    assert found.head > before.head
    assert why in _REFUSALS
    assert await owner.fetchval("SELECT count(*) FROM blocks") == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("UPDATE tokens SET revoked_at = now() WHERE id = $1", "parent_revoked"),
        ("UPDATE tokens SET expires_at = now() WHERE id = $1", "expired"),
    ],
)
async def test_a_child_ends_with_its_parent(
    store: TokenStore, seed: Seed, owner: asyncpg.Connection, change: str, why: str
) -> None:
    _, parent_id = await seed.token()
    text, _ = await seed.token(parent=parent_id)
    assert (await find(store, text)).caller is not None
    await owner.execute(change, parent_id)
    found = await find(store, text)
    assert (found.caller, found.why) == (None, why)
    assert ("token", parent_id) in found.subjects
    assert why in _REFUSALS


async def test_a_child_has_no_more_than_its_parent(store: TokenStore, seed: Seed) -> None:
    _, parent_id = await seed.token(scopes=["calls", "a"], models=["gpt-*"], expires_in=60, limit=5)
    text, child_id = await seed.token(
        parent=parent_id, scopes=["calls", "b"], expires_in=3600, limit=3
    )
    caller = (await find(store, text)).caller
    assert caller is not None
    assert caller.scopes == {"calls"}
    assert not caller.may_use("claude")
    assert caller.expires_at == pytest.approx(time.time() + 60, abs=30)
    assert set(caller.limits) == {("token", child_id), ("token", parent_id)}


async def test_a_child_of_a_child_is_refused(store: TokenStore, seed: Seed) -> None:
    _, first = await seed.token()
    _, second = await seed.token(parent=first)
    text, _ = await seed.token(parent=second)
    found = await find(store, text)
    assert (found.caller, found.why) == (None, "nested")
    assert "nested" in _REFUSALS


async def test_every_allowance_that_applies_gets_a_first_block(
    store: TokenStore, seed: Seed, owner: asyncpg.Connection
) -> None:
    _, parent_id = await seed.token(limit=100_000)
    text, token_id = await seed.token(parent=parent_id, limit=1_000)
    await seed.token(limit=7)  # somebody else's
    await seed.limit("user", await seed.user(), 80)
    await seed.limit("workspace", await seed.workspace(), 0)
    await seed.limit("org", await seed.org(), 1)
    ids = block_ids()
    found = await find(store, text, ids)
    assert found.caller is not None
    assert list(found.caller.limits) == sorted(
        [
            ("token", token_id),
            ("token", parent_id),
            ("user", await seed.user()),
            ("workspace", await seed.workspace()),
            ("org", await seed.org()),
        ]
    )
    assert {str(grant["block_id"]) for grant in found.grants} == set(ids)
    granted = {
        (grant["kind"], str(grant["subject_id"])): grant["granted"] for grant in found.grants
    }
    assert granted == {
        ("token", token_id): FIRST_BLOCK_UNITS,
        ("token", parent_id): FIRST_BLOCK_UNITS,
        ("user", await seed.user()): 10,
        ("workspace", await seed.workspace()): 0,
        ("org", await seed.org()): 1,
    }
    rows = await owner.fetch("SELECT id, worker_id, amount FROM blocks")
    assert {str(row["worker_id"]) for row in rows} == {WORKER_ID}
    assert sum(row["amount"] for row in rows) == 2 * FIRST_BLOCK_UNITS + 11


async def test_a_block_takes_no_more_ids_than_there_are_allowances(
    store: TokenStore, seed: Seed
) -> None:
    text, _ = await seed.token(limit=1_000)
    ids = block_ids()
    found = await find(store, text, ids)
    assert [str(grant["block_id"]) for grant in found.grants] == ids[:1]


async def test_with_too_few_ids_nothing_is_granted(
    store: TokenStore, seed: Seed, owner: asyncpg.Connection
) -> None:
    text, _ = await seed.token(limit=1_000)
    found = await find(store, text, [])
    assert found.caller is not None
    assert len(found.caller.limits) == 1
    assert found.grants == ()
    assert await owner.fetchval("SELECT count(*) FROM blocks") == 0


async def test_a_lookup_without_limits_writes_nothing(
    store: TokenStore, seed: Seed, owner: asyncpg.Connection
) -> None:
    text, _ = await seed.token()
    before = await owner.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())")
    await find(store, text)
    await find(store, generate())
    assert await owner.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())") == before


async def test_the_head_and_the_token_are_of_one_snapshot_even_when_the_grant_waits(
    store: TokenStore, seed: Seed, owner: asyncpg.Connection, database: Database
) -> None:
    text, token_id = await seed.token(limit=1_000)
    await find(store, text)
    head = await owner.fetchval("SELECT last FROM change_head")
    other = await asyncpg.connect(database.owner_url)
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT FROM allowances FOR UPDATE")
        async with asyncio.TaskGroup() as group:
            lookup = group.create_task(find(store, text))
            await until_one_waits_for_a_lock(owner)
            await owner.execute("UPDATE tokens SET revoked_at = now() WHERE id = $1", token_id)
            await transaction.rollback()
        found = lookup.result()
    finally:
        await other.close()
    assert found.caller is not None  # as it was in that snapshot: the ordinals tell the rest
    assert found.head == head
    assert await owner.fetchval("SELECT last FROM change_head") == head + 1
    assert (await find(store, text)).why == "revoked"


async def until_one_waits_for_a_lock(connection: asyncpg.Connection) -> None:
    async with asyncio.timeout(10):
        while not await connection.fetchval(  # noqa: ASYNC110
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
            await asyncio.sleep(0.005)  # the server tells nobody when a lock is waited for


async def test_the_ended_are_told_from_those_that_may_go_on(
    store: TokenStore, seed: Seed, owner: asyncpg.Connection
) -> None:
    _, alive = await seed.token()
    _, expired = await seed.token(expires_in=-1)
    _, revoked = await seed.token()
    _, child = await seed.token(parent=revoked)
    gone = str(uuid.uuid4())
    await owner.execute("UPDATE tokens SET revoked_at = now() WHERE id = $1", revoked)
    ended = await store.find_ended([alive, expired, revoked, child, gone])
    assert ended == {revoked, child, gone}


async def test_a_lookup_goes_by_the_index_of_digests(seed: Seed, owner: asyncpg.Connection) -> None:
    await seed.token()
    await owner.execute("SET enable_seqscan = off")
    plan = "\n".join(
        row[0]
        for row in await owner.fetch(
            "EXPLAIN SELECT * FROM change_head LEFT JOIN token_standings AS t"
            " ON t.digest = '\\x00'::bytea"
        )
    )
    assert "tokens_digest_key" in plan


async def test_a_database_that_is_away_is_told_as_such(
    gateway_pool: asyncpg.Pool, seed: Seed
) -> None:
    text, _ = await seed.token()
    store = TokenStore(gateway_pool)
    await gateway_pool.close()
    with pytest.raises(DatabaseAway):
        await find(store, text)
    with pytest.raises(DatabaseAway):
        await store.find_ended([])


async def test_the_repr_of_what_is_found_shows_no_digest(store: TokenStore, seed: Seed) -> None:
    text, _ = await seed.token(limit=10)
    shown = repr(await find(store, text)) + repr(store)
    for secret in (text, digest(text).hex(), repr(digest(text))):
        assert secret not in shown


async def test_windows_and_caps_of_a_token_its_parent_and_its_org_are_found(
    store: TokenStore, seed: Seed, owner: asyncpg.Connection
) -> None:
    _, parent = await seed.token()
    text, child = await seed.token(parent=parent)
    org = await seed.org()
    for kind, subject, calls in (("token", parent, 5), ("token", child, 6), ("org", org, 7)):
        await owner.execute(
            "INSERT INTO rate_limits (kind, subject_id, org_id, calls, window_seconds) "
            "VALUES ($1, $2, $3, $4, 60)", kind, subject, org, calls,
        )  # fmt: skip
    await owner.execute(
        "INSERT INTO concurrency_limits (kind, subject_id, org_id, calls) "
        "VALUES ('org', $1, $1, 8)",
        org,
    )
    found = await find(store, text)
    assert found.caller is not None
    limits = {(one.key, one.calls, one.window_seconds) for one in found.caller.permits}
    assert limits == {
        (("rate-token", parent), 5, 60),
        (("rate-token", child), 6, 60),
        (("rate-org", org), 7, 60),
        (("open-org", org), 8, None),
    }


@pytest.mark.parametrize(
    "statements",
    [
        (
            "INSERT INTO rate_limits SELECT 'token', id, org_id, 5, 60 FROM tokens",
            "UPDATE rate_limits SET calls = 6",
            "DELETE FROM rate_limits",
        ),
        (
            "INSERT INTO concurrency_limits SELECT 'token', id, org_id, 5 FROM tokens",
            "UPDATE concurrency_limits SET calls = 6",
            "DELETE FROM concurrency_limits",
        ),
    ],
    ids=["window", "cap"],
)
async def test_a_changed_window_or_cap_is_a_change_of_its_subject(
    seed: Seed, owner: asyncpg.Connection, statements: tuple[str, ...]
) -> None:
    _, token_id = await seed.token()
    for statement in statements:
        before = await owner.fetchval("SELECT last FROM change_head")
        await owner.execute(statement)
        changes = await owner.fetch("SELECT * FROM change_log WHERE ordinal > $1", before)
        assert [(row["kind"], str(row["subject_id"]), row["effect"]) for row in changes] == [
            ("token", token_id, "limit")
        ]
