"""The segments of one journal: preallocated files, written one after the other, with room to spare.

Room is counted in slots: a slot holds a line of the largest size, wherever the lines before it
happened to end. A line that fits is never refused by a full disk; one that fails all the same (a
file system that copies on write, a dying disk) ends its segment, and the next segment takes it.
"""

import errno
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.metering.journal_files import (
    KEPT_SUFFIX,
    NO_ROOM_ERRORS,
    SEGMENT_SUFFIX,
    SPARE_SUFFIX,
    Files,
    remove,
)
from gateway.metering.journal_lines import LINE_OVERHEAD_BYTES

PAYLOAD_BYTES_MAX: Final = 16 * 1024  # of every line; a row has at most 8 KiB of vendor usage
LINE_BYTES_MAX: Final = PAYLOAD_BYTES_MAX + LINE_OVERHEAD_BYTES
SEGMENT_BYTES: Final = 8 * 1024 * 1024  # some 5,000 calls
SEGMENT_BYTES_SMALL: Final = 512 * 1024  # 31 slots, where workers would take the disk's last room
SEGMENTS_FREE_MIN: Final = 32  # times SEGMENT_BYTES: with less room on the disk they are small
KEPT_SECONDS_MAX: Final = 24 * 3600.0  # shipped rows, for a database that lost them

_CLOSED: Final = -1


class Segment:
    """One file. `end` is where the next line goes; `synced` is how far the disk has it."""

    __slots__ = ("end", "fd", "number", "open_calls", "path", "size", "synced")

    def __init__(self, *, number: int, path: Path, fd: int, size: int) -> None:
        self.number = number
        self.path = path
        self.fd = fd
        self.size = size
        self.end = 0
        self.synced = 0
        self.open_calls = 0  # calls whose open or carried line is here, and that are still open

    def slots(self) -> int:
        """Return how many lines of the largest size still fit."""
        return (self.size - self.end) // LINE_BYTES_MAX

    def read(self, files: Files, size: int, offset: int) -> bytes:
        """Return up to `size` bytes of what was written. Raises OSError."""
        if self.fd == _CLOSED:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        return files.read(self.fd, min(size, self.end - offset), offset)

    def end_here(self) -> None:
        """Take no line any more."""
        self.size = self.end

    def close(self) -> None:
        """Close the file; it is opened again where it is read."""
        if self.fd != _CLOSED:
            os.close(self.fd)
            self.fd = _CLOSED


class Kept:
    """A shipped segment that is kept; `at` is when it was last written, in Unix seconds."""

    __slots__ = ("at", "path", "size")

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        status = path.stat()
        self.path = path
        self.at = status.st_mtime
        self.size = status.st_size


