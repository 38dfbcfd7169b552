r"""Forms with parts (multipart/form-data, RFC 7578 and 2046): the fields that decide, and an edit.

A form is read as every vendor will read it, or refused. Its readers differ more than those of JSON:
in what a boundary may look like, which lines may end in a bare LF, what stands before the first
part and after the last, which of two fields counts, what `model[]` is, how a quote is escaped, and
whether a part's own length, encoding or charset matters. So only the common ground is taken, which
is what all known clients write: each part begins at a delimiter on a line of its own, and the
delimiter is nowhere else; a part has plain headers, and its name comes first and needs no escape.

Nothing is written anew. An edit replaces the bytes of one value; all others stay.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.errors import BodyInvalid, UnsupportedBody
from gateway.proxy.body import Span, decoded_copy
from gateway.proxy.routing import model_problem
from gateway.vendors.vendor import MODEL_ID_CHARS_MAX

PARTS_MAX: Final = 256  # of a form; the longest known, a picture's edit, has about 30
PART_HEAD_BYTES_MAX: Final = 4 * 1024  # clients send about 200
BOUNDARY_CHARS_MAX: Final = 70  # RFC 2046
VALUE_BYTES_MAX: Final = 4 * MODEL_ID_CHARS_MAX  # of a field that decides

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# One parameter of a Content-Type; of a value in quotes no escape is taken.
_PARAMETER: Final = re.compile(rf'[ \t]*;[ \t]*({_WORD})=(?:({_WORD})|"([^"\\]*)")')
_FORM: Final = "multipart/form-data"
_BOUNDARY: Final = re.compile(rf"[0-9A-Za-z'()+_,./:=?-]{{1,{BOUNDARY_CHARS_MAX}}}")
_UTF8: Final = frozenset({"utf-8", "utf8", "us-ascii"})

_HEADER: Final = re.compile(rf"({_WORD}):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)")
# The name first, and no quote in a file's name: what follows it can't be taken for another name.
_DISPOSITION: Final = re.compile(
    rf'form-data;[ \t]*name=(?:"([^"]*)"|({_WORD}))'
    rf'(?:;[ \t]*filename=("[^"]*(?<!\\)"|{_WORD}))?'
    rf"(?:;[ \t]*filename\*=({_WORD}))?"
)
_NAME: Final = re.compile(r"[0-9A-Za-z_.\[\]-]{1,128}")
_NAME_INSIDE: Final = re.compile(r"name\*?[ \t]*=", re.IGNORECASE)
_BRACKETS: Final = re.compile(r"[\[\].]+")
_TEXT_TYPE: Final = re.compile(
    r'text/plain(?:[ \t]*;[ \t]*charset="?(?:utf-8|us-ascii)"?)?', re.IGNORECASE
)
_PLAIN_ENCODINGS: Final = frozenset({"7bit", "8bit", "binary"})
_DIGITS: Final = re.compile(r"[0-9]{1,10}")

_MODEL: Final = "model"
_MODELS: Final = "models"
_STREAM: Final = "stream"
_CHARSET: Final = "_charset_"  # would change how all others are read
_IN_ONE_PIECE: Final = frozenset({_MODELS, "svg"})
_DECIDING: Final = frozenset({_MODEL, _MODELS, _STREAM, _CHARSET})
_TRUE: Final = frozenset({"1", "on", "t", "true", "y", "yes"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One field of a form: where its value stands.

    `length`: where its own Content-Length stands, None where it has none.
    """

    name: str
    is_file: bool
    content_type: str | None
    value: Span
    length: Span | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FormFields:
    """What a form says that decides about its call.

    `further_models`: what fields such as `svg[model]` name beside `model`; None where there is a
    field that may name some in a way of its own: `models`, or `svg` in one piece. `text` is the
    form, opened where it is compressed.
    """

    model: str | None
    further_models: tuple[str, ...] | None
    stream: bool
    says_stream: bool
    names: tuple[str, ...]
    text: bytes = field(repr=False)
    delimiter: bytes = field(repr=False)
    model_part: Part | None = field(repr=False)

    background: bool = field(default=False, init=False)  # no form asks for what is fetched later
    asks_usage: bool = field(default=False, init=False)
    streams_events: bool = field(default=False, init=False)


def is_form(content_type: bytes) -> bool:
    """Return whether a body is said to be a form with parts."""
    media_type = content_type.partition(b";")[0].strip(b" \t").lower()
    return media_type == _FORM.encode()


