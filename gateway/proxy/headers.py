"""Headers on their way up and down: all pass as sent, but for those that are denied.

Up, nothing passes that is the client's credential, says where it is, belongs to the connection, or
selects an account of the gateway's owner; down, nothing that would make a browser believe things
about the gateway's own origin. Names are in lower case throughout.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl, unquote_to_bytes

from gateway.proxy.routing import Target

Headers = list[tuple[bytes, bytes]]

_CONNECTION: Final = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
CREDENTIALS: Final = frozenset(
    {
        b"api-key",
        b"authorization",
        b"cookie",
        b"cookie2",
        b"x-api-key",
        b"x-goog-api-key",
    }
)
# Where a client is, by what stands between it and the gateway; and what overrides a method or path.
_FORWARDING: Final = frozenset(
    {
        b"cdn-loop",
        b"client-ip",
        b"fastly-client-ip",
        b"fly-client-ip",
        b"forwarded",
        b"true-client-ip",
        b"via",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-forwarded",
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-original-forwarded-for",
        b"x-original-host",
        b"x-original-url",
        b"x-originating-ip",
        b"x-real-ip",
        b"x-remote-addr",
        b"x-remote-ip",
        b"x-rewrite-url",
    }
)
_REBUILT: Final = frozenset({b"accept-encoding", b"content-length", b"expect", b"host"})
_PARTIAL: Final = frozenset({b"x-goog-fieldmask"})  # leaves the usage out of an answer
# Of what was made before its usage is told once: by whoever has read it whole.
_RANGES: Final = frozenset({b"range", b"if-range"})
_ACCOUNT: Final = frozenset({b"openai-organization", b"openai-project", b"x-goog-user-project"})

_OF_BODY: Final = frozenset({b"content-encoding", b"content-type"})  # how the gateway read it

_DENIED_UP: Final = _CONNECTION | CREDENTIALS | _FORWARDING | _REBUILT | _ACCOUNT | _PARTIAL
_DENIED_UP_PREFIXES: Final = (
    b"cf-",
    b"x-amz-",  # a signature of the client's own
    b"x-amzn-oidc-",
    b"x-auth-request-",
    b"x-envoy-",
    b"x-forwarded-",
    b"x-goog-authenticated-user-",
    b"x-goog-iap-",
    b"x-kaixu-",
)
_DENIED_DOWN: Final = _CONNECTION | {
    b"alt-svc",
    b"content-length",
    b"server",
    b"set-cookie",
    b"set-cookie2",
    b"strict-transport-security",
}
_OWN_PREFIX: Final = b"x-kaixu-"
TICKET_PARAMETER: Final = b"kaixu_upload"  # in the address of an upload: stands for a token
_OWN_PARAMETERS: Final = (b"key", TICKET_PARAMETER)

_OPTIONS: Final = frozenset({b"close", b"keep-alive"})  # in Connection, which are no names

_READABLE: Final = frozenset({b"br", b"deflate", b"gzip", b"identity", b"zstd"})
_IDENTITY: Final = b"identity"
_REFUSED: Final = re.compile(rb"[ \t]*[qQ]=0(?:\.0*)?[ \t]*")
_CACHED_VALUES_MAX: Final = 64  # of Accept-Encoding; clients have a handful
_CACHED_NAMES_MAX: Final = 512  # of headers; all known clients together send about 150


def upstream_headers(
    headers: Sequence[tuple[bytes, bytes]],
    *,
    target: Target,
    stream: bool,
    body_length: int | None,
    drop_content_encoding: bool,
) -> bytes:
    """Return the header lines of a request to a vendor, without the blank line after them.

    `body_length` in bytes, None for a request without a body; `drop_content_encoding` where the
    body goes up decoded. Events are asked for uncompressed: each is passed on as it comes.
    """
    lines = passed_up(
        headers,
        account_headers=target.account_headers,
        stream=stream,
        drop_content_encoding=drop_content_encoding,
    )
    return upstream_lines(target, lines, body_length=body_length)


def upstream_lines(target: Target, lines: bytes, *, body_length: int | None) -> bytes:
    """Return the header lines of a request, of which `lines` are the client's that pass."""
    if body_length is None:
        return target.head + lines
    return b"%b%bcontent-length: %d\r\n" % (target.head, lines, body_length)


