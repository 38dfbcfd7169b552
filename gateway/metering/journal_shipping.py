"""Which rows of a journal the ledger has, and which come next.

Rows are in memory until they are shipped, as long as that is not much; while the database is away,
they are read back from the segments. Rows that no segment would take are in memory only. What was
shipped may be shipped again, from the oldest segment that is kept: the ledger knows rows by id.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from gateway.limits import STREAM_TOTAL_SECONDS_MAX
from gateway.metering.journal_files import Files
from gateway.metering.journal_lines import CLOSE, DAMAGE, scan
from gateway.metering.journal_segments import KEPT_SECONDS_MAX, Segment, Segments

READ_BYTES: Final = 256 * 1024  # at a time
RECENT_BYTES_MAX: Final = 8 * 1024 * 1024  # of rows in memory; some seconds of a busy worker's
MARK_CALLS_MAX: Final = 256  # share one oldest admission

Position = tuple[int, int]  # number of a segment, offset in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows to ship, as JSON objects. `more`: another batch waits already.

    The rest is the journal's own: where the rows end.
    """

    rows: Sequence[bytes]
    more: bool = False
    position: Position | None = None
    unwritten: tuple[str, ...] = ()  # ids of rows that are in memory only
    generation: int = 0  # of shipping: shipping again begins a new one


class _Mark:
    """The oldest admission among some closed calls, and where the last of them ends."""

    __slots__ = ("calls", "end", "oldest", "sealed")

    def __init__(self, oldest: float) -> None:
        self.calls = 0
        self.end: Position = (0, 0)
        self.oldest = oldest
        self.sealed = False


class _Recent:
    """All rows behind a position, in memory, until they are too many: then none."""

    __slots__ = ("_rows", "_size", "is_complete")

    def __init__(self) -> None:
        self._rows: deque[tuple[Position, bytes]] = deque()  # where each ends
        self._size = 0
        self.is_complete = True

    def add(self, row: bytes, end: Position) -> None:
        if not self.is_complete:
            return
        self._rows.append((end, row))
        self._size += len(row)
        if self._size > RECENT_BYTES_MAX:
            self.give_up()

    def give_up(self) -> None:
        """Leave them to the segments, until `begin_anew`."""
        self._rows.clear()
        self._size = 0
        self.is_complete = False

    def begin_anew(self) -> None:
        """Every row until now is shipped, or can't be."""
        self.is_complete = True

    def first(
        self, rows_max: int, bytes_max: int, *, end: Position
    ) -> tuple[list[bytes], Position]:
        """Return the first rows, and the position behind them: `end`, where these are all."""
        rows: list[bytes] = []
        size = 0
        reached = end
        for row_end, row in self._rows:
            if len(rows) >= rows_max or size >= bytes_max:
                return rows, reached
            rows.append(row)
            size += len(row)
            reached = row_end
        return rows, end

    def drop(self, position: Position) -> None:
        """Forget the rows that end before or at a position."""
        while self._rows and self._rows[0][0] <= position:
            self._size -= len(self._rows.popleft()[1])


