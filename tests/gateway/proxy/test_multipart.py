import gzip
import re
from collections.abc import Callable
from email.parser import BytesParser

import aiohttp
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.errors import BodyInvalid, GatewayError, UnsupportedBody
from gateway.proxy.multipart import (
    PART_HEAD_BYTES_MAX,
    PARTS_MAX,
    FormFields,
    is_form,
    name_segments,
    read_form,
    read_parts,
    with_model,
)

BOUNDARY = "------------------------b1"
TYPE = f"multipart/form-data; boundary={BOUNDARY}".encode()
WAV = b'RIFF\r\n\r\n--\r\nWAVE\n\nname="model"\x00\xff'
FILE = ('name="file"; filename="a.wav"', WAV, "Content-Type: audio/wav")


def part(disposition: str, value: bytes, *headers: str, cte: str = "") -> bytes:
    lines = [f"Content-Disposition: form-data; {disposition}", *headers]
    if cte:
        lines.append(f"Content-Transfer-Encoding: {cte}")
    head = "\r\n".join(lines).encode("utf-8", "surrogateescape")
    return b"--%b\r\n%b\r\n\r\n%b\r\n" % (BOUNDARY.encode(), head, value)


def form(*parts: bytes, end: bytes = b"--\r\n") -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY.encode() + end


def model(value: str = "whisper-1") -> bytes:
    return part('name="model"', value.encode())


def read(body: bytes, *, content_type: bytes = TYPE, model_required: bool = True) -> FormFields:
    return read_form(
        body, content_type=content_type, content_encoding=None, model_required=model_required
    )


# ------------------------------------------------------------------------------ what clients write


def written(boundary: str, *lines: str, end: str = "\r\n") -> tuple[bytes, bytes]:
    """A client's content type and form: `--` alone stands for the boundary's line."""
    plain = boundary.strip('"')
    text = "\r\n".join(f"--{plain}" if line == "--" else line for line in lines)
    body = f"{text}\r\n--{plain}--{end}".encode("latin-1")
    return f"multipart/form-data; boundary={boundary}".encode(), body


def disposition(rest: str) -> str:
    return f"Content-Disposition: form-data; {rest}"


MODEL_FIELD = (disposition('name="model"'), "", "whisper-1")
CURL = written(
    "------------------------d74496d66958873e",
    "--", disposition('name="file"; filename="a b.mp3"'), "Content-Type: audio/mpeg",
    "", "ID3\0\xff",
    "--", *MODEL_FIELD,
)  # fmt: skip
BROWSER = written(
    "----WebKitFormBoundary7MA4YWxkTrZu0gW",
    "--", *MODEL_FIELD,
    "--", disposition('name="file"; filename="M\xc3\xbcll%22er \xe2\x80\xaf3.04.05.webm"'),
    "Content-Type: audio/webm;codecs=opus", "", "\x1aE\xdf\xa3",
)  # fmt: skip
DOTNET = written(
    '"0b6bd5f1-2c1c-4a7e-8d5c-0d6c3cf0b1aa"',
    "--", "Content-Type: text/plain; charset=utf-8", disposition("name=model"), "", "whisper-1",
    "--", disposition("name=file; filename=a.mp3; filename*=utf-8''a.mp3"), "", "ID3",
)  # fmt: skip
JAVA = written(
    "3d1b3a2e-8f2f-4a17-9d37-0f1d9e3a7c55",
    "--", disposition('name="model"'), "Content-Length: 9", "", "whisper-1",
    "--", disposition('name="file"; filename="a.mp3"'), "Content-Type: application/octet-stream",
    "Content-Length: 3", "", "ID3",
)  # fmt: skip
RUBY = written(
    "-----------RubyMultipartPost-52435082de98127394a1555feae173b9",
    "--", *MODEL_FIELD,
    "--", disposition('name="file"; filename="ruby.wav"'), "Content-Length: 4",
    "Content-Type: audio/x-wav", "Content-Transfer-Encoding: binary", "", "RIFF",
)  # fmt: skip
GO = written(
    "9b8b041cd77e16c0d4fd01f835bff6da73ed4c6f65cf9bc3d9793f35ee38",
    "--", disposition('name="file"; filename="a.mp3"'), "Content-Type: application/octet-stream",
    "", "ID3",
    "--", *MODEL_FIELD,
)  # fmt: skip
PYTHON = written(
    "d8a1f5e0c3b2497e8f6a5d4c3b2a1908",
    "--", *MODEL_FIELD, "--", disposition('name="file"; filename="a.wav"'),
    "Content-Type: audio/wav", "", "RIFF",
)  # fmt: skip
NODE = written(
    "----formdata-undici-079125396132",
    "--", *MODEL_FIELD, "--", disposition('name="file"; filename="a.wav"'),
    "Content-Type: application/octet-stream", "", "RIFF",
    end="",
)  # fmt: skip
CLIENTS = {
    "curl": CURL, "browser": BROWSER, ".NET": DOTNET, "Java": JAVA, "Ruby": RUBY, "Go": GO,
    "Python": PYTHON, "Node": NODE,
}  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS)
def test_what_clients_write_is_read_and_edited(client: str) -> None:
    content_type, body = CLIENTS[client]
    fields = read(body, content_type=content_type)
    assert (fields.model, fields.stream, fields.says_stream) == ("whisper-1", False, False)
    assert sorted(fields.names) == ["file", "model"]
    renamed = with_model(fields, "whisper-large-v3")
    assert read(renamed, content_type=content_type).model == "whisper-large-v3"
    length = (b"Content-Length: 9\r\n", b"Content-Length: 16\r\n")
    assert renamed == body.replace(b"whisper-1", b"whisper-large-v3").replace(*length)


