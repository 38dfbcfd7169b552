"""The lines of a journal: a letter, a checksum, JSON. Writing one, and finding the good ones.

    c 5d3fb21a {"id":"01936b2e-…","status":"complete",…}

The checksum (CRC-32) covers the letter and the JSON. A segment ends at its first zero byte, for it
is preallocated; a last line without its end was being written when the process died. Anything else
that doesn't fit is damage, and never hides a good line behind it.
"""

import re
import zlib
from collections.abc import Iterator
from types import MappingProxyType
from typing import Final, NamedTuple

HEADER: Final = b"h"  # {"worker", "boot", "segment", "version"}
OPEN: Final = b"o"  # {"blocks": [id, …], "row": the open part of a row}
CARRIED: Final = b"k"  # an open call's row again: its open part, or all of it if its end was seen
CLOSE: Final = b"c"  # a whole row
ASKED: Final = b"b"  # [block id, …]
USED: Final = b"u"  # {block id: units used so far}
SETTLED: Final = b"s"  # [block id, …]
DAMAGE: Final = b"!"  # never written: what a reader reports in the place of lost lines

LINE_OVERHEAD_BYTES: Final = len("c 00000000 \n")

_PAYLOAD_AT: Final = len("c 00000000 ")
_SEEDS: Final = MappingProxyType(
    {kind: zlib.crc32(kind) for kind in (HEADER, OPEN, CARRIED, CLOSE, ASKED, USED, SETTLED)}
)
_START: Final = re.compile(rb"[hokcbus] [0-9a-f]{8} [\[{]")


class Line(NamedTuple):
    """A line that was read; `end` is the offset behind it."""

    kind: bytes
    payload: bytes
    end: int


def one_line(payload: bytes) -> bytes:
    """Return JSON as a line holds it: breaks are between members, and as good as spaces."""
    return payload.replace(b"\n", b" ")


def make_line(kind: bytes, payload: bytes) -> bytes:
    """Return the line of a payload, which is JSON without line breaks."""
    return b"%b %08x %b\n" % (kind, zlib.crc32(payload, _SEEDS[kind]), payload)


def scan(data: bytes) -> Iterator[Line]:
    """Yield the lines of a segment, or of a part that begins and ends with a line.

    A stretch that is neither a line, nor zeros to the end, nor a last line cut short, is yielded as
    one line of kind DAMAGE without payload.
    """
    at = 0
    while at < len(data):
        end = data.find(b"\n", at)
        if end < 0:
            if b"\0" in data[at:].rstrip(b"\0"):
                yield Line(DAMAGE, b"", len(data))
            return
        payload = _payload(data, at, end)
        if payload is not None:
            yield Line(data[at : at + 1], payload, end + 1)
            at = end + 1
            continue
        starts = (found.start() for found in _START.finditer(data, at + 1, end))
        at = next((at for at in starts if _payload(data, at, end) is not None), end + 1)
        yield Line(DAMAGE, b"", at)


def _payload(data: bytes, start: int, end: int) -> bytes | None:
    """Return the payload of the line between two offsets, or None where it is none."""
    head = data[start : start + _PAYLOAD_AT]
    seed = _SEEDS.get(head[:1])
    if seed is None:
        return None
    payload = data[start + _PAYLOAD_AT : end]
    return payload if head[1:] == b" %08x " % zlib.crc32(payload, seed) else None
