"""AWS Signature Version 4 of a request, over head and body, for every service but S3.

The path is signed as it is sent, escaped once more: `%3A` in a model's id is `%253A` to the
signature. Headers are signed that AWS requires, as far as they are there: `host`, `content-type`
and what begins with `x-amz-`. What a proxy on the way may add or change is not.
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote_to_bytes

ALGORITHM: Final = "AWS4-HMAC-SHA256"

_SIGNED: Final = ("host", "content-type")
_SIGNED_PREFIX: Final = "x-amz-"
_DAY_KEYS_MAX: Final = 64  # of key pairs, regions and days: a few are in use at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """A key pair of AWS; temporary ones come with a session token."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)


def signed_headers(
    *,
    method: str,
    path: str,
    query: str,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    keys: Keys,
    region: str,
    service: str,
    now: float,
) -> list[tuple[str, str]]:
    """Return the headers to add to a request so that it is signed.

    `path` and `query` are as sent, `headers` those that are sent besides, with `host`; `now` in
    Unix seconds.
    """
    date = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    added = [("x-amz-date", date)]
    if keys.session_token:
        added.append(("x-amz-security-token", keys.session_token))
    canonical, names = _canonical_headers([*headers, *added])
    request = "\n".join(
        (
            method,
            quote(path or "/", safe="/-_.~"),
            _canonical_query(query),
            canonical,
            names,
            hashlib.sha256(body).hexdigest(),
        )
    )
    scope = f"{date[:8]}/{region}/{service}/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    day_key = _day_key(keys.secret_key, date[:8], region, service)
    signature = _hmac(day_key, f"{ALGORITHM}\n{date}\n{scope}\n{digest}").hex()
    authorization = (
        f"{ALGORITHM} Credential={keys.access_key}/{scope}, SignedHeaders={names}, "
        f"Signature={signature}"
    )
    return [*added, ("authorization", authorization)]


def _canonical_headers(headers: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """Return the lines of the headers that are signed, each with its end, and their names."""
    values: dict[str, list[str]] = {}
    for name, value in headers:
        lower = name.lower()
        if lower in _SIGNED or lower.startswith(_SIGNED_PREFIX):
            values.setdefault(lower, []).append(" ".join(value.split()))
    lines = "".join(f"{name}:{','.join(values[name])}\n" for name in sorted(values))
    return lines, ";".join(sorted(values))


def _canonical_query(query: str) -> str:
    if not query:
        return ""
    pairs = (part.partition("=") for part in query.split("&"))
    return "&".join(sorted(f"{_escaped(name)}={_escaped(value)}" for name, _, value in pairs))


def _escaped(text: str) -> str:
    return quote(unquote_to_bytes(text), safe="-_.~")


@lru_cache(maxsize=_DAY_KEYS_MAX)
def _day_key(secret: str, day: str, region: str, service: str) -> bytes:
    """Return the key of one day: four of the six digests of a signature are the same all day."""
    key = f"AWS4{secret}".encode()
    for text in (day, region, service, "aws4_request"):
        key = _hmac(key, text)
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
