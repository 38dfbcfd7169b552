import gzip
import json
import zlib
from collections.abc import Callable
from random import Random

import brotli
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.errors import BodyInvalid, BodyTooLarge, GatewayError, UnsupportedBody
from gateway.proxy.body import (
    DECIDING,
    MEMBERS_MAX,
    TOKENS_MAX,
    DecidingFields,
    check_content_type,
    check_same_model,
    decode_members,
    decoded_copy,
    edited,
    member_spans,
    read_deciding_fields,
)

ENCODE: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"deflate": zlib.compress,
    b"br": brotli.compress,
    b"zstd": zstandard.compress,
}
LONG_BYTES = 2 * 1024  # no value of a member that is read in one go
PADDING = b'"padding":"' + b"x" * LONG_BYTES + b'"'


def read(text: bytes | str, *, model_required: bool = True) -> DecidingFields:
    body = text.encode() if isinstance(text, str) else text
    return read_deciding_fields(body, content_encoding=None, model_required=model_required)


def padded(text: bytes) -> bytes:
    """Return the same object with a long member."""
    inside = text.strip()[1:-1]
    return b"{" + inside + (b"," if inside.strip() else b"") + PADDING + b"}"


def common(one: bytes, other: bytes) -> int:
    """Return how many bytes two texts begin with alike."""
    shorter = min(len(one), len(other))
    return next((n for n in range(shorter) if one[n] != other[n]), shorter)


def problem(text: bytes, *, model_required: bool = True) -> tuple[str, str | None]:
    with pytest.raises(BodyInvalid) as caught:
        read(text, model_required=model_required)
    return caught.value.message, caught.value.param


# What bodies say


@pytest.mark.parametrize("shape", [bytes, padded])
@pytest.mark.parametrize(
    ("text", "stream", "asks_usage"),
    [
        (b'{"model":"m"}', False, False),
        (b' {\n "stream" : true , "model" : "m" }\r\n', True, False),
        (b'{"model":"m","stream":false}', False, False),
        (b'{"model":"m","stream":null,"stream_options":null}', False, False),
        (b'{"model":"m","stream":true,"stream_options":{}}', True, False),
        (b'{"stream_options":{"include_usage":true},"model":"m"}', False, True),
        (b'{"model":"m","stream_options":{"include_usage":false}}', False, False),
        (b'{"model":"m","stream_options":{"include_usage":null,"x":[]}}', False, False),
    ],
)
def test_a_body_says_what_decides(
    shape: Callable[[bytes], bytes],
    text: bytes,
    *,
    stream: bool,
    asks_usage: bool,
) -> None:
    fields = read(shape(text))
    assert fields.model == "m"
    assert (fields.stream, fields.asks_usage) == (stream, asks_usage)


@pytest.mark.parametrize("shape", [bytes, padded])
@pytest.mark.parametrize(
    "text",
    [
        b'{"model":"m","messages":[{"model":"x","stream":1}],"tools":[{"stream_options":2}]}',
        b'{"tools":[{"properties":{"model":{},"stream":{}}}],"model":"m"}',
        b'{"user":"model","x":"\\"model\\":","model":"m"}',
        b'{"messages":"a","messages":"ab","model":"m","messages":"abc"}',
        b'{"n":1,"input":1,"input":12,"model":"m"}',
        b'{"caf\\u00e9":"\\u006d","model":"m"}',
        b'{"mod\\u00e9l":1,"model":"m","\\ud83d\\ude00":1,"a\\"model\\\\":2}',
        b'{"a":[[],{},[{"b":"]}"}]],"b":-1.5e3,"c":true,"model":"m"}',
        '{"model":"m","emoji":"😀é"}'.encode(),
    ],
)
def test_only_members_at_the_top_decide(shape: Callable[[bytes], bytes], text: bytes) -> None:
    fields = read(shape(text))
    assert (fields.model, fields.stream, fields.asks_usage) == ("m", False, False)


def test_a_model_may_be_in_the_path_instead() -> None:
    assert read(b"{}", model_required=False).model is None
    fields = read(b'{"model":"models/m"}', model_required=False)
    check_same_model(fields, "m")
    check_same_model(read(b"{}", model_required=False), "m")
    with pytest.raises(BodyInvalid):
        check_same_model(fields, "other")


def test_nothing_of_a_prompt_is_in_a_repr() -> None:
    assert "canary" not in repr(read(b'{"model":"m","messages":"canary"}'))


# What is refused


