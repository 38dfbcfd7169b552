import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.metering.usage import (
    COUNT_MAX,
    VENDOR_USAGE_BYTES_MAX,
    Flag,
    Flags,
    Reported,
    Usage,
    clean_text,
    decode_object,
    disjoint_input,
    split_members,
    storable_usage,
    without_nan,
)


def reported(members: dict[str, Any]) -> Reported:
    return Reported(members, Flags())


def unchanged(raw: bytes) -> bytes:
    return raw


def test_a_usage_of_which_nothing_is_known_is_not_zero() -> None:
    usage = Usage()
    assert usage.input_tokens is None
    assert usage.source == "none"


@pytest.mark.parametrize("count", [0, 1, COUNT_MAX])
def test_a_count_is_a_whole_number(count: int) -> None:
    usage = reported({"a": {"b": count}})
    assert usage.count("a", "b") == count
    assert usage.flags.names() == ()


@pytest.mark.parametrize(
    "absurd", [-1, COUNT_MAX + 1, True, 3.0, 2.5, math.nan, math.inf, "7", [], {}]
)
def test_an_absurd_count_is_dropped_and_flagged(absurd: object) -> None:
    usage = reported({"a": absurd})
    assert usage.count("a") is None
    assert usage.flags.names() == (Flag.BAD_NUMBER,)


@pytest.mark.parametrize("members", [{}, {"a": None}, {"a": {"b": None}}, {"a": 3}, {"a": [1]}])
def test_an_absent_count_is_not_said(members: dict[str, Any]) -> None:
    usage = reported(members)
    assert usage.count("a", "b") is None
    assert usage.flags.names() == ()


def test_the_first_count_that_is_there_is_taken() -> None:
    assert reported({"b": 0, "c": 5}).first_count(("a",), ("b",), ("c",)) == 0
    assert reported({}).first_count(("a",)) is None


def test_seconds_may_have_a_fraction() -> None:
    assert reported({"s": 2.5}).seconds("s") == 2.5
    assert reported({"s": 3}).seconds("s") == 3
    assert reported({}).seconds("s") is None


@pytest.mark.parametrize("absurd", [math.nan, math.inf, -0.1, "1", True])
def test_an_absurd_time_is_dropped_and_flagged(absurd: object) -> None:
    usage = reported({"s": absurd})
    assert usage.seconds("s") is None
    assert usage.flags.names() == (Flag.BAD_NUMBER,)


def test_a_part_is_never_more_than_its_whole() -> None:
    usage = reported({})
    assert usage.of_which(3, 5, Flag.REASONING_EXCEEDS_OUTPUT) == 3
    assert usage.of_which(3, None, Flag.REASONING_EXCEEDS_OUTPUT) == 3
    assert usage.of_which(None, 5, Flag.REASONING_EXCEEDS_OUTPUT) is None
    assert usage.flags.names() == ()
    assert usage.of_which(9, 5, Flag.REASONING_EXCEEDS_OUTPUT) == 5
    assert usage.flags.names() == (Flag.REASONING_EXCEEDS_OUTPUT,)


counts = st.none() | st.integers(0, 1000)


@given(total=st.integers(0, 1000), read=counts, write=counts)
def test_input_is_split_into_disjoint_meters(
    total: int, read: int | None, write: int | None
) -> None:
    flags = Flags()
    parts = disjoint_input(total, read, write, flags)
    assert sum(part or 0 for part in parts) == total
    assert all(part is None or part >= 0 for part in parts)
    assert [part is None for part in parts[1:]] == [read is None, write is None]
    contradictory = (read or 0) + (write or 0) > total
    assert flags.names() == ((Flag.CACHE_EXCEEDS_INPUT,) if contradictory else ())
    if not contradictory:
        assert parts[1:] == (read, write)


def test_without_a_total_the_uncached_rest_is_unknown() -> None:
    assert disjoint_input(None, 4, None, Flags()) == (None, 4, None)


@pytest.mark.parametrize("text", ["", "gpt-4o", "größer"])
def test_a_text_that_a_row_can_hold_passes(text: str) -> None:
    assert clean_text(text, Flags()) == text


@pytest.mark.parametrize("text", [7, "a\x00b", "a\nb", "x" * 129, "\ud800", ["x"]])
def test_another_text_is_dropped_and_flagged(text: object) -> None:
    flags = Flags()
    assert clean_text(text, flags) is None
    assert flags.names() == (Flag.BAD_TEXT,)


def test_a_flag_is_raised_once() -> None:
    flags = Flags()
    flags.raise_(Flag.BAD_TEXT)
    flags.raise_(Flag.BAD_NUMBER)
    flags.raise_(Flag.BAD_TEXT)
    assert flags.names() == ("bad_text", "bad_number")


def test_nan_outside_of_strings_becomes_null() -> None:
    document = rb'{"a": NaN, "b": -Infinity, "c": "NaN \" Infinity", "d": [Infinity]}'
    assert json.loads(without_nan(document)) == {
        "a": None,
        "b": None,
        "c": 'NaN " Infinity',
        "d": [None],
    }


def test_an_object_is_decoded_and_nothing_else() -> None:
    assert decode_object(b'{"a": 1}') == {"a": 1}
    assert decode_object(b'{"a": 1e999}') == {"a": math.inf}
    assert decode_object(b"[1]") is None
    assert decode_object(b'{"a"') is None
    assert decode_object(b'{"a":' * 100_000) is None
    assert split_members(b"[1]") is None


def test_small_usage_is_kept_verbatim() -> None:
    raw = b'{ "a" : 1.50,\n "b": {"c": null} }'
    flags = Flags()
    assert storable_usage(raw, flags, shorten=unchanged) == raw
    assert flags.names() == ()


def test_large_usage_is_cut_to_valid_json() -> None:
    raw = json.dumps({"a": 1, "big": "x" * VENDOR_USAGE_BYTES_MAX, "z": [2]}).encode()
    flags = Flags()
    kept = storable_usage(raw, flags, shorten=unchanged)
    assert kept is not None
    assert json.loads(kept) == {"a": 1, "z": [2]}
    assert flags.names() == (Flag.VENDOR_USAGE_CUT,)


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=3000) | st.integers(), max_size=30))
def test_kept_usage_is_bounded_valid_json(members: dict[str, str | int]) -> None:
    raw = json.dumps(members).encode()
    kept = storable_usage(raw, Flags(), shorten=unchanged)
    if kept is not None:
        assert len(kept) <= VENDOR_USAGE_BYTES_MAX
        assert json.loads(kept).items() <= members.items()


@pytest.mark.parametrize(
    "raw", [rb'{"a": "\u0000"}', rb'{"a": "\ud83d"}', b'{"a": "\xff"}', b'{"a": 1e5000}']
)
def test_what_no_database_takes_is_not_kept(raw: bytes) -> None:
    flags = Flags()
    assert storable_usage(raw, flags, shorten=unchanged) is None
    assert flags.names() == (Flag.VENDOR_USAGE_UNSTORABLE,)
