"""HTTP/1.1 towards clients: requests come in, `Exchange`s go to the calls, answers go out.

Of each connection one exchange at a time goes to `handle`, a coroutine that tells the story in
`calls.py`; how it is run says `errand.py`. Connections parse and write (`client_connection.py`);
the lane counts them and has them keep to their deadlines. Everything that waits has a limit: heads,
bodies, keep-alive, a client that stops reading, requests sent ahead.

The parser is llhttp, by httptools. It refuses bare CR and LF, folded and malformed headers, control
characters, every doubtful length and chunk. Where it is lax, the lane refuses instead
(`request_head.py` what a whole head shows, `client_connection.py` the rest):

- HTTP/0.9 and HTTP/2.0 request lines: 505;
- more than one space in a request line, or RTSP in the place of HTTP: 400, seen where the line
  begins a read, however it is cut;
- no Host or two on HTTP/1.1, a Host with anything but a name and a port: 400;
- a Host that the gateway does not have, where the operator named those it has: 421;
- `Transfer-Encoding` on HTTP/1.0, or any but `chunked` alone: 400;
- targets that are not a path (absolute form, `*`): 400;
- heads without a bound, on size and number: 431, or 414 where the target alone is too long;
- trailers, which come as headers after the head: dropped, bounded as a head is;
- chunk extensions and trailers without an end, of which the parser tells nothing: 400;
- requests sent ahead without a bound: 400 beyond PIPELINED_REQUESTS_MAX;
- `Upgrade`, at which the parser leaves the body unread: 426 for WebSocket and CONNECT, and the
  connection ends; any other offer is ignored (RFC 9110, 7.8), and the request served as it is.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from gateway.errors import GatewayError
from gateway.limits import (
    CONNECTIONS_PER_ADDRESS_MAX,
    CONNECTIONS_PER_WORKER_MAX,
    SWEPT_AT_ONCE,
)
from gateway.proxy.body_budget import BodyBudget
from gateway.proxy.client_connection import ClientConnection
from gateway.proxy.client_peer import is_loopback
from gateway.proxy.errand import Errand
from gateway.proxy.exchange import Exchange
from gateway.proxy.known_heads import KnownHeads

Handle = Callable[[Exchange], Coroutine[Any, None, None]]
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
        hosts: Collection[str] | None = None,
        on_connections: Callable[[int], None] = lambda _: None,
        on_protocol_error: Callable[[], None] = lambda: None,
        on_defect: Callable[[BaseException], None] | None = None,
    ) -> None:
        """`handle` answers an exchange, `refuse` writes an error for one that breaks the rules.

        `connections_per_address_max`: None is the default, which exempts loopback. `hosts`: the
        names that a request's Host may have, as `host` or `host:port`; None: any. `on_defect` hears
        of what must not happen; None: the loop's exception handler does.
        """
        self._handle = handle
        self._refuse = refuse
        self.loop = loop
        self.budget = BodyBudget()
        self.known_heads = KnownHeads()
        self._errands: dict[Errand, Exchange] = {}
        self._quiet = asyncio.Event()
        self.connections: set[ClientConnection] = set()
        self.draining = False
        self.hosts = None if hosts is None else frozenset(one.lower().encode() for one in hosts)
        self._connections_max = connections_max
        self._per_address_max = connections_per_address_max
        self._by_address: Counter[str] = Counter()
        self._on_connections = on_connections
        self._on_protocol_error = on_protocol_error
        self._on_defect = on_defect

    def protocol(self) -> ClientConnection:
        """Return the protocol for a new connection."""
        return ClientConnection(self)

    def admit(self, connection: ClientConnection) -> bool:
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

    def forget(self, connection: ClientConnection) -> None:
        """Let a connection go that was lost."""
        if connection in self.connections:
            self.connections.remove(connection)
            address = connection.address
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
            self._on_connections(len(self.connections))

    def start(self, exchange: Exchange) -> None:
        """Begin to answer an exchange."""
        errand = exchange.errand = Errand(self._handle(exchange), self)
        self._errands[errand] = exchange
        errand.run()

    def on_ended(self, errand: Errand, error: Exception | None) -> None:
        """An exchange is answered, or given up."""
        exchange = self._errands.pop(errand)
        if error is not None:  # one request's defect is not another's
            self.on_defect(error)
            exchange.abort()
        exchange.end()
        if not self._errands:
            self._quiet.set()

    async def ended(self, *, by: float) -> bool:
        """Wait until no exchange is being answered, or `by`, a time of the loop's; tell which."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(by):
                while self._errands:
                    self._quiet.clear()
                    await self._quiet.wait()
        return not self._errands

    def refuse(self, exchange: Exchange, error: GatewayError) -> None:
        """Answer with an error."""
        self._refuse(exchange, error)

    def on_protocol_error(self) -> None:
        """Count a client that broke the rules."""
        self._on_protocol_error()

    def on_defect(self, error: BaseException) -> None:
        """Tell what must not happen."""
        if self._on_defect is not None:
            self._on_defect(error)
        else:
            told = {"message": "A client's connection failed", "exception": error}
            self.loop.call_exception_handler(told)

    async def sweep(self) -> None:
        """Close what is over a deadline, letting others run meanwhile; call about once a second."""
        for number, connection in enumerate(list(self.connections), 1):
            if connection in self.connections:
                connection.sweep(self.loop.time())
            if number % SWEPT_AT_ONCE == 0:
                await asyncio.sleep(0)

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
