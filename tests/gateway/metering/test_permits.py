"""Windows and caps that hold across workers, over a real database."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest

from gateway.clock import DatabaseClock
from gateway.errors import ConcurrencyReached, DatabaseAway, GatewayError, RateWindowReached
from gateway.metering.permit_store import PermitAsk, PermitGrant, PermitStore
from gateway.metering.permits import GATHER_SECONDS, Permits
from gateway.permit_limit import PermitKey, PermitLimit

DEADLINE_SECONDS = 20.0  # of a test's wait, on a busy machine
TOKEN = "0193a000-0000-7000-8000-000000000001"


def rate(calls: int, window_seconds: int, subject: str = TOKEN) -> PermitLimit:
    return PermitLimit(
        subject_kind="token", subject=subject, calls=calls, window_seconds=window_seconds
    )


def open_calls(calls: int, subject: str = TOKEN) -> PermitLimit:
    return PermitLimit(subject_kind="token", subject=subject, calls=calls, window_seconds=None)


class Store:
    """The real store, which can be away."""

    def __init__(self, store: PermitStore) -> None:
        self.store = store
        self.is_away = False
        self.asked = 0

    async def exchange(
        self, worker_id: str, asks: Sequence[PermitAsk], *, may_recall: bool
    ) -> dict[PermitKey, PermitGrant]:
        self.asked += 1
        if self.is_away:
            raise DatabaseAway
        return await self.store.exchange(worker_id, asks, may_recall=may_recall)


class Fleet:
    """Workers that hear each other's recalls as the feed tells them."""

    def __init__(self, pool: asyncpg.Pool, owner: asyncpg.Connection) -> None:
        self.pool = pool
        self.owner = owner
        self.workers: list[Permits] = []
        self.store = Store(PermitStore(pool))

    @asynccontextmanager
    async def worker(self, worker_id: str | None = None) -> AsyncIterator[Permits]:
        worker_id = worker_id or str(uuid.uuid4())
        await self.owner.execute(
            """
            INSERT INTO workers
                (id, machine, pid, heartbeat_at, lease, offline_stream_grace, applied)
            VALUES ($1, 'm', 1, clock_timestamp(), '1 hour', '0', 0)
            """,
            worker_id,
        )
        clock = DatabaseClock()
        now = clock.boottime()
        clock.observe(sent=now, received=now, database_time=time.time())
        loop = asyncio.get_running_loop()
        permits = Permits(store=self.store, worker_id=worker_id, clock=clock, now=loop.time)
        running = loop.create_task(permits.run())
        await asyncio.sleep(0)  # it runs
        self.workers.append(permits)
        try:
            yield permits
        finally:
            self.workers.remove(permits)
            running.cancel()
            await asyncio.wait([running])

    def on_recall(self, *arguments: object) -> None:
        kind, _, subject = str(arguments[-1]).partition(":")
        for permits in self.workers:
            permits.recall(kind, subject)


@pytest.fixture
async def fleet(gateway_pool: asyncpg.Pool, owner: asyncpg.Connection) -> AsyncIterator[Fleet]:
    fleet = Fleet(gateway_pool, owner)
    await owner.add_listener("kaixu_recall", fleet.on_recall)
    yield fleet
    await owner.remove_listener("kaixu_recall", fleet.on_recall)


async def admit(permits: Permits, *limits: PermitLimit) -> GatewayError | None:
    """Ask as a call does; return why it is refused."""
    try:
        while not permits.take(limits):
            await permits.refill(limits)
    except GatewayError as error:
        return error
    return None


async def admitted_at_last(permits: Permits, *limits: PermitLimit) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            if await admit(permits, *limits) is None:
                return
            await asyncio.sleep(0.02)


