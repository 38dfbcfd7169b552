"""What a request's head has to be, beyond what the parser asks of it. Nothing is mended: refused.

The parser is strict about bytes, lengths and chunks. What it lets pass and another server might
read in another way is refused here, so that nobody in front of the gateway or behind it sees
another request than the gateway does.
"""

import re
from functools import lru_cache
from typing import Final

from gateway.errors import Misdirected, RequestInvalid, UpgradeRefused, VersionNotSupported
from gateway.proxy.headers import Headers

REQUEST_LINE_SPACES: Final = 2
PORT_MAX: Final = 65_535

# As long as names in DNS and addresses are, for they are remembered.
_HOST: Final = re.compile(
    rb"(?P<name>[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{1,45}\])(?::(?P<port>[0-9]{1,5}))?"
)
_TARGET: Final = re.compile(rb"/[\x21-\x7e]*")
_OTHER_PROTOCOLS: Final = (b" RTSP/", b" ICE/")  # which the parser takes for HTTP
_PLAIN_LINE: Final = re.compile(rb"[A-Z]++ [!-~]++ HTTP/1\.1\r\n")  # as clients write it
_END_OF_LINE: Final = b"\r\n"
_VERSIONS: Final = ("1.1", "1.0")
_NOT_ONE_HOST: Final = "There is not one Host header."
_CACHED_HOSTS_MAX: Final = 256  # clients of a gateway call it by a handful of names
_WEBSOCKET: Final = b"websocket"


def check_head(
    *, version: str, target: bytes, headers: Headers, hosts: frozenset[bytes] | None
) -> None:
    """Raise RequestInvalid where the parser is lax; header names are in lower case.

    `hosts`: the names, as `host` or `host:port` in lower case, that the gateway is called by;
    another is Misdirected. None: any.
    """
    if version not in _VERSIONS:
        raise VersionNotSupported
    if _TARGET.fullmatch(target) is None:
        raise RequestInvalid("The request's target is not a path.")
    named: bytes | None = None
    for name, value in headers:
        if name == b"host":
            if named is not None:
                raise RequestInvalid(_NOT_ONE_HOST)
            named = _checked_host(value)
        elif name == b"transfer-encoding" and (
            version == "1.0" or value.strip().lower() != b"chunked"
        ):
            raise RequestInvalid("The Transfer-Encoding is not chunked alone.")
    if named is None and version == "1.1":
        raise RequestInvalid(_NOT_ONE_HOST)
    if hosts is not None and (named is None or not _is_among(named, hosts)):
        raise Misdirected


def is_path(target: bytes) -> bool:
    """Return whether a target is in origin form."""
    return _TARGET.fullmatch(target) is not None


def read_line(held: bytes, data: bytes) -> tuple[bytes | None, bool]:
    """Take in bytes of a request line, of which `held` came before; not blank lines before it.

    Return what is to be held of it, None where it is whole; and whether it may still be a line of
    HTTP in three plain words.
    """
    if not held and _PLAIN_LINE.match(data) is not None:
        return None, True
    line = (held + data).lstrip(_END_OF_LINE)
    end = line.find(_END_OF_LINE)
    seen = line if end < 0 else line[:end]
    is_plain = seen.count(b" ") <= REQUEST_LINE_SPACES and not any(
        protocol in seen for protocol in _OTHER_PROTOCOLS
    )
    return (line if end < 0 else None), is_plain


def without_upgrade(*, method: bytes, version: str, target: bytes, headers: Headers) -> bytes:
    """Return a head whose offer to go on in another protocol is taken out, which may be ignored.

    Raises UpgradeRefused for a tunnel and a WebSocket: who asks for these can't go on in HTTP.
    """
    offered = [value.lower() for name, value in headers if name == b"upgrade"]
    if method == b"CONNECT" or any(_WEBSOCKET in value for value in offered):
        raise UpgradeRefused
    lines = [b"%b %b HTTP/%b" % (method, target, version.encode())]
    lines += [b": ".join(header) for header in headers if header[0] != b"upgrade"]
    return b"\r\n".join((*lines, b"", b""))


@lru_cache(maxsize=_CACHED_HOSTS_MAX)
def _checked_host(value: bytes) -> bytes:
    """Return a Host in lower case."""
    parts = _HOST.fullmatch(value)
    if parts is None or int(parts["port"] or 0) > PORT_MAX:
        raise RequestInvalid("The Host header is not a name and a port.")
    return value.lower()


def _is_among(host: bytes, hosts: frozenset[bytes]) -> bool:
    parts = _HOST.fullmatch(host)
    return host in hosts or (parts is not None and parts["name"] in hosts)
