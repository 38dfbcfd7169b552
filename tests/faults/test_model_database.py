"""The simulation's database against the real one: the same requests, the same answers."""

import json
import random
import uuid
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from gateway.metering.allowance_store import AllowanceStore, BlockAsk
from gateway.metering.ledger import Ledger
from tests.faults.model_database import ModelDatabase

LIMIT = 40
WORKERS = [str(uuid.UUID(int=number)) for number in (1, 2)]
SAME = ("block_id", "granted", "limit", "remaining", "outstanding")


@pytest.mark.parametrize("number", range(3))
async def test_blocks_are_granted_and_settled_alike(
    number: int, owner: asyncpg.Connection, gateway_pool: asyncpg.Pool, seed: Any
) -> None:
    chance = random.Random(number)
    _, token_id = await seed.token(limit=LIMIT)
    model = ModelDatabase(limits={("token", token_id): LIMIT})
    store = AllowanceStore(gateway_pool, seconds_max=20)
    ids = [str(uuid.UUID(int=at)) for at in range(10, 40)]
    for _ in range(120):
        if chance.random() < 0.6:
            ask = BlockAsk(
                block_id=chance.choice(ids),
                kind="token",
                subject_id=token_id,
                want=chance.randrange(12),
            )
            worker = chance.choice(WORKERS)
            [modelled] = model.grant(worker, [ask], may_recall=False)
            [real] = await store.grant(worker, [ask], may_recall=False)
            assert [getattr(modelled, n) for n in SAME] == [getattr(real, n) for n in SAME]
        else:
            some = chance.sample(ids, chance.randrange(1, 4))
            used = [chance.choice((None, 0, 1, 3, 99)) for _ in some]
            model.settle(some, used)
            await store.settle(some, used)
    taken = await owner.fetchval("SELECT taken FROM allowances WHERE subject_id = $1", token_id)
    assert taken == model.taken["token", token_id]
    rows = await owner.fetch("SELECT id::text, amount, used FROM blocks")
    assert {row["id"]: (row["amount"], row["used"]) for row in rows} == {
        block_id: (block.amount, block.used) for block_id, block in model.blocks.items()
    }


async def test_rows_end_up_alike(owner: asyncpg.Connection, gateway_pool: asyncpg.Pool) -> None:
    chance = random.Random(1)
    model = ModelDatabase(limits={})
    ledger = Ledger(gateway_pool)
    ids = [str(uuid.UUID(int=at)) for at in range(1, 12)]
    for _ in range(30):
        batch = [
            row(call_id, status=chance.choice(("complete", "interrupted")))
            for call_id in chance.sample(ids, chance.randrange(1, 5))
        ]
        inserted = await ledger.append(batch)
        assert inserted == model.append((b"[" + b",".join(batch) + b"]").decode())
    events = await owner.fetch(
        "SELECT coalesce(corrects, id)::text AS id, status FROM usage_events AS e"
        " WHERE NOT EXISTS (SELECT FROM usage_events AS c WHERE c.corrects = e.id)"
    )
    assert {event["id"]: event["status"] for event in events} == {
        call_id: event["status"] for call_id, event in model.events.items()
    }


def row(call_id: str, *, status: str) -> bytes:
    time = datetime(2026, 11, 15, tzinfo=UTC).isoformat()
    whose = dict.fromkeys(("org_id", "workspace_id", "user_id", "token_id"), WORKERS[0])
    what = {"vendor": "v", "endpoint": "e", "client_format": "f", "usage_source": "none"}
    return json.dumps(
        {
            "id": call_id,
            "call_id": call_id,
            "time": time,
            "month": "2026-11",
            "status": status,
            "counted": True,
            **whose,
            **what,
        }
    ).encode()
