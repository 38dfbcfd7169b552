import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.metering.openai_chat import OpenAIChat
from gateway.metering.sse import (
    EVENT_ENDS,
    USAGE_EVENT_BYTES_MAX,
    EventBoundary,
    SseEvent,
    SseParser,
    UsageEventFilter,
    parse_event,
)

TRANSCRIPTS = Path(__file__).resolve().parents[2] / "transcripts"
STREAMS = sorted(TRANSCRIPTS.glob("*.sse"))
# Every way to end a line and to end an event, and enough of an event to tell what it is.
pieces = st.sampled_from(
    [
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\r\n\r\n",
        b": note",
        b"event: x",
        b"data: [DONE]",
        b'data: {"choices":[],"usage":{"prompt_tokens":1}}',
        b'data: {"usage":{"prompt_tokens":1},',
        b'data: "choices": [ ]}',
        b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":1}}',
        b'data: {"choices":[],"usage":null}',
    ]
)
streams = st.lists(pieces, max_size=14).map(b"".join)


@st.composite
def cut_streams(draw: st.DrawFn) -> list[bytes]:
    stream = draw(streams)
    places = draw(st.sets(st.integers(0, len(stream)), max_size=12))
    return [stream[a:b] for a, b in pairwise(sorted({0, *places, len(stream)}))]


def everything(raw: bytes) -> bool:
    return True


def events(chunks: list[bytes], *, event_bytes_max: int = 10_000) -> list[SseEvent]:
    parser = SseParser(everything, event_bytes_max=event_bytes_max)
    found = [event for chunk in chunks for event in parser.feed(chunk)]
    return [*found, *parser.finish()]


def by_lines(stream: bytes) -> list[SseEvent]:
    """The events of a stream, line by line as the standard tells it; one at the end counts."""
    found = []
    block: list[bytes] = []
    for line in re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf") + b"\n\n"):
        if line:
            block.append(line)
        elif block:
            event = parse_event(b"\n".join(block))
            found += [event] if event else []
            block = []
    return found


def sifted(chunks: list[bytes]) -> bytes:
    sieve = UsageEventFilter()
    passed = b"".join(sieve.feed(chunk) for chunk in chunks)
    return passed + sieve.finish()


