import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from gateway.clock import DatabaseClock, boottime
from gateway.errors import DatabaseAway, Draining, JournalFull, MonthlyLimitReached
from gateway.ids import IdMaker
from gateway.metering.allowance import FIRST_BLOCKS, LOST_BLOCKS_MAX, Allowances
from gateway.metering.allowance_store import AllowanceStore, BlockAsk, BlockGrant
from gateway.metering.held_blocks import Limits, Subject

DEADLINE_SECONDS = 20.0  # of a test's wait, on a busy machine


class Log:
    """A journal that remembers, and that checks the order of what it is told."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.settled: set[str] = set()
        self.is_full = False

    def block_asked(self, block_ids: Sequence[str]) -> None:
        if self.is_full:
            raise JournalFull
        assert not self.open & set(block_ids)
        self.open.update(block_ids)

    def block_settled(self, block_ids: Sequence[str]) -> None:
        assert self.open >= set(block_ids)
        self.open.difference_update(block_ids)
        self.settled.update(block_ids)


class Store:
    """The real store, with an unreliable way to it."""

    def __init__(self, store: AllowanceStore, log: Log) -> None:
        self.store = store
        self.log = log
        self.is_away = False
        self.loses_grants = 0  # replies that get lost
        self.loses_settles = 0
        self.delays_grants = 0  # requests that arrive when `late` is awaited
        self.late: list[Callable[[], Awaitable[list[BlockGrant]]]] = []
        self.asked = 0
        self.before_answer: Callable[[], None] = lambda: None

    async def grant(
        self, worker_id: str, asks: Sequence[BlockAsk], *, may_recall: bool
    ) -> list[BlockGrant]:
        assert self.log.open >= {ask.block_id for ask in asks}, "asked before journaled"
        self.asked += 1
        if self.is_away:
            raise DatabaseAway
        if self.delays_grants:
            self.delays_grants -= 1
            self.late.append(lambda: self.store.grant(worker_id, asks, may_recall=False))
            raise DatabaseAway
        grants = await self.store.grant(worker_id, asks, may_recall=may_recall)
        self.before_answer()
        if self.loses_grants:
            self.loses_grants -= 1
            raise DatabaseAway
        return grants

    async def settle(self, block_ids: Sequence[str], used: Sequence[int | None]) -> None:
        assert self.log.open >= set(block_ids), "journaled as settled before it was"
        if self.is_away:
            raise DatabaseAway
        await self.store.settle(block_ids, used)
        if self.loses_settles:
            self.loses_settles -= 1
            raise DatabaseAway


class Worker:
    """One worker's allowances."""

    def __init__(self, pool: asyncpg.Pool, clock: DatabaseClock) -> None:
        self.id = str(uuid.uuid4())
        self.log = Log()
        self.store = Store(AllowanceStore(pool), self.log)
        self.taken: list[str] = []
        self.new_id = IdMaker(time.time).new
        self.allowances = Allowances(
            store=self.store,
            worker_id=self.id,
            log=self.log,
            clock=clock,
            new_id=self.new_id,
            now=asyncio.get_running_loop().time,
        )

    async def call(self, limits: Limits) -> tuple[str, ...]:
        while (ids := self.allowances.take(limits)) is None:
            await self.allowances.refill(limits)
        self.taken += ids
        return ids

    async def calls(self, limits: Limits, count: int) -> int:
        """Make calls one after the other until one is refused; return how many went through."""
        for done in range(count):
            try:
                await self.call(limits)
            except MonthlyLimitReached:
                return done
        return count

    async def settle(self) -> None:
        """Wait until nothing is left to settle."""
        self.allowances._settle_soon.set()
        await eventually(lambda: self.allowances.unsettled == 0)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not holds():  # noqa: ASYNC110 - what is awaited has no event of its own
            await asyncio.sleep(0.002)


