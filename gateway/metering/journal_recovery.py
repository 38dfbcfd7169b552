"""Finishing the journals of processes that are gone.

Who can take a journal's lock may finish it; one that is alive holds its own. An abandoned journal
tells three things: the rows of calls that were closed, the calls that were open when the process
died, and how many units of each block were used. Calls that were open get a row that says so: what
went to the vendor, and what came back, nobody knows.

Units are exact for a process that was killed. After a power cut lines may be missing, and a damaged
or unsynced file proves nothing: then blocks count as used up.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec
import orjson

from gateway.metering.journal_files import (
    DISTRUSTED_NAME,
    KEPT_SUFFIX,
    LOCK_NAME,
    SEGMENT_SUFFIX,
    files_with,
    remove_folder,
    take_lock,
)
from gateway.metering.journal_lines import (
    ASKED,
    CARRIED,
    CLOSE,
    DAMAGE,
    HEADER,
    OPEN,
    SETTLED,
    USED,
    Line,
    make_line,
    scan,
)
from gateway.metering.journal_rows import interrupted

_GONE_PREFIX: Final = ".gone-"
_INTERRUPTED_NAME: Final = "interrupted"


class _Named(msgspec.Struct):
    id: str


class _Opened(msgspec.Struct):
    blocks: list[str]
    row: msgspec.Raw


_decode_name: Final = msgspec.json.Decoder(_Named).decode
_decode_opened: Final = msgspec.json.Decoder(_Opened).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What an abandoned journal tells besides its closed calls."""

    interrupted: Sequence[bytes]  # a row for each call that was open
    used: Mapping[str, int | None]  # units of each unsettled block; None: not known, burn it
    damaged: int  # stretches that could not be read


class Orphan:
    """An abandoned journal, ours until `discard` or `release`. Its methods block on the disk."""

    def __init__(self, folder: Path, *, lock: int, boot_id: str) -> None:
        self.worker_id = folder.name
        self._folder = folder
        self._lock = lock
        self._boot_id = boot_id

    def read(self) -> Findings:
        """Read all segments. Raises OSError."""
        reading = _Reading(boot_id=self._boot_id, worker_id=self.worker_id)
        trusted = not (self._folder / DISTRUSTED_NAME).exists()
        for path in files_with(self._folder, SEGMENT_SUFFIX):
            reading.begin_segment(path.stem)
            for line in scan(path.read_bytes()):
                reading.take(line)
        trusted = trusted and reading.trusted
        return Findings(
            interrupted=[interrupted(row) for row in reading.open.values()],
            used={i: used if trusted else None for i, used in reading.used.items()},
            damaged=reading.damaged,
        )

    def batches(self, *, rows_max: int, bytes_max: int) -> Iterator[list[bytes]]:
        """Yield the rows of closed calls, in the order closed. Raises OSError."""
        rows: list[bytes] = []
        size = 0
        for path in files_with(self._folder, SEGMENT_SUFFIX):
            for line in scan(path.read_bytes()):
                if line.kind != CLOSE:
                    continue
                rows.append(line.payload)
                size += len(line.payload)
                if len(rows) >= rows_max or size >= bytes_max:
                    yield rows
                    rows, size = [], 0
        if rows:
            yield rows

    def discard(
        self, *, keep_in: Path | None = None, keep_rows: Sequence[bytes] = ()
    ) -> list[Path]:
        """Remove the journal, now that its rows are shipped and its blocks settled; unlock it.

        `keep_in` is the folder of a live journal that keeps the segments for shipping them again,
        and the interrupted calls' rows, `keep_rows`; returns where they are. Raises OSError.
        """
        gone = self._folder.with_name(_GONE_PREFIX + self.worker_id)
        moved: list[Path] = []
        try:
            self._folder.rename(gone)  # at once: half a journal would tell of calls never closed
            if keep_in is not None:
                if keep_rows:
                    lines = b"".join(make_line(CLOSE, row) for row in keep_rows)
                    with contextlib.suppress(OSError):  # a full disk keeps less
                        (gone / (_INTERRUPTED_NAME + KEPT_SUFFIX)).write_bytes(lines)
                paths = files_with(gone, KEPT_SUFFIX) + files_with(gone, SEGMENT_SUFFIX)
                for path in paths:
                    _cut_to_lines(path)
                    moved.append(path.rename(keep_in / self._kept_name(path.stem)))
            remove_folder(gone)
        finally:
            self.release()
        return moved

    def release(self) -> None:
        """Give the lock up; whoever takes it next begins anew."""
        os.close(self._lock)

    def _kept_name(self, stem: str) -> str:
        named = stem if "-" in stem else f"{self.worker_id}-{stem}"  # or it was kept there already
        return named + KEPT_SUFFIX


