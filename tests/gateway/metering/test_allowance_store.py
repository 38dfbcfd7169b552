"""The SQL of allowances: what a grant and a settlement move, and that nothing moves twice."""

import asyncio
import random
import uuid
from typing import Any

import asyncpg
import pytest

from gateway.errors import DatabaseAway
from gateway.metering.allowance_store import AllowanceStore, BlockAsk, BlockGrant
from gateway.metering.held_blocks import Subject

WORKER = str(uuid.uuid4())
OTHER_WORKER = str(uuid.uuid4())


def new_id() -> str:
    return str(uuid.uuid4())


class Blocks:
    """One subject's blocks, asked for and settled directly."""

    def __init__(self, pool: asyncpg.Pool, owner: asyncpg.Connection, subject: Subject) -> None:
        self.store = AllowanceStore(pool)
        self.owner = owner
        self.subject = subject

    async def grant(
        self, block_id: str, want: int, *, worker: str = WORKER, may_recall: bool = True
    ) -> BlockGrant:
        kind, subject_id = self.subject
        ask = BlockAsk(block_id=block_id, kind=kind, subject_id=subject_id, want=want)
        (grant,) = await self.store.grant(worker, [ask], may_recall=may_recall)
        return grant

    async def settle(self, block_id: str, used: int | None) -> None:
        await self.store.settle([block_id], [used])

    async def taken(self) -> int:
        units = await self.owner.fetchval(
            "SELECT taken FROM allowances WHERE kind = $1 AND subject_id = $2", *self.subject
        )
        return units or 0

    async def kept(self) -> int:
        count: int = await self.owner.fetchval("SELECT count(*) FROM blocks")
        return count


@pytest.fixture
async def blocks(gateway_pool: asyncpg.Pool, owner: asyncpg.Connection, seed: Any) -> Blocks:
    _, token_id = await seed.token(limit=100)
    return Blocks(gateway_pool, owner, ("token", token_id))


async def test_blocks_shrink_with_what_is_left(blocks: Blocks) -> None:
    granted = []
    while (grant := await blocks.grant(new_id(), want=512)).granted:
        granted.append(grant.granted)
    assert granted[:6] == [12, 11, 9, 8, 7, 6]
    assert granted[-15:] == [1] * 15
    assert sum(granted) == 100 == await blocks.taken()
    assert (grant.limit, grant.remaining, grant.outstanding) == (100, 0, False)


async def test_a_grant_gives_no_more_than_is_wanted_and_at_least_one(blocks: Blocks) -> None:
    assert (await blocks.grant(new_id(), want=3)).granted == 3
    assert (await blocks.grant(new_id(), want=0)).granted == 1
    assert (await blocks.grant(new_id(), want=-5)).granted == 1


async def test_asking_again_gives_the_same_block(blocks: Blocks) -> None:
    block_id = new_id()
    first = await blocks.grant(block_id, want=8)
    again = await blocks.grant(block_id, want=1)
    assert (first.granted, again.granted) == (8, 8)
    assert await blocks.taken() == 8
    stranger = await blocks.grant(block_id, want=8, worker=OTHER_WORKER)
    assert stranger.granted == 0


async def test_a_block_is_settled_once(blocks: Blocks) -> None:
    block_id = new_id()
    await blocks.grant(block_id, want=8)
    await blocks.settle(block_id, 3)
    await blocks.settle(block_id, 0)
    await blocks.settle(block_id, None)
    assert await blocks.taken() == 3
    assert (await blocks.grant(block_id, want=8)).granted == 0
    assert await blocks.taken() == 3


async def test_an_unseen_id_becomes_a_tombstone_that_a_late_grant_runs_into(blocks: Blocks) -> None:
    block_id = new_id()
    await blocks.settle(block_id, 0)
    await blocks.settle(block_id, 5)
    grant = await blocks.grant(block_id, want=8)
    assert (grant.granted, grant.limit, grant.remaining) == (0, 100, 100)
    assert await blocks.taken() == 0


