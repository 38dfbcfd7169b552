"""HTTP/1.1 towards clients: requests come in, `Exchange`s go to the calls, answers go out.

A connection parses what it reads into exchanges and hands one at a time to `handle`, a coroutine
that is told the story in `calls.py`. From the answer's head on, bytes are written by plain calls,
without a task or a queue in between. Everything that waits has a limit: heads, bodies, keep-alive,
a client that stops reading, requests sent ahead.

The parser is llhttp, by httptools. It refuses bare CR and LF, folded and malformed headers, control
characters, every doubtful length and chunk. Where it is lax, this module refuses instead:

- HTTP/0.9 and HTTP/2.0 request lines: 505;
- more than one space in a request line: 400, seen where the line begins a read;
- no Host or two on HTTP/1.1, a Host with anything but a name and a port: 400;
- `Transfer-Encoding` on HTTP/1.0, or any but `chunked` alone: 400;
- targets that are not a path (absolute form, `*`): 400;
- heads without a bound, on size and number: 431, or 414 where the target alone is too long;
- trailers, which come as headers after the head: dropped, bounded;
- requests sent ahead without a bound: 400 beyond PIPELINED_REQUESTS_MAX;
- `Upgrade`: the parser stops; 426, and the connection ends.
"""

import asyncio
import ipaddress
import re
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Final, cast

import httptools

from gateway.errors import (
    BodyTooLarge,
    GatewayError,
    HeadTooLarge,
    RequestInvalid,
    RequestTooSlow,
    TargetTooLong,
    UpgradeRefused,
    VersionNotSupported,
)
from gateway.limits import (
    CLIENT_STALL_SECONDS_MAX,
    CONNECTIONS_PER_ADDRESS_MAX,
    CONNECTIONS_PER_WORKER_MAX,
    KEEP_ALIVE_SECONDS,
    PIPELINED_REQUESTS_MAX,
    REQUEST_BODY_BYTES_MAX,
    REQUEST_BODY_BYTES_PER_SECOND_MIN,
    REQUEST_HEAD_BYTES_MAX,
    REQUEST_HEAD_SECONDS_MAX,
    REQUEST_HEADERS_MAX,
    REQUEST_LINE_BYTES_MAX,
    WRITE_BUFFER_BYTES_MAX,
)
from gateway.proxy.body_budget import BodyBudget
from gateway.proxy.exchange import Exchange, Headers

BODY_GRACE_SECONDS: Final = 10.0  # before the floor on a body's speed holds
LINGER_SECONDS_MAX: Final = 5.0  # a refused body is read on, so that the answer is not lost
SWEEP_SECONDS: Final = 1.0

_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_TARGET: Final = re.compile(rb"/[\x21-\x7e]*")
_REQUEST_LINE_SPACES: Final = 2


Handle = Callable[[Exchange], Awaitable[None]]
Refuse = Callable[[Exchange, GatewayError], None]


class Lane:
    """All connections of one worker's clients."""

    def __init__(
        self,
        handle: Handle,
        refuse: Refuse,
        *,
        loop: asyncio.AbstractEventLoop,
        connections_max: int = CONNECTIONS_PER_WORKER_MAX,
        connections_per_address_max: int | None = None,
        on_connections: Callable[[int], None] = lambda _: None,
        on_protocol_error: Callable[[], None] = lambda: None,
    ) -> None:
        """`handle` answers an exchange, `refuse` writes an error for one that breaks the rules.

        `connections_per_address_max`: None is the default, which exempts loopback.
        """
        self.handle = handle
        self.refuse = refuse
        self.loop = loop
        self.budget = BodyBudget()
        self.tasks: set[asyncio.Task[None]] = set()
        self.connections: set[ClientConnection] = set()
        self.draining = False
        self._connections_max = connections_max
        self._per_address_max = connections_per_address_max
        self._by_address: Counter[str] = Counter()
        self._on_connections = on_connections
        self.on_protocol_error = on_protocol_error

    def protocol(self) -> "ClientConnection":
        """Return the protocol for a new connection."""
        return ClientConnection(self)

    def admit(self, connection: "ClientConnection") -> bool:
        """Take a new connection in, unless there are too many."""
        address = connection.address
        limit = self._per_address_max
        if limit is None and not is_loopback(address):
            limit = CONNECTIONS_PER_ADDRESS_MAX
        if len(self.connections) >= self._connections_max:
            return False
        if limit is not None and self._by_address[address] >= limit:
            return False
        self._by_address[address] += 1
        self.connections.add(connection)
        self._on_connections(len(self.connections))
        return True

    def forget(self, connection: "ClientConnection") -> None:
        """Let a connection go that was lost."""
        if connection in self.connections:
            self.connections.remove(connection)
            address = connection.address
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
            self._on_connections(len(self.connections))

    def start(self, exchange: Exchange) -> None:
        """Start the task that answers an exchange."""
        task = self.loop.create_task(self._run(exchange))
        exchange.task = task
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _run(self, exchange: Exchange) -> None:
        await self.handle(exchange)

    def sweep(self) -> None:
        """Close what is over a deadline; call every SWEEP_SECONDS."""
        now = self.loop.time()
        for connection in list(self.connections):
            connection.sweep(now)

    def drain(self) -> None:
        """Close idle connections now and each other one after its answer."""
        self.draining = True
        for connection in list(self.connections):
            connection.close_if_idle()

    def unsent_bytes(self) -> int:
        """Return how many bytes of answers wait for clients."""
        return sum(connection.unsent_bytes() for connection in self.connections)

    def abort_all(self) -> None:
        """Break every connection."""
        for connection in list(self.connections):
            connection.abort()