def known_clock() -> DatabaseClock:
    """The clock of this machine, on which the test's database runs as well."""
    clock = DatabaseClock()
    at = boottime()
    clock.observe(sent=at - 0.001, received=at, database_time=time.time())
    return clock


class Machine:
    """Workers on one database, who hear its recalls."""

    def __init__(self, pool: asyncpg.Pool, group: asyncio.TaskGroup) -> None:
        self._pool = pool
        self._group = group
        self.clock = known_clock()
        self.workers: list[Worker] = []
        self.runs: list[asyncio.Task[None]] = []
        self.recalls = 0

    async def start(self, count: int = 1) -> list[Worker]:
        started = [Worker(self._pool, self.clock) for _ in range(count)]
        self.workers += started
        self.runs += [self._group.create_task(worker.allowances.run()) for worker in started]
        await asyncio.sleep(0)
        return started

    def on_recall(self, connection: Any, pid: int, channel: str, payload: Any) -> None:
        kind, _, subject_id = payload.partition(":")
        self.recalls += 1
        for worker in self.workers:
            worker.allowances.recall(kind, subject_id)


@asynccontextmanager
async def running(pool: asyncpg.Pool, url: str) -> AsyncIterator[Machine]:
    async with AsyncExitStack() as stack:
        listener = await asyncpg.connect(url)
        stack.push_async_callback(listener.close)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        machine = Machine(pool, group)
        await listener.add_listener("kaixu_recall", machine.on_recall)
        try:
            yield machine
        finally:
            for run in machine.runs:
                run.cancel()


@pytest.fixture
async def machine(database: Any, gateway_pool: asyncpg.Pool) -> AsyncIterator[Machine]:
    async with running(gateway_pool, database.gateway_url) as machine:
        yield machine


@pytest.fixture
async def worker(machine: Machine) -> Worker:
    return (await machine.start())[0]


async def limited(seed: Any, limit: int) -> Subject:
    _, token_id = await seed.token(limit=limit)
    return ("token", token_id)


async def taken(owner: asyncpg.Connection, subject: Subject) -> int:
    """What the database believes is used or out, over all months."""
    units = await owner.fetchval(
        "SELECT sum(taken)::bigint FROM allowances WHERE kind = $1 AND subject_id = $2", *subject
    )
    return units or 0


async def blocks_out(owner: asyncpg.Connection) -> int:
    count: int = await owner.fetchval("SELECT count(*) FROM blocks WHERE settled_at IS NULL")
    return count


async def test_a_limit_is_used_up_exactly_by_workers_that_race(
    machine: Machine, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 500)
    workers = await machine.start(8)

    async def client(worker: Worker) -> int:
        return await worker.calls((subject,), 1000)

    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(client(worker)) for worker in workers for _ in range(12)]
    assert sum(task.result() for task in clients) == 500
    assert sum(len(worker.taken) for worker in workers) == 500
    for worker in workers:
        await worker.settle()
    assert await taken(owner, subject) == 500


async def test_every_call_of_a_burst_is_admitted_or_refused_and_none_too_many(
    machine: Machine, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 50)
    workers = await machine.start(2)

    async def one(worker: Worker) -> bool:
        try:
            await worker.call((subject,))
        except MonthlyLimitReached:
            return False
        return True

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(one(worker)) for worker in workers for _ in range(100)]
    assert sum(call.result() for call in calls) == 50
    assert sum(worker.store.asked for worker in workers) < 100


@pytest.mark.parametrize(("limit", "warming_calls"), [(1, 0), (7, 0), (100, 1)])
async def test_one_client_can_use_the_whole_limit_though_16_workers_hold_parts_of_it(
    machine: Machine, seed: Any, owner: asyncpg.Connection, limit: int, warming_calls: int
) -> None:
    subject = await limited(seed, limit)
    client, *others = await machine.start(16)
    for other in others:
        if await taken(owner, subject) < limit:
            await other.allowances.refill((subject,))
            assert await other.calls((subject,), warming_calls) == warming_calls
    used = sum(len(other.taken) for other in others)
    assert await client.calls((subject,), limit + 1) == limit - used
    assert await taken(owner, subject) == limit