async def test_a_recovery_that_runs_twice_moves_nothing_twice(blocks: Blocks) -> None:
    ids = [new_id() for _ in range(4)]
    for block_id in ids[:3]:
        await blocks.grant(block_id, want=8)
    used = [8, 2, None, 0]  # used up, partly used, not to be trusted, never granted
    for _ in range(2):
        await blocks.store.settle(ids, used)
    assert await blocks.taken() == 8 + 2 + 8


async def test_a_burned_block_is_used_whole_and_nonsense_stays_within_it(blocks: Blocks) -> None:
    for used, counts in ((None, 4), (99, 4), (-1, 0)):
        before = await blocks.taken()
        block_id = new_id()
        await blocks.grant(block_id, want=4)
        await blocks.settle(block_id, used)
        assert await blocks.taken() - before == counts


async def test_what_is_not_granted_leaves_nothing(blocks: Blocks, seed: Any) -> None:
    await seed.limit(*blocks.subject, 0)
    assert (await blocks.grant(new_id(), want=8)).granted == 0
    await blocks.owner.execute("DELETE FROM call_limits")
    grant = await blocks.grant(new_id(), want=8)
    assert (grant.granted, grant.limit, grant.remaining) == (0, None, None)
    assert await blocks.kept() == 0


async def test_a_lowered_limit_leaves_nothing_and_a_raised_one_the_difference(
    blocks: Blocks, seed: Any
) -> None:
    await blocks.grant(new_id(), want=10)
    await seed.limit(*blocks.subject, 5)
    grant = await blocks.grant(new_id(), want=10)
    assert (grant.granted, grant.limit, grant.remaining) == (0, 5, 0)
    await seed.limit(*blocks.subject, 12)
    grant = await blocks.grant(new_id(), want=10)
    assert (grant.granted, grant.remaining) == (1, 1)


async def test_blocks_of_other_workers_are_called_back_unless_it_can_wait(
    blocks: Blocks, seed: Any
) -> None:
    await seed.limit(*blocks.subject, 1)
    heard: asyncio.Queue[str] = asyncio.Queue()
    await blocks.owner.add_listener("kaixu_recall", lambda *told: heard.put_nowait(told[3]))
    block_id = new_id()
    await blocks.grant(block_id, want=1, worker=OTHER_WORKER)
    assert not (await blocks.grant(new_id(), want=1, worker=OTHER_WORKER)).outstanding
    assert (await blocks.grant(new_id(), want=1, may_recall=False)).outstanding
    await blocks.owner.execute("SELECT 1")
    assert heard.empty()
    assert (await blocks.grant(new_id(), want=1)).outstanding
    async with asyncio.timeout(5):
        assert await heard.get() == ":".join(blocks.subject)
    await blocks.settle(block_id, 1)
    assert not (await blocks.grant(new_id(), want=1)).outstanding


async def test_grants_and_settlements_in_any_order_never_wait_in_a_circle(
    blocks: Blocks, seed: Any, database: Any
) -> None:
    subjects = []
    for _ in range(6):
        _, token_id = await seed.token(limit=300)
        subjects.append(("token", token_id))
    org_id = await seed.org()
    await seed.limit("org", org_id, 1000)
    subjects.append(("org", org_id))
    used_up = dict.fromkeys(subjects, 0)

    async def worker(number: int, store: AllowanceStore) -> None:
        order = random.Random(number)
        worker_id = new_id()
        held: list[tuple[str, Subject, int]] = []
        for _ in range(30):
            asks = [
                BlockAsk(block_id=new_id(), kind=kind, subject_id=subject_id, want=20)
                for kind, subject_id in order.sample(subjects, 4)
            ]
            for grant in await store.grant(worker_id, asks, may_recall=False):
                if grant.granted:
                    subject = (grant.kind, grant.subject_id)
                    held.append((grant.block_id, subject, order.randrange(grant.granted + 1)))
            order.shuffle(held)
            back, held = held[:5], held[5:]
            await store.settle([block for block, _, _ in back], [used for _, _, used in back])
            for _, subject, used in back:
                used_up[subject] += used
        await store.settle([block for block, _, _ in held], [used for _, _, used in held])
        for _, subject, used in held:
            used_up[subject] += used

    async with (
        asyncpg.create_pool(database.gateway_url, min_size=6, max_size=6) as pool,
        asyncio.TaskGroup() as group,
    ):
        for number in range(6):
            group.create_task(worker(number, AllowanceStore(pool)))
    rows = await blocks.owner.fetch("SELECT kind, subject_id, taken FROM allowances")
    counted = {(row["kind"], str(row["subject_id"])): row["taken"] for row in rows}
    assert counted == used_up
    assert all(counted["token", token] <= 300 for kind, token in subjects if kind == "token")