def read_form(
    body: bytes, *, content_type: bytes, content_encoding: bytes | None, model_required: bool
) -> FormFields:
    """Return what a whole form says.

    Raises BodyInvalid, naming the field at fault; UnsupportedBody and BodyTooLarge for its content
    encoding, UnsupportedBody for a content type that is none of a form.
    """
    delimiter = b"--" + _boundary(content_type)
    text = body if content_encoding is None else decoded_copy(body, content_encoding)
    deciding: dict[str, Part] = {}
    names: list[str] = []
    further: list[str] = []
    for part in read_parts(text, delimiter=delimiter):
        names.append(part.name)
        if part.name in _DECIDING:
            if part.name in deciding:
                raise BodyInvalid(f"'{part.name}' is in the form twice.", param=part.name)
            _check_is_text(part)
            deciding[part.name] = part
        elif next(name_segments([part.name.lower()]), "") in _DECIDING:
            raise BodyInvalid(f"'{part.name}' is not a plain name.", param=part.name)
        elif _MODEL in name_segments([part.name.lower()]):
            further.append(_name(text, part))
    if _CHARSET in deciding:
        raise BodyInvalid("A form is read as UTF-8. Leave out '_charset_'.", param=_CHARSET)
    model = deciding.get(_MODEL)
    stream = deciding.get(_STREAM)
    return FormFields(
        model=_model(text, model, is_required=model_required),
        further_models=None if _IN_ONE_PIECE.intersection(names) else tuple(further),
        stream=stream is not None and _text(text, stream).strip().lower() in _TRUE,
        says_stream=stream is not None,
        names=tuple(names),
        text=text,
        delimiter=delimiter,
        model_part=model,
    )


def read_parts(text: bytes, *, delimiter: bytes) -> Iterator[Part]:
    """Yield the parts of a form, in order; `delimiter` is the boundary with its two dashes.

    Raises BodyInvalid where readers would differ. Whoever stops early has not had all checked.
    """
    if not text.startswith(delimiter + b"\r\n"):
        raise BodyInvalid("The form does not begin with its boundary, on a line of its own.")
    at = len(delimiter) + 2
    for _ in range(PARTS_MAX):
        head_end = text.find(b"\r\n\r\n", at, at + PART_HEAD_BYTES_MAX)
        if head_end < 0:
            raise BodyInvalid(
                f"A part of the form has no end of its head within {PART_HEAD_BYTES_MAX} bytes."
            )
        start = head_end + 4
        found = text.find(delimiter, at)
        if found < start + 2 or text[found - 2 : found] != b"\r\n":
            raise BodyInvalid("The form's boundary is missing, or where it is no boundary.")
        yield _part(text, (at, head_end), (start, found - 2))
        after = found + len(delimiter)
        if text.startswith(b"\r\n", after):
            at = after + 2
        elif text[after : after + 5] in (b"--", b"--\r\n"):
            return
        else:
            raise BodyInvalid("A boundary of the form does not stand on a line of its own.")
    raise BodyInvalid(f"The form has more than {PARTS_MAX} parts.")


def with_model(fields: FormFields, model: str) -> bytes:
    """Return the form naming another model; all other bytes stay. It has to name one."""
    part = fields.model_part
    assert part is not None
    value = model.encode()
    if fields.delimiter in value:
        raise BodyInvalid("The form's boundary occurs in a value. Choose another.", param=_MODEL)
    edits = [(part.value, value)]
    if part.length is not None:
        edits.insert(0, (part.length, b"%d" % len(value)))
    view = memoryview(fields.text)
    parts: list[bytes | memoryview] = []
    at = 0
    for (start, end), new in edits:
        parts += (view[at:start], new)
        at = end
    return b"".join((*parts, view[at:]))


def name_segments(names: Sequence[str]) -> Iterator[str]:
    """Yield what form names are made of: `images[0][file_id]` has `images`, `0`, `file_id`."""
    for name in names:
        yield from filter(None, _BRACKETS.split(name))


# The head of the request, and of a part