@pytest.mark.parametrize("shape", [bytes, padded])
@pytest.mark.parametrize(
    ("text", "param"),
    [
        (b'{"model":"m","model":"n"}', "model"),
        (b'{"model":"m","model":"m"}', "model"),
        (b'{"model":"m","x":1,"model":"m2"}', "model"),
        (b'{"model":"m","mod\\u0065l":"n"}', "model"),
        (b'{"\\u006d\\u006F\\u0064\\u0065\\u006C":"n"}', "model"),
        (b'{"model":"m","Model":"n"}', "model"),
        (b'{"MODEL" :"n","model":"m"}', "model"),
        (b'{"modeL":"n"}', "model"),
        (b'{"\\u004dodel":"n"}', "model"),
        (b'{"model":"m","model\xc5\xbf":["n"]}', "models"),
        (b'{"model":"m","MODEL\\u017F":["n"]}', "models"),
        (b'{"model":"m","\\u017fvg":{}}', "svg"),
        ('{"model":"m","bac\u212aground":true}'.encode(), "background"),
        (b'{"model":"m","bac\\u212aground":true}', "background"),
        (b'{"model":"m","stream":false,"Stream":true}', "stream"),
        (b'{"model":"m","\xc5\xbftream_options":{}}', "stream_options"),
        (b'{"model":"m","stream_options":{"Include_Usage":false}}', "include_usage"),
        (b'{"model":"m","stream":true,"stream":false}', "stream"),
        (b'{"model":"m","str\\u0065am":false}', "stream"),
        (b'{"model":"m","stream_options":{},"stream_options":null}', "stream_options"),
        (b'{"model":"m","stream\\u005foptions":{}}', "stream_options"),
        (
            b'{"model":"m","stream_options":{"include_usage":true,"include_usage":false}}',
            "include_usage",
        ),
        (
            b'{"model":"m","stream_options":{"include_usage":true,"include\\u005Fusage":false}}',
            "include_usage",
        ),
    ],
)
def test_a_member_that_parsers_read_differently_is_refused(
    shape: Callable[[bytes], bytes], text: bytes, param: str
) -> None:
    assert problem(shape(text), model_required=False)[1] == param


@pytest.mark.parametrize("shape", [bytes, padded])
def test_another_case_within_a_text_or_further_down_is_nobodys_matter(
    shape: Callable[[bytes], bytes],
) -> None:
    tools = b'[{"parameters":{"Model":{},"STREAM":{}}}]'
    text = b'{"model":"m","x":"Model","y":"{\\"Model\\":1}","tools":%b,"user":"MODEL"}' % tools
    assert read(shape(text)).model == "m"


@pytest.mark.parametrize(
    "model",
    [b"1", b"null", b"[]", b'{"a":1}', b'""', b'" m"', b'"m "', b'"m\\n"'],
)
def test_a_model_that_is_no_name_is_refused(model: bytes) -> None:
    assert problem(b'{"model":' + model + b"}")[1] == "model"


def test_a_body_without_a_model_is_refused_where_it_decides() -> None:
    assert problem(b"{}") == ("The request body has no 'model'.", "model")
    assert problem(b'{"model":"' + b"m" * 257 + b'"}')[1] == "model"


@pytest.mark.parametrize(
    ("text", "param"),
    [
        (b'{"model":"m","stream":"true"}', "stream"),
        (b'{"model":"m","stream":1}', "stream"),
        (b'{"model":"m","stream_options":true}', "stream_options"),
        (b'{"model":"m","stream_options":[]}', "stream_options"),
        (b'{"model":"m","stream_options":{"include_usage":"yes"}}', "stream_options"),
    ],
)
def test_a_flag_is_true_or_false(text: bytes, param: str) -> None:
    assert problem(text)[1] == param


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"model=m",
        b"[]",
        b'"model"',
        b"null",
        b'{"model":"m"',
        b'{"model":"m",}',
        b'{"model":"m"}{}',
        b'{"model":"m"} x',
        b"{'model':'m'}",
        b'{"model":"m","a":NaN}',
        b'{"model":"m","a":01}',
        b'{"model":"m","a":"\x01"}',
        b'{"model":"m","a":"\xff"}',
        b'{"model":"m","a":"\xed\xa0\x80"}',
        b'{"model":"m","\xc3":1}',
        b'\xef\xbb\xbf{"model":"m"}',
        '{"model":"m"}'.encode("utf-16"),
        b'{"model":"m","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"m","a":' + b'{"a":' * 1_000_000,
    ],
)
def test_what_is_no_json_object_is_refused(text: bytes) -> None:
    problem(text)


def test_a_long_text_that_is_not_utf8_at_its_end_is_refused() -> None:
    text = '{"model":"m","a":"' + "é" * 2_000_000 + '"}'
    assert read(text).model == "m"
    assert problem(text.encode()[:-3] + b'"}')[0] == "The request body is not UTF-8."


