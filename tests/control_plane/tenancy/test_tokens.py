import asyncio
import time
import uuid
from datetime import timedelta

import asyncpg
import pytest

from control_plane.errors import BadArgument, NotFound
from control_plane.tenancy.tokens import (
    NewToken,
    create_token,
    keep_service_token,
    list_tokens,
    revoke_token,
)
from gateway.auth.token import digest, generate
from gateway.ids import IdMaker
from tests.conftest import Database, Seed

IDS = IdMaker(time.time)


async def worker(
    owner: asyncpg.Connection, *, heartbeat_ago: float = 0, ended: bool = False, applied: int = 0
) -> str:
    worker_id = str(uuid.uuid4())
    await owner.execute(
        """
        INSERT INTO workers (id, machine, pid, heartbeat_at, lease, offline_stream_grace, applied,
                             ended_at)
        VALUES ($1, 'box', 1, clock_timestamp() - make_interval(secs => $2), '15 s', '300 s', $4,
                CASE WHEN $3 THEN clock_timestamp() END)
        """,
        worker_id,
        heartbeat_ago,
        ended,
        applied,
    )
    return worker_id


async def confirm(database: Database, workers: dict[str, int]) -> None:
    """Do as workers do: hear of the next change, cut streams, confirm."""
    connection = await asyncpg.connect(database.owner_url)
    ordinal = None
    while ordinal is None:
        ordinal = await connection.fetchval("SELECT max(ordinal) FROM change_log")
    for worker_id, cut in workers.items():
        await connection.execute(
            "INSERT INTO confirmations (ordinal, worker_id, streams_cut) VALUES ($1, $2, $3)",
            ordinal,
            worker_id,
            cut,
        )
    await connection.close()


async def test_a_token_is_stored_as_its_digest_alone(owner: asyncpg.Connection) -> None:
    new = NewToken(text=generate(), life=timedelta(days=30), limit=5, models=["gpt-*"], name="ci")
    created = await create_token(owner, new, ids=IDS)
    assert created["token"] == new.text
    assert new.text not in repr(new)
    (row,) = await owner.fetch("SELECT *, tokens::text AS whole FROM tokens")
    assert row["digest"] == digest(new.text)
    assert new.text not in row["whole"]
    assert timedelta(days=29) < row["expires_at"] - row["created_at"] <= timedelta(days=31)
    (listed,) = await list_tokens(owner)
    assert (listed["id"], listed["limit"], listed["models"]) == (created["id"], 5, ["gpt-*"])
    assert listed["state"] == "live"
    assert "digest" not in listed


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("expires", {"life": timedelta(days=91)}),
        ("limit", {"limit": -1}),
        ("scope", {"scopes": ["admin"]}),
        ("models", {"models": ["gpt 5"]}),
        ("name", {"name": "a\nb"}),
    ],
)
async def test_what_no_token_can_be_is_refused(
    owner: asyncpg.Connection, field: str, changes: dict[str, object]
) -> None:
    values: dict[str, object] = {"text": generate(), "life": timedelta(days=1), **changes}
    with pytest.raises(BadArgument) as refused:
        await create_token(owner, NewToken(**values), ids=IDS)  # type: ignore[arg-type]
    assert refused.value.field == field


async def test_without_a_gateway_a_receipt_has_no_workers(
    owner: asyncpg.Connection, seed: Seed
) -> None:
    _, token_id = await seed.token()
    receipt = await revoke_token(owner, token_id, is_embedded=True)
    assert receipt["workers"] == []
    assert receipt["complete"]
    assert receipt["streams_cut"] == 0
    (change,) = await owner.fetch("SELECT * FROM change_log")
    assert (change["ordinal"], change["at"]) == (receipt["ordinal"], receipt["committed_at"])
    assert (change["kind"], change["effect"]) == ("token", "dead")
    assert str(change["subject_id"]) == token_id