async def eventually(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            if look():
                return
            await asyncio.sleep(0.01)


def most_in_a_window(times: list[float], window_seconds: float) -> int:
    """Return how many of these lie in the fullest window."""
    most = start = 0
    for end, at in enumerate(times):
        while times[start] <= at - window_seconds:
            start += 1
        most = max(most, end - start + 1)
    return most


async def test_one_worker_may_use_a_whole_window_and_no_more(fleet: Fleet) -> None:
    async with fleet.worker() as permits:
        refused = [await admit(permits, rate(20, 3600)) for _ in range(25)]
    assert refused[:20] == [None] * 20
    assert all(isinstance(error, RateWindowReached) for error in refused[20:])


@pytest.mark.parametrize("calls", [1, 7, 40])
async def test_the_last_worker_finds_what_the_others_hold_and_do_not_use(
    fleet: Fleet, calls: int
) -> None:
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(fleet.worker()) for _ in range(4)]
        limit = rate(calls, 3600)
        admitted = [await admit(permits, limit) is None for permits in workers].count(True)
        while await admit(workers[0], limit) is None:
            admitted += 1
        assert admitted == calls


async def test_no_window_has_more_calls_than_it_may_at_ten_times_the_limit(fleet: Fleet) -> None:
    """Two windows of 2 s, four workers, 100 calls offered for each 10 that may begin."""
    calls, window = 60, 2
    limit = rate(calls, window)
    admitted: list[float] = []
    late: list[float] = []
    loop = asyncio.get_running_loop()
    end = loop.time() + 2 * window

    async def client(permits: Permits) -> None:
        while (now := loop.time()) < end:
            error = await admit(permits, limit)
            if error is None:
                admitted.append(loop.time())
                late.append(loop.time() - now)
            await asyncio.sleep(0.4)

    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(fleet.worker()) for _ in range(4)]
        async with asyncio.TaskGroup() as group:
            for number in range(120):
                group.create_task(client(workers[number % 4]))
    assert most_in_a_window(admitted, window) <= calls
    assert len(admitted) >= 1.4 * calls, "most of two windows is used"


async def test_retry_after_names_the_second_in_which_a_call_leaves_the_window(
    fleet: Fleet,
) -> None:
    loop = asyncio.get_running_loop()
    async with fleet.worker() as permits:
        limit = rate(2, 2)
        began = loop.time()
        assert [await admit(permits, limit) for _ in range(2)] == [None, None]
        error = await admit(permits, limit)
        assert isinstance(error, RateWindowReached)
        assert error.headers["x-kaixu-limit"] == "2"
        assert error.headers["x-kaixu-remaining"] == "0"
        wait = int(error.headers["retry-after"])
        assert 1 <= wait <= 3
        await admitted_at_last(permits, limit)
        assert 1.9 <= loop.time() - began <= 2.9
        assert wait - 1.1 <= loop.time() - began <= wait + 0.9


async def test_refusals_come_from_memory(fleet: Fleet) -> None:
    async with fleet.worker() as permits:
        limit = rate(1, 3600)
        assert await admit(permits, limit) is None
        assert isinstance(await admit(permits, limit), RateWindowReached)
        asked = fleet.store.asked
        for _ in range(200):
            assert isinstance(await admit(permits, limit), RateWindowReached)
        assert fleet.store.asked - asked <= 2


async def test_open_calls_are_capped_across_workers_and_free_when_they_end(fleet: Fleet) -> None:
    limit = open_calls(3)
    async with fleet.worker() as one, fleet.worker() as two:
        assert [await admit(one, limit), await admit(two, limit), await admit(two, limit)] == [
            None
        ] * 3
        error = await admit(one, limit)
        assert isinstance(error, ConcurrencyReached)
        assert error.headers["retry-after"] == "1"
        two.release([limit])
        await admitted_at_last(one, limit)
        assert isinstance(await admit(two, limit), ConcurrencyReached)


async def test_of_two_limits_both_are_taken_or_none(fleet: Fleet) -> None:
    both = rate(5, 3600), open_calls(1)
    async with fleet.worker() as permits:
        assert await admit(permits, *both) is None
        assert isinstance(await admit(permits, *both), ConcurrencyReached)
        permits.release(both)
        for _ in range(4):
            await admitted_at_last(permits, *both)
            permits.release(both)
        assert isinstance(await admit(permits, *both), RateWindowReached)


async def test_a_call_that_went_nowhere_gives_its_permits_back(fleet: Fleet) -> None:
    both = rate(1, 3600), open_calls(1)
    async with fleet.worker() as permits:
        for _ in range(3):
            assert await admit(permits, *both) is None
            permits.put_back(both)