async def test_what_aiohttp_writes_is_read() -> None:
    data = aiohttp.FormData()
    data.add_field("model", "whisper-1")
    data.add_field("file", b"RIFF", filename="a.wav", content_type="audio/wav")
    data.add_field("stream", "true")
    data.add_field("timestamp_granularities[]", "word")
    writer = data()
    body = await writer.as_bytes()
    fields = read(body, content_type=writer.headers["Content-Type"].encode())
    assert (fields.model, fields.stream) == ("whisper-1", True)
    assert fields.names == ("model", "file", "stream", "timestamp_granularities[]")


@pytest.mark.parametrize(
    ("value", "stream"),
    [("true", True), ("True", True), ("1", True), ("false", False), ("0", False), ("", False)],
)
def test_a_form_may_ask_for_a_stream(value: str, stream: bool) -> None:  # noqa: FBT001
    fields = read(form(model(), part('name="stream"', value.encode())))
    assert (fields.stream, fields.says_stream) == (stream, True)


def test_a_model_may_be_missing_where_it_does_not_decide() -> None:
    assert read(form(part(*FILE)), model_required=False).model is None
    with pytest.raises(BodyInvalid) as caught:
        read(form(part(*FILE)))
    assert caught.value.param == "model"


def test_a_field_of_further_models_is_not_read() -> None:
    assert read(form(model())).further_models == ()
    for name in ("models", "svg"):
        assert read(form(model(), part(f"name={name}", b"x"))).further_models is None


def test_a_model_within_another_field_is_told_every_time() -> None:
    body = form(part('name="svg[model]"', b"a"), model(), part('name="svg[model]"', b"b"))
    assert read(body).further_models == ("a", "b")
    assert read(form(model(), part('name="svg.Model"', b"c"))).further_models == ("c",)
    with pytest.raises(BodyInvalid):
        read(form(model(), part('name="svg[model]"; filename=a', b"c")))


def test_a_compressed_form_is_read_from_a_copy() -> None:
    body = form(model(), part(*FILE))
    fields = read_form(
        gzip.compress(body), content_type=TYPE, content_encoding=b"gzip", model_required=True
    )
    assert fields.text == body
    assert with_model(fields, "m") == body.replace(b"whisper-1", b"m")


