from typing import Any

import msgspec
import pytest

from gateway.metering.lenient import Count, Lenient, Seconds
from gateway.metering.usage import Flag, Flags


class Part(msgspec.Struct):
    count: Count = None


class Whole(msgspec.Struct):
    count: Count = None
    seconds: Seconds = None
    part: Part | None = None
    rows: list[Part] | None = None
    text: Any = None
    raw: msgspec.Raw = msgspec.Raw()


def read(document: bytes) -> tuple[Whole | None, tuple[str, ...]]:
    flags = Flags()
    return Lenient(Whole).read(document, flags), flags.names()


def test_what_fits_is_read_as_declared() -> None:
    told, flags = read(
        b'{"count":3,"seconds":1.5,"part":{"count":4,"more":[]},"rows":[{"count":5}],"text":"x",'
        b'"raw":{ "as": "it came" },"unknown":1e999}'
    )
    assert told is not None
    assert (told.count, told.seconds, told.part, told.text) == (3, 1.5, Part(count=4), "x")
    assert told.rows == [Part(count=5)]
    assert bytes(told.raw) == b'{ "as": "it came" }'
    assert flags == ()


def test_whole_seconds_stay_whole() -> None:
    told, _ = read(b'{"seconds":2}')
    assert told is not None
    assert type(told.seconds) is int


@pytest.mark.parametrize("number", [b"-1", b"1.5", b"true", b'"3"', b"[]", b"9007199254740993"])
def test_a_count_that_can_not_be_costs_no_other_member(number: bytes) -> None:
    told, flags = read(b'{"count":%b,"part":{"count":%b},"seconds":2}' % (number, number))
    assert told == Whole(seconds=2, part=Part())
    assert flags == (Flag.BAD_NUMBER,)


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity"])
def test_what_some_servers_write_for_no_number_is_none(number: bytes) -> None:
    told, flags = read(b'{"count":%b,"seconds":2}' % number)
    assert told == Whole(seconds=2)
    assert flags == (Flag.BAD_NUMBER,)


@pytest.mark.parametrize(
    "member", [b'"part":7', b'"part":[]', b'"rows":{}', b'"rows":[7]'], ids=bytes.decode
)
def test_a_member_of_another_kind_is_left_out(member: bytes) -> None:
    told, flags = read(b'{%b,"count":2}' % member)
    assert told == Whole(count=2)
    assert flags == (Flag.UNREADABLE,)


def test_a_text_that_is_none_costs_no_other_member() -> None:
    told, flags = read(b'{"text":"\xff","count":2}')
    assert told == Whole(count=2)
    assert flags == ()


@pytest.mark.parametrize("document", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 10_000])
def test_what_is_no_object_is_flagged(document: bytes) -> None:
    assert read(document) == (None, (Flag.UNREADABLE,))
