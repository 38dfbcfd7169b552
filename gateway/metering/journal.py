"""The crash-proof record of one worker's calls: opened before a vendor hears of it, then closed.

Every line is in the kernel when its method returns, so that a killed process loses nothing; `run`
brings the lines to the disk in groups, so that a power cut loses at most the last group. A call is
opened only where there is room for its largest close, so that a full disk refuses new calls and
never loses a call that was made.

The ledger takes the rows of closed calls from memory; while the database is away it reads them back
from the segments, so that memory stays bounded. A segment goes when all its rows are shipped and no
call opened in it is open any more; a few stragglers are written again into the current segment
("carried"), in slices. Before it goes, how much of each block is used is written down too: what
recovery counts is never in a segment that is gone. Shipped segments are kept for a while, to be
shipped again to a database that lost them; ids make that harmless.

Only `journal_recovery` reads a journal whose process is gone.
"""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import orjson

from gateway.errors import JournalFull
from gateway.metering.journal_files import DISTRUSTED_NAME, LOCK_NAME, Files, take_lock
from gateway.metering.journal_lines import (
    ASKED,
    CARRIED,
    CLOSE,
    HEADER,
    OPEN,
    SETTLED,
    USED,
    make_line,
    one_line,
)
from gateway.metering.journal_rows import shortened
from gateway.metering.journal_segments import (
    LINE_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    Kept,
    Segment,
    Segments,
)
from gateway.metering.journal_shipping import Batch, Shipping

VERSION: Final = 1
KEEP_BYTES: Final = 1024 * 1024 * 1024  # of shipped segments, unless set lower
SYNC_SECONDS: Final = 0.05  # a power cut loses at most what closed in it
IDLE_SECONDS: Final = 5.0  # old segments are looked at this often where nothing else happens
REFUSAL_SECONDS: Final = 0.25  # a full disk is not asked again before
WRITE_TRIES_MAX: Final = 3  # of a close, each in another segment; then memory keeps it
STUCK_SEGMENTS_MAX: Final = 16  # shipped, but with open calls in the oldest: those are carried
CARRIED_PER_STEP_MAX: Final = 64
BLOCKS_PER_LINE_MAX: Final = 256  # of at most 64 bytes each
SLOTS_OF_OUR_OWN: Final = 4  # kept free for carried calls and blocks, or no segment could go

assert LINE_BYTES_MAX > BLOCKS_PER_LINE_MAX * 64


class _OpenCall:
    __slots__ = ("admitted", "row", "segment")

    def __init__(self, admitted: float, row: bytes, segment: Segment) -> None:
        self.admitted = admitted
        self.row = row
        self.segment = segment


