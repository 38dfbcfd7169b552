"""Sending an alert to a URL: to public addresses only, signed, once, and not for long.

The connection is made here, by hand: its peer is checked after it stands, whatever a name resolved
to; nothing is read but the status, and no redirect is followed. The signature is over the time and
the body: `x-kaixu-signature: t=1790000000,v1=<hex HMAC-SHA-256 of "t.body">`.
"""

import asyncio
import contextlib
import hashlib
import hmac
import re
import socket
import ssl
from collections.abc import Sequence
from typing import Final

from control_plane.errors import BadArgument
from gateway.connect_guard import BaseUrlInvalid, ConnectGuard, check_base_url

SECONDS_MAX: Final = 5.0  # from looking the name up to the status
STATUS_LINE_BYTES_MAX: Final = 8_192
SUCCESS: Final = range(200, 300)

_QUERY: Final = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/?%-]*")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: [^\r\n]*)?\r?\n")


class WebhookFailed(Exception):
    """The URL did not take it; the text may be shown to whoever set it."""


def check_webhook_url(url: str, *, allow_private: bool) -> str:
    """Return a URL that alerts may go to. Raises BadArgument."""
    base, mark, query = url.partition("?")
    try:
        check_base_url(base, allow_private=allow_private)
    except BaseUrlInvalid as error:
        raise BadArgument(
            f"{error.problem} A webhook is https, on port 443 of a public host.", field="url"
        ) from error
    if not _QUERY.fullmatch(query) or (mark and not query):
        raise BadArgument("The URL's query has a character that it can't have.", field="url")
    return url


def signature(secret: str, body: bytes, *, at: int) -> str:
    """Return the header by which the receiver knows who sent it, and when (Unix seconds)."""
    signed = hmac.new(secret.encode(), b"%d.%b" % (at, body), hashlib.sha256).hexdigest()
    return f"t={at},v1={signed}"


class WebhookSender:
    """Sends to URLs that were checked when they were set, and are again."""

    def __init__(self, *, allow_private: bool, seconds_max: float = SECONDS_MAX) -> None:
        """`allow_private`: addresses of private networks and this machine may be called too."""
        self._allow_private = allow_private
        self._guard = ConnectGuard(allow_private=allow_private)
        self._seconds_max = seconds_max
        self._tls = ssl.create_default_context()

    async def send(self, url: str, body: bytes, *, alert_id: str, signed: str) -> None:
        """POST a body. Raises WebhookFailed."""
        base, mark, query = url.partition("?")
        try:
            target = check_base_url(base, allow_private=self._allow_private)
        except BaseUrlInvalid as error:
            raise WebhookFailed(error.problem) from error
        # The path as it was written: a slash at its end may matter there.
        path = base.partition("://")[2].partition("/")[2]
        head = (
            f"POST /{path}{mark}{query} HTTP/1.1\r\n"
            f"host: {target.authority}\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
            "user-agent: kaixu-gateway\r\n"
            f"x-kaixu-alert-id: {alert_id}\r\n"
            f"x-kaixu-signature: {signed}\r\n"
            "connection: close\r\n\r\n"
        )
        try:
            async with asyncio.timeout(self._seconds_max):
                addresses = await self._guard.allowed_addresses(target.host, target.port, _look_up)
                status = await self._post(
                    addresses[0],
                    target.port,
                    host=target.host if target.scheme == "https" else None,
                    request=head.encode("ascii") + body,
                )
        except TimeoutError as error:
            raise WebhookFailed(f"No answer within {self._seconds_max:g} seconds.") from error
        except (
            OSError,
            ValueError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
        ) as error:
            raise WebhookFailed(f"It could not be called: {type(error).__name__}.") from error
        if status not in SUCCESS:
            raise WebhookFailed(f"It answered with status {status}.")

    async def _post(self, address: str, port: int, *, host: str | None, request: bytes) -> int:
        """Return the status of the answer; 0 for what is none. `host` None: without TLS."""
        reader, writer = await asyncio.open_connection(
            address,
            port,
            ssl=None if host is None else self._tls,
            server_hostname=host,
            limit=STATUS_LINE_BYTES_MAX,
        )
        try:
            peer = writer.get_extra_info("peername")
            self._guard.check_peer(peer[0] if peer else "")
            writer.write(request)
            await writer.drain()
            match = _STATUS.fullmatch(await reader.readuntil(b"\n"))
            return int(match[1]) if match else 0
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _look_up(host: str, port: int) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
