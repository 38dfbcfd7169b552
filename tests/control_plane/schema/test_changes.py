"""The change log: what writes into it, and in which order its rows appear."""

import asyncio
import itertools
from typing import Any

import asyncpg
import pytest

Connection = asyncpg.Connection


@pytest.fixture
async def other(database: Any) -> Any:
    """A second session of the owner's."""
    connection = await asyncpg.connect(database.owner_url)
    yield connection
    connection.terminate()


async def head(connection: Connection) -> int:
    last: int = await connection.fetchval("SELECT last FROM change_head")
    return last


async def changes(connection: Connection, after: int = 0) -> list[tuple[str, str | None, str]]:
    rows = await connection.fetch(
        "SELECT * FROM change_log WHERE ordinal > $1 ORDER BY ordinal", after
    )
    assert [row["ordinal"] for row in rows] == list(range(after + 1, after + 1 + len(rows)))
    assert all(row["at"] for row in rows)
    for earlier, later in itertools.pairwise(rows):
        assert later["previous_id"] == earlier["id"]
    (last,) = await connection.fetch("SELECT * FROM change_head")
    assert not rows or (last["last"], last["last_id"]) == (rows[-1]["ordinal"], rows[-1]["id"])
    return [
        (row["kind"], row["subject_id"] and str(row["subject_id"]), row["effect"]) for row in rows
    ]


async def blocked(connection: Connection, pid: int) -> None:
    """Wait until the session with this pid waits for a lock."""
    waits = "SELECT cardinality(pg_blocking_pids($1)) > 0 FROM pg_sleep(0.005)"
    async with asyncio.timeout(10):
        while not await connection.fetchval(waits, pid):
            pass


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE tokens SET revoked_at = now()", ("token", "dead")),
        ("DELETE FROM tokens", ("token", "dead")),
        ("UPDATE tokens SET expires_at = now()", ("token", "changed")),
        ("UPDATE tokens SET models = '{a}'", ("token", "changed")),
        ("UPDATE tokens SET vendors = '{a}'", ("token", "changed")),
        ("UPDATE tokens SET addresses = '{10.0.0.0/8}'", ("token", "changed")),
        ("UPDATE orgs SET token_life_max = '1 min'", ("token", "changed")),
        ("SELECT revoke_every_token()", ("org", "dead")),
        ("UPDATE users SET disabled_at = now()", ("user", "dead")),
        ("UPDATE workspaces SET archived_at = now()", ("workspace", "dead")),
        ("UPDATE orgs SET suspended_at = now()", ("org", "dead")),
        ("UPDATE call_limits SET calls_a_month = 5", ("token", "limit")),
        ("DELETE FROM call_limits", ("token", "limit")),
    ],
)
async def test_what_changes_a_subject_is_one_change_of_it(
    owner: Connection, seed: Any, statement: str, expected: tuple[str, str]
) -> None:
    _, token_id = await seed.token(limit=3)
    subjects = {
        "token": token_id,
        "user": await seed.user(),
        "workspace": await seed.workspace(),
        "org": await seed.org(),
    }
    before = await head(owner)
    await owner.execute(statement)
    kind, effect = expected
    assert await changes(owner, before) == [(kind, subjects[kind], effect)]


@pytest.mark.parametrize(
    ("end", "again"),
    [
        ("UPDATE users SET disabled_at = now()", "UPDATE users SET disabled_at = NULL"),
        ("UPDATE tokens SET revoked_at = now()", "UPDATE tokens SET revoked_at = NULL"),
    ],
)
async def test_who_lives_again_is_changed_and_not_dead(
    owner: Connection, seed: Any, end: str, again: str
) -> None:
    await seed.token()
    await owner.execute(end)
    before = await head(owner)
    await owner.execute(again)
    assert [effect for _, _, effect in await changes(owner, before)] == ["changed"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tokens SET name = 'another', hint = 'kxg_…0000'",
        "UPDATE tokens SET expires_at = expires_at",
        "UPDATE orgs SET token_life_max = '89 days'",
        "UPDATE users SET name = 'another'",
        "UPDATE users SET disabled_at = disabled_at",
        "UPDATE orgs SET name = 'another'",
        "UPDATE call_limits SET calls_a_month = calls_a_month",
        "UPDATE tokens SET revoked_at = now() WHERE false",
    ],
)
async def test_what_no_worker_minds_is_no_change(
    owner: Connection, seed: Any, statement: str
) -> None:
    await seed.token(limit=3)
    before = await head(owner)
    await owner.execute(statement)
    assert await changes(owner, before) == []


async def test_an_old_secret_that_ends_early_is_a_change_of_its_token(
    owner: Connection, seed: Any
) -> None:
    _, token_id = await seed.token()
    await owner.execute(
        """
        INSERT INTO retired_digests
        SELECT sha256(moment::text::bytea), id, org_id, now() + moment
        FROM tokens, (VALUES (interval '1 hour'), (interval '-1 hour')) AS old (moment)
        """
    )
    before = await head(owner)
    await owner.execute("DELETE FROM retired_digests WHERE until < now()")  # opens nothing anyway
    assert await changes(owner, before) == []
    await owner.execute("DELETE FROM retired_digests")
    assert await changes(owner, before) == [("token", token_id, "changed")]


