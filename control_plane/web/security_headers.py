"""The headers that every answer of the control plane has, refusals and errors included."""

from collections.abc import Mapping
from typing import Final

from aiohttp import web

HEADERS: Final[Mapping[str, str]] = {
    "strict-transport-security": "max-age=63072000; includeSubDomains; preload",
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=()",
}
# Defaults, which a page may replace.
CONTENT_SECURITY_POLICY: Final = "default-src 'none'; frame-ancestors 'none'"
CACHE_CONTROL: Final = "no-store"


def harden(response: web.StreamResponse) -> None:
    """Put the headers on an answer, and take off what tells of the server."""
    response.headers.update(HEADERS)
    response.headers.setdefault("content-security-policy", CONTENT_SECURITY_POLICY)
    response.headers.setdefault("cache-control", CACHE_CONTROL)
    response.headers.popall("server", None)
