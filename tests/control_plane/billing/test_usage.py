import json
import time
import uuid
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from control_plane.billing.usage import report_usage
from gateway.ids import IdMaker
from tests.conftest import Seed

IDS = IdMaker(time.time)


async def append(owner: asyncpg.Connection, seed: Seed, **changes: Any) -> str:
    """Append a usage event; return its id."""
    call_id = IDS.new()
    row = {
        "id": call_id,
        "call_id": call_id,
        "time": datetime.now(UTC).isoformat(),
        "month": f"{datetime.now(UTC):%Y-%m}",
        "org_id": await seed.org(),
        "workspace_id": await seed.workspace(),
        "user_id": await seed.user(),
        "token_id": str(uuid.uuid4()),
        "vendor": "openai",
        "endpoint": "chat/completions",
        "client_format": "openai",
        "model_requested": "fast",
        "model_served": "gpt-5",
        "stream": True,
        "status": "complete",
        "counted": True,
        "usage_source": "vendor",
        "input_tokens": 10,
        "output_tokens": 5,
        **changes,
    }
    await owner.execute("SELECT ledger_append($1)", json.dumps([row]))
    return call_id


async def test_a_month_is_summed_up_by_each_of_the_groupings(
    owner: asyncpg.Connection, seed: Seed
) -> None:
    _, token_id = await seed.token(name="ci")
    await append(owner, seed, token_id=token_id)
    await append(owner, seed, token_id=token_id, counted=False, reasoning_tokens=3)
    await append(owner, seed, vendor="claude", model_served=None, model_requested="opus")
    labels: dict[str, list[object]] = {}
    for by in ("token", "vendor", "model", "day"):
        report = await report_usage(owner, month=None, by=by)
        assert report["by"] == by
        assert sum(row["calls"] for row in report["rows"]) == 3
        assert sum(row["counted"] for row in report["rows"]) == 2
        assert sum(row["output_tokens"] for row in report["rows"]) == 15
        labels[by] = [row["token_id" if by == "token" else by] for row in report["rows"]]
    assert labels["token"][0] == token_id
    assert labels["vendor"] == ["openai", "claude"]
    assert labels["model"] == ["gpt-5", "opus"]
    (first, _) = (await report_usage(owner, month=None, by="token"))["rows"]
    assert (first["name"], first["reasoning_tokens"], first["cache_read_tokens"]) == ("ci", 3, None)


async def test_another_month_is_empty(owner: asyncpg.Connection, seed: Seed) -> None:
    await append(owner, seed)
    report = await report_usage(owner, month=date(2020, 2, 1), by="token")
    assert (report["month"], report["rows"]) == ("2020-02", [])


@pytest.mark.parametrize("unshipped", [None, datetime(2026, 1, 1, tzinfo=UTC)])
async def test_sealed_through_is_the_oldest_call_that_some_worker_still_holds(
    owner: asyncpg.Connection, unshipped: datetime | None
) -> None:
    heartbeats = [datetime(2026, 2, day, tzinfo=UTC) for day in (1, 2, 3)]
    for heartbeat, ended in zip(heartbeats, (heartbeats[0], None, None), strict=True):
        await owner.execute(
            """
            INSERT INTO workers (id, machine, pid, heartbeat_at, lease, offline_stream_grace,
                                 applied, ended_at)
            VALUES (gen_random_uuid(), 'box', 1, $1, '15 s', '300 s', 0, $2)
            """,
            heartbeat,
            ended,
        )
    await owner.execute(
        "UPDATE workers SET unshipped_since = $1 WHERE heartbeat_at = $2", unshipped, heartbeats[2]
    )
    report = await report_usage(owner, month=None, by="day")
    assert report["sealed_through"] == (unshipped or heartbeats[1] - timedelta(seconds=7.5))


async def test_an_ended_worker_holds_the_seal_until_its_journal_is_recovered(
    owner: asyncpg.Connection,
) -> None:
    admitted = datetime(2026, 11, 1, tzinfo=UTC)
    worker_id = uuid.uuid4()
    await owner.execute(
        """
        INSERT INTO workers (
            id, machine, pid, heartbeat_at, lease, offline_stream_grace, applied, unshipped_since,
            ended_at
        )
        VALUES ($1, 'm', 1, now(), '15 s', '300 s', 0, $2, now() - interval '2 days')
        """,
        worker_id,
        admitted,
    )
    await owner.fetchval("SELECT housekeep()")
    report = await report_usage(owner, month=None, by="token")
    assert report["sealed_through"] == admitted
    await owner.execute("UPDATE workers SET unshipped_since = NULL WHERE id = $1", worker_id)
    report = await report_usage(owner, month=None, by="token")
    assert report["sealed_through"] > admitted
    await owner.fetchval("SELECT housekeep()")
    assert await owner.fetchval("SELECT count(*) FROM workers") == 0


async def test_without_workers_everything_is_sealed(owner: asyncpg.Connection) -> None:
    report = await report_usage(owner, month=None, by="day")
    age = await owner.fetchval(
        "SELECT clock_timestamp() - $1::timestamptz", report["sealed_through"]
    )
    assert 0 <= age.total_seconds() < 60
