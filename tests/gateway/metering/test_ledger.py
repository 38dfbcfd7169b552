import asyncio
import contextlib
import json
import random
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from gateway.ids import IdMaker
from gateway.metering.journal import Journal
from gateway.metering.journal_recovery import Findings, orphans
from gateway.metering.ledger import Ledger, LedgerAway, LedgerEvents
from tests.faults.chaos_proxy import ChaosProxy

ORG, WORKSPACE, USER, TOKEN = (str(uuid.UUID(int=n)) for n in range(1, 5))
SUMS = (
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "seconds",
)

ids = IdMaker(lambda: datetime.now(UTC).timestamp())


def make_row(**members: Any) -> bytes:
    time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    call_id = members.get("id", ids.new())
    row = {
        "id": call_id,
        "call_id": call_id,
        "attempt": 1,
        "time": time,
        "ended_at": time,
        "month": time[:7],
        "org_id": ORG,
        "workspace_id": WORKSPACE,
        "user_id": USER,
        "token_id": TOKEN,
        "vendor": "openai",
        "endpoint": "openai.chat",
        "client_format": "openai",
        "model_requested": "gpt-x",
        "stream": True,
        "status": "complete",
        "http_status": 200,
        "counted": True,
        "usage_source": "vendor",
        "flags": [],
    }
    return json.dumps({**row, **members}).encode()


async def check_books(owner: asyncpg.Connection) -> None:
    """Ordinals without gaps; sums equal to those of the events that no correction replaces."""
    ordinals = [r["ordinal"] for r in await owner.fetch("SELECT ordinal FROM usage_events")]
    last = await owner.fetchval("SELECT last FROM ledger_head")
    assert sorted(ordinals) == list(range(1, last + 1))
    names = ", ".join(f"sum({name}) AS {name}" for name in SUMS)
    keys = "month, hour, org_id, token_id, vendor, model_requested, model_served"
    valid = """
        FROM (SELECT *, date_trunc('hour', time, 'UTC') AS hour FROM usage_events) AS e
        WHERE NOT EXISTS (SELECT FROM usage_events AS c WHERE c.corrects = e.id)
    """
    events = await owner.fetch(
        f"""SELECT {keys}, count(*) AS calls, sum(counted::int) AS counted, {names} {valid}
            GROUP BY {keys} ORDER BY {keys}"""
    )
    hourly = await owner.fetch(
        f"""SELECT {keys}, sum(calls) AS calls, sum(counted) AS counted, {names}
            FROM usage_hourly GROUP BY {keys} HAVING sum(calls) <> 0 ORDER BY {keys}"""  # noqa: S608
    )
    assert list(map(dict, events)) == list(map(dict, hourly))


