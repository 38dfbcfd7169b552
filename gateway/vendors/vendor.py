"""What the proxy must know of an API: as data, and as pure functions over bytes and text.

Two things that are often one, but not always, are kept apart. A `WireFormat` is how clients and
vendors talk: the shape of errors, of an error inside a stream, of model lists. A `VendorKind` is
how one is called: address, credential, which refusals are about the gateway's own key. A client's
wire format shapes what it is answered, the target's kind shapes what goes up.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from gateway.connect_guard import BaseUrl
from gateway.vendors.credential import KeyUnusable, Signer

MODELS_MAX: Final = 10_000  # read out of one vendor's list; the longest known has under 1,000
MODEL_ID_CHARS_MAX: Final = 256
ERROR_DETAILS_MAX: Final = 16  # looked at in an error body
KEY_BYTES_MAX: Final = 16 * 1024  # a credential; bearer tokens of clouds have up to 4 KiB

_HEADER_VALUE: Final = re.compile(rb"[\x21-\x7e]+")


class ModelListUnreadable(Exception):
    """What a vendor answered is not its model list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as the gateway lists it."""

    id: str
    owner: str = ""  # the vendor's name
    created: int = 0  # Unix seconds, 0 where unknown


class ErrorBody(Protocol):
    """Shapes an error. `reason` is the gateway's own code, `message` is safe to show."""

    def __call__(
        self, *, status: int, reason: str, message: str, call_id: str, param: str | None = None
    ) -> bytes:
        """Return the JSON body; `param` names the field of the request at fault."""
        ...


class StreamErrorEvent(Protocol):
    """Shapes the event that ends a stream which can't go on."""

    def __call__(self, *, reason: str, message: str, call_id: str) -> bytes:
        """Return the whole event, with its blank line."""
        ...


class ModelList(Protocol):
    """Shapes a list of models."""

    def __call__(self, models: Sequence[Model], *, has_more: bool = False) -> bytes:
        """Return the JSON body; `has_more` says that this is not the last page."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WireFormat:
    """How clients and vendors talk.

    `stream_error_event` is None where the format has no such event: the connection is aborted then.
    """

    name: str
    error_body: ErrorBody
    stream_error_event: StreamErrorEvent | None
    models_list_body: ModelList
    model_body: Callable[[Model], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorKind:
    """How a vendor is called.

    - `credential_header(key)`: name (lower case) and value of the header. Raises KeyUnusable.
    - `target_path(base_path, path)`: the path to ask for; both as sent, without a query.
    - `needs_usage_asked`: streams report usage only when `stream_options.include_usage` asks.
    - `bad_key(status, body)`: whether a refusal is about the gateway's own key.
    - `models_path`: where it lists its models, in its own wire format, below the base URL's path;
      `models_headers`: what such a request needs besides the credential. Empty: it is not asked.
    - `model_ids(body)`: the ids in that list. Raises ModelListUnreadable.
    - `open_signer(key, base)`: what makes the credential for each request, None where the header
      is all; the header is empty beside one. Raises KeyUnusable. None: there never is one.
    - `bad_key_headers(status, headers)`: as `bad_key`, of a refusal's headers.
    - `paths_of`: whose paths it answers, where that is not the wire format's alone.
    """

    name: str
    wire: WireFormat
    default_base_url: str
    needs_usage_asked: bool
    credential_header: Callable[[bytes], tuple[bytes, bytes]]
    target_path: Callable[[str, str], str]
    bad_key: Callable[[int, bytes], bool]
    models_path: str
    model_ids: Callable[[bytes], list[str]]
    models_headers: tuple[tuple[bytes, bytes], ...] = ()
    open_signer: Callable[[bytes, BaseUrl], Signer | None] | None = None
    bad_key_headers: Callable[[int, Sequence[tuple[bytes, bytes]]], bool] | None = None
    paths_of: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of paths that lead to it; of the first it may be the default."""
        return self.paths_of or (self.wire.name,)


def header_value(key: bytes) -> bytes:
    """Return a vendor key as it may stand in a header. Raises KeyUnusable."""
    if len(key) > KEY_BYTES_MAX or not _HEADER_VALUE.fullmatch(key):
        raise KeyUnusable("A vendor key has to be visible ASCII without spaces.")
    return key


def below_base(base_path: str, path: str) -> str:
    """Return `path` below the path of a base URL."""
    return base_path.rstrip("/") + path


def error_codes(body: bytes) -> frozenset[str]:
    """Return every code, type, status and reason that an error body names. Never raises."""
    document = _decoded(body)
    if isinstance(document, list) and document:  # Google's OpenAI-compatible endpoint
        document = document[0]
    error = document.get("error") if isinstance(document, dict) else None
    return frozenset(_codes(error)) if isinstance(error, dict) else frozenset()


def _codes(error: Mapping[str, Any]) -> Iterator[str]:
    details = error.get("details")
    rows = details[:ERROR_DETAILS_MAX] if isinstance(details, list) else []
    for row in [error, *rows]:
        if isinstance(row, dict):
            for name in ("code", "type", "status", "reason"):
                if isinstance(row.get(name), str):
                    yield row[name]


def listed_ids(body: bytes, *, member: str, name: str) -> list[str]:
    """Return `name` of each row in the list `member`. Raises ModelListUnreadable."""
    document = _decoded(body)
    rows = document.get(member) if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise ModelListUnreadable(f"There is no list '{member}' in the vendor's model list.")
    ids = (row.get(name) for row in rows[:MODELS_MAX] if isinstance(row, dict))
    return [
        one
        for one in ids
        if isinstance(one, str) and 0 < len(one) <= MODEL_ID_CHARS_MAX and one.isprintable()
    ]


def json_body(document: object) -> bytes:
    """Return JSON, as the gateway's own answers carry it."""
    return msgspec.json.encode(document)


def _decoded(body: bytes) -> Any:  # noqa: ANN401 - JSON
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