def orphans(root: Path, *, boot_id: str) -> Iterator[Orphan]:
    """Yield the abandoned journals under `root`, locked; also clean up after those discarded.

    The caller ends each with `discard` or `release`. Raises OSError.
    """
    if not root.exists():
        return
    for folder in sorted(root.iterdir()):
        if folder.name.startswith(_GONE_PREFIX):
            lock = take_lock(folder / LOCK_NAME)
            if lock is not None:  # who was discarding it has died over it
                remove_folder(folder)
                os.close(lock)
        elif _is_worker_id(folder.name):
            lock = take_lock(folder / LOCK_NAME)
            if lock is not None:
                yield Orphan(folder, lock=lock, boot_id=boot_id)


class _Reading:
    """What the lines read so far add up to."""

    def __init__(self, *, boot_id: str, worker_id: str) -> None:
        self._boot_id = boot_id
        self._worker_id = worker_id
        self._number: int | None = None
        self._has_header = False
        self.open: dict[str, bytes] = {}  # id: open part of the row
        self.used: dict[str, int] = {}
        self.damaged = 0
        self.trusted = True

    def begin_segment(self, name: str) -> None:
        """Take note that the next segment begins: they must follow each other."""
        number = int(name) if name.isdecimal() else 0
        follows = self._number is None or (self._has_header and number == self._number + 1)
        if not follows or not number:
            self._damage()
        self._number = number
        self._has_header = False

    def take(self, line: Line) -> None:
        """Take in a line. A good checksum over bad content is damage too."""
        try:
            self._take(line.kind, line.payload)
        except (msgspec.MsgspecError, orjson.JSONDecodeError, AttributeError, TypeError):
            self._damage()

    def _take(self, kind: bytes, payload: bytes) -> None:
        if kind == CLOSE:
            self.open.pop(_decode_name(payload).id, None)
        elif kind == OPEN:
            opened = _decode_opened(payload)
            row = bytes(opened.row)
            self.open[_decode_name(row).id] = row
            for block_id in opened.blocks:
                self.used[block_id] = self.used.get(block_id, 0) + 1
        elif kind == CARRIED:
            self.open[_decode_name(payload).id] = payload
        elif kind == ASKED:
            for block_id in orjson.loads(payload):
                self.used.setdefault(block_id, 0)
        elif kind == USED:
            self.used.update(orjson.loads(payload))
        elif kind == SETTLED:
            for block_id in orjson.loads(payload):
                self.used.pop(block_id, None)
        elif kind == HEADER:
            self._has_header = True
            header = orjson.loads(payload)
            if header.get("boot") != self._boot_id or header.get("worker") != self._worker_id:
                self.trusted = False
        else:
            assert kind == DAMAGE
            self._damage()

    def _damage(self) -> None:
        self.damaged += 1
        self.trusted = False


def _cut_to_lines(path: Path) -> None:
    """Give back the room of a segment behind what was written: it takes no line any more."""
    with contextlib.suppress(OSError):
        os.truncate(path, len(path.read_bytes().rstrip(b"\0")))


def _is_worker_id(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False
