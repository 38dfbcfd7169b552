import asyncio
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import JournalFull
from gateway.ids import IdMaker
from gateway.metering import journal_segments, journal_shipping
from gateway.metering.journal import Journal
from gateway.metering.journal_files import DISTRUSTED_NAME, Files, files_with
from gateway.metering.journal_lines import scan
from gateway.metering.journal_recovery import Findings, orphans
from gateway.metering.journal_segments import LINE_BYTES_MAX, PAYLOAD_BYTES_MAX, SEGMENT_BYTES_SMALL

ids = IdMaker(lambda: 1_790_000_000.0)


class Disk(Files):
    """A disk with so many bytes of room, on which anything can be made to fail."""

    def __init__(self, room: int = 10**12) -> None:
        self.room = room
        self.fail_writes = 0
        self.fail_sync = False
        self.on_sync: Callable[[], object] = lambda: None
        self.written_at_most: int | None = None

    def create(self, path: Path, size: int) -> int:
        if size > self.room:
            raise OSError(errno.ENOSPC, "no room")
        self.room -= size
        return super().create(path, size)

    def free_bytes(self, folder: Path) -> int:
        return self.room

    def write(self, fd: int, data: bytes, offset: int) -> int:
        if self.fail_writes:
            self.fail_writes -= 1
            raise OSError(errno.EIO, "broken")
        if self.written_at_most is not None:
            data, self.written_at_most = data[: self.written_at_most], None
        return super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        if self.fail_sync:
            raise OSError(errno.EIO, "broken")
        super().sync(fd)
        self.on_sync()


class Clock:
    def __init__(self) -> None:
        self.time = 1_790_000_000.0

    def __call__(self) -> float:
        return self.time