async def test_a_row_is_appended_once_however_often_it_is_sent(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    ledger = Ledger(gateway_pool)
    rows = [make_row(input_tokens=n, output_tokens=None) for n in range(5)]
    assert await ledger.append(rows) == 5
    assert await ledger.append([*rows[2:], make_row()]) == 1
    assert await ledger.append([rows[0], rows[0]]) == 0
    assert await ledger.append([]) == 0
    assert await owner.fetchval("SELECT count(*) FROM usage_events") == 6
    assert await owner.fetchval("SELECT sum(output_tokens) FROM usage_hourly") is None
    await check_books(owner)


async def test_every_field_of_a_row_is_kept(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    raw = '{"total": 1.50,  "b":1, "a":{"z":null}}'
    row = make_row(
        retry_of=TOKEN,
        attempt=2,
        session_id="s",
        ttfb_ms=1.25,
        seconds=1.5,
        searches=2,
        flags=["bad_number", "total_differs"],
        bytes_up=2**40,
        month="2026-02",
        reason=None,
    )
    await Ledger(gateway_pool).append([row[:-1] + b',"vendor_usage":' + raw.encode() + b"}"])
    event = await owner.fetchrow("SELECT * FROM usage_events")
    assert event is not None
    told = dict(event)
    assert told["vendor_usage"] == raw
    assert told["month"].isoformat() == "2026-02-01"
    assert (told["attempt"], str(told["retry_of"])) == (2, TOKEN)
    assert (told["ttfb_ms"], float(told["seconds"]), told["searches"]) == (1.25, 1.5, 2)
    assert told["flags"] == ["bad_number", "total_differs"]
    assert (told["bytes_up"], told["bytes_down"], told["corrects"]) == (2**40, None, None)


async def test_many_at_once_leave_no_gap_and_no_double(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    ledger = Ledger(gateway_pool)
    seeded = random.Random(5)
    rows = [
        make_row(
            input_tokens=seeded.choice([None, 0, 7]),
            output_tokens=n,
            seconds=n / 2,
            model_served=seeded.choice([None, "gpt-x-1", "gpt-x-2"]),
            counted=seeded.random() < 0.8,
        )
        for n in range(200)
    ]
    batches = [seeded.sample(rows, 60) for _ in range(12)]
    inserted = await asyncio.gather(*map(ledger.append, batches))
    sent = len({row for batch in batches for row in batch})
    assert sum(inserted) == sent
    assert await owner.fetchval("SELECT last FROM ledger_head") == sent
    await check_books(owner)


@pytest.mark.parametrize("together", [False, True])
async def test_a_true_end_corrects_a_supposed_one_once(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool, *, together: bool
) -> None:
    ledger = Ledger(gateway_pool)
    call_id = ids.new()
    supposed = make_row(id=call_id, status="interrupted", usage_source="none", ended_at=None)
    true = make_row(id=call_id, output_tokens=9, model_served="gpt-x-1")
    if together:
        assert await ledger.append([supposed, true]) == 1
    else:
        assert await ledger.append([supposed]) == 1
        assert await owner.fetchval("SELECT usage_unknown FROM usage_hourly") == 1
        assert await ledger.append([true]) == 1
        correction = await owner.fetchrow("SELECT * FROM usage_events WHERE corrects IS NOT NULL")
        assert correction is not None
        assert str(correction["corrects"]) == str(correction["call_id"]) == call_id
        assert correction["id"].version == 7
        assert correction["id"].bytes[:6] == uuid.UUID(call_id).bytes[:6]
    assert await ledger.append([true]) == 0
    assert await ledger.append([supposed]) == 0
    sums = await owner.fetchrow(
        "SELECT sum(calls) AS calls, sum(counted) AS counted, sum(usage_unknown) AS unknown,"
        " sum(output_tokens) AS output FROM usage_hourly"
    )
    assert sums is not None
    assert tuple(sums) == (1, 1, 0, 9)
    await check_books(owner)


@pytest.mark.parametrize(
    "poison",
    [
        make_row(status="odd"),
        make_row(output_tokens=-1),
        make_row(output_tokens=2**70),
        make_row(time="late"),
        make_row(month=None),
        make_row(org_id=None),
        make_row(finish_reason="a\0b"),
        make_row()[:-1] + b',"vendor_usage":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        make_row()[:-1] + b',"finish_reason":"\xff"}',
        make_row()[:-1] + b',"finish_reason":"\0"}',
        b"[]",
        b"{",
    ],
)
async def test_a_bad_row_is_put_aside_and_costs_no_other(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool, poison: bytes
) -> None:
    rejected: list[str] = []
    events = LedgerEvents(on_rejected=lambda sqlstate, _: rejected.append(sqlstate))
    ledger = Ledger(gateway_pool, events=events)
    rows = [make_row() for _ in range(7)]
    rows.insert(3, poison)
    assert await ledger.append(rows) == 7
    assert await ledger.append(rows) == 0
    assert len(rejected) == 2  # told each time, kept once
    assert await owner.fetchval("SELECT sqlstate FROM ledger_rejected") == rejected[0]
    assert await owner.fetchval("SELECT count(*) FROM ledger_rejected") == 1
    await check_books(owner)


class NoMemoryOnce:
    """A pool whose first statement can't be encoded, as the driver tells it."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._failed = False

    def acquire(self, **limits: float) -> contextlib.AbstractAsyncContextManager[Any]:
        if self._failed:
            return self._pool.acquire(**limits)
        self._failed = True
        raise asyncpg.DataError("invalid input for query argument $1") from MemoryError()


async def test_a_worker_that_is_short_of_memory_puts_no_row_aside(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    pool: Any = NoMemoryOnce(gateway_pool)
    ledger, rows = Ledger(pool), [make_row()]
    with pytest.raises(LedgerAway):
        await ledger.append(rows)
    assert await owner.fetchval("SELECT count(*) FROM ledger_rejected") == 0
    assert await ledger.append(rows) == 1


async def test_the_gateway_may_append_and_nothing_else(gateway_pool: asyncpg.Pool) -> None:
    for statement in (
        "SELECT * FROM usage_events",
        "INSERT INTO usage_events DEFAULT VALUES",
        "UPDATE ledger_head SET last = 0",
        "SELECT * FROM usage_hourly",
        "DELETE FROM ledger_rejected",
        "SELECT ensure_partitions()",
        "DELETE FROM change_log",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await gateway_pool.execute(statement)


async def test_events_lie_in_their_month_and_strays_are_counted_until_they_move(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    ledger = Ledger(gateway_pool)
    now = datetime.now(UTC)
    stray = IdMaker(lambda: datetime(2001, 1, 1, tzinfo=UTC).timestamp()).new()
    await ledger.append([make_row(), make_row(id=stray)])
    assert await owner.fetchval("SELECT count(*) FROM usage_events_default") == 1
    month = f"usage_events_{now:%Y_%m}"
    assert await owner.fetchval(f"SELECT count(*) FROM {month}") == 1  # noqa: S608

    # As if nobody had made this month's partition: its rows wait in the default one.
    await owner.execute(f"ALTER TABLE usage_events DETACH PARTITION {month}; DROP TABLE {month}")
    await ledger.append([make_row(), make_row(), make_row()])
    assert await owner.fetchval("SELECT count(*) FROM usage_events_default") == 4
    found = await ledger.housekeep()
    assert found is not None
    assert (found.partitions_made, found.strays, found.rejected) == (1, 4, 0)
    assert await owner.fetchval(f"SELECT count(*) FROM {month}") == 3  # noqa: S608
    found = await ledger.housekeep()
    assert found is not None
    assert (found.partitions_made, found.strays) == (0, 1)
    assert await ledger.append([make_row()]) == 1
    assert await owner.fetchval(f"SELECT count(*) FROM {month}") == 4  # noqa: S608


async def test_housekeeping_ends_old_news_but_never_the_newest_change(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    for _ in range(3):
        await owner.execute("SELECT log_change('vendors', NULL, 'changed')")
    await owner.execute("UPDATE change_log SET at = now() - interval '8 days'")
    await owner.execute(
        "INSERT INTO confirmations (ordinal, worker_id, streams_cut, at) VALUES"
        " (1, gen_random_uuid(), 0, now() - interval '2 hours'), (2, gen_random_uuid(), 0, now())"
    )
    await Ledger(gateway_pool).housekeep()
    head = await owner.fetchval("SELECT last FROM change_head")
    assert [r["ordinal"] for r in await owner.fetch("SELECT ordinal FROM change_log")] == [head]
    assert await owner.fetchval("SELECT ordinal FROM confirmations") == 2


async def test_one_gateway_at_a_time_keeps_house(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    ledger = Ledger(gateway_pool)
    async with owner.transaction():
        await owner.execute("SELECT * FROM housekeep()")
        assert await ledger.housekeep() is None


async def test_a_database_that_is_away_is_no_fault_of_the_rows(database: Any) -> None:
    elsewhere = await asyncpg.connect(database.server.owner_url)
    async with asyncpg.create_pool(database.gateway_url, min_size=0, max_size=1) as pool:
        ledger = Ledger(pool)
        assert await ledger.append([make_row()]) == 1
        await elsewhere.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS false")
        await elsewhere.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1",
            database.name,
        )
        for _ in range(2):
            with pytest.raises(LedgerAway):
                await ledger.append([make_row()])
        await elsewhere.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS true")
        assert await ledger.append([make_row()]) == 1
    await elsewhere.close()


async def test_connections_that_fell_silent_cost_one_attempt_and_not_each_its_own(
    database: Any, owner: asyncpg.Connection
) -> None:
    parts = urlsplit(database.gateway_url)
    target = (parts.hostname or "", parts.port or 0)
    proxy = ChaosProxy(lambda: target, chance=random.Random(1))
    async with proxy.listening():
        url = database.gateway_url.replace(f":{target[1]}/", f":{proxy.port}/")
        pool = await asyncpg.create_pool(url, min_size=4, max_size=4)
        ledger = Ledger(pool, patience_seconds=0.5)
        assert await ledger.append([make_row()]) == 1
        proxy.silence()
        row = make_row()
        async with asyncio.timeout(10):
            with pytest.raises(LedgerAway):
                await ledger.append([row])
            assert await ledger.append([row]) == 1
        pool.terminate()
    assert await owner.fetchval("SELECT count(*) FROM usage_events") == 2


async def test_what_closes_is_shipped_at_once_and_what_an_outage_held_up_afterwards(
    tmp_path: Path, owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    appended: asyncio.Queue[int] = asyncio.Queue()
    away: list[str] = []
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(away) == 3:
            await owner.execute("ALTER FUNCTION append_away(json) RENAME TO ledger_append")
        await asyncio.sleep(0)

    ledger = Ledger(
        gateway_pool,
        events=LedgerEvents(on_appended=appended.put_nowait, on_away=away.append),
        sleep=sleep,
        jitter=lambda: 1.0,
    )
    journal = Journal.create(tmp_path, worker_id=ids.new(), boot_id="boot")
    running = asyncio.Task(ledger.run(journal))

    def call(rows: Sequence[bytes]) -> None:
        for row in rows:
            call_id = json.loads(row)["id"]
            journal.open_call(call_id, row, admitted=7.0, block_ids=())
            journal.close_call(call_id, row)

    call([make_row()])
    assert await appended.get() == 1
    await owner.execute("ALTER FUNCTION ledger_append(json) RENAME TO append_away")
    call([make_row() for _ in range(700)])
    assert await appended.get() == 500
    assert await appended.get() == 200
    assert len(away) == 3
    assert waits[2:5] == [0.1, 0.2, 0.4]
    assert journal.unshipped_since() is None
    running.cancel()
    journal.close()
    await check_books(owner)


async def test_rows_gather_longer_while_there_are_many(
    tmp_path: Path, owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    appended: asyncio.Queue[int] = asyncio.Queue()
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    ledger = Ledger(gateway_pool, events=LedgerEvents(on_appended=appended.put_nowait), sleep=sleep)
    journal = Journal.create(tmp_path, worker_id=ids.new(), boot_id="boot")
    running = asyncio.Task(ledger.run(journal))
    for rows in (1, 2, 1, 1):
        for _ in range(rows):
            row = make_row()
            call_id = json.loads(row)["id"]
            journal.open_call(call_id, row, admitted=7.0, block_ids=())
            journal.close_call(call_id, row)
        assert await appended.get() == rows
    assert waits == [0.05, 0.05, 0.2, 0.05]
    running.cancel()
    journal.close()


async def test_rows_that_fill_a_batch_by_their_size_leave_none_behind(
    tmp_path: Path, gateway_pool: asyncpg.Pool
) -> None:
    ledger = Ledger(gateway_pool)
    journal = Journal.create(tmp_path, worker_id=ids.new(), boot_id="boot")
    rows = 200
    for _ in range(rows):
        row = make_row(vendor_usage={"told": "x" * 8_000})
        call_id = json.loads(row)["id"]
        journal.open_call(call_id, row, admitted=7.0, block_ids=())
        journal.close_call(call_id, row)
    assert await ledger.ship(journal) == rows
    assert journal.unshipped_since() is None
    journal.close()


async def lose(owner: asyncpg.Connection, *, after: int) -> None:
    """Take the ledger back to where it was, as a standby is that lagged behind."""
    await owner.execute("DELETE FROM usage_events WHERE ordinal > $1", after)
    await owner.execute("UPDATE ledger_head SET last = $1", after)


async def test_a_ledger_without_the_row_that_was_its_last_is_another_one(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    lost: list[tuple[int, str] | None] = []
    ledger = Ledger(gateway_pool, events=LedgerEvents(on_lost=lambda: lost.append(ledger.place)))
    rows = [make_row() for _ in range(4)]
    await ledger.append(rows[:2])
    assert ledger.place == (2, json.loads(rows[1])["id"])
    await Ledger(gateway_pool).append(rows[2:3])
    await ledger.append(rows[3:])
    assert ledger.place == (4, json.loads(rows[3])["id"])
    assert not lost

    await lose(owner, after=3)
    new = make_row()
    await Ledger(gateway_pool).append([new])  # which has the lost row's number
    assert await ledger.append(rows) == 1
    assert lost == [None]
    assert ledger.place == (5, json.loads(rows[3])["id"])
    assert await ledger.append(rows) == 0
    assert lost == [None], "once is enough"


async def test_rows_that_a_database_lost_are_shipped_again(
    tmp_path: Path, owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    journal = Journal.create(tmp_path, worker_id=ids.new(), boot_id="boot")
    ledger = Ledger(gateway_pool, events=LedgerEvents(on_lost=journal.reship))
    rows = [make_row() for _ in range(5)]
    for row in rows:
        call_id = json.loads(row)["id"]
        journal.open_call(call_id, row, admitted=7.0, block_ids=())
        journal.close_call(call_id, row)
        await ledger.ship(journal)
    assert await owner.fetchval("SELECT count(*) FROM usage_events") == 5
    await lose(owner, after=2)
    row = make_row()
    journal.open_call(json.loads(row)["id"], row, admitted=7.0, block_ids=())
    journal.close_call(json.loads(row)["id"], row)
    while journal.unshipped_since() is not None:
        await ledger.ship(journal)
    told = {str(one["id"]) for one in await owner.fetch("SELECT id FROM usage_events")}
    assert told == {json.loads(one)["id"] for one in (*rows, row)}
    journal.close()


async def test_who_appends_at_once_never_takes_the_ledger_for_another(
    gateway_pool: asyncpg.Pool,
) -> None:
    lost: list[None] = []
    ledger = Ledger(gateway_pool, events=LedgerEvents(on_lost=lambda: lost.append(None)))
    await asyncio.gather(*(ledger.append([make_row(), make_row()]) for _ in range(40)))
    assert ledger.place is not None
    assert ledger.place[0] == 80
    assert not lost


async def test_an_abandoned_journal_is_finished_even_where_finishing_it_broke_off(
    tmp_path: Path, owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    worker_id = ids.new()
    abandoned = Journal.create(tmp_path, worker_id=worker_id, boot_id="boot")
    block = ids.new()
    abandoned.block_asked([block])
    rows = [make_row(output_tokens=3) for _ in range(4)]
    for row in rows:
        opened = {name: told for name, told in json.loads(row).items() if name != "status"}
        call_id = opened["id"]
        abandoned.open_call(call_id, json.dumps(opened).encode(), admitted=7.0, block_ids=(block,))
        if row is not rows[3]:
            abandoned.close_call(call_id, row)
    abandoned.close()

    told: list[tuple[str, Findings]] = []
    settled: list[tuple[Sequence[str], Sequence[int | None]]] = []
    ended: list[str] = []

    async def settle(block_ids: Sequence[str], used: Sequence[int | None]) -> None:
        settled.append((block_ids, used))

    async def end_worker(ended_id: str) -> None:
        ended.append(ended_id)
        if len(ended) == 1:
            raise LedgerAway

    events = LedgerEvents(on_recovered=lambda who, findings: told.append((who, findings)))
    ledger = Ledger(gateway_pool, events=events)
    journal = Journal.create(tmp_path, worker_id=ids.new(), boot_id="boot")

    def found() -> Any:
        return orphans(tmp_path, boot_id="boot")

    with pytest.raises(LedgerAway):
        await ledger.recover(found(), settle=settle, end_worker=end_worker, keep_in=journal)
    recovered = await ledger.recover(found(), settle=settle, end_worker=end_worker, keep_in=journal)
    assert recovered == 1
    assert settled == [([block], [4])] * 2
    assert ended == [worker_id] * 2
    assert [who for who, _ in told] == [worker_id]
    statuses = await owner.fetch("SELECT status, flags FROM usage_events ORDER BY ordinal")
    assert [row["status"] for row in statuses] == ["complete"] * 3 + ["interrupted"]
    assert statuses[3]["flags"] == ["dispatch_unknown"]
    assert await ledger.recover(found(), settle=settle, end_worker=end_worker) == 0

    # A database that lost it all gets it all again, from where the segments are kept.
    await owner.execute("TRUNCATE usage_events, usage_hourly; UPDATE ledger_head SET last = 0")
    journal.reship()
    await ledger.ship(journal)
    assert await owner.fetchval("SELECT count(*) FROM usage_events") == 4
    journal.close()
    await check_books(owner)


async def test_a_journal_that_cannot_be_read_does_not_keep_others_from_recovery(
    tmp_path: Path, gateway_pool: asyncpg.Pool
) -> None:
    unreadable, readable = ids.new(), ids.new()
    for worker_id in (unreadable, readable):
        Journal.create(tmp_path, worker_id=worker_id, boot_id="boot").close()
    (tmp_path / unreadable / "00000001.seg").mkdir()
    ended: list[str] = []

    async def settle(_ids: Sequence[str], _used: Sequence[int | None]) -> None:
        pass

    async def end_worker(worker_id: str) -> None:
        ended.append(worker_id)

    with pytest.raises(IsADirectoryError):
        await Ledger(gateway_pool).recover(
            orphans(tmp_path, boot_id="boot"), settle=settle, end_worker=end_worker
        )
    assert ended == [readable]
    [left] = orphans(tmp_path, boot_id="boot")
    assert left.worker_id == unreadable
    left.release()


VENDOR = str(uuid.UUID(int=9))
OBJECT = {"metered_vendor_id": VENDOR, "metered_object": "resp_1", "metered_again": True}
TOLD = {"input_tokens": 3, "output_tokens": 4, "vendor_usage": {"a": 1}, "flags": ["deferred"]}


async def metered_rows(owner: asyncpg.Connection) -> list[asyncpg.Record]:
    return await owner.fetch(
        "SELECT id::text, usage_source, output_tokens, flags, vendor_usage FROM usage_events "
        "ORDER BY ordinal"
    )


@pytest.mark.parametrize("in_one_batch", [True, False])
async def test_the_usage_of_a_stored_object_is_in_one_row(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool, *, in_one_batch: bool
) -> None:
    ledger = Ledger(gateway_pool)
    begun = make_row(**OBJECT, usage_source="none", flags=["deferred"])
    first, second = (compact(make_row(**OBJECT, **TOLD, counted=False)) for _ in range(2))
    other = compact(make_row(**{**OBJECT, "metered_object": "resp_2"}, **TOLD))
    rows = [compact(begun), first, second, other]
    for batch in [rows] if in_one_batch else [[row] for row in rows]:
        await ledger.append(batch)
    told = await metered_rows(owner)
    assert [row["output_tokens"] for row in told] == [None, 4, None, 4]
    assert [row["usage_source"] for row in told] == ["none", "vendor", "none", "vendor"]
    flags = [["deferred"], ["deferred"], ["metered_before"], ["deferred"]]
    assert [row["flags"] for row in told] == flags
    assert told[2]["vendor_usage"] is None
    await check_books(owner)


async def test_a_row_that_is_sent_again_keeps_its_object(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    ledger = Ledger(gateway_pool)
    first, second = (compact(make_row(**OBJECT, **TOLD)) for _ in range(2))
    for batch in ([first], [first, second], [second, first]):
        await ledger.append(batch)
    assert [row["output_tokens"] for row in await metered_rows(owner)] == [4, None]
    await check_books(owner)


async def test_the_usage_of_an_object_is_claimed_once_by_many_at_the_same_time(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    rows = [compact(make_row(**OBJECT, **TOLD)) for _ in range(20)]
    await asyncio.gather(*(Ledger(gateway_pool).append([row]) for row in rows))
    told = await metered_rows(owner)
    assert sorted(row["output_tokens"] or 0 for row in told) == [0] * 19 + [4]
    await check_books(owner)


MADE = {**OBJECT, "metered_again": False}


async def record_maker(gateway_pool: asyncpg.Pool, *, call_id: str) -> None:
    """Have it recorded that this call made the object."""
    await gateway_pool.execute(
        "INSERT INTO stored_objects (object_id, vendor_id, kind, org_id, workspace_id, user_id, "
        "token_id, call_id) VALUES ('resp_1', $1, 'response', $2, $3, $4, $5, $6)",
        *(VENDOR, ORG, WORKSPACE, USER, TOKEN, call_id),
    )


@pytest.mark.parametrize("retrieved_first", [True, False])
@pytest.mark.parametrize("deferred", [True, False])
async def test_calls_that_made_something_tell_their_usage_each(
    owner: asyncpg.Connection,
    gateway_pool: asyncpg.Pool,
    *,
    retrieved_first: bool,
    deferred: bool,
) -> None:
    await record_maker(gateway_pool, call_id=ids.new())
    made = [compact(make_row(**MADE, **TOLD, metered_deferred=deferred)) for _ in range(2)]
    again = compact(make_row(**OBJECT, **TOLD))
    for row in [again, *made] if retrieved_first else [*made, again]:
        await Ledger(gateway_pool).append([row])
    due = [4, 4, 4] if retrieved_first else [4, 4, None]
    assert [row["output_tokens"] for row in await metered_rows(owner)] == due
    await check_books(owner)


@pytest.mark.parametrize("retrieved_first", [True, False])
@pytest.mark.parametrize("deferred", [True, False])
async def test_what_was_made_is_told_by_its_maker_or_by_who_retrieved_it(
    owner: asyncpg.Connection,
    gateway_pool: asyncpg.Pool,
    *,
    retrieved_first: bool,
    deferred: bool,
) -> None:
    call_id = ids.new()
    await record_maker(gateway_pool, call_id=call_id)
    made = compact(make_row(**MADE, **TOLD, metered_deferred=deferred, id=call_id))
    again = compact(make_row(**OBJECT, **TOLD))
    for row in [again, made] if retrieved_first else [made, again]:
        await Ledger(gateway_pool).append([row])
    assert [row["output_tokens"] for row in await metered_rows(owner)] == [4, None]
    await check_books(owner)


async def test_a_row_that_is_put_aside_claims_nothing(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    ledger = Ledger(gateway_pool)
    bad = compact(make_row(**OBJECT, **{**TOLD, "output_tokens": -1}))
    good = compact(make_row(**OBJECT, **TOLD))
    await ledger.append([bad, good])
    assert [row["output_tokens"] for row in await metered_rows(owner)] == [4]


def compact(row: bytes) -> bytes:
    """Return a row as a call's record writes it."""
    return json.dumps(json.loads(row), separators=(",", ":")).encode()
