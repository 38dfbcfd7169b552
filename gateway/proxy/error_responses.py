"""Refusals as a client meets them: a whole answer, the end of a stream, a vendor's masked text.

Everything here is constant but for the gateway's own codes: nothing of a request is echoed.
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

from gateway.errors import GatewayError
from gateway.proxy.endpoints import Endpoint
from gateway.vendors.vendor import WireFormat

MASKED_KEY_BYTES_MIN: Final = 8  # a shorter key is a placeholder; masking it would garble words

_PHRASES: Final[Mapping[int, bytes]] = MappingProxyType(
    {status.value: status.phrase.encode() for status in HTTPStatus}
)
# How many characters of base64 depend on what stands before a key, by that text's length mod 3.
_BASE64_SHARED: Final = (0, 2, 3)


def error_response(
    error: GatewayError,
    *,
    wire: WireFormat,
    call_id: str,
    head_only: bool = False,
    keep_alive: bool,
) -> bytes:
    """Return a whole HTTP/1.1 answer in the shape of a client's wire format.

    `head_only`: the answer to HEAD, without a body.
    """
    body = wire.error_body(
        status=error.status,
        reason=error.reason,
        message=error.message,
        call_id=call_id,
        param=error.param,
    )
    extra = "".join(f"{name}: {value}\r\n" for name, value in error.headers.items())
    if not error.retry:
        extra += "x-should-retry: false\r\n"
    if not keep_alive:
        extra += "connection: close\r\n"
    head = (
        b"HTTP/1.1 %d %b\r\n"
        b"content-type: application/json\r\n"
        b"content-length: %d\r\n"
        b"cache-control: no-store\r\n"
        b"x-content-type-options: nosniff\r\n"
        b"x-kaixu-call-id: %b\r\n"
        b"x-kaixu-reason: %b\r\n"
        b"%b\r\n"
    ) % (
        error.status,
        _PHRASES.get(error.status, b"Error"),
        len(body),
        call_id.encode(),
        error.reason.encode(),
        extra.encode(),
    )
    return head if head_only else head + body


def stream_error(endpoint: Endpoint, *, reason: str, message: str, call_id: str) -> bytes | None:
    """Return the event that ends a stream which can't go on, None where the format has none."""
    shape = endpoint.stream_error_event or endpoint.wire.stream_error_event
    return None if shape is None else shape(reason=reason, message=message, call_id=call_id)


def mask_key(body: bytes, key: bytes) -> bytes:
    """Return what a vendor said with each occurrence of its key replaced by '*', length kept.

    The key is looked for as it is, URL-encoded, as JSON escapes it, in base64 and hexadecimal.
    """
    if len(key) < MASKED_KEY_BYTES_MIN:
        return body
    for form in sorted(set(_forms(key)), key=len, reverse=True):
        if form in body:
            body = body.replace(form, b"*" * len(form))
    return body


def mask_keys(body: bytes, keys: Iterable[bytes]) -> bytes:
    """Return what a vendor said with each occurrence of any of its keys masked."""
    for key in keys:
        body = mask_key(body, key)
    return body


def _forms(key: bytes) -> Iterator[bytes]:
    text = key.decode("latin-1")
    yield key
    encoded = quote(key, safe="")
    yield encoded.encode()
    yield quote(key).encode()  # with '/' as it is
    yield _lower_escapes(encoded).encode()
    escaped = json.dumps(text)[1:-1]
    yield escaped.encode()
    yield escaped.replace("/", "\\/").encode()
    for upper in (False, True):
        for dangerous in ("<>&", "<>&'", "<>&'+=/"):
            yield _unicode_escapes(escaped, dangerous, upper=upper).encode()
    yield key.hex().encode()
    yield key.hex().upper().encode()
    for before, shared in enumerate(_BASE64_SHARED):
        whole = (before + len(key)) // 3 * 4  # characters that no later byte has a part in
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(bytes(before) + key)[shared:whole]


def _lower_escapes(encoded: str) -> str:
    first, *others = encoded.split("%")
    return "%".join([first, *(other[:2].lower() + other[2:] for other in others)])


def _unicode_escapes(text: str, characters: str, *, upper: bool) -> str:
    r"""Return JSON text with some characters written as `\u003c`, as careful encoders do."""
    for character in characters:
        code = f"{ord(character):04X}" if upper else f"{ord(character):04x}"
        text = text.replace(character, "\\u" + code)
    return text