async def test_workers_that_all_want_the_last_units_share_them_out(
    machine: Machine, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 40)
    workers = await machine.start(16)
    order = random.Random(7)
    used = 0
    while used < 40:  # no call is refused before the limit, wherever it comes
        await order.choice(workers).call((subject,))
        used += 1
    for worker in workers:
        with pytest.raises(MonthlyLimitReached):
            await worker.call((subject,))


async def test_a_refusal_says_which_limit_and_when_it_ends_and_is_remembered(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 1)
    await worker.call((subject,))
    with pytest.raises(MonthlyLimitReached) as refused:
        await worker.call((subject,))
    now = datetime.now(UTC)
    reset = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    headers = dict(refused.value.headers)
    assert abs(int(headers.pop("retry-after")) - (reset - now).total_seconds()) < 5
    assert headers == {
        "x-kaixu-limit": "1",
        "x-kaixu-remaining": "0",
        "x-kaixu-reset": reset.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    assert "token" in str(refused.value)
    asked = worker.store.asked
    for _ in range(100):
        with pytest.raises(MonthlyLimitReached):
            await worker.call((subject,))
    with pytest.raises(MonthlyLimitReached):
        worker.allowances.known_spent((("org", "another"), subject))
    assert worker.store.asked == asked


async def test_a_call_takes_from_its_token_and_its_org(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    token = await limited(seed, 10)
    org = ("org", await seed.org())
    await seed.limit(*org, 5)
    assert await worker.calls((org, token), 20) == 5
    with pytest.raises(MonthlyLimitReached, match="org"):
        await worker.call((org, token))
    await worker.allowances.close()
    assert (await taken(owner, token), await taken(owner, org)) == (5, 5)


async def test_a_raised_limit_works_at_once_and_a_lowered_one_holds_at_once(
    machine: Machine, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 2)
    one, two = await machine.start(2)
    assert await one.calls((subject,), 9) == 2
    await seed.limit(*subject, 100)
    one.allowances.forget_spent(*subject)
    assert await one.calls((subject,), 10) == 10
    await two.call((subject,))
    await seed.limit(*subject, 5)
    for worker in (one, two):
        worker.allowances.forget_spent(*subject)
        worker.allowances.recall(*subject)
        with pytest.raises(MonthlyLimitReached):
            await worker.call((subject,))
        await worker.settle()
    assert await taken(owner, subject) == 13


async def test_a_limit_that_is_raised_while_its_refusal_is_under_way_is_not_refused(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 0)

    def raised() -> None:
        worker.store.before_answer = lambda: None
        worker.allowances.forget_spent(*subject)

    worker.store.before_answer = raised
    asked = asyncio.get_running_loop().create_task(worker.call((subject,)))
    await eventually(lambda: worker.store.asked == 1)
    await seed.limit(*subject, 1)
    await asked


async def test_a_block_that_was_granted_before_its_limit_was_lowered_is_not_used_after(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 100)

    def lowered() -> None:
        worker.store.before_answer = lambda: None
        worker.allowances.forget_spent(*subject)
        worker.allowances.recall(*subject)

    worker.store.before_answer = lowered
    await worker.call((subject,))
    assert worker.store.asked == 2
    await worker.settle()
    worker.allowances.recall(*subject)
    await worker.settle()
    assert await taken(owner, subject) == 1


async def test_a_first_block_whose_lookup_a_limit_s_change_overtook_goes_back(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 100)
    asked = worker.allowances.prepare()
    rows = await owner.fetch(
        "SELECT * FROM grant_blocks($1, $2, '{token}', $3, '{4}')",
        worker.id,
        asked[:1],
        [subject[1]],
    )
    worker.allowances.forget_spent("org", str(uuid.uuid4()))
    worker.allowances.adopt([dict(row) for row in rows], asked=asked)
    assert worker.allowances.take((subject,)) is None
    await worker.settle()
    assert await taken(owner, subject) == 0


async def test_after_a_restore_nothing_is_used_that_the_database_does_not_know(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 100)
    await worker.call((subject,))
    await owner.execute("TRUNCATE blocks, allowances")
    worker.allowances.reset()
    assert worker.allowances.take((subject,)) is None
    await worker.settle()
    assert await taken(owner, subject) == 0
    await worker.call((subject,))
    assert not worker.log.settled & worker.log.open


async def test_a_limit_that_is_gone_lets_calls_through_uncounted(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    _, token_id = await seed.token()
    org = ("org", await seed.org())
    await seed.limit(*org, 5)
    assert len(await worker.call((org, ("token", token_id)))) == 1
    assert await taken(owner, ("token", token_id)) == 0
    await worker.allowances.close()
    assert await taken(owner, org) == 1
    assert not worker.log.open


async def test_a_killed_worker_s_units_come_back_by_its_journal_s_count(
    machine: Machine, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 60)
    killed, heir = await machine.start(2)
    for _ in range(5):
        await killed.call((subject,))
    killed.store.loses_grants = 1
    killed.allowances.recall(*subject)
    with pytest.raises(DatabaseAway):
        await killed.call((subject,))
    killed.store.is_away = True
    machine.workers.remove(killed)
    counts = Counter(killed.taken)
    blocks = sorted(killed.log.open)
    for _ in range(2):  # and a recovery may be killed, too
        await heir.store.store.settle(blocks, [counts[block] for block in blocks])
    assert await taken(owner, subject) == 5
    assert await heir.calls((subject,), 100) == 55


async def test_when_too_many_answers_are_missing_no_more_questions_are_asked(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 100)
    worker.store.is_away = True
    for _ in range(LOST_BLOCKS_MAX + 100):
        with pytest.raises(DatabaseAway):
            await worker.call((subject,))
    assert worker.store.asked == LOST_BLOCKS_MAX
    with pytest.raises(DatabaseAway):
        worker.allowances.prepare()
    worker.store.is_away = False
    await worker.settle()
    await worker.call((subject,))
    worker.allowances.prepare()
    assert await taken(owner, subject) == 8


async def test_a_lost_reply_costs_no_unit(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 3)
    worker.store.loses_grants = 1
    worker.store.loses_settles = 2
    with pytest.raises(DatabaseAway):
        await worker.call((subject,))
    assert await worker.calls((subject,), 9) == 3
    await worker.settle()
    assert await taken(owner, subject) == 3
    assert not worker.log.open


async def test_the_last_unit_whose_grant_was_lost_is_waited_for(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 1)
    worker.store.loses_grants = 1
    with pytest.raises(DatabaseAway):
        await worker.call((subject,))
    await worker.call((subject,))


async def test_a_grant_that_arrives_after_it_was_given_up_grants_nothing(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 100)
    worker.store.delays_grants = 1
    with pytest.raises(DatabaseAway):
        await worker.call((subject,))
    await worker.settle()
    assert [grant.granted for grant in await worker.store.late[0]()] == [0]
    assert await taken(owner, subject) == 0
    assert await blocks_out(owner) == 0


async def test_while_the_database_is_away_held_units_are_used_and_then_calls_are_refused(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 100)
    await worker.call((subject,))
    worker.store.is_away = True
    for _ in range(7):
        await worker.call((subject,))
    with pytest.raises(DatabaseAway):
        await worker.call((subject,))
    worker.store.is_away = False
    await worker.call((subject,))
    await worker.allowances.close()
    assert await taken(owner, subject) == 9


async def test_a_frozen_database_is_given_up_in_time(
    database: Any, seed: Any, owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    subject = await limited(seed, 100)
    store = AllowanceStore(gateway_pool, seconds_max=0.2)
    ask = BlockAsk(block_id=str(uuid.uuid4()), kind="token", subject_id=subject[1], want=8)
    async with owner.transaction():
        await owner.execute("LOCK TABLE blocks IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(5):
            with pytest.raises(DatabaseAway):
                await store.grant(str(uuid.uuid4()), [ask], may_recall=True)


async def test_a_full_journal_refuses_the_call_and_asks_for_nothing(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 100)
    worker.log.is_full = True
    with pytest.raises(JournalFull):
        await worker.call((subject,))
    with pytest.raises(JournalFull):
        worker.allowances.prepare()
    assert worker.store.asked == 0
    worker.log.is_full = False
    await worker.call((subject,))


async def test_a_caller_who_leaves_takes_no_one_else_s_block_along(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 100)
    async with asyncio.TaskGroup() as group:
        leaver = group.create_task(worker.call((subject,)))
        others = [group.create_task(worker.call((subject,))) for _ in range(5)]
        await asyncio.sleep(0)
        leaver.cancel()
    assert len(worker.taken) == len(others)
    assert worker.store.asked == 1


async def test_a_busy_token_is_given_its_next_block_before_it_needs_it(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 10_000)
    await worker.call((subject,))
    for _ in range(5):
        assert worker.allowances.take((subject,)) is not None
    await eventually(lambda: subject in worker.allowances._held._spares)
    for _ in range(10):
        assert worker.allowances.take((subject,)) is not None


async def test_a_recalled_block_is_settled_with_what_it_used(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 100)
    for _ in range(3):
        await worker.call((subject,))
    worker.allowances.recall(*subject)
    await worker.settle()
    assert await taken(owner, subject) == 3
    assert await blocks_out(owner) == 0
    assert not worker.log.open


async def test_first_blocks_are_adopted_and_the_unneeded_ids_are_done_with(
    worker: Worker, seed: Any, owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    subject = await limited(seed, 100)
    asked = worker.allowances.prepare()
    assert len(asked) == FIRST_BLOCKS
    assert worker.log.open == set(asked)
    rows = await gateway_pool.fetch(
        "SELECT * FROM grant_blocks($1, $2, '{token}', $3, '{4}')",
        worker.id,
        asked[:1],
        [subject[1]],
    )
    worker.allowances.adopt([dict(row) for row in rows], asked=asked)
    assert worker.log.open == {asked[0]}
    worker.allowances.forget(asked)  # changes nothing
    assert worker.allowances.take((subject,)) == (asked[0],)
    assert worker.store.asked == 0


async def test_first_blocks_of_a_lookup_that_failed_are_handed_back(
    worker: Worker, seed: Any, owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    subject = await limited(seed, 100)
    asked = worker.allowances.prepare()
    await gateway_pool.fetch(
        "SELECT * FROM grant_blocks($1, $2, '{token}', $3, '{4}')",
        worker.id,
        asked[:1],
        [subject[1]],
    )
    assert await taken(owner, subject) == 4
    worker.allowances.forget(asked)
    await worker.settle()
    assert await taken(owner, subject) == 0
    assert not worker.log.open


async def test_draining_hands_everything_back_and_fetches_no_more(
    machine: Machine, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 100)
    (worker,) = await machine.start()
    await worker.call((subject,))
    machine.runs[-1].cancel()
    await asyncio.sleep(0)
    await worker.allowances.close()
    assert await taken(owner, subject) == 1
    assert not worker.log.open
    with pytest.raises(Draining):
        await worker.call((subject,))


async def test_a_block_that_arrives_while_draining_goes_straight_back(
    worker: Worker, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 100)
    async with asyncio.TaskGroup() as group:
        wait = group.create_task(refused_draining(worker, subject))
        await eventually(lambda: worker.store.asked == 1)
        await worker.allowances.close()
    assert wait.result()
    assert await taken(owner, subject) == 0
    assert not worker.log.open


async def test_a_spent_month_is_forgotten_when_the_next_one_begins(
    machine: Machine, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 0)
    (worker,) = await machine.start()
    with pytest.raises(MonthlyLimitReached):
        await worker.call((subject,))
    at = boottime()
    machine.clock.observe(sent=at, received=at, database_time=time.time() + 32 * 86_400)
    worker.allowances.known_spent((subject,))


async def test_idle_blocks_go_back_and_spent_months_are_forgotten_by_themselves(
    machine: Machine, seed: Any, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.metering.allowance.SWEEP_SECONDS", 0.01)
    monkeypatch.setattr("gateway.metering.allowance.SPENT_SECONDS", 0.01)
    (worker,) = await machine.start()
    subject, spent = await limited(seed, 100), await limited(seed, 0)
    with pytest.raises(MonthlyLimitReached):
        await worker.call((spent,))
    await worker.call((subject,))
    await eventually(lambda: worker.log.open == set())
    await eventually(lambda: not worker.allowances._spent)
    assert await taken(owner, subject) == 1


async def test_settling_is_tried_until_the_database_is_back_or_the_worker_has_to_go(
    worker: Worker, seed: Any, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = await limited(seed, 100)
    await worker.call((subject,))
    worker.store.is_away = True
    worker.allowances.recall(*subject)
    await asyncio.sleep(0.05)
    assert worker.allowances.unsettled == 1
    monkeypatch.setattr("gateway.metering.allowance.CLOSE_SECONDS_MAX", 0.05)
    await worker.allowances.close()
    assert worker.log.open, "left to the recovery of the journal"
    worker.store.is_away = False
    await eventually(lambda: worker.allowances.unsettled == 0)
    assert await taken(owner, subject) == 1


async def test_a_worker_that_stops_lets_go_of_those_who_wait(
    machine: Machine, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 100)
    (worker,) = await machine.start()
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(refused_draining(worker, subject)) for _ in range(3)]
        await asyncio.sleep(0)
        machine.runs[-1].cancel()
    assert all(wait.result() for wait in waits)
    await worker.allowances.close()
    assert await taken(owner, subject) == 0
    assert not worker.log.open


async def refused_draining(worker: Worker, subject: Subject) -> bool:
    try:
        await worker.call((subject,))
    except Draining:
        return True
    return False


async def test_before_the_first_heartbeat_calls_wait_for_the_database(
    machine: Machine, seed: Any
) -> None:
    machine.clock = DatabaseClock()
    (worker,) = await machine.start()
    with pytest.raises(DatabaseAway):
        await worker.call((await limited(seed, 1),))


async def test_at_a_month_s_edge_a_block_of_the_wrong_month_is_sent_back_until_it_is_right(
    machine: Machine, seed: Any, owner: asyncpg.Connection
) -> None:
    subject = await limited(seed, 100)
    (worker,) = await machine.start()
    month = "CREATE OR REPLACE FUNCTION allowance_month() RETURNS date LANGUAGE sql AS "
    await owner.execute(month + "'SELECT date ''2030-02-01'''")
    edge = datetime(2030, 3, 1, tzinfo=UTC).timestamp()
    at = boottime()
    machine.clock.observe(sent=at, received=at, database_time=edge - 100)
    await worker.call((subject,))
    # The clock can't tell any more: what is held is not used, what comes is of the old month.
    machine.clock.observe(sent=at - 60, received=at, database_time=edge - 30)
    with pytest.raises(DatabaseAway):
        await worker.call((subject,))
    await owner.execute(month + "'SELECT date ''2030-03-01'''")
    at = boottime()
    machine.clock.observe(sent=at, received=at, database_time=edge + 1)
    await worker.call((subject,))
    await worker.allowances.close()
    months = await owner.fetch("SELECT month::text, taken FROM allowances ORDER BY month")
    assert [tuple(row) for row in months] == [("2030-02-01", 1), ("2030-03-01", 1)]
