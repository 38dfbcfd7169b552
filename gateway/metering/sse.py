"""Server-sent events, read from a copy of the stream or as it passes: bounded, cut anywhere.

A line ends in LF, CR or CRLF; a blank line ends an event. So an event is over after one of three
byte pairs: LF LF, LF CR or CR CR (CRLF CRLF holds LF CR); where the pair ends in CR, an LF that
follows belongs to it. All three classes below rest on that.

`SseParser` gives the events that someone wants; all others cost a search for a marker and build no
object. `EventBoundary` knows whether an event of ours could be appended. `UsageEventFilter` takes
the one event out of an OpenAI chat stream that is there only because the gateway asked for it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

SSE_EVENT_BYTES_MAX: Final = 1024 * 1024  # a longer one is skipped
# The same where the event that tells usage repeats all of the output, pictures included.
SSE_WHOLE_OUTPUT_BYTES_MAX: Final = 16 * 1024 * 1024
USAGE_EVENT_BYTES_MAX: Final = 64 * 1024  # held back while it may be the usage event; it has ~500

_BLANK_LINE: Final = re.compile(rb"\n\n|\n\r\n?|\r\r\n?")
EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n")  # as all vendors end theirs
_BOM: Final = b"\xef\xbb\xbf"
_CR: Final = ord("\r")
_END_BYTES: Final = 4  # the longest end of an event
_PAIR_BYTES: Final = 3  # the longest end of an event that may be cut, less the byte that completes


class SseEvent(NamedTuple):
    """One event: its name (empty where none was given) and its data, the lines joined by LF."""

    name: bytes
    data: bytes


class SseParser:
    """Gives the wanted events of a stream, however it is cut.

    `wanted(raw)` looks at raw bytes, of one event or of several, and says whether one of them may
    matter; it may say yes too often. `skipped` counts events that were longer than allowed.
    """

    def __init__(
        self, wanted: Callable[[bytes], bool], *, event_bytes_max: int = SSE_EVENT_BYTES_MAX
    ) -> None:
        """Start at the beginning of a stream."""
        self._wanted = wanted
        self._event_bytes_max = event_bytes_max
        self._held = bytearray()  # the incomplete event at the end
        self._skipping = False  # within an event that is too long
        self.skipped = 0

    def feed(self, chunk: bytes) -> Sequence[SseEvent]:
        """Take in bytes, return the wanted events that they complete. Never raises."""
        if not self._held and chunk.endswith(EVENT_ENDS):
            complete = chunk
        else:
            complete = self._hold(chunk)
            if not complete:
                return ()
        return self._events(complete) if self._wanted(complete) else ()

    @property
    def is_between(self) -> bool:
        """Whether the next byte begins an event: whole ones that are not wanted need not be fed."""
        return not self._held

    def finish(self) -> Sequence[SseEvent]:
        """Return the event that the stream's end completes: some leave out its blank line."""
        rest = b"" if self._skipping else bytes(self._held)
        self._held.clear()
        self._skipping = False
        return self._events(rest + b"\n\n") if rest and self._wanted(rest) else ()

    def _hold(self, chunk: bytes) -> bytes:
        """Keep the incomplete event at the end, return all that is complete."""
        held = self._held
        unseen = max(0, len(held) - _PAIR_BYTES)
        held += chunk
        if self._skipping:
            end = _find_blank_line(held)
            if end is None:
                del held[:-_PAIR_BYTES]
                return b""
            del held[: end.end()]
            self._skipping = False
            unseen = 0
        length = _complete_length(held, unseen)
        complete = bytes(held[:length])
        del held[:length]
        if len(held) > self._event_bytes_max:
            self.skipped += 1
            self._skipping = True
            del held[:-_PAIR_BYTES]
        return complete

    def _events(self, complete: bytes) -> list[SseEvent]:
        """Return the wanted events of bytes in which there is one."""
        events = []
        parts = _split(complete)
        for raw in parts:
            if len(raw) > self._event_bytes_max:
                self.skipped += 1
            elif len(parts) == 1 or self._wanted(raw):
                event = parse_event(raw)
                if event is not None:
                    events.append(event)
        return events