class Case:
    """A journal with its disk and clock, and what went wrong."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        self.disk = Disk()
        self.clock = Clock()
        self.faults: list[str] = []
        options = {"files": self.disk, **options}
        self.journal = Journal.create(
            root,
            worker_id=ids.new(),
            boot_id="boot",
            now=self.clock,
            monotonic=self.clock,
            on_fault=self.faults.append,
            **options,
        )

    def open(self, *blocks: str, size: int = 0, admitted: float = 1.0) -> str:
        call_id = ids.new()
        self.journal.open_call(
            call_id, row(call_id, pad="p" * size), admitted=admitted, block_ids=blocks
        )
        return call_id

    def close(self, call_id: str, *, size: int = 0) -> bytes:
        whole = row(call_id, status="complete", pad="p" * size)
        self.journal.close_call(call_id, whole)
        return whole

    def fill_segment(self) -> None:
        number = max(self.journal._segments.current.number, 1)
        while self.journal._segments.current.number <= number:
            self.close(self.open(size=7000), size=15_000)

    def until_full(self, act: Callable[[], object]) -> None:
        try:
            while True:
                act()
        except JournalFull:
            return

    def ship(self) -> list[bytes]:
        rows: list[bytes] = []
        while (batch := self.journal.read_unshipped(rows_max=100, bytes_max=10**6)).rows:
            rows += batch.rows
            self.journal.shipped(batch)
        return rows

    def killed(self) -> tuple[list[bytes], Findings]:
        """What recovery finds were the process killed now: the rows, and the rest."""
        copies = self.root / "copies"
        shutil.copytree(self.journal.folder, copies / self.journal.folder.name)
        [orphan] = orphans(copies, boot_id="boot")
        rows = [r for batch in orphan.batches(rows_max=100, bytes_max=10**6) for r in batch]
        found = orphan.read()
        orphan.release()
        shutil.rmtree(copies)
        return rows, found

    def segments(self) -> list[str]:
        return [path.name for path in files_with(self.journal.folder, ".seg")]

    def kept(self) -> list[str]:
        return [path.name for path in files_with(self.journal.folder, ".kept")]


def row(call_id: str, **members: Any) -> bytes:
    return json.dumps({"id": call_id, **members}).encode()


@pytest.fixture(params=[journal_shipping.RECENT_BYTES_MAX, 2000, 0], ids=["memory", "both", "disk"])
def case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Case]:
    """A journal that ships from memory, or reads what it ships back from the disk."""
    monkeypatch.setattr(journal_segments, "SEGMENT_BYTES", SEGMENT_BYTES_SMALL)
    monkeypatch.setattr(journal_shipping, "RECENT_BYTES_MAX", request.param)
    case = Case(tmp_path)
    yield case
    case.journal.close()


def test_a_closed_call_is_read_back_until_it_is_shipped(case: Case) -> None:
    first = case.close(case.open(admitted=5.0))
    still_open = case.open(admitted=6.0)
    batch = case.journal.read_unshipped(rows_max=10, bytes_max=10**6)
    assert list(batch.rows) == [first]
    assert list(case.journal.read_unshipped(rows_max=10, bytes_max=10**6).rows) == [first]
    assert case.journal.unshipped_since() == 5.0
    case.journal.shipped(batch)
    assert case.journal.unshipped_since() == 6.0
    second = case.close(still_open)
    assert case.journal.closed.is_set()
    assert case.ship() == [second]
    assert case.journal.unshipped_since() is None
    assert case.journal.open_calls == 0


def test_batches_keep_their_bounds_and_the_order(case: Case) -> None:
    rows = [case.close(case.open(), size=1000) for _ in range(20)]
    batch = case.journal.read_unshipped(rows_max=7, bytes_max=10**6)
    assert list(batch.rows) == rows[:7]
    assert batch.more
    case.journal.shipped(batch)
    batch = case.journal.read_unshipped(rows_max=100, bytes_max=3500)
    assert list(batch.rows) == rows[7:11]
    case.journal.shipped(batch)
    batch = case.journal.read_unshipped(rows_max=100, bytes_max=1)
    assert list(batch.rows) == rows[11:12]
    case.journal.shipped(batch)
    assert case.ship() == rows[12:]


def test_rows_beyond_what_memory_holds_come_from_the_disk_and_the_next_from_memory_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_shipping, "RECENT_BYTES_MAX", 3000)
    case = Case(tmp_path)
    reads: list[int] = []

    def read(fd: int, size: int, offset: int) -> bytes:
        reads.append(size)
        return os.pread(fd, size, offset)

    monkeypatch.setattr(case.disk, "read", read)
    first = [case.close(case.open(), size=1000) for _ in range(2)]
    assert case.ship() == first
    assert not reads
    late = case.open()
    many = [case.close(case.open(), size=1000) for _ in range(5)]
    batch = case.journal.read_unshipped(rows_max=3, bytes_max=10**6)
    assert list(batch.rows) == many[:3]
    assert reads
    many.append(case.close(late))
    case.journal.shipped(batch)
    assert case.ship() == many[3:]
    reads.clear()
    last = case.close(case.open())
    assert case.ship() == [last]
    assert not reads
    case.journal.close()


def test_what_closes_while_a_batch_is_under_way_stays_unshipped(case: Case) -> None:
    case.close(case.open(admitted=3.0))
    batch = case.journal.read_unshipped(rows_max=10, bytes_max=10**6)
    case.close(case.open(admitted=4.0))
    case.journal.shipped(batch)
    assert case.journal.unshipped_since() == 4.0


def test_a_vendors_line_breaks_cost_no_row(case: Case) -> None:
    call_id = case.open()
    case.journal.close_call(
        call_id, b'{"id":"%b","vendor_usage":{\n  "a": 1\n}}' % call_id.encode()
    )
    [whole] = case.ship()
    assert json.loads(whole)["vendor_usage"] == {"a": 1}


def test_a_row_that_is_too_long_is_cut_and_says_so(case: Case) -> None:
    call_id = case.open(size=50_000)
    usage = {"x": ["y" * 100] * 200}
    case.journal.close_call(
        call_id, row(call_id, output_tokens=7, pad="q", flags=["a"], vendor_usage=usage)
    )
    other = case.open()
    case.journal.close_call(other, row(other, output_tokens=7, pad='"' * 20_000, vendor_usage={}))
    [first, second] = map(json.loads, case.ship())
    assert first == {
        "id": call_id,
        "output_tokens": 7,
        "pad": "q",
        "flags": ["a", "vendor_usage_cut"],
    }
    assert second["flags"] == ["vendor_usage_cut", "row_cut"]
    assert (second["output_tokens"], second["pad"]) == (7, '"' * 64)
    [_, header, *_] = case.journal._segments.current.path.read_bytes().split(b"\n")
    assert len(header) < PAYLOAD_BYTES_MAX


def test_a_full_disk_refuses_calls_and_never_loses_a_close(case: Case) -> None:
    case.disk.room = SEGMENT_BYTES_SMALL + SEGMENT_BYTES_SMALL // 2
    opened: list[str] = []
    case.until_full(lambda: opened.append(case.open("block")))
    assert 10 < len(opened) < SEGMENT_BYTES_SMALL // LINE_BYTES_MAX
    assert case.faults == ["full"]
    with pytest.raises(JournalFull):
        case.open()
    with pytest.raises(JournalFull):
        case.journal.block_asked([ids.new()])
    assert case.faults == ["full"]  # the disk is not asked each time
    rows = [case.close(call_id, size=16_000) for call_id in opened]
    assert case.faults == ["full"]
    assert case.ship() == rows
    _, found = case.killed()
    assert found.used == {"block": len(opened)}
    case.clock.time += 1.0
    case.disk.room = SEGMENT_BYTES_SMALL
    case.close(case.open())


def test_many_open_calls_make_their_room_beforehand(case: Case) -> None:
    opened = [case.open() for _ in range(300)]
    case.disk.room = 0
    rows = [case.close(call_id, size=16_000) for call_id in opened]
    assert case.ship() == rows
    assert case.faults == []


async def test_the_room_of_a_full_disk_comes_back_when_rows_are_shipped(case: Case) -> None:
    case.disk.room = 3 * SEGMENT_BYTES_SMALL
    asked = ids.new()
    case.journal.block_asked([asked])
    case.until_full(lambda: case.close(case.open(asked), size=16_000))
    assert case.disk.room == 0
    case.ship()
    await case.journal.step()
    assert case.kept() == ["00000001.kept", "00000002.kept"]
    case.clock.time += 1.0
    case.disk.room += 2 * SEGMENT_BYTES_SMALL  # what removing the kept ones gives back
    case.journal._segments.expire(now=case.clock.time + 10**6)
    case.close(case.open())


async def test_a_close_that_no_disk_takes_is_shipped_from_memory(case: Case) -> None:
    first, second = case.open(admitted=2.0), case.open(admitted=3.0)
    case.disk.fail_writes = 10**6
    case.disk.room = 0
    rows = [case.close(first), case.close(second)]
    assert "write_failed" in case.faults
    assert case.journal.unshipped_since() == 2.0
    with pytest.raises(JournalFull):
        case.open()
    batch = case.journal.read_unshipped(rows_max=1, bytes_max=10**6)
    assert list(batch.rows) == rows[:1]
    case.journal.shipped(batch)
    case.disk.fail_writes = 0
    case.disk.room = 10**9
    await case.journal.step()
    read_back, _ = case.killed()
    assert read_back == rows[1:]
    assert case.ship() == rows[1:]
    case.close(case.open())


def test_a_row_in_memory_stays_there_for_the_database_that_replaced_the_one_it_went_to(
    case: Case,
) -> None:
    call_id = case.open()
    case.disk.fail_writes = 10**6
    case.disk.room = 0
    row = case.close(call_id)
    under_way = case.journal.read_unshipped(rows_max=1, bytes_max=10**6)
    case.journal.reship()
    case.journal.shipped(under_way)
    assert case.ship() == [row]


@pytest.mark.parametrize("torn", [0, 1, 12, 40])
def test_a_write_that_stops_halfway_ends_its_segment_only(case: Case, torn: int) -> None:
    first = case.open("block")
    case.disk.written_at_most = torn
    with pytest.raises(JournalFull):
        case.open("block")
    case.clock.time += 1.0
    second = case.open("block")
    case.disk.written_at_most = torn
    rows = [case.close(first), case.close(second)]
    assert len(case.segments()) == 3
    assert case.ship() == rows
    assert case.killed() == (rows, Findings(interrupted=[], used={"block": 2}, damaged=0))


async def test_segments_go_when_their_rows_are_shipped_and_their_calls_closed(case: Case) -> None:
    asked = ids.new()
    case.journal.block_asked([asked])
    straggler = case.open(asked, admitted=9.0)
    for _ in range(3):
        case.fill_segment()
    await case.journal.step()
    assert len(case.segments()) == 4
    case.ship()
    await case.journal.step()
    assert len(case.segments()) == 4  # the straggler was opened in the first
    case.close(straggler)
    case.ship()
    await case.journal.step()
    assert case.segments() == ["00000004.seg"]
    assert case.kept() == [f"0000000{n}.kept" for n in (1, 2, 3)]
    _, found = case.killed()
    assert found == Findings(interrupted=[], used={asked: 1}, damaged=0)


async def test_stragglers_are_carried_over_and_stay_counted_once(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.metering.journal.STUCK_SEGMENTS_MAX", 2)
    monkeypatch.setattr("gateway.metering.journal.CARRIED_PER_STEP_MAX", 2)
    asked = ids.new()
    case.journal.block_asked([asked])
    stragglers = [case.open(asked, admitted=9.0) for _ in range(5)]
    for _ in range(3):
        case.fill_segment()
    case.ship()
    for _ in range(2):
        await case.journal.step()
        assert "00000001.seg" in case.segments()
    await case.journal.step()
    assert case.segments() == ["00000004.seg"]
    _, found = case.killed()
    assert sorted(json.loads(r)["id"] for r in found.interrupted) == sorted(stragglers)
    assert found.used == {asked: 5}
    assert case.journal.unshipped_since() == 9.0
    rows = [case.close(call_id) for call_id in stragglers]
    assert case.ship() == rows
    assert case.killed()[1].interrupted == []


async def test_settled_blocks_are_forgotten(case: Case) -> None:
    blocks = [ids.new() for _ in range(600)]
    case.journal.block_asked(blocks)
    case.close(case.open(blocks[0], blocks[1]))
    case.close(case.open(blocks[1]))
    assert case.killed()[1].used == {**dict.fromkeys(blocks, 0), blocks[0]: 1, blocks[1]: 2}
    case.journal.block_settled(blocks[1:])
    assert case.killed()[1].used == {blocks[0]: 1}
    case.fill_segment()
    case.ship()
    await case.journal.step()
    assert case.segments() == ["00000002.seg"]
    assert case.killed()[1].used == {blocks[0]: 1}


async def test_kept_segments_end_by_size_and_by_age(tmp_path: Path, case: Case) -> None:
    small = Case(tmp_path / "small", keep_bytes=2 * SEGMENT_BYTES_SMALL)
    for _ in range(4):
        small.fill_segment()
    small.ship()
    await small.journal.step()
    assert small.kept() == ["00000003.kept", "00000004.kept"]
    for name in small.kept():
        os.utime(small.journal.folder / name, (small.clock.time, small.clock.time))
    small.journal.keep([])
    small.clock.time = max(kept.at for kept in small.journal._segments.kept) + 24 * 3600.0
    await small.journal.step()
    assert small.kept() == []
    small.journal.close()


async def test_a_database_that_lost_rows_gets_all_that_are_kept_again(case: Case) -> None:
    for _ in range(2):
        case.fill_segment()
    last = case.open(admitted=case.clock.time)
    before = case.ship()
    await case.journal.step()
    assert len(case.kept()) == 2
    assert case.journal.unshipped_since() == case.clock.time
    case.journal.reship()
    assert case.journal.closed.is_set()
    assert case.journal.unshipped_since() == case.clock.time - 48 * 3600
    stale = case.journal.read_unshipped(rows_max=5, bytes_max=10**6)
    case.journal.reship()
    case.journal.shipped(stale)
    fresh = case.close(last)
    again = case.ship()
    assert sorted(again) == sorted([*before, fresh])
    assert case.journal.unshipped_since() is None
    assert case.ship() == []


async def test_a_failed_sync_is_never_trusted_again(case: Case) -> None:
    case.close(case.open("block"))
    case.disk.fail_sync = True
    await case.journal.step()
    assert case.faults == ["sync_failed"]
    assert (case.journal.folder / DISTRUSTED_NAME).exists()
    case.disk.fail_sync = False
    case.close(case.open("block"))
    assert len(case.segments()) == 2  # nothing more goes into that file
    rows, found = case.killed()
    assert len(rows) == 2
    assert found.used == {"block": None}
    assert len(case.ship()) == 2


async def test_lines_reach_the_disk_in_the_background(case: Case) -> None:
    synced = asyncio.Event()
    loop = asyncio.get_running_loop()
    case.disk.on_sync = lambda: loop.call_soon_threadsafe(synced.set)
    running = asyncio.Task(case.journal.run())
    for _ in range(2):
        case.close(case.open())
        async with asyncio.timeout(5):
            await synced.wait()
        synced.clear()
    running.cancel()
    case.disk.on_sync = lambda: None


def test_a_journal_whose_disk_is_full_from_the_start_starts(tmp_path: Path) -> None:
    disk = Disk(room=0)
    case = Case(tmp_path, files=disk)
    with pytest.raises(JournalFull):
        case.open()
    case.clock.time += 1.0
    disk.room = 10**9
    case.close(case.open())
    case.journal.close()


def test_scan_gives_the_good_lines_of_damaged_data() -> None:
    assert list(scan(b"")) == []
    assert list(scan(b"\0" * 100)) == []
    assert [line.kind for line in scan(b"junk\n")] == [b"!"]
    assert list(scan(b"c 123")) == []


def test_a_full_disk_takes_the_kept_segments_of_other_workers_too(tmp_path: Path) -> None:
    case = Case(tmp_path)
    kept = tmp_path / ids.new() / "00000001.kept"
    kept.parent.mkdir()
    kept.touch()
    make = case.disk.create

    def create(path: Path, size: int) -> int:
        if kept.exists():
            raise OSError(errno.ENOSPC, "no room")
        return make(path, size)

    case.disk.create = create  # type: ignore[method-assign]
    case.open()
    assert not kept.exists()
