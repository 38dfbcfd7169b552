r"""The request's body: the few fields that decide about a call, and the edits that it may need.

A body is read as the vendor will read it, or refused. Where parsers differ, a model list could be
slipped past: of two members `model` one reader takes the first and another the last,
`"mod\u0065l"` is a `model` only to those that open escapes, and `Model` is one to those that read
names in any case, as Go does. All are refused for the members that decide.

Nothing is written anew. An edit replaces or adds the bytes of one value; all others stay.
"""

import codecs
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import msgspec

from gateway.errors import BodyInvalid, BodyTooLarge, UnsupportedBody
from gateway.limits import REQUEST_BODY_BYTES_MAX
from gateway.metering.decoding import DECODERS, DecodedTooLarge, DecodingStopped
from gateway.proxy.routing import model_problem

MEMBERS_MAX: Final = 1_000  # of the body's object; the longest known requests have about 60
TOKENS_MAX: Final = 100_000  # looked at to find the end of one value that no API calls large
FEED_BYTES: Final = 4 * 1024  # of a compressed body at once: gzip swells 1,032-fold at most
UTF8_PIECE_BYTES: Final = 1024 * 1024  # checked at once; as text it may take four times that

Span = tuple[int, int]

DECIDING: Final = frozenset(  # the members that decide
    {b"background", b"model", b"models", b"stream", b"stream_options", b"svg"}
)
_OF_SVG: Final = frozenset({b"model"})
_OF_OPTIONS: Final = frozenset({b"include_usage"})
_ESCAPED_NAME_BYTES_MAX: Final = 6 * max(map(len, DECIDING | _OF_OPTIONS))  # all as \u0000
_KNOWN_NAMES_MAX: Final = 1_000  # of models: they are few, and come again and again
_KNOWN_NAME_BYTES_MAX: Final = 256
_ABSENT: Final = msgspec.Raw()
_STREAM_VALUES: Final = (b"", b"true", b"false", b"null")  # empty: it is not there
_USAGE_ASKED: Final = b'"include_usage":true'

# Possessive throughout: a long string must not pile up places to go back to.
_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
# A member, its value and what follows it; of a value that is no number, word or short plain text
# only where it begins (then groups 2 and 3 are None).
_MEMBER: Final = re.compile(
    rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"[ \t\r\n]*+:[ \t\r\n]*+'
    rb'(?:("[^"\\]{0,256}+"|[^"\[{ \t\r\n,}]++)[ \t\r\n]*+([,}])[ \t\r\n]*+)?',
    re.DOTALL,
)
_NEXT: Final = re.compile(rb"[ \t\r\n]*+([,}])[ \t\r\n]*+")
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)


class Members(msgspec.Struct):
    """What one decode finds in a body: it validates all of it, and tells where large values end.

    Besides the members that decide these are the ones that may be large, in any wire format. One
    that is missing here is read as well, more slowly.
    """

    model: msgspec.Raw = _ABSENT
    stream: msgspec.Raw = _ABSENT
    stream_format: msgspec.Raw = _ABSENT
    stream_options: msgspec.Raw = _ABSENT
    background: msgspec.Raw = _ABSENT
    models: msgspec.Raw = _ABSENT
    content: msgspec.Raw = _ABSENT
    store: msgspec.Raw = _ABSENT
    contents: msgspec.Raw = _ABSENT
    document: msgspec.Raw = _ABSENT
    documents: msgspec.Raw = _ABSENT
    functions: msgspec.Raw = _ABSENT
    generateContentRequest: msgspec.Raw = _ABSENT  # noqa: N815 - the API's name
    generationConfig: msgspec.Raw = _ABSENT  # noqa: N815 - the API's name
    images: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT
    instructions: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT
    requests: msgspec.Raw = _ABSENT
    response_format: msgspec.Raw = _ABSENT
    svg: msgspec.Raw = _ABSENT
    system: msgspec.Raw = _ABSENT
    systemInstruction: msgspec.Raw = _ABSENT  # noqa: N815 - the API's name
    system_instruction: msgspec.Raw = _ABSENT
    tools: msgspec.Raw = _ABSENT


class _Options(msgspec.Struct):
    """`stream_options`, as far as it decides."""

    include_usage: bool | None = None


