"""What is wrong with a query or a body is told by the field, and with what would be right."""

from enum import StrEnum
from typing import Literal

import msgspec
import pytest

from control_plane.errors import BadArgument
from control_plane.web.input import read_body, read_query, read_uuid


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    size: Literal["small", "large"] = "small"
    colour: Colour | None = None
    number: int = 0


@pytest.mark.parametrize(
    ("query", "field", "told"),
    [
        ({"size": ["huge"]}, "size", "one of large, small"),
        ({"colour": ["green"]}, "colour", "one of red, blue"),
        ({"number": ["many"]}, "number", "Expected `int`"),
        ({"weight": ["1"]}, "weight", "unknown field"),
        ({"size": ["small", "large"]}, "size", "more than once"),
    ],
)
def test_a_query_is_refused_by_the_field(
    query: dict[str, list[str]], field: str, told: str
) -> None:
    with pytest.raises(BadArgument, match=told) as refused:
        read_query(query, Wanted)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("body", "field", "told"),
    [
        (b'{"size":"huge"}', "size", "one of large, small"),
        (b'{"colour":"green"}', "colour", "one of red, blue"),
        (b'{"number":"1"}', "number", "Expected `int`"),
        (b'{"weight":1}', "weight", "unknown field"),
        (b"[]", "body", "Expected `object`"),
        (b"{", "body", "not JSON"),
        (b"\xff", "body", "not JSON"),
    ],
)
def test_a_body_is_refused_by_the_field(body: bytes, field: str, told: str) -> None:
    with pytest.raises(BadArgument, match=told) as refused:
        read_body(body, Wanted)
    assert refused.value.field == field


def test_an_id_has_one_form() -> None:
    text = "0190a000-0000-7000-8000-000000000000"
    assert str(read_uuid(text, field="id")) == text
    for other in (text.upper(), text.replace("-", ""), f"{{{text}}}", "x", ""):
        with pytest.raises(BadArgument) as refused:
            read_uuid(other, field="id")
        assert refused.value.field == "id"