async def test_what_a_dead_worker_held_counts_as_used_and_its_open_calls_end(fleet: Fleet) -> None:
    window, cap = rate(10, 3600), open_calls(2)
    dead = str(uuid.uuid4())
    async with fleet.worker(dead) as permits:
        assert await admit(permits, window, cap) is None
        assert await admit(permits, cap) is None
    await fleet.owner.execute("UPDATE workers SET ended_at = now() WHERE id = $1", dead)
    known = await fleet.owner.fetchval(
        """
        SELECT (SELECT sum(held) FROM permits_held WHERE kind = 'rate-token')
            + (SELECT coalesce(sum(used), 0) FROM permits_used WHERE kind = 'rate-token')
        """
    )
    assert 1 <= known < 10
    async with fleet.worker() as permits:
        admitted = 0
        while await admit(permits, window) is None:
            admitted += 1
        assert admitted == 10 - known
        assert [await admit(permits, cap), await admit(permits, cap)] == [None, None]


async def test_a_raised_limit_holds_at_once(fleet: Fleet) -> None:
    async with fleet.worker() as permits:
        assert await admit(permits, rate(1, 3600)) is None
        assert isinstance(await admit(permits, rate(1, 3600)), RateWindowReached)
        permits.limit_changed("token", TOKEN)
        assert await admit(permits, rate(2, 3600)) is None


async def test_with_the_database_away_what_is_held_is_used_and_then_calls_are_told(
    fleet: Fleet,
) -> None:
    limit = rate(100, 3600)
    async with fleet.worker() as permits:
        assert await admit(permits, limit) is None
        spare = permits._purses[limit.key].spare
        fleet.store.is_away = True
        outcomes = [await admit(permits, limit) for _ in range(spare + 1)]
        assert outcomes[:spare] == [None] * spare
        assert isinstance(outcomes[-1], DatabaseAway)
        fleet.store.is_away = False
        await admitted_at_last(permits, limit)