def bytewise(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


# ------------------------------------------------------------------------------------ SseParser


def test_an_event_has_a_name_and_joined_data() -> None:
    assert parse_event(b"event: delta\ndata: one\ndata:two\nid: 3\n\n") == (b"delta", b"one\ntwo")
    assert parse_event(b"data: one\n\n") == (b"", b"one")
    assert parse_event(b"data: one\r\ndata: two\r\n\r\n") == (b"", b"one\ntwo")
    assert parse_event(b"data:  spaced\n\n") == (b"", b" spaced")
    assert parse_event(b"data\n\n") == (b"", b"")
    assert parse_event(b"\xef\xbb\xbfdata: first\n\n") == (b"", b"first")


@pytest.mark.parametrize("raw", [b": comment\n\n", b"\n\n", b"event: x\n\n", b"", b"dat: 1\n\n"])
def test_a_block_without_data_is_no_event(raw: bytes) -> None:
    assert parse_event(raw) is None


def test_all_line_ends_are_understood() -> None:
    stream = (TRANSCRIPTS / "mixed_lines.sse").read_bytes()
    assert events([stream]) == [
        SseEvent(b"a", b"1"),
        SseEvent(b"", b"2\ntwo"),
        SseEvent(b"", b""),
        SseEvent(b"", b'{"usage": 3}'),
        SseEvent(b"z", b" 4"),
    ]


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_a_stream_gives_the_same_events_wherever_it_is_cut(path: Path) -> None:
    stream = path.read_bytes()
    whole = events([stream])
    assert whole == by_lines(stream)
    assert events(bytewise(stream)) == whole
    for at in range(len(stream)):
        assert events([stream[:at], stream[at:]]) == whole


@given(cut_streams())
def test_any_stream_gives_the_same_events_however_it_is_cut(chunks: list[bytes]) -> None:
    assert events(chunks) == by_lines(b"".join(chunks))


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_are_taken(stream: bytes, at: int) -> None:
    assert events([stream[:at], stream[at:]]) == events([stream])


def test_only_wanted_events_are_given() -> None:
    parser = SseParser(lambda raw: b"usage" in raw)
    assert parser.feed(b"data: a\n\n") == ()
    assert parser.feed(b"data: b\n\ndata: usage\n\ndata: c\n\n") == [SseEvent(b"", b"usage")]


def test_an_event_that_is_not_wanted_is_not_split_off() -> None:
    looked_at: list[bytes] = []

    def unwanted(raw: bytes) -> bool:
        looked_at.append(raw)
        return False

    parser = SseParser(unwanted)
    parser.feed(b"data: a\n\ndata: b\n\n")
    assert looked_at == [b"data: a\n\ndata: b\n\n"]


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_an_event_that_is_too_long_is_skipped_and_counted(size: int) -> None:
    stream = b"data: a\n\ndata: " + b"x" * 300 + b"\n\ndata: b\r\n\r\n"
    parser = SseParser(everything, event_bytes_max=100)
    found: list[SseEvent] = []
    for at in range(0, len(stream), size):
        found += parser.feed(stream[at : at + size])
        assert len(parser._held) <= 100
    assert [event.data for event in found] == [b"a", b"b"]
    assert parser.skipped == 1


def test_an_event_without_end_is_never_held_whole() -> None:
    parser = SseParser(everything, event_bytes_max=100)
    for _ in range(1000):
        parser.feed(b"x" * 50)
        assert len(parser._held) <= 100
    assert parser.finish() == ()
    assert parser.skipped == 1


def test_an_event_at_the_end_needs_no_blank_line() -> None:
    parser = SseParser(everything)
    assert parser.feed(b"data: [DONE]\n") == ()
    assert parser.finish() == [SseEvent(b"", b"[DONE]")]
    assert parser.finish() == ()


# -------------------------------------------------------------------------------- EventBoundary


@pytest.mark.parametrize(
    ("sent", "at_boundary"),
    [
        (b"", True),
        (b"data: a\n\n", True),
        (b"data: a\r\n\r\n", True),
        (b"data: a\r\r", True),
        (b"data: a\n\r\n", True),
        (b": comment\n\n", True),
        (b"\n", True),
        (b"data: a", False),
        (b"data: a\n", False),
        (b"data: a\r\n", False),
        (b"data: a\r\n\r", False),  # its LF is still to come
        (b"data: a\n\nd", False),
        (b": comment\n", False),
    ],
)
def test_an_event_may_follow_after_a_blank_line_only(sent: bytes, at_boundary: bool) -> None:  # noqa: FBT001
    for chunks in ([sent], bytewise(sent)):
        boundary = EventBoundary()
        for chunk in chunks:
            boundary.feed(chunk)
        assert boundary.at_boundary is at_boundary


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_an_event_put_in_at_a_boundary_stands_alone(path: Path) -> None:
    stream = path.read_bytes()
    ours = b"event: ours\ndata: x\n\n"
    for at in range(len(stream) + 1):
        boundary = EventBoundary()
        boundary.feed(stream[:at])
        if boundary.at_boundary:
            assert by_lines(stream[:at] + ours) == [*by_lines(stream[:at]), (b"ours", b"x")]


# ----------------------------------------------------------------------------- UsageEventFilter

USAGE_EVENT = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":1,"total_tokens":1}}\n\n'
DELTA = b'data: {"id":"c","choices":[{"delta":{"content":"x"}}],"usage":null}\n\n'
DONE = b"data: [DONE]\n\n"


def test_the_usage_event_goes_whole_and_nothing_else() -> None:
    sieve = UsageEventFilter()
    assert sieve.feed(DELTA) == DELTA
    assert sieve.feed(USAGE_EVENT) == b""
    assert sieve.feed(DONE) == DONE
    assert sieve.finish() == b""
    assert sieve.removed == 1
    assert sifted([DELTA + USAGE_EVENT + DONE]) == DELTA + DONE


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_the_usage_event_goes_wherever_it_is_cut(end: bytes) -> None:
    stream = (DELTA * 2 + USAGE_EVENT + DONE).replace(b"\n", end)
    clean = (DELTA * 2 + DONE).replace(b"\n", end)
    assert sifted([stream]) == clean
    assert sifted(bytewise(stream)) == clean
    for at in range(len(stream)):
        assert sifted([stream[:at], stream[at:]]) == clean


@pytest.mark.parametrize(
    "event",
    [
        DELTA,
        DONE,
        b": OPENROUTER PROCESSING\n\n",
        b'data: {"choices":[],"prompt_filter_results":[]}\n\n',
        b'data: {"choices":[],"usage":null}\n\n',
        b'data: {"choices":[],"usage": null}\n\n',
        b'data: {"usage":{"prompt_tokens":1}}\n\n',
        b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":1}}\n\n',
        b'data: {"choices":[],"usage":"much"}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":1}\n\n',
        b'data: {"choices":null,"usage":{"prompt_tokens":1}}\n\n',
        b'data: [{"choices":[],"usage":{"prompt_tokens":1}}]\n\n',
        b'dota: {"choices":[],"usage":{"prompt_tokens":1}}\n\n',
        b"\n\n\n",
        b"garbage",
    ],
)
def test_every_other_event_passes_wherever_it_is_cut(event: bytes) -> None:
    stream = DELTA + event + DONE
    assert sifted([stream]) == stream
    assert sifted(bytewise(stream)) == stream
    for at in range(len(stream)):
        assert sifted([stream[:at], stream[at:]]) == stream


def test_the_usage_event_is_known_in_any_layout() -> None:
    spaced = b'data: { "usage" : { "prompt_tokens" : 1 } , "choices" : [ ] }\n\n'
    lines = b'event: chunk\ndata: {"choices":[],\ndata: "usage":{"prompt_tokens":1}}\n\n'
    assert sifted([spaced, lines, DONE]) == DONE


def test_a_comment_before_the_usage_event_stays() -> None:
    assert sifted(bytewise(b": note\n" + USAGE_EVENT + DONE)) == b": note\n" + DONE
    assert sifted([b": note\n" + USAGE_EVENT + DONE]) == b": note\n" + DONE


def test_a_usage_event_that_the_end_completes_goes() -> None:
    assert sifted([DELTA, USAGE_EVENT[:-2]]) == DELTA
    assert sifted([DELTA, USAGE_EVENT[:-3]]) == DELTA + USAGE_EVENT[:-3]


def test_what_cannot_be_the_usage_event_is_not_held_back() -> None:
    sieve = UsageEventFilter()
    assert sieve.feed(b'data: {"id":"c",') == b""
    begun = b'"choices":[{"delta"'
    assert sieve.feed(begun) == b'data: {"id":"c",' + begun
    assert sieve.feed(b":{}}]}") == b":{}}]}"
    assert sieve.feed(b"\n") == b"\n"
    assert sieve.feed(b"\n" + USAGE_EVENT[:20]) == b"\n"
    assert sieve.feed(USAGE_EVENT[20:]) == b""


def test_a_keep_alive_is_not_held_back() -> None:
    sieve = UsageEventFilter()
    assert sieve.feed(b": ping\n") == b": ping\n"
    assert sieve.feed(b"\n") == b"\n"


def test_an_event_beyond_the_bound_passes() -> None:
    event = USAGE_EVENT.replace(b'"id":"c"', b'"id":"' + b"c" * USAGE_EVENT_BYTES_MAX + b'"')
    stream = event + USAGE_EVENT + DONE
    assert sifted([stream[at : at + 1000] for at in range(0, len(stream), 1000)]) == event + DONE
    assert sifted([stream]) == event + DONE


def test_what_is_held_back_is_bounded() -> None:
    sieve = UsageEventFilter()
    fed = 0
    passed = 0
    for _ in range(3 * USAGE_EVENT_BYTES_MAX // 1000):
        fed += 1000
        passed += len(sieve.feed(b"d" * 1000))
        assert fed - passed <= USAGE_EVENT_BYTES_MAX


@given(cut_streams())
def test_a_cut_changes_nothing_of_what_passes(chunks: list[bytes]) -> None:
    assert sifted(chunks) == sifted([b"".join(chunks)])


@given(cut_streams())
def test_only_usage_events_are_missing(chunks: list[bytes]) -> None:
    stream = b"".join(chunks)

    def is_usage(event: SseEvent) -> bool:
        try:
            chunk = json.loads(event.data)
        except ValueError:
            return False
        return chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict)

    assert by_lines(sifted(chunks)) == [one for one in by_lines(stream) if not is_usage(one)]


@given(cut_streams())
def test_whole_events_that_tell_nothing_need_not_be_fed(chunks: list[bytes]) -> None:
    """As a relay does: between two events these go by parser, filter and boundary."""
    reader = OpenAIChat()
    while reader.wants(DELTA):
        reader.read_event(SseEvent(b"", b"{}"))
    parser, sieve, boundary = SseParser(reader.wants), UsageEventFilter(), EventBoundary()
    found: list[SseEvent] = []
    passed = b""
    for chunk in chunks:
        is_between = parser.is_between and sieve.is_between
        if is_between and chunk.endswith(EVENT_ENDS) and not reader.wants(chunk):
            passed += chunk
            continue
        found += parser.feed(chunk)
        kept = sieve.feed(chunk)
        passed += kept
        boundary.feed(kept)
    fed = SseParser(reader.wants)
    assert found == [event for chunk in chunks for event in fed.feed(chunk)]
    assert [*parser.finish()] == [*fed.finish()]
    assert passed + sieve.finish() == sifted(chunks)
    whole = EventBoundary()
    whole.feed(passed)
    assert boundary.at_boundary == whole.at_boundary
