"""Entity tags (RFC 9110, 8.8.3): which version of a thing an answer showed."""

import hashlib
from typing import Final

import msgspec

_HEX_DIGITS: Final = 32


def etag_of(answer: object) -> str:
    """Return the strong tag of an answer, quotes included."""
    return etag_of_bytes(msgspec.json.encode(answer))


def etag_of_bytes(body: bytes) -> str:
    """Return the strong tag of an answer's bytes, quotes included."""
    return f'"{hashlib.sha256(body).hexdigest()[:_HEX_DIGITS]}"'


def matches(header: str, tag: str) -> bool:
    """Return whether an `If-Match` or `If-None-Match` header names a tag, or any."""
    named = [one.strip().removeprefix("W/") for one in header.split(",")]
    return "*" in named or tag in named