def test_a_body_has_a_bound_on_members_and_on_values_in_an_unknown_one() -> None:
    members = b",".join(b'"%d":%d' % (n, n) for n in range(MEMBERS_MAX))
    problem(b'{"model":"m",' + members + b"}")
    values = b"[" + b'"",' * TOKENS_MAX + b"1]"
    problem(b'{"model":"m","unknown":' + values + b"}")
    assert read(b'{"model":"m","messages":' + values + b"}").model == "m"


def test_a_form_with_parts_is_not_json() -> None:
    for content_type in (b"", b"application/json; charset=utf-8", b"text/plain"):
        check_content_type(content_type)
    with pytest.raises(UnsupportedBody):
        check_content_type(b" Multipart/form-data; boundary=x")


# Edits


@pytest.mark.parametrize("shape", [bytes, padded])
@pytest.mark.parametrize(
    ("text", "asking"),
    [
        (b'{"stream":true}', b'{"stream_options":{"include_usage":true},"stream":true}'),
        (b" { }", b' {"stream_options":{"include_usage":true} }'),
        (b'{"stream_options": null }', b'{"stream_options": {"include_usage":true} }'),
        (b'{"stream_options": {} }', b'{"stream_options": {"include_usage":true} }'),
        (b'{"stream_options":{ "a":1}}', b'{"stream_options":{"include_usage":true, "a":1}}'),
        (
            b'{"stream_options":{"a":[1], "include_usage" : false }}',
            b'{"stream_options":{"a":[1], "include_usage" : true }}',
        ),
        (
            b'{"stream_options":{"include_usage":null}}',
            b'{"stream_options":{"include_usage":true}}',
        ),
        (
            b'{"stream_options":{"include_usage":true}}',
            b'{"stream_options":{"include_usage":true}}',
        ),
    ],
)
def test_a_stream_is_asked_for_usage_in_place(
    shape: Callable[[bytes], bytes], text: bytes, asking: bytes
) -> None:
    if shape is padded and text == b" { }":
        return  # there is no empty object with padding
    fields = read(shape(text), model_required=False)
    assert edited(fields, asks_usage=True) == shape(asking)


@pytest.mark.parametrize("shape", [bytes, padded])
def test_model_and_usage_are_edited_together(shape: Callable[[bytes], bytes]) -> None:
    text = b'{"stream_options":{}, "model" : "fast"}'
    fields = read(shape(text))
    expected = shape(b'{"stream_options":{"include_usage":true}, "model" : "m\xc3\xa9\\""}')
    assert edited(fields, model='mé"', asks_usage=True) == expected
    assert edited(fields) == shape(text)