def test_nothing_of_a_form_is_in_a_repr() -> None:
    assert "RIFF" not in repr(read(form(model(), part(*FILE))))


def test_parts_are_told_with_where_they_stand() -> None:
    body = form(model(), part(*FILE))
    parts = list(read_parts(body, delimiter=b"--" + BOUNDARY.encode()))
    assert [(one.name, one.is_file, body[slice(*one.value)]) for one in parts] == [
        ("model", False, b"whisper-1"),
        ("file", True, WAV),
    ]


def test_a_name_in_brackets_is_made_of_segments() -> None:
    names = ["images[0][file_id]", "image[]", "a.b"]
    assert list(name_segments(names)) == ["images", "0", "file_id", "image", "a", "b"]


# -------------------------------------------------------------------- what readers may differ about

DELIMITER = b"--" + BOUNDARY.encode()
OTHER = part('name="model"', b"gpt-secret")
REFUSED = {
    "two models": form(model(), part('name="model"', b"other")),
    "the same model twice": form(model(), model()),
    "a model in brackets": form(model(), part('name="model[]"', b"other")),
    "a model with an index": form(model(), part('name="model[0]"', b"other")),
    "a model behind a dot": form(model(), part('name="model.x"', b"other")),
    "a bracket before it": form(model(), part('name="[model]"', b"other")),
    "another case": form(model(), part('name="Model"', b"other")),
    "a model that is a file": form(part('name="model"; filename="m"', b"gpt")),
    "a model that is JSON": form(part('name="model"', b'"gpt"', "Content-Type: application/json")),
    "a model in UTF-16": form(
        part('name="model"', b"g\0p\0t\0", "Content-Type: text/plain; charset=utf-16")
    ),
    "a charset for all": form(model(), part('name="_charset_"', b"utf-7")),
    "an empty model": form(model("")),
    "a model with a space": form(model("whisper-1 ")),
    "a model with a line": form(model("whisper-1\r\n")),
    "a long model": form(model("m" * 5_000)),
    "a model that is no text": form(part('name="model"', b"\xff")),
    "a preamble": b"\r\n" + form(model()),
    "parts in a preamble": OTHER.replace(b"\r\n", b"\n") + form(model()),
    "an epilogue": form(model()) + b"\r\n",
    "parts behind the end": form(model()) + form(OTHER),
    "no end": form(model(), end=b""),
    "half an end": form(model(), end=b"-\r\n"),
    "spaces behind a boundary": form(model(), end=b" \r\n" + OTHER[len(DELIMITER) + 2 :]),
    "a longer boundary": form(model()).replace(DELIMITER + b"--", DELIMITER + b"0--"),
    "a boundary after LF": form(model(), part("name=a", b"x\n" + OTHER[:-2])),
    "a boundary after CR": form(model(), part("name=a", b"x\r" + OTHER[:-2])),
    "a boundary in a value": form(model(), part("name=a", b"x" + DELIMITER)),
    "a boundary with one dash more": form(model(), part("name=a", b"\r\n-" + DELIMITER)),
    "a boundary in a head": form(model(), part("name=a", b"", "X: " + DELIMITER.decode())),
    "no line before a boundary": form(model()[:-2]),
    "lines that end in LF": form(model()).replace(b"\r\n", b"\n"),
    "a head that ends in LF": form(part("name=a\n\nx", b"")),
    "a folded header": form(part('\r\n name="model"', b"gpt")),
    "a header with a space before the colon": form(part("name=a", b"", "X : y")),
    "a header that is none": form(part("name=a", b"", "name=model")),
    "a bare CR in a head": form(part("name=a", b"", "X: y\rContent-Disposition: name=model")),
    "a form feed in a head": form(part("name=a", b"", "X: y\x0cz")),
    "a line separator in a head": form(part("name=a", b"", "X: y\u2028z")),
    "NUL in a head": form(part("name=a", b"", "X: y\0z")),
    "no head": DELIMITER + b"\r\n\r\nx\r\n" + form(model()),
    "no name": form(model(), b"--%b\r\nX: y\r\n\r\n\r\n" % BOUNDARY.encode()),
    "another disposition": form(model()).replace(b"form-data", b"attachment"),
    "two dispositions": form(
        part("name=a", b"gpt", 'Content-Disposition: form-data; name="model"'), model()
    ),
    "two names": form(part("name=a; name=model", b"gpt")),
    "a name after the file's": form(part('filename="a"; name="model"', b"gpt")),
    "a name within the file's": form(model(), part('name="a"; filename="x; name=model"', b"")),
    "a quote that is escaped": form(model(), part(r'name="a"; filename="x\"; name=\"model"', b"")),
    "a backslash at the end": form(model(), part('name="a"; filename="x\\"', b"")),
    "an escaped name": form(part('name="m\\odel"', b"gpt")),
    "a percent-encoded name": form(model(), part('name="%6Dodel"', b"gpt")),
    "a name that is encoded": form(model(), part("name=a; name*=utf-8''model", b"gpt")),
    "a name with a space": form(model(), part('name="model "', b"gpt")),
    "a name in another header": form(model(), part("name=a", b"x", "X: form-data; name=model")),
    "an unknown parameter": form(model(), part("name=a; x=y", b"")),
    "parts within a part": form(
        model(), part("name=a", b"", "Content-Type: multipart/mixed; boundary=x")
    ),
    "a wrong length": form(model(), part("name=a", b"abc", "Content-Length: 2")),
    "a length that is none": form(model(), part("name=a", b"abc", "Content-Length: +3")),
    "base64": form(part('name="model"', b"Z3B0", cte="base64")),
    "quoted-printable": form(part('name="model"', b"gp=74", cte="quoted-printable")),
    "a long head": form(part("name=a", b"", "X: " + "y" * PART_HEAD_BYTES_MAX), model()),
    "too many parts": form(*[part("name=a", b"")] * PARTS_MAX, model()),
    "nothing": b"",
    "JSON": b'{"model":"gpt"}',
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_form_that_readers_read_differently_is_refused(what: str) -> None:
    with pytest.raises(BodyInvalid):
        read(REFUSED[what])


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=a; boundary=b",
        f'multipart/form-data; boundary="{BOUNDARY} "',
        'multipart/form-data; boundary="a\\b"',
        f"multipart/form-data; boundary={BOUNDARY}; charset=utf-7",
        f"multipart/form-data; boundary={BOUNDARY}; x=y",
        f"multipart/form-data; boundary*=utf-8''{BOUNDARY}",
        f"multipart/form-data; boundary={BOUNDARY},",
        f"multipart/form-data; boundary={BOUNDARY};",
        f"multipart/form-data boundary={BOUNDARY}",
        "multipart/form-data; boundary=" + "b" * 71,
        "multipart/form-data; boundary=ü",
    ],
)
def test_an_odd_boundary_is_refused(content_type: str) -> None:
    with pytest.raises((BodyInvalid, UnsupportedBody)):
        read(form(model()), content_type=content_type.encode())