class Segments:
    """All segments of one folder; `live` are those that are not shipped, the current one last."""

    def __init__(
        self, folder: Path, *, header: Callable[[int], bytes], files: Files, keep_bytes: int
    ) -> None:
        """`header(number)` is a segment's first line; shipped ones stay, up to `keep_bytes`."""
        self._folder = folder
        self._header = header
        self._files = files
        self._keep_bytes = keep_bytes
        self._number = 0
        self._spares: deque[tuple[Path, int, int]] = deque()  # path, descriptor, size
        self._spares_made = 0
        self._spare_slots = 0
        self._names_synced = True
        self.live: dict[int, Segment] = {}
        self.kept: deque[Kept] = deque()  # the oldest first
        self.current = Segment(number=0, path=folder, fd=_CLOSED, size=0)  # takes no line

    def slots(self) -> int:
        """Return how many lines of the largest size there is room for."""
        return self.current.slots() + self._spare_slots

    def has_slots(self, number: int) -> bool:
        """Return whether there is room for so many lines of the largest size."""
        current = self.current
        return (
            current.size - current.end >= number * LINE_BYTES_MAX  # nearly always
            or self.slots() >= number
        )

    @property
    def has_spare(self) -> bool:
        """Whether the next segment is there already."""
        return bool(self._spares)

    def append(self, line: bytes) -> Segment:
        """Write a line into the current segment, or the next; return which. Raises OSError."""
        segment = self.current
        if segment.size - segment.end < len(line):
            segment = self._advance()
        self._write(segment, line)
        return segment

    def grow(self) -> None:
        """Make room: another spare, at the cost of kept segments if need be. Raises OSError."""
        while True:
            try:
                self.add_spare(*self.make_spare(self.next_spare()))
                return
            except OSError as error:
                if error.errno not in NO_ROOM_ERRORS or not self._give_up_kept():
                    raise

    def _give_up_kept(self) -> bool:
        """Remove a kept segment, another worker's where none is ours; return whether there was one.

        The other one misses nothing: a kept file that has gone is skipped.
        """
        if self.kept:
            remove(self.kept.popleft().path)
            return True
        others = sorted(self._folder.parent.glob(f"*/*{KEPT_SUFFIX}"), key=lambda path: path.name)
        for path in others:
            remove(path)
            if not path.exists():
                return True
        return False

    def next_spare(self) -> Path:
        """Return the path of a spare that is yet to be made."""
        self._spares_made += 1
        return self._folder / f"{self._spares_made}{SPARE_SUFFIX}"

    def make_spare(self, path: Path) -> tuple[Path, int, int]:
        """Preallocate a file, in any thread. Raises OSError."""
        plenty = self._files.free_bytes(self._folder) >= SEGMENT_BYTES * SEGMENTS_FREE_MIN
        size = SEGMENT_BYTES if plenty else SEGMENT_BYTES_SMALL
        return path, self._files.create(path, size), size

    def add_spare(self, path: Path, fd: int, size: int) -> None:
        """Take a file that `make_spare` made."""
        self._spares.append((path, fd, size))
        self._spare_slots += _slots_of_spare(size)

    def unsynced(self) -> list[Segment]:
        """Return the segments of which the disk has not all, the oldest first."""
        found = []
        for segment in reversed(self.live.values()):
            if segment.synced == segment.end and segment is not self.current:
                break
            if segment.synced < segment.end:
                found.append(segment)
        return found[::-1]

    def sync(self, segments: list[Segment]) -> None:
        """Wait until the disk has these and their names, in any thread. Raises OSError."""
        for segment in segments:
            self._files.sync(segment.fd)
        if not self._names_synced:
            self._names_synced = True
            self._files.sync_folder(self._folder)

    def close_unused(self, reading: int) -> None:
        """Close the files that are neither written nor read; number `reading` is read."""
        for segment in self.live.values():
            idle = segment is not self.current and segment.number != reading
            if idle and segment.synced == segment.end:
                segment.close()

    def retire(self, segment: Segment) -> None:
        """Take a segment out: everything in it is shipped or written elsewhere. Keeps the file.

        Cut to what was written, it is kept for as long as `expire` says.
        """
        del self.live[segment.number]
        segment.close()
        kept = segment.path.with_suffix(KEPT_SUFFIX)
        try:
            os.truncate(segment.path, segment.end)
            segment.path.rename(kept)
            self.kept.append(Kept(kept))
        except OSError:
            remove(segment.path)

    def expire(self, *, now: float) -> None:
        """Remove the kept segments that are too old or too many. `now` is Unix seconds."""
        size = sum(kept.size for kept in self.kept)
        while self.kept:
            oldest = self.kept[0]
            if size <= self._keep_bytes and now - oldest.at < KEPT_SECONDS_MAX:
                return
            size -= oldest.size
            remove(self.kept.popleft().path)

    def close(self) -> None:
        """Close all files and remove the spares."""
        for segment in self.live.values():
            segment.close()
        for path, fd, _ in self._spares:
            os.close(fd)
            remove(path)
        self._spares.clear()
        self._spare_slots = 0

    def _advance(self) -> Segment:
        """Make the next spare the current segment. Raises OSError."""
        if not self._spares:
            self.grow()
        spare, fd, size = self._spares.popleft()
        self._spare_slots -= _slots_of_spare(size)
        number = self._number + 1
        path = self._folder / f"{number:08}{SEGMENT_SUFFIX}"
        segment = Segment(number=number, path=path, fd=fd, size=size)
        try:
            spare.rename(path)
            self._write(segment, self._header(number))
        except OSError:
            segment.close()
            remove(spare)
            remove(path)
            raise
        self._number = number
        self._names_synced = False
        self.live[number] = self.current = segment
        return segment

    def _write(self, segment: Segment, line: bytes) -> None:
        try:
            written = self._files.write(segment.fd, line, segment.end)
        except OSError:
            segment.end_here()
            raise
        if written != len(line):
            segment.end_here()
            raise OSError(errno.EIO, "a line was written in part")
        segment.end += written


def _slots_of_spare(size: int) -> int:
    return (size - LINE_BYTES_MAX) // LINE_BYTES_MAX  # its header takes one
