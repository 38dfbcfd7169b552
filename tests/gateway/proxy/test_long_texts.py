import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.body import decode_members
from gateway.proxy.long_texts import BODY_BYTES_MIN, TEXT_BYTES_MIN, outside_long_texts
from gateway.proxy.stored_objects import STORED_NAMES, named_objects

CODE = 'def f():\n    return {"content": "a", "file_id": "file-1", "é": \'\\u0066\'}\n' * 200
ENCODED = json.dumps(CODE)
assert len(ENCODED) > BODY_BYTES_MIN


def left(text: bytes) -> bytes:
    places = outside_long_texts(text, decode_members(text))
    assert places[0][0] == 0
    assert places[-1][1] == len(text)
    return b"\0".join(text[start:end] for start, end in places)


@pytest.mark.parametrize(
    "document",
    [
        {"messages": [{"role": "user", "content": CODE}]},
        {"messages": [{"content": [{"type": "text", "text": CODE}]}]},
        {"messages": [{"content": [{"type": "tool_result", "content": CODE}]}]},
        {"system": CODE, "messages": [{"content": "Hello"}, {"content": CODE}]},
        {"messages": [{"content": CODE}], "system": [{"text": "Hello"}, {"text": CODE}]},
        {"input": [{"content": [{"type": "input_text", "text": CODE}]}]},
        {"contents": [{"parts": [{"text": "Hello"}, {"text": CODE}, {"text": CODE}]}]},
    ],
    ids=lambda document: json.dumps(document).replace(ENCODED, "code"),
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", " :\n")])
def test_long_texts_of_all_formats_are_left_out(
    document: dict[str, Any], separators: tuple[str, str]
) -> None:
    text = json.dumps(document, separators=separators).encode()
    assert len(left(text)) < TEXT_BYTES_MIN
    assert not named_objects(text, places=outside_long_texts(text, decode_members(text)))


def test_what_is_no_long_text_stays() -> None:
    small = json.dumps({"messages": [{"content": "x" * TEXT_BYTES_MIN}]}).encode()
    assert left(small) == small
    other = json.dumps({"messages": CODE, "prompt": [CODE], "input": {"content": CODE}}).encode()
    assert left(other) == other


def test_a_text_that_is_there_twice_is_left_out_where_it_was_decoded() -> None:
    first = json.dumps([{"type": "file", "file": {"file_id": "file-1"}}])
    text = b'{"messages":[{"content":%b,"content":%b}]}' % (
        first.encode(),
        json.dumps(CODE).encode(),
    )
    assert b"file_id" in left(text)
    (named,) = named_objects(text, places=outside_long_texts(text, decode_members(text)))
    assert named.object_id == "file-1"


names = st.sampled_from(
    ["content", "text", "parts", "messages", "input", "contents", "system", *STORED_NAMES[:6]]
)
texts = st.one_of(
    st.sampled_from([CODE, "x" * TEXT_BYTES_MIN, '"content":' * 400, '\\"text": ' * 300]),
    st.text(max_size=8),
)
values = st.recursive(
    texts,
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(names, inner), max_size=4),
    max_leaves=12,
)


def written(value: Any, draw: st.DataObject) -> str:
    """Return JSON whose objects may have a name twice, and names with escapes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=draw.draw(st.booleans()))
    if value and all(isinstance(one, tuple) for one in value):
        colon = draw.draw(st.sampled_from([":", " : "]))
        members = [f"{_name(name, draw)}{colon}{written(inner, draw)}" for name, inner in value]
        return "{" + ",".join(members) + "}"
    return "[" + ",".join(written(one, draw) for one in value) + "]"


def _name(name: str, draw: st.DataObject) -> str:
    if draw.draw(st.integers(0, 9)) == 0:
        return f'"\\u{ord(name[0]):04x}{name[1:]}"'
    return json.dumps(name)


messages = st.lists(st.lists(st.tuples(names, values), max_size=4), max_size=4)
bodies = st.lists(
    st.tuples(st.sampled_from(["messages", "input", "contents"]), messages)
    | st.tuples(names, values),
    min_size=1,
    max_size=4,
)


@given(bodies, st.data())
def test_no_name_is_overlooked_because_of_a_long_text(
    body: list[tuple[str, Any]], data: st.DataObject
) -> None:
    text = written(body, data).encode("utf-8", "surrogatepass")
    text = text[:-1] + b"," + json.dumps({"user": CODE})[1:].encode()
    members = decode_members(text)
    places = outside_long_texts(text, members)
    assert set(named_objects(text, places=places)) == set(named_objects(text))
    assert set(named_objects(text, items_in="input", places=places)) == (
        set(named_objects(text, items_in="input"))
    )