@pytest.mark.parametrize(
    "content_type",
    [
        f'multipart/form-data; boundary="{BOUNDARY}"',
        f"Multipart/Form-Data;boundary={BOUNDARY}",
        f"multipart/form-data; charset=UTF-8; boundary={BOUNDARY}",
    ],
)
def test_a_boundary_may_be_said_in_several_ways(content_type: str) -> None:
    assert read(form(model()), content_type=content_type.encode()).model == "whisper-1"


def test_another_content_type_is_no_form() -> None:
    assert is_form(b"multipart/form-data; boundary=x")
    for other in (
        b"",
        b"application/json",
        b"multipart/mixed; boundary=x",
        b"multipart/form-datax",
    ):
        assert not is_form(other)
        with pytest.raises(UnsupportedBody):
            read(form(model()), content_type=other)


def test_a_model_with_the_boundary_in_it_does_not_go_in() -> None:
    fields = read(form(model()))
    with pytest.raises(BodyInvalid):
        with_model(fields, "x" + DELIMITER.decode())


# --------------------------------------------------------------------------------- other readers


def models_by_email(body: bytes) -> list[bytes]:
    """Python's own reader of mail, which takes bare LF and CR, and folded headers."""
    message = BytesParser().parsebytes(b"Content-Type: " + TYPE + b"\r\n\r\n" + body)
    if not message.is_multipart():
        return []
    return [
        one.get_payload(decode=True)  # type: ignore[misc]
        for one in message.walk()
        if str(one.get_param("name", header="content-disposition")).lower() == "model"
    ]