_NAMES: Final[Mapping[bytes, str]] = MappingProxyType(
    {name.encode(): name for name in Members.__struct_fields__}
)
_SURROGATES: Final = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_REPLACEMENT: Final = rb"\\ufffd"

_decode_into: Final = msgspec.json.Decoder(Members).decode
_decode_text: Final = msgspec.json.Decoder(str).decode
_decode_texts: Final[Callable[[msgspec.Raw], list[str] | None]] = msgspec.json.Decoder(
    list[str] | None
).decode
_decode_options: Final[Callable[[msgspec.Raw], _Options | None]] = msgspec.json.Decoder(
    _Options | None
).decode


class DecidingFields(msgspec.Struct, kw_only=True, eq=False):
    """What a body says that decides about its call. Never changes.

    `background`: the answer is to be fetched later. `further_models`: what a vendor may use beside
    `model` or in its place (`models`; `svg.model`, which draws after a picture), None where that is
    no name or no list of names. `says_stream`: `stream` is there and not null. `streams_events`:
    speech is asked for in events; it is one binary stream else. `text` is the JSON, opened where
    the body is compressed; `members` and `spans` (where the values of members stand) are for edits.
    """

    model: str | None
    further_models: tuple[str, ...] | None
    background: bool
    stream: bool
    says_stream: bool
    streams_events: bool
    asks_usage: bool
    text: bytes
    members: Members
    spans: dict[bytes, Span]

    __repr__ = object.__repr__  # bodies are nobody's to read


def check_content_type(content_type: bytes) -> None:
    """Raise UnsupportedBody for a form with parts, which no endpoint with a JSON body takes."""
    if content_type.lstrip().lower().startswith(b"multipart/"):
        raise UnsupportedBody


def read_deciding_fields(
    body: bytes, *, content_encoding: bytes | None, model_required: bool
) -> DecidingFields:
    """Return what a whole body says.

    Raises BodyInvalid, naming the field at fault; UnsupportedBody and BodyTooLarge for its content
    encoding.
    """
    text = body if content_encoding is None else decoded_copy(body, content_encoding)
    members = decode_members(text)
    spans = member_spans(text, 0, wanted=DECIDING, members=members)
    stream = b"" if members.stream is _ABSENT else bytes(members.stream)
    if stream not in _STREAM_VALUES:
        raise BodyInvalid("'stream' is neither true nor false.", param="stream")
    options = None if members.stream_options is _ABSENT else _options(members.stream_options)
    names_more = members.models is not _ABSENT or members.svg is not _ABSENT
    return DecidingFields(
        model=_model(members.model, is_required=model_required),
        further_models=_further_models(members) if names_more else (),
        background=members.background is not _ABSENT and bytes(members.background) == b"true",
        stream=stream == b"true",
        says_stream=stream in (b"true", b"false"),
        streams_events=(
            members.stream_format is not _ABSENT and bytes(members.stream_format) == b'"sse"'
        ),
        asks_usage=options is not None and options.include_usage is True,
        text=text,
        members=members,
        spans=spans,
    )


def check_same_model(fields: DecidingFields, model_in_path: str) -> None:
    """Raise BodyInvalid where a body names another model than its path."""
    if fields.model is not None and fields.model.removeprefix("models/") != model_in_path:
        raise BodyInvalid("'model' in the body is not the model in the path.", param="model")


def edited(
    fields: DecidingFields,
    *,
    model: str | None = None,
    asks_usage: bool = False,
    inner: Sequence[tuple[Span, bytes]] = (),
) -> bytes:
    """Return the body's JSON naming another model, or asking for usage; all other bytes stay.

    `inner`: edits inside of other members, by where they stand.
    """
    text, spans = fields.text, fields.spans
    edits: list[tuple[Span, bytes]] = list(inner)
    if model is not None:
        edits.append((spans[b"model"], quoted(model)))
    if asks_usage and not fields.asks_usage:
        edits.append(_usage_edit(text, spans.get(b"stream_options")))
    view = memoryview(text)
    if len(edits) == 1:
        ((start, end), value) = edits[0]
        return b"".join((view[:start], value, view[end:]))
    parts: list[bytes | memoryview] = []
    at = 0
    for (start, end), value in sorted(edits):
        parts += (view[at:start], value)
        at = end
    return b"".join((*parts, view[at:]))


