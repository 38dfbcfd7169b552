from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.metering.json_lines import LineParser

STREAM = b'{"a":1}\r\n\n{"b":"x"}\n{"b":"y"}\n{"c":3}'


def lines(pieces: list[bytes], *, event_bytes_max: int = 1000) -> tuple[list[bytes], int]:
    parser = LineParser(lambda raw: b'"b"' in raw, event_bytes_max=event_bytes_max)
    found = [event.data for piece in pieces for event in parser.feed(piece)]
    found += [event.data for event in parser.finish()]
    return found, parser.skipped


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_wanted_lines_come_whole_however_the_stream_is_cut(places: list[int]) -> None:
    ends = [0, *sorted(places), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in pairwise(ends)]
    assert lines(pieces) == ([b'{"b":"x"}', b'{"b":"y"}'], 0)


def test_the_last_line_may_lack_its_end() -> None:
    assert lines([b'{"b":', b"1}"]) == ([b'{"b":1}'], 0)


@pytest.mark.parametrize("size", [1, 7, 200])
def test_a_line_that_is_too_long_is_skipped_and_no_more_than_it(size: int) -> None:
    stream = b'{"b":1}\n{"b":"' + b"x" * 90 + b'"}\n{"b":2}\n'
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert lines(pieces, event_bytes_max=40) == ([b'{"b":1}', b'{"b":2}'], 1)


def test_bytes_without_an_end_are_not_kept_beyond_the_bound() -> None:
    parser = LineParser(lambda _: True, event_bytes_max=100)
    for _ in range(1000):
        assert not parser.feed(b"x" * 64)
    assert parser.skipped == 1
    assert len(parser._held) <= 100  # what is bounded
    assert [event.data for event in parser.feed(b"\n{}\n")] == [b"{}"]