async def test_racing_grants_of_one_subject_never_exceed_its_limit(
    blocks: Blocks, database: Any
) -> None:
    async def race(store: AllowanceStore) -> int:
        units = 0
        kind, subject_id = blocks.subject
        while True:
            ask = BlockAsk(block_id=new_id(), kind=kind, subject_id=subject_id, want=8)
            (grant,) = await store.grant(new_id(), [ask], may_recall=False)
            if not grant.granted:
                return units
            units += grant.granted

    async with (
        asyncpg.create_pool(database.gateway_url, min_size=6, max_size=6) as pool,
        asyncio.TaskGroup() as group,
    ):
        racers = [group.create_task(race(AllowanceStore(pool))) for _ in range(6)]
    assert sum(racer.result() for racer in racers) == 100


async def test_a_grant_that_runs_while_its_id_is_settled_moves_nothing(
    blocks: Blocks, database: Any
) -> None:
    async with asyncpg.create_pool(database.gateway_url, min_size=4, max_size=4) as pool:
        blocks.store = AllowanceStore(pool)
        for _ in range(40):
            block_id = new_id()
            async with asyncio.TaskGroup() as group:
                group.create_task(blocks.grant(block_id, want=8))
                group.create_task(blocks.settle(block_id, 0))
            assert await blocks.taken() == 0


async def test_the_gateway_s_role_moves_units_by_the_functions_alone(
    gateway_pool: asyncpg.Pool,
) -> None:
    for statement in (
        "SELECT * FROM blocks",
        "SELECT * FROM allowances",
        "UPDATE allowances SET taken = 0",
        "INSERT INTO blocks (id, amount) VALUES (gen_random_uuid(), 1)",
        "DELETE FROM blocks",
        "SELECT prune_blocks()",
        "SELECT allowance_month()",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await gateway_pool.execute(statement)


async def test_old_settled_blocks_are_pruned_and_what_is_out_stays(blocks: Blocks) -> None:
    old = "00000000-0000-7000-8000-00000000000"
    await blocks.grant(old + "1", want=1)
    await blocks.settle(old + "1", 1)
    await blocks.settle(old + "2", 0)
    await blocks.grant(old + "3", want=1)
    await blocks.settle(old + "4", 0)
    await blocks.owner.execute(
        "UPDATE blocks SET settled_at = now() - interval '63 days' WHERE id < $1", old + "3"
    )
    assert await blocks.owner.fetchval("SELECT prune_blocks(1)") == 1
    assert await blocks.owner.fetchval("SELECT prune_blocks()") == 1
    assert await blocks.owner.fetchval("SELECT prune_blocks()") == 0
    left = await blocks.owner.fetch("SELECT id::text FROM blocks ORDER BY id")
    assert [row["id"] for row in left] == [old + "3", old + "4"]


async def test_a_closed_pool_is_a_database_that_is_away(database: Any) -> None:
    pool = await asyncpg.create_pool(database.gateway_url, min_size=1, max_size=1)
    await pool.close()
    with pytest.raises(DatabaseAway):
        await AllowanceStore(pool).settle([new_id()], [0])