async def test_a_transaction_says_a_thing_once(owner: Connection, seed: Any) -> None:
    _, token_id = await seed.token()
    before = await head(owner)
    async with owner.transaction():
        for model in "abc":
            await owner.execute("UPDATE tokens SET models = ARRAY[$1]", model)
            await owner.execute(
                "INSERT INTO aliases (name, vendor_name, model) VALUES ($1, 'v', 'm')", model
            )
        await owner.execute("UPDATE tokens SET revoked_at = now()")
    assert sorted(await changes(owner, before), key=str) == [
        ("token", token_id, "changed"),
        ("token", token_id, "dead"),
        ("vendors", None, "changed"),
    ]


async def test_what_is_rolled_back_has_no_ordinal(owner: Connection, seed: Any) -> None:
    await seed.token()
    before = await head(owner)
    transaction = owner.transaction()
    await transaction.start()
    await owner.execute("UPDATE tokens SET revoked_at = now()")
    await transaction.rollback()
    assert await changes(owner, before) == []
    await owner.execute("UPDATE tokens SET revoked_at = now()")
    assert len(await changes(owner, before)) == 1


async def test_many_tokens_of_an_org_are_the_org_s_change_but_each_end_is_named(
    owner: Connection, seed: Any
) -> None:
    await seed.token()
    await owner.execute(
        "INSERT INTO tokens SELECT gen_random_uuid(), sha256(n::text::bytea), hint, name, org_id, "
        "workspace_id, user_id, parent_id, scopes, models, created_at, expires_at "
        "FROM tokens, generate_series(1, 2999) AS n"
    )
    before = await head(owner)
    await owner.execute("UPDATE tokens SET expires_at = expires_at + interval '1 day'")
    assert await changes(owner, before) == [("org", await seed.org(), "changed")]
    before = await head(owner)
    await owner.execute("UPDATE tokens SET revoked_at = now()")
    ends = await changes(owner, before)
    assert len({subject_id for _, subject_id, _ in ends}) == len(ends) == 3000
    assert {(kind, effect) for kind, _, effect in ends} == {("token", "dead")}


async def test_a_restored_log_does_not_swallow_the_change_of_a_transaction_with_an_old_number(
    owner: Connection, seed: Any
) -> None:
    _, token_id = await seed.token()
    before = await head(owner)
    async with owner.transaction():
        await owner.execute("SET LOCAL session_replication_role = replica")
        await owner.execute(
            "INSERT INTO change_log (ordinal, at, kind, subject_id, effect) "
            "VALUES (-1, now(), 'token', $1, 'dead')",
            token_id,
        )
        await owner.execute("SET LOCAL session_replication_role = origin")
        await owner.execute("UPDATE tokens SET revoked_at = now()")
    assert await changes(owner, before) == [("token", token_id, "dead")]


async def test_a_commit_that_is_late_comes_later_in_order(
    owner: Connection, other: Connection, seed: Any
) -> None:
    (_, first), (_, second) = await seed.token(), await seed.token()
    before = await head(owner)
    late = other.transaction()
    await late.start()
    await other.execute("UPDATE tokens SET revoked_at = now() WHERE id = $1", first)
    await owner.execute("UPDATE tokens SET revoked_at = now() WHERE id = $1", second)
    assert await changes(owner, before) == [("token", second, "dead")]
    await late.commit()
    assert await changes(owner, before + 1) == [("token", first, "dead")]


async def test_nobody_commits_a_later_ordinal_before_an_earlier_one(
    owner: Connection, other: Connection, database: Any, seed: Any
) -> None:
    (_, first), (_, second) = await seed.token(), await seed.token()
    before = await head(owner)
    # The first has its ordinal and holds its commit back.
    early = other.transaction()
    await early.start()
    await other.execute("UPDATE tokens SET revoked_at = now() WHERE id = $1", first)
    await other.execute("SET CONSTRAINTS ALL IMMEDIATE")
    waiting = await asyncpg.connect(database.owner_url)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(
            waiting.execute("UPDATE tokens SET revoked_at = now() WHERE id = $1", second)
        )
        await blocked(owner, waiting.get_server_pid())
        assert await changes(owner, before) == []
        await early.commit()
    await waiting.close()
    assert await changes(owner, before) == [("token", first, "dead"), ("token", second, "dead")]


async def test_no_other_constraint_waits_for_the_commit_so_that_the_counter_is_taken_last(
    owner: Connection,
) -> None:
    deferred = await owner.fetch("SELECT conname FROM pg_constraint WHERE condeferrable")
    assert [row["conname"] for row in deferred] == ["number_change"]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT log_change('vendors', NULL, 'dead')",
        "INSERT INTO change_log (kind, effect) VALUES ('vendors', 'changed')",
        "UPDATE change_head SET last = 0",
        "DELETE FROM confirmations",
        "UPDATE confirmations SET streams_cut = 0",
        "SELECT * FROM confirmations",
        "DELETE FROM workers",
        "UPDATE tokens SET revoked_at = NULL",
    ],
)
async def test_the_gateway_may_read_the_log_and_not_write_it(
    gateway_pool: asyncpg.Pool, statement: str
) -> None:
    await gateway_pool.execute("SELECT * FROM change_log, change_head")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await gateway_pool.execute(statement)


async def test_only_the_owner_may_run_what_the_log_s_triggers_run(owner: Connection) -> None:
    open_to_all = await owner.fetch(
        "SELECT proname FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace "
        "AND has_function_privilege('public', oid, 'EXECUTE')"
    )
    assert [row["proname"] for row in open_to_all] == []