def models_by_naive(body: bytes) -> list[bytes]:
    """A reader that splits at every boundary, wherever it is, and searches heads for a name."""
    found = []
    for one in body.split(DELIMITER):
        head, _, value = re.sub(rb"\r\n|\r", b"\n", one).partition(b"\n\n")
        names = re.findall(rb'name\s*\*?\s*=\s*"?([^"\n;]*)', head, re.IGNORECASE)
        if any(name.strip().lower() in (b"model", b"model[]") for name in names):
            found.append(value.removesuffix(b"\n"))
    return found


READERS: list[Callable[[bytes], list[bytes]]] = [models_by_email, models_by_naive]
PIECES = [
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\n\n", b"--", b" ", b";", b'"', b"\\", b"=", b"\0", b"a",
    DELIMITER, b"\r\n" + DELIMITER, b"\n" + DELIMITER, DELIMITER + b"--", OTHER, OTHER[:-2],
    OTHER.replace(b"\r\n", b"\n"), b'name="model"', b"name=model", b"name*=utf-8''model",
    b'; filename="x"', b'; name="model"', b"[]", b"Content-Disposition: form-data", b"gpt-secret",
    b'Content-Disposition: form-data; name="model"\r\n', b"Content-Type: text/plain\r\n",
    b"Content-Transfer-Encoding: base64\r\n", b"Content-Length: 3\r\n", b"\x0b", b"\xe2\x80\xa8",
]  # fmt: skip
VALID = form(part('name="a"', b"x"), model(), part('name="file"; filename="f"', b"abc"))

edits = st.lists(
    st.tuples(
        st.integers(0, len(VALID)), st.integers(0, 12), st.sampled_from(PIECES) | st.just(b"")
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=400, deadline=None)
@given(edits)
@example([(VALID.index(b"abc"), 0, b"\r\n" + OTHER[:-2] + b"\r\n")])
@example([(VALID.index(b"abc"), 3, OTHER)])
def test_what_is_accepted_has_the_same_model_for_other_readers(
    changes: list[tuple[int, int, bytes]],
) -> None:
    body = VALID
    for at, removed, put in changes:
        body = body[:at] + put + body[at + removed :]
    try:
        fields = read(body, model_required=False)
    except GatewayError:
        return
    told = [] if fields.model is None else [fields.model.encode()]
    for reader in READERS:
        assert reader(body) == told, reader.__name__
    if fields.model is not None:
        again = read(with_model(fields, "other"), model_required=False)
        assert (again.model, again.names) == ("other", fields.names)


@given(st.binary(max_size=200), st.sampled_from(PIECES))
def test_any_bytes_are_read_or_refused(noise: bytes, piece: bytes) -> None:
    for body in (noise, DELIMITER + b"\r\n" + noise + piece, form(model() + noise)):
        try:
            fields = read(body)
        except GatewayError:
            continue
        assert fields.model


def test_a_large_form_is_searched_once() -> None:
    # Sixty-four times the boundary's beginning, all but its last character.
    almost = (b"\r\n" + DELIMITER[:-1] + b"_") * 200_000
    fields = read(form(model(), part('name="file"; filename="f"', almost)))
    assert fields.model == "whisper-1"
