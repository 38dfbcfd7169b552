"""One client's connection: what it sends is parsed into exchanges, what they answer is written.

One exchange is answered at a time; what was sent ahead waits. From the answer's head on, bytes are
written by plain calls, without a task or a queue in between. What breaks HTTP ends the connection:
behind it requests can't be told apart. The end is told before it is made: the gateway says that it
has ended its side, and reads on for a while, since a client that still sends would lose the answer
in a reset.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

import httptools

from gateway.errors import (
    BodyTooLarge,
    GatewayError,
    HeadTooLarge,
    RequestInvalid,
    RequestTooSlow,
    TargetTooLong,
)
from gateway.limits import (
    CLIENT_STALL_SECONDS_MAX,
    KEEP_ALIVE_SECONDS,
    PIPELINED_REQUESTS_MAX,
    READ_AT_ONCE_BYTES,
    REQUEST_BODY_BYTES_MAX,
    REQUEST_BODY_BYTES_PER_SECOND_MIN,
    REQUEST_HEAD_BYTES_MAX,
    REQUEST_HEAD_SECONDS_MAX,
    REQUEST_HEADERS_MAX,
    REQUEST_LINE_BYTES_MAX,
    WRITE_BUFFER_BYTES_MAX,
)
from gateway.proxy.body_budget import BodyBudget
from gateway.proxy.client_peer import StallWatch, is_loopback
from gateway.proxy.exchange import Exchange
from gateway.proxy.headers import Headers
from gateway.proxy.known_heads import KnownHead, KnownHeads
from gateway.proxy.request_head import check_head, is_path, read_line, without_upgrade

BODY_GRACE_SECONDS: Final = 10.0  # before the floor on a body's speed holds
LINGER_SECONDS_MAX: Final = 30.0  # what comes behind a refusal is read on, so that it is not lost
LINGER_IDLE_SECONDS_MAX: Final = 5.0  # or until the client has been silent for so long
PARSED_BYTES_MAX: Final = 16 * 1024  # at once; between two pieces, bounds are looked at
FRAMING_BYTES_MAX: Final = 16 * 1024  # of a body in chunks, without a byte of the body itself


class Owner(Protocol):
    """What a connection asks of the lane that it is part of."""

    loop: asyncio.AbstractEventLoop
    budget: BodyBudget
    known_heads: KnownHeads
    hosts: frozenset[bytes] | None
    draining: bool

    def admit(self, connection: "ClientConnection") -> bool:
        """Take a new connection in, unless there are too many."""
        ...

    def forget(self, connection: "ClientConnection") -> None:
        """Let a connection go that was lost."""

    def start(self, exchange: Exchange) -> None:
        """Begin to answer an exchange."""

    def refuse(self, exchange: Exchange, error: GatewayError) -> None:
        """Answer with an error."""

    def on_protocol_error(self) -> None:
        """Count a client that broke the rules."""

    def on_defect(self, error: BaseException) -> None:
        """Tell what must not happen."""


class ClientConnection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, lane: Owner) -> None:
        """Take the lane that it is part of."""
        self._lane = lane
        self.budget = lane.budget
        self.known_heads = lane.known_heads
        self.address = ""
        self.body_holders: tuple[str, ...] = ()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: list[Exchange] = []  # a few; the first is being answered
        self._reading: Exchange | None = None  # whose body is being read
        self._unstarted: Exchange | None = None  # first in line, and came with the present read
        self._answering: Exchange | None = None  # begun with, and not over; answered, maybe
        self._line: bytes | None = None  # what came of the request line that began a read
        self._target = b""
        self._headers: Headers = []
        self._new_head: tuple[bytes, bytes] | None = None  # digest and bytes of one not known
        self._body_left = 0  # of a body behind a known head, which the parser does not see
        self._plain_head = b""  # to be parsed in place of one that offered another protocol
        self._refused_headers: Headers = []
        self._head_bytes = 0  # read while no head was whole
        self._trailer_bytes = 0
        self._trailers_count = 0
        self._head_whole = True
        self._stopped = False  # what comes is dropped
        self._refused: GatewayError | None = None  # to be answered after what came before it
        self._closing = False
        self._since = lane.loop.time()  # of the present wait: for a head, a body, a request
        self._body_bytes = 0
        self._body_length = 0  # where it is known
        self._framing_bytes = 0  # since the last byte of a body
        self._lingering_since: float | None = None
        self.is_behind = False  # more waits for the client than may
        self._stall = StallWatch()

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
        waiting, self._waiting = self._waiting, []
        for exchange in waiting:
            exchange.release_body()
            if exchange.answered:
                continue
            exchange.answered = True
            if exchange.sink is not None:
                exchange.sink.on_client_gone()
            elif exchange.errand is not None:
                exchange.errand.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse one read, in pieces where it is large."""
        if len(data) >= READ_AT_ONCE_BYTES:
            self._let_others_read()
        if self._head_whole and self._is_at_rest():
            found = self.known_heads.find(data)
            if found is not None and found.known is not None:
                if self._take_known(found.known, data, body_at=found.body_at, length=found.length):
                    return
            elif found is not None:
                self._new_head = found.digest, data[: found.body_at]
        if len(data) <= PARSED_BYTES_MAX:
            self._take(data)
            return
        at = 0
        while at < len(data):
            left = 0 if self._reading is None else self._body_length - self._body_bytes
            piece = data[
                at : at + max(left, PARSED_BYTES_MAX)
            ]  # a body of known length has no bounds
            self._take(piece)
            at += len(piece)

    def _is_at_rest(self) -> bool:
        """Return whether all that came before is answered, and more is welcome."""
        return not (
            self._waiting
            or self._reading is not None
            or self._answering is not None
            or self._closing
            or self._stopped
            or self._lingering_since is not None
        )

    def _take_known(self, known: KnownHead, data: bytes, *, body_at: int, length: int) -> bool:
        """Take a request whose head is known, without the parser; return whether that can be."""
        left = length - (len(data) - body_at)
        if left < 0 or length > REQUEST_BODY_BYTES_MAX:
            return False  # more was sent ahead, or more than may be
        exchange = Exchange(
            self,
            method=known.method,
            path=known.path,
            query=known.query,
            headers=None,
            known=known,
            raw_head=data[:body_at],
        )
        exchange.keep_alive = not self._lane.draining
        self._since = self._lane.loop.time()
        self._waiting.append(exchange)
        exchange.feed_body(data[body_at:])
        if left:
            self._reading = exchange
            self._body_length = length
            self._body_bytes = length - left
            self._body_left = left
        else:
            exchange.body_whole = True
        self._answering = exchange
        self._lane.start(exchange)
        return True

    def _let_others_read(self) -> None:
        """Read on in the loop's next round: it would stay with a fast client for many reads."""
        if self._transport is not None:
            self._transport.pause_reading()
            self._lane.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def _take(self, data: bytes) -> None:
        """Parse a piece of what was read, and have what is whole by then answered."""
        if self._lingering_since is not None:
            self._since = self._lane.loop.time()
        if self._stopped or self._closing:
            return
        if self._reading is None and not self._is_plain_head(data):
            self._refuse(RequestInvalid())
            return
        reading, body_bytes = self._reading, self._body_bytes
        try:
            self._parse(data)
        except httptools.HttpParserCallbackError as error:
            self._refuse(self._cause_of(error))
        except httptools.HttpParserError:
            self._refuse(RequestInvalid())
        else:
            if not self._head_whole and self._head_bytes > REQUEST_HEAD_BYTES_MAX:
                self._refuse(HeadTooLarge())
            elif reading is not None:
                self._check_framing(reading, body_bytes, len(data))
        if self._unstarted is not None or self._waiting:
            self._run_on()

    def _is_plain_head(self, data: bytes) -> bool:
        """Take note of a piece of a head; return whether it may be one, by its first line."""
        if self._head_whole:  # it begins
            self._head_whole = False
            self._head_bytes = 0
            self._since = self._lane.loop.time()
            self._line = b""
        self._head_bytes += len(data)
        if self._line is None:
            return True
        self._line, is_plain = read_line(self._line, data)
        return is_plain

    def _run_on(self) -> None:
        """Have the first in line answered: begin with it, or tell it of its body.

        Not while the parser is at work: what it gave is whole then, in most cases all of it.
        """
        exchange = self._unstarted
        if exchange is not None:
            self._unstarted = None
            self._start_next(exchange)
        elif self._waiting:
            self._waiting[0].tell_body()

    def _cause_of(self, error: BaseException) -> GatewayError:
        """Return what one of our own callbacks refused, or a defect of theirs, which is told."""
        cause = error.__context__
        if isinstance(cause, GatewayError):
            return cause
        self._lane.on_defect(cause or error)
        return GatewayError()

    def _parse(self, data: bytes) -> None:
        if self._body_left:
            data = self._take_body(data)
            if not data:
                return
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as pause:
                data = data[pause.args[0] :]
            # The parser leaves the body to the other protocol. The offer is declined: another
            # parser takes the same head without it, then what comes behind.
            if self._closing:
                return
            self._parser = httptools.HttpRequestParser(self)
            self._parser.feed_data(self._plain_head)

    def _take_body(self, data: bytes) -> bytes:
        """Take a piece of a body behind a known head; return what comes behind the body."""
        piece = data[: self._body_left]
        self._body_left -= len(piece)
        self.on_body(piece)
        if not self._body_left:
            self.on_message_complete()
        return data[len(piece) :]

    def _check_framing(self, reading: Exchange, body_bytes: int, size: int) -> None:
        """Refuse a body of which nothing comes but extensions of chunks, or trailers."""
        if self._reading is not reading or self._body_bytes != body_bytes:
            self._framing_bytes = 0
            return
        self._framing_bytes += size
        if self._framing_bytes > FRAMING_BYTES_MAX:
            self._refuse(RequestInvalid("The request's chunks are more framing than body."))

    def eof_received(self) -> bool:
        """Close: a client that ends its side has left."""
        return False

    def pause_writing(self) -> None:
        """The client is behind."""
        self.is_behind = True
        self._stall.start(self._transport, self._lane.loop.time())
        if self._waiting and self._waiting[0].sink is not None:
            self._waiting[0].sink.on_client_behind()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.is_behind = False
        if self._waiting and self._waiting[0].sink is not None:
            self._waiting[0].sink.on_client_ready()

    # httptools callbacks

    def on_message_begin(self) -> None:
        """A request begins; it may be one that was sent ahead, in the read of the one before."""
        if self._head_whole:
            self._head_bytes = 0
        self._trailer_bytes = 0
        self._trailers_count = 0
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
        if self._reading is None:
            self._headers.append((name.lower(), value))
            if len(self._headers) > REQUEST_HEADERS_MAX:
                raise HeadTooLarge
            return
        self._trailer_bytes += len(name) + len(value)
        self._trailers_count += 1
        if self._trailer_bytes > REQUEST_HEAD_BYTES_MAX or (
            self._trailers_count > REQUEST_HEADERS_MAX
        ):
            raise RequestInvalid("The request has too many trailers.")

    def on_headers_complete(self) -> None:
        """Make the exchange; not for what was sent ahead on a connection that is being closed."""
        self._head_whole = True
        self._line = None
        if self._closing:
            return
        method = self._parser.get_method()
        version = self._parser.get_http_version()
        headers, self._headers = self._headers, []
        # Only a head of more than one piece may be too large; of one sent ahead, the first piece
        # was not counted.
        if self._head_bytes > REQUEST_HEAD_BYTES_MAX - PARSED_BYTES_MAX and (
            sum(len(name) + len(value) for name, value in headers) > REQUEST_HEAD_BYTES_MAX
        ):
            raise HeadTooLarge
        self._head_bytes = 0
        check_head(version=version, target=self._target, headers=headers, hosts=self._lane.hosts)
        if self._parser.should_upgrade():
            self._refused_headers = headers
            self._new_head = None
            self._plain_head = without_upgrade(
                method=method, version=version, target=self._target, headers=headers
            )
            return
        if len(self._waiting) >= PIPELINED_REQUESTS_MAX:
            raise RequestInvalid("Too many requests were sent ahead on this connection.")
        exchange = self._exchange(method, self._target, headers)
        exchange.is_http10 = version == "1.0"
        exchange.keep_alive = (
            self._parser.should_keep_alive() and not exchange.is_http10 and not self._lane.draining
        )
        self._body_length = 0
        is_plain = exchange.keep_alive  # else the head may not be remembered
        for name, value in headers:
            if name == b"content-length":
                self._body_length = int(value)
                if self._body_length > REQUEST_BODY_BYTES_MAX:
                    exchange.fail_body(BodyTooLarge())
            elif name == b"expect":
                is_plain = False
                if value.lower() == b"100-continue":
                    exchange.expects_continue = True
        new_head, self._new_head = self._new_head, None
        if new_head is not None and is_plain:
            exchange.offer_head(*new_head)
        self._reading = exchange
        self._since = self._lane.loop.time()
        self._body_bytes = 0
        self._framing_bytes = 0
        self._waiting.append(exchange)
        if len(self._waiting) == 1:
            self._unstarted = exchange

    def _exchange(self, method: bytes, target: bytes, headers: Headers) -> Exchange:
        path, _, query = target.partition(b"?")
        return Exchange(
            self, method=method, path=path.decode("ascii"), query=query, headers=headers
        )

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

    def writer(self) -> Callable[[bytes], None]:
        """Return what writes by a plain call, until the exchange's sink hears of the end.

        A transport that is being closed drops what is written to it.
        """
        return self.write if self._transport is None else self._transport.write

    @property
    def draining(self) -> bool:
        """Whether this connection ends with the present answer."""
        return self._lane.draining

    def unsent_bytes(self) -> int:
        """Return how many bytes wait for the client."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def on_answered(self, exchange: Exchange) -> None:
        """Close, where no other request is to be answered."""
        if self._waiting and self._waiting[0] is exchange:
            del self._waiting[0]
        self._since = self._lane.loop.time()
        if self._closing:
            return
        if self._refused is not None and exchange.keep_alive and not self._waiting:
            self._answer_refused(self._refused)
        elif not exchange.keep_alive or (self._lane.draining and not self._waiting):
            if exchange.body_whole and self._refused is None:
                self._close()
            else:
                self._linger()
        elif self._answering is None:
            self._begin_next()

    def on_over(self, exchange: Exchange) -> None:
        """Whoever answered an exchange has let go of all that it held: the next one may begin."""
        self._answering = None
        if not self._waiting or self._closing or self._lingering_since is not None:
            return
        if self._waiting[0] is not exchange:  # that is answered
            self._begin_next()

    def _begin_next(self) -> None:
        """Have the next one begun with, if there is one.

        In the loop's next round: requests sent ahead must not pile up calls.
        """
        if self._waiting:
            self._lane.loop.call_soon(self._start_next, self._waiting[0])

    def _start_next(self, exchange: Exchange) -> None:
        if self._answering is None and self._waiting and self._waiting[0] is exchange:
            self._answering = exchange
            self._lane.start(exchange)

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
        if (self.is_behind or self._closing) and self._is_stalled(now):
            self.abort()
        elif self._closing:
            return
        elif self._lingering_since is not None:
            self._sweep_lingering(self._lingering_since, now)
        elif self._reading is not None:
            self._sweep_body(self._reading, now)
        elif not self._head_whole:
            if now - self._since > REQUEST_HEAD_SECONDS_MAX:
                self._refuse(RequestTooSlow())
        elif not self._waiting and now - self._since > KEEP_ALIVE_SECONDS:
            self._close()

    def _is_stalled(self, now: float) -> bool:
        return self._stall.seconds(self._transport, now) > CLIENT_STALL_SECONDS_MAX

    def _sweep_body(self, exchange: Exchange, now: float) -> None:
        elapsed = now - self._since
        if (
            elapsed > BODY_GRACE_SECONDS
            and self._body_bytes < elapsed * REQUEST_BODY_BYTES_PER_SECOND_MIN
            and exchange.body_error is None
        ):
            exchange.fail_body(RequestTooSlow())
            exchange.tell_body()

    def _sweep_lingering(self, lingering_since: float, now: float) -> None:
        """Give up on a client that goes on sending, or does nothing any more."""
        is_silent = now - self._since > LINGER_IDLE_SECONDS_MAX
        if now - lingering_since > LINGER_SECONDS_MAX or (is_silent and not self.unsent_bytes()):
            self._close()

    def _refuse(self, error: GatewayError) -> None:
        """Stop reading: what follows can't be told apart. Earlier requests are answered first."""
        self._lane.on_protocol_error()
        self._stopped = True
        self._head_whole = True
        exchange, self._reading = self._reading, None
        if exchange is not None:  # its body is broken
            exchange.keep_alive = False
            if exchange.answered:
                self._linger()
            else:
                exchange.fail_body(error)
            return
        self._refused = error
        if not self._waiting:
            self._answer_refused(error)

    def _answer_refused(self, error: GatewayError) -> None:
        target = self._target if is_path(self._target) else b"/"
        exchange = self._exchange(b"GET", target, self._refused_headers)
        exchange.body_whole = True
        exchange.keep_alive = False
        self._lane.refuse(exchange, error)  # and `on_answered` does the rest

    def _linger(self) -> None:
        """End our side and read on for a while, so that the answer is not lost in a reset."""
        if self._lingering_since is None:
            self._lingering_since = self._since = self._lane.loop.time()
            if self._transport is not None and self._transport.can_write_eof():
                try:
                    self._transport.write_eof()
                except OSError:  # it is reset already, which is yet to be told
                    self._transport.abort()

    def _close(self) -> None:
        self._closing = True
        self._stall.start(self._transport, self._lane.loop.time())
        if self._transport is not None:
            self._transport.close()