def parse_event(raw: bytes) -> SseEvent | None:
    """Return the event in `raw`, or None where it has no data (a comment, a blank line)."""
    if raw.startswith(b"data: "):
        line = raw[len(b"data: ") :].rstrip(b"\r\n")
        if line.find(b"\n") < 0 and line.find(b"\r") < 0:
            return SseEvent(b"", line)
    name = b""
    data = []
    for line in raw.removeprefix(_BOM).splitlines():
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return SseEvent(name, b"\n".join(data)) if data else None


def _split(complete: bytes) -> list[bytes]:
    """Return the events of bytes that end after one: all bytes, in order.

    Where all lines end alike, which is the rule, searching for one ending beats the regex by far.
    """
    if complete.find(b"\r") < 0:
        ends = b"\n\n"
        if complete.find(ends) == len(complete) - len(ends):
            return [complete]
    elif complete.count(b"\r\n") == complete.count(b"\n") == complete.count(b"\r"):
        ends = b"\r\n\r\n"
    else:
        return _split_mixed(complete)
    events = []
    start = 0
    while (end := complete.find(ends, start)) >= 0:
        end += len(ends)
        events.append(complete[start:end])
        start = end
    if start < len(complete):  # one more blank line than it takes
        events.append(complete[start:])
    return events


def _split_mixed(complete: bytes) -> list[bytes]:
    events = []
    start = 0
    for blank in _BLANK_LINE.finditer(complete):
        events.append(complete[start : blank.end()])
        start = blank.end()
    if start < len(complete):
        events.append(complete[start:])
    return events


def _find_blank_line(data: bytes | bytearray) -> re.Match[bytes] | None:
    """Return the first end of an event. Within a long line, looking for its end is faster."""
    found = [at for at in (data.find(b"\n"), data.find(b"\r")) if at >= 0]
    return _BLANK_LINE.search(data, min(found)) if found else None


def _complete_length(data: bytes | bytearray, start: int) -> int:
    """Return how many bytes of `data` belong to complete events, looking from `start` on."""
    pair = max(data.rfind(b"\n\n", start), data.rfind(b"\n\r", start), data.rfind(b"\r\r", start))
    if pair < 0:
        return 0
    end = pair + 2
    return end + 1 if data[end - 1] == _CR and data[end : end + 1] == b"\n" else end


class EventBoundary:
    """Whether the bytes sent so far end after a complete event, so that another may follow."""

    def __init__(self) -> None:
        self._tail = b"\n\n"

    def feed(self, chunk: bytes) -> None:
        """Take in bytes that were sent. The cost does not grow with their number."""
        end = chunk[-_END_BYTES:]
        self._tail = end if len(end) == _END_BYTES else (self._tail + end)[-_END_BYTES:]

    @property
    def at_boundary(self) -> bool:
        """True at the start and after a blank line. Half of a CRLF is not yet the end of a line."""
        return self._tail.endswith((b"\n\n", b"\n\r\n", b"\r\r", b"\r\r\n"))


class _Chunk(msgspec.Struct):
    choices: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()


_CHUNK: Final = msgspec.json.Decoder(_Chunk)
_CHOICE_BEGUN: Final = re.compile(rb'"choices"\s{0,8}:\s{0,8}\[\s{0,8}\{')
_CHOICE_BEGUN_BYTES: Final = 48  # the longest match, and some
_IDLE_LINES: Final = re.compile(rb"(?:(?::[^\r\n]*)?(?:\r\n|\n|\r(?!\Z)))*")