class ClientConnection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, lane: Lane) -> None:
        """Take the lane that it is part of."""
        self._lane = lane
        self.budget = lane.budget
        self.address = ""
        self.body_holders: tuple[str, ...] = ()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Exchange] = deque()  # the first is being answered
        self._reading: Exchange | None = None  # whose body is being read
        self._target = b""
        self._headers: Headers = []
        self._refused_headers: Headers = []
        self._head_bytes = 0  # read while no head was whole
        self._header_bytes = 0  # in headers and trailers
        self._head_whole = True
        self._stopped = False  # nothing more is read
        self._refused: GatewayError | None = None  # to be answered after what came before it
        self._closing = False
        self._since = lane.loop.time()  # of the present wait: for a head, a body, a request
        self._body_bytes = 0
        self._behind_since: float | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport, or close it where there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if isinstance(peer, tuple) else "local"
        if not is_loopback(self.address):
            self.body_holders = ("address:" + self.address,)
        if not self._lane.admit(self):
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        """Tell the exchange that is being answered, drop the others."""
        self._transport = None
        self._lane.forget(self)
        waiting, self._waiting = self._waiting, deque()
        for exchange in waiting:
            exchange.release_body()
            if exchange.answered:
                continue
            exchange.answered = True
            if exchange.sink is not None:
                exchange.sink.on_client_gone()
            elif exchange.task is not None:
                exchange.task.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse one read."""
        if self._stopped or self._closing:
            return
        if self._head_whole and self._reading is None:
            self._head_whole = False
            self._head_bytes = 0
            self._since = self._lane.loop.time()
            line = data[: data.find(b"\r\n")]
            if line.count(b" ") > _REQUEST_LINE_SPACES:
                self._refuse(RequestInvalid())
                return
        if not self._head_whole:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # CONNECT
            self._refuse(UpgradeRefused())
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, GatewayError) else RequestInvalid())
        except httptools.HttpParserError:
            self._refuse(RequestInvalid())
        else:
            if not self._head_whole and self._head_bytes > REQUEST_HEAD_BYTES_MAX:
                self._refuse(HeadTooLarge())

    def eof_received(self) -> bool:
        """Close: a client that ends its side has left."""
        return False

    def pause_writing(self) -> None:
        """The client is behind."""
        self._behind_since = self._lane.loop.time()
        if self._waiting and self._waiting[0].sink is not None:
            self._waiting[0].sink.on_client_behind()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._behind_since = None
        if self._waiting and self._waiting[0].sink is not None:
            self._waiting[0].sink.on_client_ready()

    # httptools callbacks

    def on_message_begin(self) -> None:
        """A request begins; it may be one that was sent ahead, in the read of the one before."""
        if self._head_whole:
            self._head_bytes = 0
        self._header_bytes = 0
        self._target = b""
        self._headers = []
        self._head_whole = False

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._target += url
        if len(self._target) > REQUEST_LINE_BYTES_MAX:
            raise TargetTooLong

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; one that comes after the head is a trailer, and dropped."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > REQUEST_HEAD_BYTES_MAX:
            raise HeadTooLarge
        if self._reading is not None:
            return
        if len(self._headers) >= REQUEST_HEADERS_MAX:
            raise HeadTooLarge
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Make the exchange; not for what was sent ahead on a connection that is being closed."""
        self._head_whole = True
        if self._closing:
            return
        self._head_bytes = 0
        method = self._parser.get_method()
        version = self._parser.get_http_version()
        headers, self._headers = self._headers, []
        _check_head(version=version, target=self._target, headers=headers)
        if self._parser.should_upgrade():
            self._refused_headers = headers
            raise UpgradeRefused
        if len(self._waiting) >= PIPELINED_REQUESTS_MAX:
            raise RequestInvalid("Too many requests were sent ahead on this connection.")
        exchange = Exchange(self, method=method, target=self._target, headers=headers)
        exchange.is_http10 = version == "1.0"
        exchange.keep_alive = (
            self._parser.should_keep_alive() and not exchange.is_http10 and not self._lane.draining
        )
        exchange.expects_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )
        if any(
            name == b"content-length" and int(value) > REQUEST_BODY_BYTES_MAX
            for name, value in headers
        ):
            exchange.fail_body(BodyTooLarge())
        self._reading = exchange
        self._since = self._lane.loop.time()
        self._body_bytes = 0
        self._waiting.append(exchange)
        if len(self._waiting) == 1:
            self._lane.start(exchange)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        if self._reading is not None:
            self._body_bytes += len(body)
            self._reading.feed_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        exchange, self._reading = self._reading, None
        if exchange is None:
            return
        exchange.end_body()
        if exchange.answered and not exchange.keep_alive:
            self._close()

    # for exchanges

    def write(self, data: bytes) -> None:
        """Write, if the client is still there."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    @property
    def draining(self) -> bool:
        """Whether this connection ends with the present answer."""
        return self._lane.draining

    @property
    def is_behind(self) -> bool:
        """Whether more waits for the client than may."""
        return self._behind_since is not None

    def unsent_bytes(self) -> int:
        """Return how many bytes wait for the client."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def on_answered(self, exchange: Exchange) -> None:
        """Go on with the next request, or close."""
        if self._waiting and self._waiting[0] is exchange:
            self._waiting.popleft()
        self._since = self._lane.loop.time()
        if self._closing:
            return
        if self._refused is not None and exchange.keep_alive and not self._waiting:
            self._answer_refused(self._refused)
        elif not exchange.keep_alive or (self._lane.draining and not self._waiting):
            if exchange.body_whole:
                self._close()
            else:
                self._linger()
        elif self._waiting:
            self._lane.start(self._waiting[0])

    def abort(self) -> None:
        """Break the connection."""
        if self._transport is not None:
            self._transport.abort()

    # deadlines

    def close_if_idle(self) -> None:
        """Close, if no request is being read or answered."""
        if not self._waiting and self._reading is None and self._head_whole:
            self._close()

    def sweep(self, now: float) -> None:
        """Close or refuse what is over a deadline."""
        if self._behind_since is not None and now - self._behind_since > CLIENT_STALL_SECONDS_MAX:
            self.abort()
        elif self._closing:
            if now - self._since > LINGER_SECONDS_MAX + CLIENT_STALL_SECONDS_MAX:
                self.abort()
        elif self._reading is not None:
            self._sweep_body(self._reading, now)
        elif not self._head_whole:
            if now - self._since > REQUEST_HEAD_SECONDS_MAX:
                self._refuse(RequestTooSlow())
        elif not self._waiting and now - self._since > KEEP_ALIVE_SECONDS:
            self._close()

    def _sweep_body(self, exchange: Exchange, now: float) -> None:
        elapsed = now - self._since
        if exchange.answered:
            if elapsed > LINGER_SECONDS_MAX:
                self._close()
        elif (
            elapsed > BODY_GRACE_SECONDS
            and self._body_bytes < elapsed * REQUEST_BODY_BYTES_PER_SECOND_MIN
            and exchange.body_error is None
        ):
            exchange.fail_body(RequestTooSlow())

    def _refuse(self, error: GatewayError) -> None:
        """Stop reading: what follows can't be told apart. Earlier requests are answered first."""
        self._lane.on_protocol_error()
        self._stopped = True
        self._head_whole = True
        exchange, self._reading = self._reading, None
        if exchange is not None:  # its body is broken
            exchange.keep_alive = False
            if exchange.answered:
                self._close()
            else:
                exchange.fail_body(error)
            return
        self._refused = error
        if not self._waiting:
            self._answer_refused(error)

    def _answer_refused(self, error: GatewayError) -> None:
        target = self._target if _TARGET.fullmatch(self._target) else b"/"
        exchange = Exchange(self, method=b"GET", target=target, headers=self._refused_headers)
        exchange.body_whole = True
        exchange.keep_alive = False
        self._refused = None
        self._lane.refuse(exchange, error)
        self._close()

    def _linger(self) -> None:
        """Read on for a while, so that the answer is not lost in a reset."""
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()

    def _close(self) -> None:
        self._closing = True
        self._since = self._lane.loop.time()
        if self._transport is not None:
            self._transport.close()


def _check_head(*, version: str, target: bytes, headers: Headers) -> None:
    """Raise RequestInvalid where the parser is lax."""
    if version not in ("1.1", "1.0"):
        raise VersionNotSupported
    if not _TARGET.fullmatch(target):
        raise RequestInvalid("The request's target is not a path.")
    hosts = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
            if not _HOST.fullmatch(value):
                raise RequestInvalid("The Host header is not a name and a port.")
        elif name == b"transfer-encoding" and (
            version == "1.0" or value.strip().lower() != b"chunked"
        ):
            raise RequestInvalid("The Transfer-Encoding is not chunked alone.")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise RequestInvalid("There is not one Host header.")


def is_loopback(address: str) -> bool:
    """Return whether a client is on this machine."""
    if address.startswith("127.") or address in ("::1", "local"):
        return True
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool(mapped is not None and mapped.is_loopback)