async def test_a_receipt_has_what_each_worker_confirmed(
    database: Database, owner: asyncpg.Connection, seed: Seed
) -> None:
    _, token_id = await seed.token()
    one, other = await worker(owner), await worker(owner)
    receipt, _ = await asyncio.gather(
        revoke_token(owner, token_id, is_embedded=True), confirm(database, {one: 2, other: 1})
    )
    assert receipt["complete"]
    assert receipt["streams_cut"] == 3
    assert receipt["took_ms"] < 2000
    assert {w["worker_id"]: w["streams_cut"] for w in receipt["workers"]} == {one: 2, other: 1}
    assert {w["state"] for w in receipt["workers"]} == {"confirmed"}

    again = await revoke_token(owner, token_id, is_embedded=True)
    assert again["streams_cut"] == 0
    assert again["complete"]
    for same in ("token_id", "ordinal", "committed_at"):
        assert again[same] == receipt[same]


async def test_a_worker_that_does_not_answer_is_pending_with_the_times_at_which_it_stops(
    owner: asyncpg.Connection, seed: Seed
) -> None:
    _, token_id = await seed.token()
    silent = await worker(owner, heartbeat_ago=5)
    receipt = await revoke_token(owner, token_id, is_embedded=True, wait_seconds=0.1)
    (part,) = receipt["workers"]
    assert (part["worker_id"], part["state"]) == (silent, "pending")
    assert not receipt["complete"]
    admission = (part["admission_stops_at"] - receipt["committed_at"]).total_seconds()
    streams = (part["streams_stop_at"] - receipt["committed_at"]).total_seconds()
    assert 8 < admission <= 10
    assert streams == pytest.approx(admission + 300)
    assert (part["confirmed_at"], part["streams_cut"]) == (None, None)


async def test_a_worker_past_its_lease_may_still_run_streams_and_is_unknown(
    owner: asyncpg.Connection, seed: Seed
) -> None:
    _, token_id = await seed.token()
    await worker(owner, heartbeat_ago=60)
    await worker(owner, heartbeat_ago=600)
    await worker(owner, ended=True)
    receipt = await revoke_token(owner, token_id, is_embedded=True)
    assert [part["state"] for part in receipt["workers"]] == ["unknown"]
    assert not receipt["complete"]
    assert receipt["took_ms"] < 1000  # nobody waits for it


async def test_a_server_that_has_just_started_may_not_know_every_worker(
    owner: asyncpg.Connection, seed: Seed
) -> None:
    _, token_id = await seed.token()
    age = "SELECT clock_timestamp() - pg_postmaster_start_time()"
    is_young = await owner.fetchval(age) < timedelta(seconds=14)
    receipt = await revoke_token(owner, token_id, is_embedded=False)
    if is_young:
        assert not receipt["complete"]


@pytest.mark.parametrize("token_id", ["nothing", "00000000-0000-0000-0000-000000000000"])
async def test_a_token_that_is_not_there_is_not_found(
    owner: asyncpg.Connection, token_id: str
) -> None:
    with pytest.raises(NotFound):
        await revoke_token(owner, token_id, is_embedded=True)


async def test_a_service_token_is_registered_once_and_renewed(owner: asyncpg.Connection) -> None:
    text = generate()
    assert await keep_service_token(owner, text, ids=IDS)
    await owner.execute("UPDATE tokens SET expires_at = now() + interval '1 day'")
    assert await keep_service_token(owner, text, ids=IDS)
    rows = await owner.fetch("SELECT id::text, expires_at - now() AS left FROM tokens")
    assert len(rows) == 1
    assert rows[0]["left"] > timedelta(days=89)

    await revoke_token(owner, rows[0]["id"], is_embedded=True)
    assert not await keep_service_token(owner, text, ids=IDS)
    assert await owner.fetchval("SELECT revoked_at IS NOT NULL FROM tokens")


async def test_a_malformed_service_token_is_refused_without_quoting_it(
    owner: asyncpg.Connection,
) -> None:
    text = generate()[:-1] + "_"
    with pytest.raises(BadArgument) as refused:
        await keep_service_token(owner, text, ids=IDS)
    assert text not in str(refused.value)