def quoted(text: str) -> bytes:
    """Return a text as it stands in a body."""
    return msgspec.json.encode(text)


def decoded_copy(body: bytes, encoding: bytes, bytes_max: int = REQUEST_BODY_BYTES_MAX) -> bytes:
    """Return a compressed body opened, at most `bytes_max`.

    Raises UnsupportedBody for an encoding that the gateway can't read, BodyTooLarge, BodyInvalid.
    """
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return body
    if name not in DECODERS:
        raise UnsupportedBody(
            "The gateway reads request bodies in gzip, deflate, br or zstd, one at a time."
        )
    decoder = DECODERS[name]()
    parts: list[bytes] = []
    room = bytes_max
    try:
        for at in range(0, len(body), FEED_BYTES):
            parts.append(decoder.feed(body[at : at + FEED_BYTES]))
            room -= len(parts[-1])
            if room < 0:
                raise BodyTooLarge
    except DecodedTooLarge as error:
        raise BodyTooLarge from error
    except DecodingStopped as error:
        raise BodyInvalid("The request body is not in its Content-Encoding.") from error
    return b"".join(parts)


# Values of the members that decide


def _model(raw: msgspec.Raw, *, is_required: bool) -> str | None:
    if raw is _ABSENT:
        if is_required:
            raise BodyInvalid("The request body has no 'model'.", param="model")
        return None
    written = bytes(raw)
    return (_known_name if len(written) <= _KNOWN_NAME_BYTES_MAX else _name)(written)


def _name(written: bytes) -> str:
    """Return a model's name from how it is written. Raises BodyInvalid."""
    try:
        model = _decode_text(written)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BodyInvalid("'model' is not a string.", param="model") from error
    problem = model_problem(model)
    if problem is not None:
        raise BodyInvalid(f"'model' {problem}.", param="model")
    return model


_known_name: Final = lru_cache(_KNOWN_NAMES_MAX)(_name)