async def test_an_idle_purse_goes_back_and_is_forgotten(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.metering.permits.IDLE_SECONDS", 0.1)
    monkeypatch.setattr("gateway.metering.permits.SWEEP_SECONDS", 0.01)
    async with fleet.worker() as permits:
        assert await admit(permits, rate(100, 3600), open_calls(5)) is None
        permits.release([open_calls(5)])
        await eventually(lambda: not permits._purses)
    assert await fleet.owner.fetchval("SELECT sum(held) FROM permits_held") == 0
    assert await fleet.owner.fetchval("SELECT sum(used) FROM permits_used") == 1


async def test_closing_hands_everything_back(fleet: Fleet) -> None:
    async with fleet.worker() as permits:
        assert await admit(permits, rate(100, 3600), open_calls(5)) is None
        permits.release([open_calls(5)])
    await permits.close()
    assert await fleet.owner.fetchval("SELECT sum(held) FROM permits_held") == 0


async def test_pruning_deletes_what_is_in_no_window(
    fleet: Fleet, gateway_pool: asyncpg.Pool
) -> None:
    async with fleet.worker() as permits:
        assert await admit(permits, rate(5, 1)) is None
        permits.recall("rate-token", TOKEN)
        await eventually(lambda: permits._purses[rate(5, 1).key].used == 0)
    await fleet.owner.execute("UPDATE permits_used SET keep_until = now() - interval '1 s'")
    await fleet.owner.execute("UPDATE permits_held SET told_at = now() - interval '2 days'")
    await fleet.owner.execute("UPDATE workers SET ended_at = now() - interval '2 days'")
    await PermitStore(gateway_pool).prune()
    for table in ("permits_used", "permits_held"):
        assert await fleet.owner.fetchval(f"SELECT count(*) FROM {table}") == 0  # noqa: S608


def ask(
    limit: PermitLimit, number: int, *, held: int = 0, spare: int | None = None, used: int = 0,
    want: int = 0,
) -> PermitAsk:  # fmt: skip
    spare = held if spare is None else spare
    uses = [(0.0, used)] if used else []
    return PermitAsk(limit=limit, number=number, held=held, spare=spare, uses=uses, want=want)


async def exchanged(fleet: Fleet, worker_id: str, one: PermitAsk) -> PermitGrant:
    grants = await fleet.store.exchange(worker_id, [one], may_recall=False)
    return grants[one.limit.key]


async def enlisted(fleet: Fleet, *, heartbeat_ago: str = "0", grace: str = "0") -> str:
    worker_id = str(uuid.uuid4())
    await fleet.owner.execute(
        """
        INSERT INTO workers (id, machine, pid, heartbeat_at, lease, offline_stream_grace, applied)
        VALUES ($1, 'm', 1, clock_timestamp() - $2::text::interval, '15 s', $3::text::interval, 0)
        """,
        worker_id,
        heartbeat_ago,
        grace,
    )
    return worker_id


async def test_a_statement_that_arrives_late_changes_nothing(fleet: Fleet) -> None:
    limit, one, other = rate(100, 3600), await enlisted(fleet), await enlisted(fleet)
    granted = (await exchanged(fleet, one, ask(limit, 2, want=25))).granted
    assert granted == 25
    late = await exchanged(fleet, one, ask(limit, 1, want=50))
    assert late.granted == 0
    held = 0
    for number in range(60):
        held += (await exchanged(fleet, other, ask(limit, number, held=held, want=100))).granted
    assert granted + held == 100


async def test_calls_count_in_a_window_of_another_length(fleet: Fleet) -> None:
    worker = await enlisted(fleet)
    await exchanged(fleet, worker, ask(rate(100, 3600), 1, used=100))
    shorter = await exchanged(fleet, worker, ask(rate(100, 60), 2, want=100))
    assert shorter.granted == 0
    assert shorter.wait_seconds is not None
    assert 55 < shorter.wait_seconds <= 60
    longer = await exchanged(fleet, worker, ask(rate(100, 86_400), 3, want=100))
    assert longer.granted == 0
    assert longer.wait_seconds is not None
    assert 86_390 < longer.wait_seconds <= 86_400


async def test_calls_leave_the_window_together_with_the_last_of_their_slot(fleet: Fleet) -> None:
    worker = await enlisted(fleet)
    await exchanged(fleet, worker, ask(rate(10, 60), 1, used=10))
    await fleet.owner.execute("UPDATE permits_used SET last_at = last_at - interval '60 s'")
    assert (await exchanged(fleet, worker, ask(rate(10, 60), 2, want=8))).granted == 2


@pytest.mark.parametrize(("grace", "granted"), [("300 s", 0), ("0 s", 10)])
async def test_open_calls_of_who_is_cut_off_count_as_long_as_they_may_run(
    fleet: Fleet, grace: str, granted: int
) -> None:
    limit, away = open_calls(10), await enlisted(fleet, heartbeat_ago="20 s", grace=grace)
    other = await enlisted(fleet)
    await exchanged(fleet, away, ask(limit, 1, held=10, spare=0))
    held = 0
    for number in range(20):
        held += (await exchanged(fleet, other, ask(limit, number, held=held, want=10))).granted
    assert held == granted


async def test_busy_permits_are_not_called_back(fleet: Fleet) -> None:
    limit, one, other = open_calls(4), await enlisted(fleet), await enlisted(fleet)
    await exchanged(fleet, one, ask(limit, 1, held=4, spare=0))
    assert (await exchanged(fleet, other, ask(limit, 1, want=1))).outstanding is False
    await exchanged(fleet, one, ask(limit, 2, held=4, spare=1))
    assert (await exchanged(fleet, other, ask(limit, 2, want=1))).outstanding is True


async def test_a_lowered_limit_holds_though_calls_still_ask_by_the_old_one(fleet: Fleet) -> None:
    async with fleet.worker() as permits:
        async with asyncio.TaskGroup() as group:
            for _ in range(15):
                group.create_task(admit(permits, rate(1000, 3600)))
            await asyncio.sleep(0)
            permits.limit_changed("token", TOKEN)
        outcomes = [await admit(permits, rate(20, 3600)) for _ in range(60)]
        assert outcomes.count(None) <= 5


async def test_quiet_open_calls_cost_no_statements(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.metering.permits.IDLE_SECONDS", 0.1)
    monkeypatch.setattr("gateway.metering.permits.GATHER_SECONDS", 0.01)
    monkeypatch.setattr("gateway.metering.permits.SWEEP_SECONDS", 0.01)
    limit = open_calls(1)
    async with fleet.worker() as permits:
        assert await admit(permits, limit) is None
        await asyncio.sleep(0.2)
        asked = fleet.store.asked
        await asyncio.sleep(0.3)
        assert fleet.store.asked - asked <= 1
        permits.release([limit])
        await eventually(lambda: not permits._purses)


async def test_calls_now_and_then_cost_no_statements(fleet: Fleet) -> None:
    """A used permit is good again when its call has left the window."""
    limit = rate(8, 1)
    loop = asyncio.get_running_loop()
    admitted = []
    async with fleet.worker() as permits:
        assert await admit(permits, rate(1000, 1, "of another")) is None
        assert await admit(permits, limit) is None
        assert permits._purses[limit.key].spare == 1
        await asyncio.sleep(3 * GATHER_SECONDS)
        asked = fleet.store.asked
        for _ in range(3):
            await asyncio.sleep(1.1)
            assert await admit(permits, limit) is None
            admitted.append(loop.time())
        assert fleet.store.asked - asked <= 1
        while await admit(permits, limit) is None:
            admitted.append(loop.time())
    assert most_in_a_window(admitted, 1) <= 8


async def test_what_may_have_been_told_is_not_used_again(fleet: Fleet) -> None:
    """A lost reply: the database counts as used what this worker does not know to be."""
    limit = rate(8, 1)
    async with fleet.worker() as permits:
        assert await admit(permits, limit) is None
        fleet.store.is_away = True
        permits.recall(*limit.key)
        purse = permits._purses[limit.key]
        await eventually(lambda: purse.untold and purse.flight is None)
        assert (purse.spare, purse.used) == (0, 1)
        await asyncio.sleep(1.1)
        assert not permits.take([limit])
        assert isinstance(await admit(permits, limit), DatabaseAway)
        fleet.store.is_away = False
        await admitted_at_last(permits, limit)


async def test_a_worker_that_may_count_as_dead_uses_nothing_of_before(fleet: Fleet) -> None:
    limit = rate(1000, 3600)
    one_id = str(uuid.uuid4())
    async with fleet.worker(one_id) as one, fleet.worker() as other:
        assert await admit(one, limit) is None
        await fleet.owner.execute("UPDATE workers SET lease = '0' WHERE id = $1", one_id)
        assert await admit(other, limit) is None
        assert await fleet.owner.fetchval("SELECT sum(used) FROM permits_used") == 16
        one.reset()
        assert not one.take([limit])


async def test_uses_are_told_with_their_age(fleet: Fleet) -> None:
    worker = await enlisted(fleet)
    limit = rate(10, 60)
    old = PermitAsk(
        limit=limit, number=1, held=0, spare=0, uses=[(61.0, 3), (40.0, 4), (0.0, 6)], want=0
    )
    grant = await exchanged(fleet, worker, old)
    assert grant.wait_seconds is not None
    assert 19 < grant.wait_seconds <= 20
    assert await fleet.owner.fetchval("SELECT sum(used) FROM permits_used") == 10


async def test_of_many_purses_each_tells_its_own_uses(fleet: Fleet) -> None:
    worker = await enlisted(fleet)
    limits = [rate(100, 60, f"t{number}") for number in range(40)]
    asks = [
        PermitAsk(
            limit=limit, number=1, held=0, spare=0, want=0,
            uses=[(50.0 * place, number) for place in range(number % 3)],
        )
        for number, limit in enumerate(limits)
    ]  # fmt: skip
    await fleet.store.exchange(worker, asks, may_recall=False)
    rows = await fleet.owner.fetch("SELECT subject, sum(used) FROM permits_used GROUP BY 1")
    told = {f"t{number}": number * (number % 3) for number in range(40) if number % 3}
    assert {row["subject"]: row["sum"] for row in rows} == told


async def test_pruning_waits_for_nobody(fleet: Fleet, gateway_pool: asyncpg.Pool) -> None:
    worker = await enlisted(fleet)
    await exchanged(fleet, worker, ask(rate(5, 1), 1, used=5))
    await fleet.owner.execute("UPDATE permits_used SET keep_until = now() - interval '1 s'")
    async with fleet.owner.transaction():
        await fleet.owner.execute("SELECT FROM permits_used FOR UPDATE")
        async with asyncio.timeout(DEADLINE_SECONDS):
            await PermitStore(gateway_pool).prune()
