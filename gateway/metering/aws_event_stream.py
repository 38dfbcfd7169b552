"""AWS event streams, read from a copy of the stream: bounded, checked, cut anywhere.

A message is its length and that of its headers (4 bytes each, big-endian), a checksum of those
eight, headers, payload, and a checksum of all before it (both CRC-32). What a client would refuse
is not read: from the first message that does not hold together, nothing is.

`AwsEventParser` gives the messages that someone wants, as events. `FrameBoundary` knows whether a
message of ours could be appended.
"""

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Final

from gateway.metering.sse import SSE_EVENT_BYTES_MAX, SseEvent

MEDIA_TYPE: Final = b"application/vnd.amazon.eventstream"
FRAME_BYTES_MIN: Final = 16  # lengths and checksums, nothing else
FRAME_BYTES_MAX: Final = 24 * 1024 * 1024  # as AWS's own SDKs bound them
HEADERS_MAX: Final = 64  # of one message; Bedrock's have three

# The names of events that are none of the vendor's own.
ERROR: Final = b"error"  # a message of type exception or error
UNREADABLE: Final = b"unreadable"  # here the framing broke

_PRELUDE: Final = struct.Struct(">III")
_PRELUDE_BYTES: Final = _PRELUDE.size
_CRC_BYTES: Final = 4
_LENGTH_BYTES: Final = 4
_EVENT: Final = b"event"
_TEXT: Final = 7  # the type of a header's value that is a string
_BYTES: Final = 6
_FIXED_BYTES: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}  # by type


class _Broken(Exception):
    """What came is no message."""


class AwsEventParser:
    """Gives the wanted messages of a stream, however it is cut: an `SseParser` for this framing.

    The name of an event is its `:event-type`, or one of the two above; its data is the payload.
    `wanted(raw)` looks at the bytes of one message. `skipped` counts messages that were longer
    than allowed.
    """

    def __init__(
        self, wanted: Callable[[bytes], bool], *, event_bytes_max: int = SSE_EVENT_BYTES_MAX
    ) -> None:
        """Start at the beginning of a stream."""
        self._wanted = wanted
        self._event_bytes_max = event_bytes_max
        self._held = bytearray()  # the incomplete message at the end
        self._skipping = 0  # bytes that are left of a message that is too long
        self._broken = False
        self.skipped = 0

    def feed(self, chunk: bytes) -> Sequence[SseEvent]:
        """Take in bytes, return the wanted messages that they complete. Never raises."""
        if self._broken:
            return ()
        if self._skipping:
            skipped = min(self._skipping, len(chunk))
            self._skipping -= skipped
            chunk = chunk[skipped:]
        self._held += chunk
        events: list[SseEvent] = []
        try:
            while (frame := self._next_frame()) is not None:
                event = self._event(frame)
                if event is not None:
                    events.append(event)
        except _Broken:
            self._broken = True
            self._held.clear()
            events.append(SseEvent(UNREADABLE, b""))
        return events

    def finish(self) -> Sequence[SseEvent]:
        """Return nothing: a message that is not whole at the stream's end is none."""
        self._held.clear()
        return ()

    def _next_frame(self) -> bytes | None:
        """Return the next whole message, None where more has to come. Raises _Broken."""
        held = self._held
        if len(held) < _PRELUDE_BYTES:
            return None
        total, of_headers, checksum = _PRELUDE.unpack_from(held)
        if (
            not FRAME_BYTES_MIN <= total <= FRAME_BYTES_MAX
            or of_headers > total - FRAME_BYTES_MIN
            or zlib.crc32(held[: 2 * _LENGTH_BYTES]) != checksum
        ):
            raise _Broken
        if total > self._event_bytes_max:
            self.skipped += 1
            self._skipping = max(0, total - len(held))
            del held[:total]
            return self._next_frame()
        if len(held) < total:
            return None
        frame = bytes(held[:total])
        del held[:total]
        return frame

    def _event(self, frame: bytes) -> SseEvent | None:
        end = len(frame) - _CRC_BYTES
        if zlib.crc32(memoryview(frame)[:end]) != int.from_bytes(frame[end:], "big"):
            raise _Broken
        if not self._wanted(frame):
            return None
        payload_at = _PRELUDE_BYTES + int.from_bytes(frame[_LENGTH_BYTES : 2 * _LENGTH_BYTES])
        headers = _headers(frame[_PRELUDE_BYTES:payload_at])
        is_event = headers.get(b":message-type", _EVENT) == _EVENT
        name = headers.get(b":event-type", b"") if is_event else ERROR
        return SseEvent(name, frame[payload_at:end])


class FrameBoundary:
    """Knows whether what was passed on so far ends with a whole message."""

    def __init__(self) -> None:
        """Start at the beginning of a stream, which is a boundary."""
        self._length = b""  # of the message that begins, as far as it came
        self._left = 0  # bytes of the message that is under way
        self._lost = False

    @property
    def at_boundary(self) -> bool:
        """Whether a message could be appended."""
        return not (self._left or self._length or self._lost)

    def feed(self, passed: bytes) -> None:
        """Take in what was passed on. Never raises."""
        at = 0
        while at < len(passed) and not self._lost:
            if self._left:
                step = min(self._left, len(passed) - at)
                self._left -= step
            else:
                step = min(_LENGTH_BYTES - len(self._length), len(passed) - at)
                self._length += passed[at : at + step]
                if len(self._length) == _LENGTH_BYTES:
                    total = int.from_bytes(self._length)
                    self._length = b""
                    self._lost = not FRAME_BYTES_MIN <= total <= FRAME_BYTES_MAX
                    self._left = total - _LENGTH_BYTES
            at += step


def is_aws_events(content_type: bytes) -> bool:
    """Return whether an answer is a stream in this framing."""
    return content_type.partition(b";")[0].strip().lower() == MEDIA_TYPE


def _headers(raw: bytes) -> dict[bytes, bytes]:
    """Return the headers whose values are texts or bytes. Raises _Broken."""
    found: dict[bytes, bytes] = {}
    at = 0
    try:
        for _ in range(HEADERS_MAX):
            if at == len(raw):
                return found
            name = raw[at + 1 : at + 1 + raw[at]]
            at += 1 + len(name)
            kind = raw[at]
            at += 1
            if kind in (_TEXT, _BYTES):
                length = int.from_bytes(raw[at : at + 2])
                at += 2
                found[name] = raw[at : at + length]
            else:
                length = _FIXED_BYTES[kind]
            at += length
            if at > len(raw):
                raise _Broken
    except (IndexError, KeyError):
        raise _Broken from None
    raise _Broken