class Shipping:
    """What of the closed calls is shipped."""

    def __init__(
        self, segments: Segments, *, files: Files, on_fault: Callable[[str], None]
    ) -> None:
        """`on_fault` is told of rows that can't be read back."""
        self._segments = segments
        self._files = files
        self._on_fault = on_fault
        self._marks: deque[_Mark] = deque()
        self._recent = _Recent()
        self._generation = 0
        self._kept_rows: Iterator[bytes] | None = None  # being shipped again
        self._kept_batch: list[bytes] = []
        self._kept_turn = False  # kept rows and new ones take turns
        self._again_until: Position | None = None
        self._again_since = 0.0
        self.position: Position = (0, 0)  # everything before it is shipped
        self.unwritten: dict[str, tuple[bytes, float]] = {}  # id: row, admission

    def wrote(self, segment: Segment, row: bytes, *, admitted: float) -> None:
        """Take note that the last line of a segment is this row, of a call then admitted."""
        end = (segment.number, segment.end)
        self._recent.add(row, end)
        marks = self._marks
        if marks and not marks[-1].sealed and marks[-1].calls < MARK_CALLS_MAX:
            mark = marks[-1]
        else:
            mark = _Mark(admitted)
            marks.append(mark)
        mark.calls += 1
        mark.end = end
        mark.oldest = min(mark.oldest, admitted)

    def oldest(self) -> float | None:
        """Return when the oldest call was admitted that may not be shipped, or None."""
        times = [mark.oldest for mark in self._marks]
        times += [admitted for _, admitted in self.unwritten.values()]
        if self._again_until is not None:
            times.append(self._again_since)
        return min(times, default=None)

    def read(self, rows_max: int, bytes_max: int) -> Batch:
        """Return the next rows; none where all are shipped. The same until `shipped`."""
        if self._marks:
            self._marks[-1].sealed = True
        if self.unwritten:
            ids = tuple(islice(self.unwritten, rows_max))
            rows = [self.unwritten[call_id][0] for call_id in ids]
            return Batch(rows=rows, more=True, unwritten=ids, generation=self._generation)
        if self._kept_turn and self._load_kept(rows_max):
            return Batch(rows=self._kept_batch, more=True, generation=self._generation)
        rows, position = self._read_new(rows_max, bytes_max)
        if not rows:
            self._pass(position)
            self._recent.begin_anew()
            if self._load_kept(rows_max):
                return Batch(rows=self._kept_batch, more=True, generation=self._generation)
            self._end_again()
        # Rows may be left behind those that filled the batch, by number or by size.
        more = position < self._end() or self._kept_rows is not None
        return Batch(rows=rows, more=more, position=position, generation=self._generation)

    def shipped(self, batch: Batch) -> None:
        """Take note that the rows of a batch are committed."""
        if batch.generation != self._generation:
            return  # committed to a database that was left since
        for call_id in batch.unwritten:
            self.unwritten.pop(call_id, None)
        if batch.position is not None:
            self._pass(batch.position)
            self._kept_turn = True
        elif not batch.unwritten:
            self._kept_batch = []
            self._kept_turn = False

    def ship_again(self, *, now: float) -> None:
        """Begin anew at the oldest kept segment. `now` is Unix seconds."""
        self._generation += 1
        self._kept_batch = []
        self._kept_rows = _rows_of([kept.path for kept in self._segments.kept])
        self._again_since = now - KEPT_SECONDS_MAX - STREAM_TOTAL_SECONDS_MAX
        self._again_until = self._end()
        self._recent.give_up()
        self.position = (0, 0)

    def _load_kept(self, rows_max: int) -> bool:
        if self._kept_rows is None:
            return False
        if not self._kept_batch:
            self._kept_batch = list(islice(self._kept_rows, rows_max))
        if not self._kept_batch:
            self._kept_rows = None
            return False
        return True

    def _end(self) -> Position:
        """Return where the next line goes."""
        current = self._segments.current
        return current.number, current.end

    def _read_new(self, rows_max: int, bytes_max: int) -> tuple[list[bytes], Position]:
        """Return the rows behind the position, and the position behind them."""
        if self._recent.is_complete:
            return self._recent.first(rows_max, bytes_max, end=self._end())
        return self._read_segments(rows_max, bytes_max)

    def _read_segments(self, rows_max: int, bytes_max: int) -> tuple[list[bytes], Position]:
        """Return what `_read_new` does, from the files."""
        rows: list[bytes] = []
        size = 0
        number, offset = self.position
        first = next(iter(self._segments.live), 0)
        if number < first:
            number, offset = first, 0
        while segment := self._segments.live.get(number):
            if offset >= segment.end:
                if segment is self._segments.current:
                    break
                number, offset = number + 1, 0
                continue
            start = offset
            for line in scan(self._read_lines(segment, start)):
                offset = start + line.end
                if line.kind == DAMAGE:
                    self._on_fault("damage")
                elif line.kind == CLOSE:
                    rows.append(line.payload)
                    size += len(line.payload)
                    if len(rows) >= rows_max or size >= bytes_max:
                        return rows, (number, offset)
            if offset == start:  # nothing in it can be read
                self._on_fault("damage")
                offset = min(start + READ_BYTES, segment.end)
        return rows, (number, offset)

    def _read_lines(self, segment: Segment, offset: int) -> bytes:
        try:
            data = segment.read(self._files, READ_BYTES, offset)
        except OSError:
            return b""
        return data[: data.rfind(b"\n") + 1]

    def _pass(self, position: Position) -> None:
        self.position = max(self.position, position)
        self._recent.drop(self.position)
        while self._marks and self._marks[0].end <= self.position:
            self._marks.popleft()
        self._end_again()

    def _end_again(self) -> None:
        until = self._again_until
        if until is not None and self._kept_rows is None and self.position >= until:
            self._again_until = None


def _rows_of(paths: Sequence[Path]) -> Iterator[bytes]:
    """Yield the rows in kept segments; one that has gone by then is skipped."""
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError:
            continue
        for line in scan(data):
            if line.kind == CLOSE:
                yield line.payload
