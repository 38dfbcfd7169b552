import asyncio
import uuid

import asyncpg
import pytest

from gateway.proxy.refusal_log import KEPT_A_SECOND_MAX, QUEUE_MAX, RefusalLog

WORKER = str(uuid.uuid4())
TOKEN, ORG = str(uuid.uuid4()), str(uuid.uuid4())


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(gateway_pool: asyncpg.Pool, clock: Clock) -> RefusalLog:
    return RefusalLog(gateway_pool, worker_id=WORKER, now=clock)


async def rows(owner: asyncpg.Connection) -> list[asyncpg.Record]:
    return await owner.fetch("SELECT * FROM refusals ORDER BY id")


async def test_a_refusal_is_kept_with_whose_and_why(
    refusals: RefusalLog, owner: asyncpg.Connection, clock: Clock
) -> None:
    refusals.note("monthly_limit", org_id=ORG, token_id=TOKEN, limit_kind="token")
    refusals.note("token_invalid")
    assert await refusals.write_some()
    limit, unknown = await rows(owner)
    assert (limit["reason"], limit["limit_kind"]) == ("monthly_limit", "token")
    assert (str(limit["org_id"]), str(limit["token_id"])) == (ORG, TOKEN)
    assert (str(limit["worker_id"]), limit["at"].timestamp()) == (WORKER, clock.now)
    assert (unknown["reason"], unknown["token_id"]) == ("token_invalid", None)


async def test_a_hammering_client_fills_no_table(
    refusals: RefusalLog, owner: asyncpg.Connection, clock: Clock
) -> None:
    for _ in range(500):
        refusals.note("token_revoked")
    clock.now += 1
    refusals.note("token_revoked")
    await refusals.write_some()
    told = await rows(owner)
    assert len(told) == KEPT_A_SECOND_MAX + 1
    assert told[-1]["unsampled"] == 500 - KEPT_A_SECOND_MAX
    assert sum(1 + row["unsampled"] for row in told) == 501


async def test_while_the_database_is_away_the_oldest_go_and_are_counted(
    gateway_pool: asyncpg.Pool, owner: asyncpg.Connection, clock: Clock
) -> None:
    refusals = RefusalLog(gateway_pool, worker_id=WORKER, now=clock)
    await owner.execute("REVOKE INSERT ON refusals FROM kaixu_gateway")
    for _ in range(2 * QUEUE_MAX):
        refusals.note("no_route")
        clock.now += 1
        if clock.now % 100 == 0:
            assert not await refusals.write_some()
    await owner.execute("GRANT INSERT ON refusals TO kaixu_gateway")
    while await refusals.write_some() and len(await rows(owner)) < QUEUE_MAX:
        pass
    refusals.note("no_route")
    await refusals.write_some()
    assert sum(1 + row["unsampled"] for row in await rows(owner)) == 2 * QUEUE_MAX + 1


async def test_it_writes_by_itself(
    gateway_pool: asyncpg.Pool, owner: asyncpg.Connection, clock: Clock
) -> None:
    slept = asyncio.Event()

    async def sleep(_: float) -> None:
        if slept.is_set():
            await asyncio.Event().wait()
        slept.set()

    refusals = RefusalLog(gateway_pool, worker_id=WORKER, now=clock, sleep=sleep)
    refusals.note("no_route")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await refusals.run()
    assert len(await rows(owner)) == 1


async def test_what_is_past_its_retention_goes(
    refusals: RefusalLog, owner: asyncpg.Connection
) -> None:
    await owner.execute(
        "INSERT INTO refusals (at, worker_id, reason) "
        "SELECT now() - make_interval(days => days), $1::uuid, 'no_route' "
        "FROM unnest(ARRAY[0, 29, 31, 90]) AS days",
        WORKER,
    )
    assert await refusals.prune() == 2
    assert await refusals.prune() == 0
    assert len(await rows(owner)) == 2


async def test_the_gateway_may_only_add(gateway_pool: asyncpg.Pool) -> None:
    for statement in ("SELECT FROM refusals", "DELETE FROM refusals"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await gateway_pool.execute(statement)