def passed_up(
    headers: Sequence[tuple[bytes, bytes]],
    *,
    account_headers: bool,
    stream: bool,
    drop_content_encoding: bool = False,
) -> bytes:
    """Return the lines of a request's headers that a vendor gets; the rest is the gateway's own."""
    lines: list[bytes] = []
    accepted: list[bytes] = []
    left_out = {b"content-encoding"} if drop_content_encoding else set()
    for header in headers:
        name = header[0]
        if _passes_up(name) or (account_headers and name in _ACCOUNT):
            lines.append(b": ".join(header))
        elif name == b"accept-encoding":
            accepted.append(header[1])
        elif name == b"connection":
            left_out |= _named(header[1])
    if left_out:
        lines = [line for line in lines if line.partition(b":")[0] not in left_out]
    encodings = _IDENTITY if stream or not accepted else _accept_encoding(b",".join(accepted))
    lines.append(b"accept-encoding: %b\r\n" % encodings)
    return b"\r\n".join(lines)


def downstream_headers(headers: Headers) -> Headers:
    """Return what passes of a vendor's headers, in order; the framing is the gateway's own."""
    passed: Headers = []
    left_out: set[bytes] = set()
    for header in headers:
        if _passes_down(header[0]):
            passed.append(header)
        elif header[0] == b"connection":
            left_out |= _named(header[1])
    return [one for one in passed if one[0] not in left_out] if left_out else passed


def without_ranges(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return headers without those that ask for a part of an answer."""
    return [header for header in headers if header[0].replace(b"_", b"-") not in _RANGES]


def asks_for_part(query: bytes) -> bool:
    """Return whether a query of Google's wants some fields only, or a form that tells no usage.

    Source: the standard query parameters of Google's APIs (fields, alt, callback).
    """
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        plain = name.removeprefix("$").lower()
        if plain in ("fields", "callback") or (plain == "alt" and value not in ("json", "sse")):
            return True
    return False


def upstream_query(query: bytes) -> bytes:
    """Return a query without the parameters that carry a credential; the rest as sent."""
    if not query:
        return query
    return b"&".join(part for part in query.split(b"&") if not _is_credential(part))


def _is_credential(part: bytes) -> bool:
    name = part.partition(b"=")[0]
    return name in _OWN_PARAMETERS or (b"%" in name and unquote_to_bytes(name) in _OWN_PARAMETERS)


def _named(connection: bytes) -> set[bytes]:
    """Return the names that Connection lists: they are for the next hop only."""
    return {name.strip(b" \t").lower() for name in connection.split(b",")} - _OPTIONS


@lru_cache(maxsize=_CACHED_NAMES_MAX)
def _passes_up(name: bytes) -> bool:
    """Return whether a header goes to every vendor; to some servers, '_' in a name is '-'."""
    plain = name.replace(b"_", b"-")
    if plain in _DENIED_UP or plain.startswith(_DENIED_UP_PREFIXES):
        return False
    return plain == name or plain not in _OF_BODY


@lru_cache(maxsize=_CACHED_NAMES_MAX)
def _passes_down(name: bytes) -> bool:
    """Return whether a vendor's header goes to the client."""
    return name not in _DENIED_DOWN and not name.startswith(_OWN_PREFIX)


@lru_cache(maxsize=_CACHED_VALUES_MAX)
def _accept_encoding(value: bytes) -> bytes:
    """Return what is left of Accept-Encoding: what the meter can read, as the client weighs it."""
    kept: list[bytes] = []
    for element in value.split(b","):
        coding, _, weight = element.partition(b";")
        coding = coding.strip(b" \t").lower()
        if coding in _READABLE and (coding == _IDENTITY or not _REFUSED.fullmatch(weight)):
            kept.append(element.strip(b" \t"))
    return b", ".join(kept) or _IDENTITY