def _further_models(members: Members) -> tuple[str, ...] | None:
    models = () if members.models is _ABSENT else _models(members.models)
    if models is None or not bytes(members.svg).startswith(b"{"):
        return models
    place = member_spans(bytes(members.svg), 0, wanted=_OF_SVG).get(b"model")
    if place is None:
        return models
    try:
        return (*models, _decode_text(bytes(members.svg)[slice(*place)]))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _models(raw: msgspec.Raw) -> tuple[str, ...] | None:
    try:
        return tuple(_decode_texts(raw) or ())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _options(raw: msgspec.Raw) -> _Options | None:
    """Return `stream_options`, None where it is null."""
    try:
        options = _decode_options(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BodyInvalid(
            "'stream_options' is not an object, or its 'include_usage' neither true nor false.",
            param="stream_options",
        ) from error
    if options is not None:
        member_spans(bytes(raw), 0, wanted=_OF_OPTIONS)
    return options


def _usage_edit(text: bytes, options: Span | None) -> tuple[Span, bytes]:
    """Return which bytes to replace by what, so that the vendor is asked for usage."""
    asked = b"{%b}" % _USAGE_ASKED
    if options is None:
        return _first_member(text, 0, b'"stream_options":' + asked)
    start, end = options
    if text[start:end] == b"null":
        return options, asked
    said = member_spans(text, start, wanted=_OF_OPTIONS).get(b"include_usage")
    if said is not None:
        return said, b"true"
    return _first_member(text, start, _USAGE_ASKED)


def _first_member(text: bytes, at: int, member: bytes) -> tuple[Span, bytes]:
    """Return the edit that puts a member first in the object that begins at `at`."""
    inside = past_space(text, at) + 1
    is_empty = text[past_space(text, inside)] == ord("}")
    return (inside, inside), member if is_empty else member + b","


# The text


def decode_members(text: bytes) -> Members:
    """Return what a JSON object says. Raises BodyInvalid."""
    if not text.isascii():
        _check_utf8(text)
    try:
        return _decode_into(text)
    except RecursionError as error:
        raise BodyInvalid("The request body is nested too deeply.") from error
    except msgspec.ValidationError as error:
        raise BodyInvalid("The request body is not a JSON object.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # JavaScript cuts texts in the middle of an emoji and escapes the half that is left; it is
        # the vendor's to judge. Read a copy of the same length without such escapes.
        whole, halves = _SURROGATES.subn(_REPLACEMENT, text)
        if not halves:
            raise BodyInvalid from error
    try:
        return _decode_into(whole)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BodyInvalid from error


def _check_utf8(text: bytes) -> None:
    view = memoryview(text)
    at = 0
    try:
        while at < len(text):
            piece = view[at : at + UTF8_PIECE_BYTES]
            at += codecs.utf_8_decode(piece, "strict", at + len(piece) == len(text))[1]
    except UnicodeDecodeError as error:
        raise BodyInvalid("The request body is not UTF-8.") from error


def member_spans(
    text: bytes, at: int, *, wanted: frozenset[bytes], members: Members | None = None
) -> dict[bytes, Span]:
    """Return where the values of the wanted members stand, of the object that begins at `at`.

    The text is valid JSON. Raises BodyInvalid for a wanted member that is there twice, or whose
    name is written with escapes or in another case.
    """
    spans: dict[bytes, Span] = {}
    if text.startswith(b'{"', at):  # as nearly all are written
        at += 1
    else:
        at = past_space(text, past_space(text, at) + 1)
    for _ in range(MEMBERS_MAX):
        found = _MEMBER.match(text, at)
        if found is None:  # the object is empty
            return spans
        name, mark = found.group(1, 3)
        start, end = found.span(2)
        at = found.end()
        if mark is None:
            start = at
            following = _after_value(text, start, name=name, members=members)
            mark, at, end = following[1], following.end(), following.start()
        if name in wanted:
            if name in spans:
                raise _doubtful(name, "is in the body twice")
            spans[name] = start, end
        elif name in _NAMES:
            pass  # it is what it seems
        elif len(name) <= _ESCAPED_NAME_BYTES_MAX and (
            name.lower() in wanted or b"\\" in name or not name.isascii()
        ):
            _check_disguise(name, wanted=wanted)
        if mark == b"}":
            return spans
    raise BodyInvalid(f"The request body has more than {MEMBERS_MAX} members.")


def _check_disguise(name: bytes, *, wanted: frozenset[bytes]) -> None:
    """Raise BodyInvalid where a name as it is written is a wanted one to some readers."""
    has_escapes = b"\\" in name
    text = json.loads(b'"%b"' % name) if has_escapes else name.decode()
    plain = text.casefold().encode("utf-8", "surrogatepass")
    if plain in wanted:
        problem = "is written with escapes" if has_escapes else "is written in another case"
        raise _doubtful(plain, problem)


def _doubtful(name: bytes, problem: str) -> BodyInvalid:
    return BodyInvalid(f"'{name.decode()}' {problem}.", param=name.decode())


def _after_value(
    text: bytes, start: int, *, name: bytes, members: Members | None
) -> re.Match[bytes]:
    """Return what follows the value of `name`, which begins at `start`.

    Of a value that was decoded the end is known; of a name that is there twice, the decoder tells
    the last value, and another one may stand here. Raises BodyInvalid past TOKENS_MAX.
    """
    if members is not None and name in _NAMES:
        raw = memoryview(getattr(members, _NAMES[name]))
        if text.startswith(raw, start):
            following = _NEXT.match(text, start + len(raw))
            if following is not None:
                return following
    if text[start : start + 1] in (b"{", b"["):
        end = _end_of_container(text, start)
    else:
        found = _STRING.match(text, start)
        assert found is not None
        end = found.end()
    following = _NEXT.match(text, end)
    assert following is not None
    return following


def _end_of_container(text: bytes, start: int) -> int:
    depth = 0
    for _, token in zip(range(TOKENS_MAX), _TOKEN.finditer(text, start), strict=False):
        match token[0]:
            case b"{" | b"[":
                depth += 1
            case b"}" | b"]":
                depth -= 1
                if not depth:
                    return token.end()
            case _:
                pass
    raise BodyInvalid(f"A member of the request body has more than {TOKENS_MAX} values in it.")


def past_space(text: bytes, at: int) -> int:
    """Return where the next thing of a JSON text stands, from `at` on."""
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()