names = st.text(max_size=6) | st.sampled_from(["messages", "input", "tools", "n", "models", "{"])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["model", '"model":"x"', "\\", '"', "}", "]", "stream_options"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            names | st.sampled_from(["model", "stream", "include_usage"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)
options = st.none() | st.fixed_dictionaries(
    {}, optional={"include_usage": st.none() | st.booleans(), "other": values}
)
documents = st.tuples(
    st.dictionaries(names, values, max_size=5),
    st.fixed_dictionaries(
        {"model": st.sampled_from(["m", "gpt-5", "a/b"])},
        optional={"stream": st.booleans(), "stream_options": options},
    ),
    st.randoms(use_true_random=False),
)


@given(documents, st.sampled_from([None, 1]), st.booleans(), st.booleans(), st.booleans())
def test_an_edit_changes_one_value_and_no_other_byte(
    parts: tuple[dict[str, object], dict[str, object], Random],
    indent: int | None,
    ascii_only: bool,  # noqa: FBT001
    renames: bool,  # noqa: FBT001
    long: bool,  # noqa: FBT001
) -> None:
    others, deciding, random = parts
    members = [
        *((k, v) for k, v in others.items() if k not in ("model", "stream", "stream_options")),
        *deciding.items(),
    ]
    random.shuffle(members)
    if long:
        members.append(("padding", "x" * LONG_BYTES))
    document = dict(members)
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode(
        "utf-8", "surrogatepass"
    )
    fields = read(text)
    assert fields.model == document["model"]
    asked = document.get("stream_options") or {}
    assert isinstance(asked, dict)
    assert fields.asks_usage == (asked.get("include_usage") is True)

    after = edited(fields, model="renamed" if renames else None, asks_usage=True)
    if renames:
        document["model"] = "renamed"
    document["stream_options"] = {**asked, "include_usage": True}
    assert json.loads(after) == document
    if not renames:
        start = common(text, after)
        end = common(text[start:][::-1], after[start:][::-1])
        assert len(text) - start - end <= len("false")
        assert len(after) - start - end <= len('"stream_options":{"include_usage":true},')


def members_one_by_one(text: str) -> list[tuple[str, bool, tuple[int, int]]]:
    """Return name, whether it has escapes, and place of each top member, by `json` alone."""
    decoder = json.JSONDecoder()
    found: list[tuple[str, bool, tuple[int, int]]] = []
    at = text.index("{") + 1
    while True:
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,"))
        if text[at] == "}":
            return found
        name, after = decoder.raw_decode(text, at)
        start = text.index(":", after) + 1
        start += len(text[start:]) - len(text[start:].lstrip())
        _, end = decoder.raw_decode(text, start)
        found.append((name, "\\" in text[at:after], (start, end)))
        at = end


spellings = st.sampled_from(
    [
        "",
        "K",
        "STREAM",
        "Model",
        "\\u0053vg",
        "\\u017ftream_options",
        "\u017ftream",
        "background",
        "m\\u006fdel",
        "max_tokens",
        'mod\\"el',
        "model",
        "model\\n",
        "models",
        "stream",
        "stream_options",
        "stream_option\u017f",
        "svg",
        "temperature",
    ]
)
spaces = st.sampled_from(["", " ", "\n", " \t\r\n "])


@given(st.lists(st.tuples(spellings, values | st.just("x" * 300), spaces, spaces, spaces)), spaces)
def test_the_walk_sees_what_a_slow_reader_sees(
    parts: list[tuple[str, object, str, str, str]], around: str
) -> None:
    written = [
        f'{before}"{name}"{between}:{after}{json.dumps(value)}{before}'
        for name, value, before, between, after in parts
    ]
    text = around + "{" + ",".join(written) + around + "}" + around
    members = members_one_by_one(text)
    wanted = {name.decode() for name in DECIDING}
    plain = [name for name, escaped, _ in members if name in wanted and not escaped]
    is_doubtful = len(set(plain)) < len(plain) or any(
        name.casefold() in wanted and (escaped or name not in wanted)
        for name, escaped, _ in members
    )
    body = text.encode()
    try:
        spans = member_spans(body, len(around), wanted=DECIDING, members=decode_members(body))
    except BodyInvalid:
        assert is_doubtful
    else:
        assert not is_doubtful
        found = {
            name: text[start:end].encode() for name, _, (start, end) in members if name in wanted
        }
        assert {name.decode(): body[slice(*place)] for name, place in spans.items()} == found


@given(st.binary(max_size=60))
@example(b'{"model":"m","":"')
@example(b'{"model":"m"')
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for text in (body, b'{"model":"m",' + body + b"}", b'{"model":"m","a":"' + body + b'"}'):
        try:
            fields = read(padded(text)) if text.startswith(b"{") else read(text)
        except GatewayError:
            continue
        assert isinstance(json.loads(edited(fields, model="n", asks_usage=True)), dict)


# Compressed bodies


@pytest.mark.parametrize("encoding", ENCODE)
def test_a_compressed_body_is_read_from_a_copy(encoding: bytes) -> None:
    text = b'{"model":"m","stream":true,' + PADDING + b"}"
    body = ENCODE[encoding](text)
    fields = read_deciding_fields(
        body, content_encoding=b" " + encoding.upper(), model_required=True
    )
    assert (fields.model, fields.stream, fields.text) == ("m", True, text)


@pytest.mark.parametrize("encoding", ENCODE)
def test_a_compressed_body_is_opened_up_to_a_bound(encoding: bytes) -> None:
    text = b"x" * 100_000
    body = ENCODE[encoding](text)
    assert decoded_copy(body, encoding, len(text)) == text
    with pytest.raises(BodyTooLarge):
        decoded_copy(body, encoding, len(text) - 1)
    with pytest.raises(BodyTooLarge):
        decoded_copy(ENCODE[encoding](b" " * (65 * 1024 * 1024)), encoding)


@pytest.mark.parametrize("encoding", ENCODE)
def test_a_body_in_another_encoding_than_it_says_is_refused(encoding: bytes) -> None:
    with pytest.raises(BodyInvalid):
        read_deciding_fields(b'{"model":"m"}', content_encoding=encoding, model_required=True)
    cut = ENCODE[encoding](json.dumps({"model": "m", "x": list(range(500))}).encode())[:-20]
    with pytest.raises(BodyInvalid):
        read_deciding_fields(cut, content_encoding=encoding, model_required=True)


def test_identity_is_no_encoding_and_unknown_ones_are_refused() -> None:
    assert decoded_copy(b"x", b"Identity") == b"x"
    for encoding in (b"compress", b"gzip, br", b"gzip,gzip", b"x"):
        with pytest.raises(UnsupportedBody):
            decoded_copy(b"x", encoding)


def test_half_a_surrogate_pair_is_the_vendors_to_judge() -> None:
    body = rb'{"messages":"cut \ud83d","stream_options":{"x":"\udd00"},"model":"m","stream":true}'
    fields = read_deciding_fields(body, content_encoding=None, model_required=True)
    assert (fields.model, fields.stream) == ("m", True)
    assert edited(fields, model="other") == body.replace(b'"m"', b'"other"')
