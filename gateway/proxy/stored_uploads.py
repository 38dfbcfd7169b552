"""Files on their way to a vendor: passed on as bytes, looked at where a part of them decides.

A file of a batch names models and may name stored objects, line by line; it is read like any body,
and only a file that was read may begin a batch. A form that two readers may take differently is not
read as such a file, whatever it says.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from gateway.errors import BodyInvalid, RequestInvalid, UnsupportedBody
from gateway.proxy.stored_batches import models_of_line
from gateway.proxy.stored_objects import Named, named_in_line

PARTS_MAX: Final = 64  # of a form; SDKs send two to six
BATCH_LINES_MAX: Final = 200_000  # vendors take 50,000 to 100,000 requests

_FORM: Final = "multipart/form-data"
_RELATED: Final = "multipart/related"
_BOUNDARY: Final = re.compile(
    r"\s*;\s*boundary=(?:\"([A-Za-z0-9'()+_,./:=? -]{1,70})\"|([A-Za-z0-9'()+_,./:=?-]{1,70}))\s*",
    re.IGNORECASE,
)
# Exactly so, in a form that is read: a name, and perhaps a file's.
_DISPOSITION: Final = re.compile(
    rb'form-data; ?name="([A-Za-z0-9_\[\]-]{1,64})"(?:; ?filename="([^"\\\r\n]*)")?'
)
_HEADER: Final = re.compile(rb"([A-Za-z0-9-]{1,64}):[ \t]*([^\r\n]*)")
_UPLOAD_TYPES: Final = ("uploadType", "upload_protocol")
_UPLOAD_QUERY: Final = frozenset({"alt", "fields", "key", "prettyPrint"})
_RESUMABLE: Final = "resumable"
_PROTOCOL: Final = b"x-goog-upload-protocol"
_COMMAND: Final = b"x-goog-upload-command"
_START: Final = frozenset({"start"})
_GOES_ON: Final = frozenset({"upload", "finalize", "query", "cancel"})
_HOW: Final = (
    "The gateway takes files in one request ('uploadType=multipart', or the header "
    "'X-Goog-Upload-Protocol: multipart' or 'raw') or in several ('X-Goog-Upload-Protocol: "
    "resumable', begun with 'X-Goog-Upload-Command: start')."
)
# Objects are tuples of (name, value): a name that is there twice is read twice.
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=len, parse_float=len, strict=False
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What is known of a file that is uploaded.

    `models` are those that a batch's lines name; None among them: a line names none.
    """

    is_batch_input: bool = False
    begins: bool = False  # it goes on in further requests
    models: frozenset[str | None] = frozenset()
    named: tuple[Named, ...] = field(default=())


def read_form(body: bytes, content_type: str) -> Upload:
    """Return what a form says that uploads a file. Raises UnsupportedBody, BodyInvalid."""
    boundary = _boundary(content_type, _FORM)
    if boundary is None:
        raise UnsupportedBody("This endpoint takes a form with the file in it.")
    parts = _parts(body, boundary)
    if parts is None:
        return Upload()
    values = dict(parts)
    if len(values) != len(parts) or values.get(b"purpose") != b"batch" or b"file" not in values:
        return Upload()
    found: dict[Named, None] = {}
    models: set[str | None] = set()
    content = values[b"file"]
    for number, line in enumerate(_lines(content)):
        if number >= BATCH_LINES_MAX:
            raise BodyInvalid(f"A batch has at most {BATCH_LINES_MAX} requests.")
        models |= models_of_line(line)
        found.update(dict.fromkeys(named_in_line(line)))
    return Upload(is_batch_input=True, models=frozenset(models), named=tuple(found))


def read_gemini_upload(
    body: bytes,
    *,
    content_type: str,
    headers: Iterable[tuple[bytes, bytes]],
    query: bytes,
) -> Upload:
    """Return how a Gemini file is uploaded: in this request, or in others that it begins.

    A file's name is the vendor's to give: one that the client chose may have been another's before.
    Raises UnsupportedBody, RequestInvalid, BodyInvalid.
    """
    protocols, commands = _said(headers)
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name in _UPLOAD_TYPES:
            protocols.append(value.lower())
        elif name not in _UPLOAD_QUERY:
            raise RequestInvalid("The gateway does not know this parameter of an upload.")
    match set(protocols):
        case set() as one if one == {_RESUMABLE} and commands == _START:
            if body:
                check_metadata(body)
            return Upload(begins=True)
        case _ if commands:
            raise UnsupportedBody(_HOW)
        case set() as one if one <= {"raw", "media"} and one:
            return Upload()
        case set() as one if one == {"multipart"}:
            pass
        case _:
            raise UnsupportedBody(_HOW)
    boundary = _boundary(content_type, _RELATED)
    metadata = None if boundary is None else _related(body, boundary)
    if metadata is None:
        raise UnsupportedBody("This upload is not 'multipart/related', or not plainly so.")
    check_metadata(metadata)
    return Upload()


