import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.metering.json_parts import object_in_tail, objects_in_head

texts = st.text(max_size=8) | st.sampled_from(["usage", '"usage":{"n":9}', "\\", '"', "}"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(st.text("abc", min_size=1, max_size=4), values, max_size=5)


@given(objects, st.sampled_from([None, 1]), st.data())
def test_a_head_gives_the_members_that_are_complete(
    document: dict[str, object], indent: int | None, data: st.DataObject
) -> None:
    text = json.dumps(document, indent=indent).encode()
    assert [json.loads(one) for one in objects_in_head(text)] == [document]
    upto = data.draw(st.integers(0, len(text) - 1))
    found = [json.loads(one) for one in objects_in_head(text[:upto])]
    assert len(found) == 1
    names = list(document)[: len(found[0])]
    assert found[0] == {name: document[name] for name in names}


@given(st.lists(objects, min_size=1, max_size=4), st.data())
def test_a_head_of_an_array_gives_the_objects_that_are_complete(
    documents: list[dict[str, object]], data: st.DataObject
) -> None:
    text = json.dumps(documents).encode()
    assert [json.loads(one) for one in objects_in_head(text)] == documents
    upto = data.draw(st.integers(0, len(text) - 1))
    found = [json.loads(one) for one in objects_in_head(text[:upto])]
    assert found[:-1] == documents[: max(0, len(found) - 1)]


@given(st.binary(max_size=80))
def test_any_bytes_are_taken(text: bytes) -> None:
    for one in objects_in_head(text):
        assert isinstance(json.loads(one), dict)
    object_in_tail(text, b"usage")


@pytest.mark.parametrize("text", [b"", b"  ", b"<html>", b"[", b"[1]", b'"a"', b"{x"])
def test_a_head_of_something_else_gives_nothing(text: bytes) -> None:
    assert all(one == b"{}" for one in objects_in_head(text))


def test_a_number_that_may_be_cut_is_left_out() -> None:
    assert list(objects_in_head(b'{"a": 1, "b": 12')) == [b'{"a": 1}']


def test_a_head_too_deep_to_read_ends_there() -> None:
    assert list(objects_in_head(b'{"a": 1, "b": ' + b"[" * 100_000)) == [b'{"a": 1}']


@pytest.mark.parametrize("close", [b"}", b" }\n", b"\n}\n]\n"])
def test_a_tail_gives_the_last_members(close: bytes) -> None:
    tail = b'xt", "usage": {"n": 1}}}], "usage": {"n": 2}, "tier": "x"' + close
    found = object_in_tail(tail, b"usage")
    assert found is not None
    assert json.loads(found) == {"usage": {"n": 2}, "tier": "x"}


@pytest.mark.parametrize(
    "tail",
    [
        b'"input": {"usage": {"n": 1}}}],"stop": 1}',  # deeper inside
        rb'"text": "\"usage\": {\"n\": 1}"}',  # within a string
        b'"usage": {"n": 1',  # cut
        b'"usage": ' + b"[" * 100_000,
        b"",
    ],
)
def test_a_tail_gives_nothing_that_is_not_at_the_top(tail: bytes) -> None:
    assert object_in_tail(tail, b"usage") is None


@given(objects, objects, st.data())
def test_a_tail_agrees_with_the_whole(
    before: dict[str, object], after: dict[str, object], data: st.DataObject
) -> None:
    document = {"deep": [before, {"usage": before}], "usage": {"n": 1}, **after}
    text = json.dumps(document).encode()
    starts = text.rindex(b'"usage": {"n": 1}', 0, text.index(b'"usage": {"n": 1}') + 20)
    tail = text[data.draw(st.integers(0, starts)) :]
    found = object_in_tail(tail, b"usage")
    if found is not None:  # a limit on candidates may end the search
        assert json.loads(found) == {"usage": {"n": 1}, **after}