def _boundary(content_type: bytes) -> bytes:
    """Return the boundary that a Content-Type names. Raises UnsupportedBody, BodyInvalid."""
    if not is_form(content_type):
        raise UnsupportedBody("This endpoint takes a multipart/form-data body.")
    text = content_type.decode("latin-1").strip(" \t")
    found: dict[str, str] = {}
    at = len(_FORM)
    while at < len(text):
        parameter = _PARAMETER.match(text, at)
        if parameter is None or parameter[1] in found:
            raise BodyInvalid("The form's Content-Type is not plain.")
        found[parameter[1]] = parameter[2] if parameter[2] is not None else parameter[3]
        at = parameter.end()
    boundary = found.pop("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise BodyInvalid("The form's Content-Type names no plain boundary.")
    if found.pop("charset", "utf-8").lower() not in _UTF8 or found:
        raise BodyInvalid("The form's Content-Type says more than its boundary.")
    return boundary.encode()


def _part(text: bytes, head: Span, value: Span) -> Part:
    """Return the part of which head and value stand there. Raises BodyInvalid."""
    lines = text[head[0] : head[1]].decode("utf-8", "surrogateescape")
    if lines.split("\r\n") != lines.splitlines():  # a line that ends otherwise, to some readers
        raise BodyInvalid("A part of the form has a head whose lines do not end in CRLF.")
    headers: dict[str, str] = {}
    length: Span | None = None
    at = head[0]
    for line in lines.split("\r\n"):
        header = _HEADER.fullmatch(line)
        if header is None:
            raise BodyInvalid("A part of the form has a header that is not plain.")
        name = header[1].lower()
        if name in headers:
            raise BodyInvalid("A part of the form has a header twice.")
        if name != "content-disposition" and _NAME_INSIDE.search(header[2]):
            raise BodyInvalid("A part of the form has a name where none belongs.")
        headers[name] = header[2].rstrip(" \t")
        if name == "content-length":
            start = at + header.start(2)
            length = start, start + len(headers[name])
        at += len(line.encode("utf-8", "surrogateescape")) + 2
    _check_headers(headers, value[1] - value[0])
    disposition = _DISPOSITION.fullmatch(headers.get("content-disposition", ""))
    if disposition is None:
        raise BodyInvalid("A part of the form does not plainly say its name.")
    field_name = disposition[1] if disposition[1] is not None else disposition[2]
    if not _NAME.fullmatch(field_name):
        raise BodyInvalid("A part of the form has a name that is not plain.")
    if disposition[3] is not None and _NAME_INSIDE.search(disposition[3]):
        raise BodyInvalid("A file's name in the form looks like a field's.", param=field_name)
    return Part(
        name=field_name,
        is_file=disposition[3] is not None or disposition[4] is not None,
        content_type=headers.get("content-type"),
        value=value,
        length=length,
    )


def _check_headers(headers: dict[str, str], value_bytes: int) -> None:
    """Refuse what would make a reader take another value than its bytes. Raises BodyInvalid."""
    if headers.get("content-transfer-encoding", "binary").lower() not in _PLAIN_ENCODINGS:
        raise BodyInvalid("A part of the form is encoded. Send its bytes as they are.")
    length = headers.get("content-length")
    if length is not None and (not _DIGITS.fullmatch(length) or int(length) != value_bytes):
        raise BodyInvalid("A part of the form has another length than it says.")
    if headers.get("content-type", "").lower().startswith(("multipart/", "message/")):
        raise BodyInvalid("A part of the form has parts itself.")


# Values of the fields that decide


def _check_is_text(part: Part) -> None:
    if part.is_file or (part.content_type and not _TEXT_TYPE.fullmatch(part.content_type)):
        raise BodyInvalid(f"'{part.name}' is not a plain text field.", param=part.name)


def _model(text: bytes, part: Part | None, *, is_required: bool) -> str | None:
    if part is None:
        if is_required:
            raise BodyInvalid("The form has no field 'model'.", param=_MODEL)
        return None
    return _name(text, part)


def _name(text: bytes, part: Part) -> str:
    """Return the model that a field names."""
    _check_is_text(part)
    model = _text(text, part)
    problem = model_problem(model)
    if problem is not None:
        raise BodyInvalid(f"'{part.name}' {problem}.", param=part.name)
    return model


def _text(text: bytes, part: Part) -> str:
    start, end = part.value
    if end - start > VALUE_BYTES_MAX:
        raise BodyInvalid(f"'{part.name}' is too long.", param=part.name)
    try:
        return text[start:end].decode()
    except UnicodeDecodeError as error:
        raise BodyInvalid(f"'{part.name}' is not UTF-8.", param=part.name) from error