class UsageEventFilter:
    """Takes the usage event out of an OpenAI chat stream in which the *gateway* asked for it.

    That event, with empty `choices` and a usage object, goes whole, with its blank line; every
    other byte passes as it came, at once. Only an incomplete event at the end of what came is held
    back, as long as it may be that one and is no longer than USAGE_EVENT_BYTES_MAX. `removed` says
    how many went: 0 or 1 from an honest vendor.
    """

    def __init__(self) -> None:
        self._held = bytearray()  # the incomplete event at the end, not passed on
        self._passing = False  # within an event that is passed on as it comes
        self._tail = b""  # while passing: the last bytes of it
        self._line_feed: bool | None = None  # an event ended in CR: does its LF pass, if one comes?
        self.removed = 0

    @property
    def is_between(self) -> bool:
        """Whether the next byte begins an event: one that tells no usage need not be fed."""
        return not self._held and not self._passing and self._line_feed is None

    def feed(self, chunk: bytes) -> bytes:
        """Take in bytes of the stream, return those to pass on now. Never raises."""
        if self.is_between and chunk.endswith(EVENT_ENDS) and not _may_hold_usage(chunk):
            return chunk
        passed: list[bytes] = []
        rest = self._after_line_feed(chunk, passed) if self._line_feed is not None else chunk
        if self._passing:
            rest = self._pass_event(rest, passed)
        if rest:
            self._sift(rest, passed)
        return b"".join(passed)

    def finish(self) -> bytes:
        """Return what was held back, at the end of the stream."""
        held = bytes(self._held)
        self._held.clear()
        if _is_usage_event(held):
            self.removed += 1
            return _idle_lines(held)
        return held

    def _after_line_feed(self, chunk: bytes, passed: list[bytes]) -> bytes:
        if not chunk:
            return chunk
        if chunk.startswith(b"\n"):
            if self._line_feed:
                passed.append(b"\n")
            chunk = chunk[1:]
        self._line_feed = None
        return chunk

    def _pass_event(self, chunk: bytes, passed: list[bytes]) -> bytes:
        """Pass on up to the end of the event that is being passed; return what follows it."""
        seen = self._tail + chunk
        blank = _find_blank_line(seen)
        if blank is None:
            self._tail = seen[-_PAIR_BYTES:]
            passed.append(chunk)
            return b""
        end = blank.end() - len(self._tail)
        self._passing = False
        self._tail = b""
        passed.append(chunk[:end])
        if end == len(chunk) and chunk.endswith(b"\r"):
            self._line_feed = True
        return chunk[end:]

    def _sift(self, chunk: bytes, passed: list[bytes]) -> None:
        held = self._held
        before = len(held)
        held += chunk
        length = _complete_length(held, max(0, before - _PAIR_BYTES))
        if length:
            complete = bytes(held[:length])
            del held[:length]
            before = 0
            self._line_feed = True if not held and complete.endswith(b"\r") else None
            passed.append(self._without_usage(complete))
        if held.startswith((b":", b"\n", b"\r")):  # they keep the client awake: not to be held
            idle = _idle_lines(bytes(held))
            passed.append(idle)
            del held[: len(idle)]
            before = 0
        begun = max(0, before - _CHOICE_BEGUN_BYTES)
        if len(held) > USAGE_EVENT_BYTES_MAX or _CHOICE_BEGUN.search(held, begun):
            passed.append(bytes(held))
            self._tail = bytes(held[-_PAIR_BYTES:])
            self._passing = True
            held.clear()

    def _without_usage(self, complete: bytes) -> bytes:
        if not _may_hold_usage(complete):
            return complete
        kept = []
        is_last_removed = False
        for raw in _split(complete):
            is_last_removed = _is_usage_event(raw)
            if is_last_removed:
                self.removed += 1
            kept.append(_idle_lines(raw) if is_last_removed else raw)
        if self._line_feed and is_last_removed:
            self._line_feed = False
        return b"".join(kept)


def _idle_lines(raw: bytes) -> bytes:
    """Return the whole comments and blank lines at the start of `raw`: no part of any event."""
    found = _IDLE_LINES.match(raw)
    return found.group() if found else b""


def _may_hold_usage(raw: bytes) -> bool:
    named = raw.count(b'"usage"')
    return named > 0 and named != raw.count(b'"usage":null')


def _is_usage_event(raw: bytes) -> bool:
    """Return whether an event has empty `choices` and a usage object."""
    if len(raw) > USAGE_EVENT_BYTES_MAX or not _may_hold_usage(raw):
        return False
    event = parse_event(raw)
    if event is None:
        return False
    try:
        chunk = _CHUNK.decode(event.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return bytes(chunk.usage).startswith(b"{") and b"".join(bytes(chunk.choices).split()) == b"[]"