class Journal:
    """One worker's journal. All methods but `create` belong to the loop's thread."""

    def __init__(
        self,
        folder: Path,
        *,
        lock: int,
        worker_id: str,
        boot_id: str,
        keep_bytes: int,
        files: Files,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        on_fault: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.closed = asyncio.Event()  # set where there is something to ship
        self._lock = lock
        self._files = files
        self._now = now
        self._monotonic = monotonic
        self._on_fault = on_fault
        self._segments = Segments(
            folder,
            header=lambda number: _header(worker_id, boot_id, number),
            files=files,
            keep_bytes=keep_bytes,
        )
        # In the order of their segments: carried calls go to the end.
        self._open: dict[str, _OpenCall] = {}
        self._blocks: dict[str, int] = {}  # units used of each block that is not settled
        self._dirty = asyncio.Event()
        self._refuse_until = 0.0
        self._shipping = Shipping(self._segments, files=files, on_fault=on_fault)

    @classmethod
    def create(
        cls,
        root: Path,
        *,
        worker_id: str,
        boot_id: str,
        keep_bytes: int = KEEP_BYTES,
        files: Files | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        on_fault: Callable[[str], None] = lambda _: None,
    ) -> "Journal":
        """Create the journal of a new worker and hold its lock until `close`.

        A full disk is no reason to fail: calls are refused until there is room. `now` gives Unix
        seconds, `on_fault` is told in a word what went wrong with the disk. Raises OSError.
        """
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        building = root / f".new-{worker_id}"  # nobody takes it for an abandoned one yet
        building.mkdir(mode=0o700)
        lock = take_lock(building / LOCK_NAME, create=True)
        assert lock is not None, "a new file is not locked"
        folder = root / worker_id
        building.rename(folder)
        return cls(
            folder,
            lock=lock,
            worker_id=worker_id,
            boot_id=boot_id,
            keep_bytes=keep_bytes,
            files=files or Files(),
            now=now,
            monotonic=monotonic,
            on_fault=on_fault,
        )

    # -------------------------------------------------------------------------------- what calls do

    def open_call(
        self, call_id: str, row: bytes, *, admitted: float, block_ids: tuple[str, ...]
    ) -> None:
        """Record that a call goes to a vendor and takes one unit of each block.

        `row` is a JSON object whose `id` is `call_id`; `admitted` is its time in Unix seconds.
        Raises JournalFull, and then nothing is recorded.
        """
        if len(row) > PAYLOAD_BYTES_MAX // 2:
            row = shortened(row, PAYLOAD_BYTES_MAX // 2)
        if row.find(b"\n") >= 0:
            row = one_line(row)
        blocks = b'"%b"' % '","'.join(block_ids).encode() if block_ids else b""
        line = make_line(OPEN, b'{"blocks":[%b],"row":%b}' % (blocks, row))
        self._make_room_for_open()
        try:
            segment = self._segments.append(line)
        except OSError as error:
            self._refuse()
            raise JournalFull from error
        segment.open_calls += 1
        self._open[call_id] = _OpenCall(admitted, row, segment)
        for block_id in block_ids:
            self._blocks[block_id] = self._blocks.get(block_id, 0) + 1
        self._dirty.set()

    def close_call(self, call_id: str, row: bytes) -> None:
        """Record how a call ended. Never fails: there is room, and failing that, memory.

        `row` is the JSON object of the whole row; one that is too long loses its vendor usage.
        """
        if len(row) > PAYLOAD_BYTES_MAX:
            row = shortened(row, PAYLOAD_BYTES_MAX)
        if row.find(b"\n") >= 0:
            row = one_line(row)
        admitted = self._now()
        if (opened := self._open.pop(call_id, None)) is not None:
            admitted = opened.admitted
            opened.segment.open_calls -= 1
        if not self._write_close(row, admitted):
            self._shipping.unwritten[call_id] = (row, admitted)
        self.closed.set()
        self._dirty.set()

    def note_end(self, call_id: str, row: bytes) -> None:
        """Record how an open call ends if nothing more comes: its client may have all of it.

        `row` is the JSON object of the whole row. Should the process die before the call is closed,
        recovery takes this row. Where there is no room but what closes need, nothing is recorded.
        """
        call = self._open.get(call_id)
        if call is None or len(row) > PAYLOAD_BYTES_MAX:
            return
        self._write_again(call_id, call, one_line(row))
        self._dirty.set()

    def block_asked(self, block_ids: Sequence[str]) -> None:
        """Record that blocks are about to be asked for. Raises JournalFull."""
        for ids in _slices(block_ids):
            self._make_room_for_open()
            try:
                self._segments.append(make_line(ASKED, orjson.dumps(ids)))
            except OSError as error:
                self._refuse()
                raise JournalFull from error
            for block_id in ids:
                self._blocks.setdefault(block_id, 0)
        self._dirty.set()

    def block_settled(self, block_ids: Sequence[str]) -> None:
        """Record that blocks were handed back, or not granted: no unit of them is used again.

        Where it can't be written, recovery settles them a second time, which moves nothing.
        """
        for block_id in block_ids:
            self._blocks.pop(block_id, None)
        for ids in _slices(block_ids):
            if not self._write_own(make_line(SETTLED, orjson.dumps(ids))):
                return

    # ------------------------------------------------------------------------- what the ledger does

    def unshipped_since(self) -> float | None:
        """Return when the oldest call that may lack a row was admitted, or None. Unix seconds."""
        times = [call.admitted for call in self._open.values()]
        if (shipping := self._shipping.oldest()) is not None:
            times.append(shipping)
        return min(times, default=None)

    def read_unshipped(self, *, rows_max: int, bytes_max: int) -> Batch:
        """Return the next rows to ship; none where all are shipped. The same until `shipped`.

        At least one row, however long. What a broken disk hides is skipped, and stays on it.
        """
        return self._shipping.read(rows_max, bytes_max)

    def shipped(self, batch: Batch) -> None:
        """Take note that the rows of a batch are committed."""
        self._shipping.shipped(batch)
        self._dirty.set()

    def reship(self) -> None:
        """Ship everything again from the oldest kept segment: the database may have lost rows."""
        self._shipping.ship_again(now=self._now())
        self.closed.set()

    def keep(self, paths: Iterable[Path]) -> None:
        """Take over shipped segments of a finished journal, which are in this folder by now."""
        for path in paths:
            try:
                self._segments.kept.append(Kept(path))
            except OSError:
                self._on_fault("kept_lost")
        self._segments.kept = deque(sorted(self._segments.kept, key=lambda kept: kept.at))
        self._segments.expire(now=self._now())

    # ---------------------------------------------------------------------------- in the background

    async def run(self) -> None:
        """Bring lines to the disk in groups, keep a segment ready, and let old ones go."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_SECONDS):
                    await self._dirty.wait()
            await asyncio.sleep(SYNC_SECONDS)
            self._dirty.clear()
            await self.step()

    async def step(self) -> None:
        """Do once what `run` does."""
        self._write_unwritten()
        await self._sync()
        await self._prepare_spare()
        await self._retire()
        self._segments.close_unused(self._shipping.position[0])
        self._segments.expire(now=self._now())

    def close(self) -> None:
        """Close the files and give the lock up; what is unfinished is the next worker's to finish.

        `run` must have ended.
        """
        try:
            self._segments.sync(self._segments.unsynced())
        except OSError:
            self._on_fault("sync_failed")
            self._distrust()
        self._segments.close()
        os.close(self._lock)

    @property
    def open_calls(self) -> int:
        """How many calls are open."""
        return len(self._open)

    # ----------------------------------------------------------------------------------------- room

    def _make_room_for_open(self) -> None:
        """Raise JournalFull unless a line fits, with a close for every call then open."""
        of_blocks = len(self._blocks) // (BLOCKS_PER_LINE_MAX // 2)
        need = len(self._open) + 2 + SLOTS_OF_OUR_OWN + of_blocks
        if self._shipping.unwritten:
            raise JournalFull  # what can't be written even now is as much as memory should hold
        while not self._segments.has_slots(need):
            if self._monotonic() < self._refuse_until:
                raise JournalFull
            try:
                self._segments.grow()
            except OSError as error:
                self._refuse()
                raise JournalFull from error

    def _refuse(self) -> None:
        self._refuse_until = self._monotonic() + REFUSAL_SECONDS
        self._on_fault("full")

    def _write_own(self, line: bytes) -> bool:
        """Write a line unless the room for it belongs to closes; return whether it is written."""
        if not self._segments.has_slots(len(self._open) + 1):
            return False
        try:
            self._segments.append(line)
        except OSError:
            self._on_fault("write_failed")
            return False
        self._dirty.set()
        return True

    def _write_close(self, row: bytes, admitted: float) -> bool:
        line = make_line(CLOSE, row)
        for _ in range(WRITE_TRIES_MAX):
            try:
                segment = self._segments.append(line)
            except OSError:
                self._on_fault("write_failed")
                continue
            self._shipping.wrote(segment, row, admitted=admitted)
            return True
        return False

    def _write_unwritten(self) -> None:
        unwritten = self._shipping.unwritten
        for call_id, (row, admitted) in list(unwritten.items()):
            if not self._write_close(row, admitted):
                return
            del unwritten[call_id]

    # ------------------------------------------------------------------ the disk, in the background

    async def _sync(self) -> None:
        segments = self._segments.unsynced()
        if not segments:
            return
        ends = [segment.end for segment in segments]
        try:
            await asyncio.to_thread(self._segments.sync, segments)
        except OSError:
            # The kernel may have dropped what it could not write, and won't say so again.
            self._on_fault("sync_failed")
            self._distrust()
            for segment in segments:
                segment.end_here()
        for segment, end in zip(segments, ends, strict=True):
            segment.synced = end

    def _distrust(self) -> None:
        try:
            (self.folder / DISTRUSTED_NAME).touch(mode=0o600)
        except OSError:
            self._on_fault("distrust_failed")

    async def _prepare_spare(self) -> None:
        if self._segments.has_spare or self._monotonic() < self._refuse_until:
            return
        path = self._segments.next_spare()
        try:
            spare = await asyncio.to_thread(self._segments.make_spare, path)
        except OSError:
            return  # a call that needs it finds out, and is told
        self._segments.add_spare(*spare)

    async def _retire(self) -> None:
        """Let the oldest segments go that nothing needs, after writing down what they tell."""
        self._carry()
        going = self._finished()
        if not going or not self._write_used():
            return
        await self._sync()
        if self._finished()[: len(going)] == going:  # or they are to be shipped again, meanwhile
            for segment in going:
                self._segments.retire(segment)

    def _finished(self) -> list[Segment]:
        """Return the segments, from the oldest, that are shipped and have no open call."""
        going = []
        for segment in self._segments.live.values():
            shipped = self._shipping.position >= (segment.number, segment.end)
            if segment is self._segments.current or segment.open_calls or not shipped:
                break
            going.append(segment)
        return going

    def _carry(self) -> None:
        """Write a few open calls again, so that a segment that waits for them alone can go."""
        shipped = self._shipping.position[0] - next(iter(self._segments.live), 0)
        full = self._monotonic() < self._refuse_until
        if shipped < (1 if full else STUCK_SEGMENTS_MAX):
            return
        oldest = next(iter(self._segments.live.values()))
        for call_id in list(islice(self._open, CARRIED_PER_STEP_MAX)):
            call = self._open[call_id]
            if call.segment is not oldest or not self._write_again(call_id, call, call.row):
                return

    def _write_again(self, call_id: str, call: _OpenCall, row: bytes) -> bool:
        """Write an open call's row into the current segment; return whether it could be."""
        if not self._write_own(make_line(CARRIED, row)):
            return False
        call.row = row
        call.segment.open_calls -= 1
        call.segment = self._segments.current
        call.segment.open_calls += 1
        del self._open[call_id]
        self._open[call_id] = call
        return True

    def _write_used(self) -> bool:
        """Write how much of each block is used; return whether all of it could be written."""
        return all(
            self._write_own(make_line(USED, orjson.dumps({i: self._blocks[i] for i in ids})))
            for ids in _slices(list(self._blocks))
        )


def _header(worker_id: str, boot_id: str, number: int) -> bytes:
    told = {"worker": worker_id, "boot": boot_id, "segment": number, "version": VERSION}
    return make_line(HEADER, orjson.dumps(told))


def _slices(block_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(block_ids), BLOCKS_PER_LINE_MAX):
        yield block_ids[start : start + BLOCKS_PER_LINE_MAX]
