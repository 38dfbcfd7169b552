"""AWS's framing: whole messages out of any cut, and nothing out of what does not hold together."""

import random
import struct
import zlib

import pytest
from botocore.eventstream import EventStreamBuffer

from gateway.metering.aws_event_stream import (
    ERROR,
    FRAME_BYTES_MAX,
    UNREADABLE,
    AwsEventParser,
    FrameBoundary,
    is_aws_events,
)
from gateway.metering.sse import SseEvent
from tests.gateway.metering.aws_messages import event, exception, message


def everything(raw: bytes) -> bool:
    return True


def fed(pieces: list[bytes], *, event_bytes_max: int = 4096) -> tuple[list[SseEvent], int]:
    parser = AwsEventParser(everything, event_bytes_max=event_bytes_max)
    events = [one for piece in pieces for one in parser.feed(piece)]
    assert parser.finish() == ()
    return events, parser.skipped


STREAM = event("messageStart", {"role": "assistant"}) + event("metadata", {"n": 1}) + message(b"")


def test_messages_come_whole_out_of_any_cut() -> None:
    whole, _ = fed([STREAM])
    assert [one.name for one in whole] == [b"messageStart", b"metadata", b""]
    assert whole[1].data == b'{"n": 1}'
    assert fed([STREAM[at : at + 1] for at in range(len(STREAM))])[0] == whole
    chance = random.Random(1)
    for _ in range(50):
        at = chance.randrange(len(STREAM))
        assert fed([STREAM[:at], STREAM[at:]])[0] == whole


def test_the_client_of_aws_reads_the_same() -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(STREAM)
    theirs = [one.payload for one in buffer]
    assert [one.data for one in fed([STREAM])[0]] == theirs


def test_an_exception_is_an_error() -> None:
    (one,), _ = fed([exception("throttlingException")])
    assert one == SseEvent(ERROR, b'{"message": "no"}')
    coded = message(b"", error_code="500", error_message="x", message_type="error")
    assert fed([coded])[0][0].name == ERROR


@pytest.mark.parametrize("at", range(len(message(b"xyz", event_type="e"))))
def test_a_flipped_bit_ends_the_reading(at: int) -> None:
    good = message(b"xyz", event_type="e")
    bad = bytearray(good)
    bad[at] ^= 0x10
    events, _ = fed([good + bytes(bad) + good])
    # A length that became larger, but not too large, has its checksum wrong as well.
    assert events == [SseEvent(b"e", b"xyz"), SseEvent(UNREADABLE, b"")]


def test_headers_that_do_not_hold_together_are_unreadable() -> None:
    def with_headers(raw: bytes) -> bytes:
        whole = bytearray(message(b"", x="y"))
        assert len(raw) == len(b"\x02:x\x07\x00\x01y")
        whole[12 : 12 + len(raw)] = raw
        return bytes(whole)

    for raw in (b"\x02:x\x0f\x00\x01y", b"\x02:x\x07\x00\x09y", b"\xff:x\x07\x00\x01y"):
        body = with_headers(raw)[:-4]
        events, _ = fed([body + struct.pack(">I", zlib.crc32(body))])
        assert events == [SseEvent(UNREADABLE, b"")]


def test_headers_of_all_types_are_passed_over() -> None:
    fixed = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
    raw = b"".join(b"\x01%c%c" % (97 + kind, kind) + bytes(size) for kind, size in fixed.items())
    raw += b"\x01b\x06\x00\x02zz" + b"\x0b:event-type\x07\x00\x01e"
    prelude = struct.pack(">II", 16 + len(raw), len(raw))
    body = prelude + struct.pack(">I", zlib.crc32(prelude)) + raw
    assert fed([body + struct.pack(">I", zlib.crc32(body))])[0] == [SseEvent(b"e", b"")]


def test_a_message_that_is_too_long_is_skipped_without_being_held() -> None:
    long = message(bytes(100_000), event_type="long")
    stream = event("a", 1) + long + event("b", 2)
    parser = AwsEventParser(everything, event_bytes_max=1000)
    names = []
    for at in range(0, len(stream), 700):
        names += [one.name for one in parser.feed(stream[at : at + 700])]
        assert len(parser._held) <= 1700
    assert (names, parser.skipped) == ([b"a", b"b"], 1)


def test_only_what_is_wanted_becomes_an_event() -> None:
    parser = AwsEventParser(lambda raw: b"metadata" in raw)
    assert [one.name for one in parser.feed(STREAM)] == [b"metadata"]


def test_a_boundary_is_where_a_message_has_ended() -> None:
    ends = {0}
    for one in (event("messageStart", {"role": "assistant"}), event("metadata", {"n": 1})):
        ends.add(max(ends) + len(one))
    ends.add(len(STREAM))
    boundary = FrameBoundary()
    for at in range(len(STREAM)):
        assert boundary.at_boundary == (at in ends)
        boundary.feed(STREAM[at : at + 1])
    assert boundary.at_boundary
    again = FrameBoundary()
    again.feed(STREAM + STREAM[:30])
    assert not again.at_boundary


@pytest.mark.parametrize("length", [0, 15, FRAME_BYTES_MAX + 1])
def test_there_is_no_boundary_behind_what_is_no_message(length: int) -> None:
    boundary = FrameBoundary()
    boundary.feed(length.to_bytes(4) + bytes(12))
    boundary.feed(STREAM)
    assert not boundary.at_boundary


def test_the_media_type_tells() -> None:
    assert is_aws_events(b"Application/vnd.amazon.eventstream; x=y")
    assert not is_aws_events(b"text/event-stream")