def check_resumed(*, headers: Iterable[tuple[bytes, bytes]], query: bytes) -> None:
    """Raise where a request does not plainly go on with the upload that its query names."""
    protocols, commands = _said(headers)
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    protocols += [value.lower() for name, value in pairs if name in _UPLOAD_TYPES]
    if not commands or not commands <= _GOES_ON or not set(protocols) <= {_RESUMABLE}:
        raise UnsupportedBody(_HOW)


def _said(headers: Iterable[tuple[bytes, bytes]]) -> tuple[list[str], set[str]]:
    """Return the protocols and the commands that headers name, in lower case."""
    protocols: list[str] = []
    commands: set[str] = set()
    for header, value in headers:
        said = value.decode("latin-1").strip().lower()
        if header == _PROTOCOL:
            protocols.append(said)
        elif header == _COMMAND:
            commands.update(word.strip() for word in said.split(","))
    return protocols, commands


def check_metadata(text: bytes) -> None:
    """Raise BodyInvalid where a file's metadata has a name in it, whichever of two counts."""
    try:
        metadata = _DECODER.decode(text.decode())
    except (ValueError, RecursionError) as error:
        raise BodyInvalid("What the upload says of its file is not JSON.") from error
    if _has_name(metadata):
        raise BodyInvalid("A file's name is the vendor's to give: leave it out.", param="name")


def _has_name(metadata: Any) -> bool:  # noqa: ANN401 - JSON
    """Return whether there is a `name` in a file's metadata, at any depth."""
    if isinstance(metadata, tuple):
        return any(name.lower() == "name" or _has_name(value) for name, value in metadata)
    return isinstance(metadata, list) and any(map(_has_name, metadata))


def _lines(content: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(content):
        end = content.find(b"\n", at)
        end = len(content) if end < 0 else end
        line = content[at:end].strip()
        if line:
            yield line
        at = end + 1


def _boundary(content_type: str, media_type: str) -> bytes | None:
    if content_type[: len(media_type)].lower() != media_type:
        return None
    found = _BOUNDARY.fullmatch(content_type[len(media_type) :])
    return None if found is None else (found[1] or found[2]).encode()


def _raw_parts(body: bytes, boundary: bytes) -> list[bytes] | None:
    """Return the parts between the boundaries, None where the body is not plainly made of them."""
    line = b"--" + boundary
    if not body.startswith(line + b"\r\n"):
        return None
    pieces = body[len(line) :].split(b"\r\n" + line, PARTS_MAX)
    *parts, end = pieces
    if not end.startswith(b"--") or end[2:].strip(b"\r\n"):
        return None
    if any(not part.startswith(b"\r\n") for part in parts):
        return None
    return [part[2:] for part in parts]


def _parts(body: bytes, boundary: bytes) -> list[tuple[bytes, bytes]] | None:
    """Return name and value of each field of a form, None where it is not a plain one."""
    raw = _raw_parts(body, boundary)
    if raw is None:
        return None
    fields = []
    for part in raw:
        head, separator, value = part.partition(b"\r\n\r\n")
        headers = _headers(head) if separator else None
        if headers is None or not headers.keys() <= {b"content-disposition", b"content-type"}:
            return None
        found = _DISPOSITION.fullmatch(headers.get(b"content-disposition", b""))
        if found is None:
            return None
        fields.append((found[1], value))
    return fields


def _related(body: bytes, boundary: bytes) -> bytes | None:
    """Return the first part of a related pair, None where it is not plainly one."""
    raw = _raw_parts(body, boundary)
    if raw is None or len(raw) != 2:  # noqa: PLR2004 - what the file is, and the file
        return None
    head, separator, value = raw[0].partition(b"\r\n\r\n")
    headers = _headers(head) if separator else None
    if headers is None or b"content-transfer-encoding" in headers:
        return None
    return value


def _headers(head: bytes) -> dict[bytes, bytes] | None:
    headers: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        found = _HEADER.fullmatch(line)
        if found is None or found[1].lower() in headers:
            return None
        headers[found[1].lower()] = found[2].strip()
    return headers
