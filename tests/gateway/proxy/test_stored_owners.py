import asyncio
import uuid
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from gateway.auth.caller import Caller
from gateway.errors import DatabaseAway
from gateway.proxy import stored_owners
from gateway.proxy.stored_ids import Stored
from gateway.proxy.stored_owners import StoredOwners
from gateway.proxy.stored_paths import Kind

VENDOR, OTHER_VENDOR = str(uuid.uuid4()), str(uuid.uuid4())
CALL = str(uuid.uuid4())


def caller(org_id: str) -> Caller:
    return Caller(
        token_id=str(uuid.uuid4()),
        parent_id=None,
        org_id=org_id,
        workspace_id=str(uuid.uuid4()),
        user_id=str(uuid.uuid4()),
        scopes=frozenset({"calls"}),
        models=None,
        expires_at=2e9,
        limits=(),
    )


OURS, THEIRS = caller(str(uuid.uuid4())), caller(str(uuid.uuid4()))


class Naps:
    """A sleep that takes no time, and is counted; `act` happens in it."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.act: Any = None

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        await asyncio.sleep(0)
        if self.act is not None:
            await self.act()


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def owners(pool: Any, *, sleep: Naps | None = None, time: Time | None = None) -> StoredOwners:
    return StoredOwners(pool, now=time or Time(), sleep=sleep or Naps())


def note(
    to: StoredOwners, *ids: str, by: Caller = OURS, vendor: str = VENDOR, kind: Kind = Kind.FILE
) -> None:
    to.note([Stored(one, kind) for one in ids], caller=by, vendor_id=vendor, call_id=CALL)


async def find(
    at: StoredOwners, *ids: str, by: Caller = OURS, vendors: Iterable[str] = (VENDOR,)
) -> set[str]:
    return set(await at.find(ids, org_id=by.org_id, vendor_ids=tuple(vendors)))


async def test_its_maker_has_it_here_at_once_and_elsewhere_once_it_is_written(
    gateway_pool: asyncpg.Pool, owner: asyncpg.Connection
) -> None:
    here, there = owners(gateway_pool), owners(gateway_pool)
    note(here, "file-1")
    assert await find(here, "file-1") == {"file-1"}
    assert await find(there, "file-1") == set()
    assert await here.write_some()
    assert await find(owners(gateway_pool), "file-1") == {"file-1"}
    assert await find(here, "file-1", by=THEIRS) == set()
    assert await find(here, "file-1", vendors=(OTHER_VENDOR,)) == set()
    row = await owner.fetchrow("SELECT * FROM stored_objects")
    assert row is not None
    assert (row["object_id"], str(row["vendor_id"]), row["kind"]) == ("file-1", VENDOR, "file")
    assert (str(row["org_id"]), str(row["token_id"])) == (OURS.org_id, OURS.token_id)
    assert (str(row["call_id"]), str(row["user_id"])) == (CALL, OURS.user_id)


async def test_the_first_org_keeps_an_id(gateway_pool: asyncpg.Pool) -> None:
    one, other = owners(gateway_pool), owners(gateway_pool)
    note(one, "files/x")
    note(other, "files/x", by=THEIRS)
    assert await one.write_some()
    assert await other.write_some()
    for at in (one, other):
        assert await find(at, "files/x") == {"files/x"}
        assert await find(at, "files/x", by=THEIRS) == set()


async def test_the_gateway_can_neither_change_nor_remove_an_owner(
    gateway_pool: asyncpg.Pool,
) -> None:
    at = owners(gateway_pool)
    note(at, "file-1")
    await at.write_some()
    for statement in ("UPDATE stored_objects SET org_id = vendor_id", "DELETE FROM stored_objects"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await gateway_pool.execute(statement)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await gateway_pool.fetch("SELECT * FROM metered_objects")


async def test_an_unknown_id_is_asked_for_once_more(gateway_pool: asyncpg.Pool) -> None:
    maker, naps = owners(gateway_pool), Naps()
    at = owners(gateway_pool, sleep=naps)
    note(maker, "file-1")
    naps.act = maker.write_some
    assert await find(at, "file-1") == {"file-1"}
    assert naps.taken == [stored_owners.SECOND_LOOK_SECONDS]


async def test_how_long_a_refusal_takes_does_not_tell_whether_there_is_such_an_object(
    gateway_pool: asyncpg.Pool,
) -> None:
    naps = Naps()
    at = owners(gateway_pool, sleep=naps)
    note(at, "file-theirs", by=THEIRS)
    await at.write_some()
    for object_id in ("file-theirs", "file-of-nobody"):
        naps.taken.clear()
        assert await find(at, object_id) == set()
        assert naps.taken == [stored_owners.SECOND_LOOK_SECONDS]


async def test_an_unknown_id_is_remembered_for_a_moment(gateway_pool: asyncpg.Pool) -> None:
    naps, time = Naps(), Time()
    at = owners(gateway_pool, sleep=naps, time=time)
    assert await find(at, "file-1") == set()
    assert await find(at, "file-1") == set()
    assert len(naps.taken) == 1
    note(at, "file-1")
    assert await find(at, "file-1") == {"file-1"}
    assert await find(at, "file-2") == set()
    time.now += stored_owners.UNKNOWN_SECONDS
    assert await find(at, "file-2") == set()
    assert len(naps.taken) == 3


async def test_what_is_written_by_the_loop_is_written_at_once(gateway_pool: asyncpg.Pool) -> None:
    at, there = owners(gateway_pool), owners(gateway_pool)
    loop = asyncio.create_task(at.run())  # noqa: TID251 - ended below
    note(at, "file-1", "file-2", "file-1")
    async with asyncio.timeout(5):
        while await find(there, "file-1", "file-2") != {"file-1", "file-2"}:
            there = owners(gateway_pool)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


class Away:
    """A pool whose database is away."""

    def __init__(self) -> None:
        self.asked = 0

    async def fetch(self, *_: object) -> list[asyncpg.Record]:
        self.asked += 1
        raise ConnectionRefusedError


async def test_while_the_database_is_away_ids_wait_and_what_is_unknown_is_a_503(
    gateway_pool: asyncpg.Pool,
) -> None:
    at = owners(Away())
    note(at, "file-1")
    assert not await at.write_some()
    assert await find(at, "file-1") == {"file-1"}
    with pytest.raises(DatabaseAway):
        await find(at, "file-2")
    at._pool = gateway_pool
    assert await at.write_some()
    assert await find(owners(gateway_pool), "file-1") == {"file-1"}


async def test_what_waits_is_bounded_and_what_is_lost_is_nobodys(
    monkeypatch: pytest.MonkeyPatch, gateway_pool: asyncpg.Pool
) -> None:
    monkeypatch.setattr(stored_owners, "QUEUE_MAX", 3)
    problems: list[str] = []
    at = StoredOwners(gateway_pool, now=Time(), sleep=Naps(), on_trouble=problems.append)
    note(at, "a", "b", "c", "d")
    assert len(problems) == 1
    await at.write_rest()
    assert await find(at, "a", "b", "c", "d") == {"b", "c", "d"}


async def test_a_part_of_an_object_knows_its_whole(gateway_pool: asyncpg.Pool) -> None:
    at = owners(gateway_pool)
    part = Stored("file-out", Kind.BATCH_OUTPUT, "batch_1")
    at.note([part], caller=OURS, vendor_id=VENDOR, call_id=CALL)
    await at.write_rest()
    fresh = owners(gateway_pool)
    found = await fresh.find(["file-out"], org_id=OURS.org_id, vendor_ids=(VENDOR,))
    assert (found["file-out"].kind, found["file-out"].parent_id) == ("batch_output", "batch_1")


async def test_a_list_is_looked_up_in_one_question(gateway_pool: asyncpg.Pool) -> None:
    maker, naps = owners(gateway_pool), Naps()
    note(maker, "ours")
    note(maker, "theirs", by=THEIRS)
    await maker.write_rest()
    at = owners(gateway_pool, sleep=naps)
    ids = ["ours", "theirs", "nobodys"]
    listed = await at.find_listed(ids, org_id=OURS.org_id, vendor_id=VENDOR)
    assert set(listed) == {"ours"}
    assert not naps.taken


async def test_what_vendors_have_forgotten_long_before_is_pruned(
    gateway_pool: asyncpg.Pool, owner: asyncpg.Connection
) -> None:
    at = owners(gateway_pool)
    for kind in (Kind.RESPONSE, Kind.ITEM, Kind.FILE, Kind.BATCH):
        note(at, f"old-{kind}", kind=kind)
    note(at, "new", kind=Kind.RESPONSE)
    await at.write_rest()
    await owner.execute(
        "UPDATE stored_objects SET made_at = now() - interval '91 days' WHERE object_id <> 'new'"
    )
    assert await at.prune() == 2
    left = await owner.fetch("SELECT object_id FROM stored_objects")
    assert {row["object_id"] for row in left} == {"old-file", "old-batch", "new"}


async def test_the_same_org_with_another_token_has_it_too(gateway_pool: asyncpg.Pool) -> None:
    at = owners(gateway_pool)
    note(at, "file-1")
    assert await find(at, "file-1", by=replace(OURS, token_id=str(uuid.uuid4()))) == {"file-1"}
