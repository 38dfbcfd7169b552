"""HTTP/1.1 towards vendors: pooled warm connections, one request at a time on each.

A connection feeds what it reads to a `Reply`, the caller's object, by plain calls: no queue, no
task and no copy lie between a read from the vendor and the write to the client. Laxness of the
parser (llhttp) that matters here, and what we do: it sets no bound on headers (we do), it passes
1xx answers as messages (skipped, bounded), it leaves an answer without length or chunks open until
the connection ends (`read_eof` decides whether that end was the answer's).
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol, cast

import httptools

from gateway.errors import VendorTimeout, VendorUnreachable
from gateway.limits import (
    CONNECT_SECONDS_MAX,
    READ_BUFFER_BYTES,
    RESPONSE_HEAD_BYTES_MAX,
    RESPONSE_HEADERS_MAX,
    WRITE_BUFFER_BYTES_MAX,
)
from gateway.proxy.routing import Origin

Headers = list[tuple[bytes, bytes]]

IDLE_CONNECTIONS_MAX: Final = 256  # kept warm for one origin
IDLE_CONNECTION_SECONDS_MAX: Final = 55.0  # vendors close at 60 and later
INTERIM_RESPONSES_MAX: Final = 8  # 1xx answers before the real one

_NO_BODY: Final = (204, 304)
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_INTERIM_END: Final = 200
_LINE_END: Final = b"\r\n"
_SWITCHING_PROTOCOLS: Final = 101


class Reply(Protocol):
    """What a connection tells about the answer to its request, in this order.

    Names of headers are in lower case.
    """

    def on_head(self, status: int, reason: bytes, headers: Headers) -> None:
        """The answer's head came."""

    def on_data(self, data: bytes) -> None:
        """A piece of the body came, its framing removed; all that one read has brought."""

    def on_chunk(self, chunk: bytes, size: int) -> bool:
        """A read has brought just one chunk of the body, with so many bytes of data: write it on.

        Return False where that takes more than a look: then it is told as data. The chunk's end is
        not checked yet.
        """

    def on_end(self) -> None:
        """The body is whole; the connection may serve another request."""

    def on_read_done(self) -> None:
        """One read was handed over in full: the moment to write on."""

    def on_broken(self, *, any_byte: bool) -> None:
        """The connection died, or what came is not HTTP; `any_byte` of an answer had come."""

    def on_drained(self) -> None:
        """The vendor takes more of the request."""

    def on_defect(self, error: Exception) -> None:
        """The reply itself failed at one of these; it hears of nothing more. Must not raise."""


class Dial(Protocol):
    """Opens a transport to an origin for a protocol; refuses addresses the operator forbids."""

    async def __call__(
        self, origin: Origin, protocol: Callable[[], "UpstreamConnection"]
    ) -> "UpstreamConnection":
        """Return the connected protocol. Raises OSError."""


class UpstreamConnection(asyncio.BufferedProtocol):
    """One connection to a vendor.

    Reads into a buffer that it is given, so that a read is as long as that, and a client that is
    behind has no more waiting for it than the mark and one such read.
    """

    def __init__(
        self, release: Callable[["UpstreamConnection"], None], *, buffer: memoryview
    ) -> None:
        """`release` takes the connection back into its pool.

        `buffer` is shared by all connections of a loop: what a read brings is copied from it in the
        step in which it comes.
        """
        self._release = release
        self._buffer = buffer
        self.transport: asyncio.Transport | None = None
        self.reused = False
        self.paused = False
        self.idle_since = 0.0
        self._reply: Reply | None = None
        self._any_byte = False
        self._pieces: list[bytes] = []  # of the body, that the present read has brought
        self._pieces_of_body = 0  # how many of them, where the body's end has come
        # Callbacks of the parser that are no function of ours: it calls them for each chunk.
        self.on_body = self._pieces.append
        self._chunk_ends: list[bool] = []  # not empty: the parser stands where a chunk begins
        self.on_chunk_header = self._chunk_ends.clear
        self.on_chunk_complete = partial(self._chunk_ends.append, True)
        self._parser = httptools.HttpResponseParser(self)
        self._reset()

    def _reset(self) -> None:
        """Expect another answer. The parser does: the one before was whole."""
        self._reason = b""
        self._headers: Headers = []
        self._head_bytes = 0
        self._keep_alive = False
        self._delimited = False
        self._head_done = False
        self._interim = 0
        self._ended = False
        self._extra = False  # something came behind the answer
        self._chunk_ends.clear()

    @property
    def is_open(self) -> bool:
        """Whether a request could be sent."""
        return self.transport is not None and not self.transport.is_closing()

    def send(self, reply: Reply, data: bytes, body: bytes) -> None:
        """Write a request in one go; `reply` hears of the answer from now on."""
        assert self._reply is None
        self._reply = reply
        self._any_byte = False
        assert self.transport is not None
        self.transport.writelines((data, body) if body else (data,))

    def pause(self) -> None:
        """Stop reading from the vendor: the client is behind."""
        self.paused = True
        if self.is_open:
            cast("asyncio.Transport", self.transport).pause_reading()

    def resume(self) -> None:
        """Read on."""
        self.paused = False
        if self.is_open:
            cast("asyncio.Transport", self.transport).resume_reading()

    def release(self) -> None:
        """Go back to the pool, unused."""
        if self.is_open and self._reply is None:
            self._release(self)

    def give_up(self, reply: Reply) -> None:
        """Close at once, and tell this reply nothing more.

        After the reply's end this does nothing: the connection may be another call's by then.
        """
        if self._reply is reply:
            self.abort()

    def abort(self) -> None:
        """Close an idle connection, or one whose reply is to hear nothing more."""
        self._reply = None
        if self.transport is not None:
            self.transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's name
        """Return where the next read goes."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on what a read has brought: one whole chunk as it is, past the parser, if it may be.

        The parser misses nothing: before and behind a chunk it is in the same state.
        """
        reply = self._reply
        if reply is None:  # an answer that nobody asked for
            self.abort()
            return
        if self._chunk_ends and nbytes < CHUNK_BYTES_END:
            chunk = self._buffer[:nbytes].tobytes()
            heads, size = _CHUNKS[nbytes]
            try:
                if chunk.startswith(heads) and reply.on_chunk(chunk, size):
                    return
            except Exception as error:  # noqa: BLE001 - one call's defect is that call's end
                self._fail(reply, error)
                return
        self._read(reply, nbytes)

    def _read(self, reply: Reply, nbytes: int) -> None:
        """Parse what a read has brought, and hand it on."""
        self._any_byte = True
        if nbytes >= READ_BUFFER_BYTES:
            self._let_others_read()
        try:
            is_broken = not self._parse(nbytes)
            if self._pieces:
                self._hand_on(reply)
            if self._reply is None:  # given up while it was told
                return
            if is_broken or (not self._head_done and self._head_bytes > RESPONSE_HEAD_BYTES_MAX):
                self._break()
            elif self._ended:
                self._finish(reply)
            else:
                reply.on_read_done()
        except Exception as error:  # noqa: BLE001 - one call's defect is that call's end
            self._fail(reply, error)

    def _parse(self, nbytes: int) -> bool:
        """Have a read parsed; return whether it is HTTP. Raises what the reply raised."""
        if not self._head_done:
            self._head_bytes += nbytes
        try:
            self._parser.feed_data(self._buffer[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            defect = _defect_of(error)
            if defect is not None:
                raise defect from None
            self._extra = self._ended  # then the answer is whole, whatever came behind it
            return self._ended
        if self._chunk_ends and bytes(self._buffer[nbytes - 2 : nbytes]) != _LINE_END:
            self._chunk_ends.clear()  # it ends within the line that tells a chunk's size
        return True

    def _hand_on(self, reply: Reply) -> None:
        """Tell what a read has brought of the body, at once: however it was cut into chunks."""
        pieces = self._pieces
        if self._ended:
            del pieces[self._pieces_of_body :]
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if data and self._reply is not None:
            reply.on_data(data)

    def _let_others_read(self) -> None:
        """Read on in the loop's next round: it would stay with a fast vendor for many reads."""
        if self.is_open and not self.paused:
            cast("asyncio.Transport", self.transport).pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        if self.is_open and not self.paused:
            cast("asyncio.Transport", self.transport).resume_reading()

    def eof_received(self) -> bool:
        """Close: half-open connections serve nobody."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the reply, unless the end of the connection is the end of the answer."""
        self.transport = None
        reply = self._reply
        if reply is None:
            return
        try:
            if exc is None and self._head_done and not self._delimited:
                self._keep_alive = False
                self._finish(reply)
            else:
                self._reply = None
                reply.on_broken(any_byte=self._any_byte)
        except Exception as error:  # noqa: BLE001 - one call's defect is that call's end
            self._fail(reply, error)

    def resume_writing(self) -> None:
        """The vendor took what was waiting."""
        if self._reply is not None:
            self._reply.on_drained()

    def _break(self) -> None:
        reply, self._reply = self._reply, None
        if self.transport is not None:
            self.transport.abort()
        if reply is not None:
            try:
                reply.on_broken(any_byte=True)
            except Exception as error:  # noqa: BLE001 - one call's defect is that call's end
                reply.on_defect(error)

    def _fail(self, reply: Reply, error: Exception) -> None:
        """Tell a reply of its own failure, and close: what is left of the answer is of no use."""
        self.abort()
        reply.on_defect(error)

    def _finish(self, reply: Reply) -> None:
        self._reply = None
        transport = self.transport
        keep = (
            self._keep_alive
            and self._delimited
            and not self._extra
            and transport is not None
            and not transport.is_closing()
            # An answer that did not wait for the whole request says nothing about its rest.
            and not transport.get_write_buffer_size()
        )
        reply.on_end()
        reply.on_read_done()
        if keep:
            self._reset()
            if self.paused:  # for a client that is behind with what is left; the next one is not
                self.resume()
            self.reused = True
            self._release(self)
        elif self.transport is not None:
            self.transport.abort()

    # httptools callbacks

    def on_status(self, status: bytes) -> None:
        """Keep the reason phrase."""
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; bounded. One that comes after the head is a trailer, and dropped."""
        if len(self._headers) >= RESPONSE_HEADERS_MAX:
            raise _HeadTooLarge
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Tell the head, or skip an interim answer."""
        if self._ended:
            self._extra = True
            return
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, []
        if status < _INTERIM_END:
            self._interim += 1
            if status == _SWITCHING_PROTOCOLS or self._interim > INTERIM_RESPONSES_MAX:
                raise _HeadTooLarge
            self._reason = b""
            return
        self._keep_alive = self._parser.should_keep_alive()
        self._delimited = status in _NO_BODY
        for name, value in headers:
            if name in _FRAMING and (
                name == b"content-length" or value.rstrip().lower().endswith(b"chunked")
            ):  # another transfer coding does not tell where a body ends
                self._delimited = True
        self._head_done = True
        if self._reply is not None:
            self._reply.on_head(status, self._reason, headers)

    def on_message_begin(self) -> None:
        """Note what nobody asked for: another answer behind the one that is whole."""
        self._extra = self._ended

    def on_message_complete(self) -> None:
        """Note the end; it is told when the read is done."""
        if self._head_done and not self._ended:
            self._ended = True
            self._pieces_of_body = len(self._pieces)


def _whole_chunk(nbytes: int) -> tuple[tuple[bytes, ...], int]:
    """Return how a chunk of so many bytes in all may begin (RFC 9112, 7.1), and its data's size.

    As most servers write them: those with extensions, or zeros before the size, are the parser's.
    """
    for digits in (1, 2, 3, 4):
        size = nbytes - digits - 2 * len(_LINE_END)
        if size > 0 and len(b"%x" % size) == digits:
            return (b"%x\r\n" % size, b"%X\r\n" % size), size
    return (), 0


CHUNK_BYTES_END: Final = 2048  # longer ones are the parser's too
_CHUNKS: Final = tuple(_whole_chunk(nbytes) for nbytes in range(CHUNK_BYTES_END))


class _HeadTooLarge(Exception):
    """The answer's head is over its limits."""


def _defect_of(error: BaseException) -> Exception | None:
    """Return what a reply raised while it was told, None where the answer is at fault."""
    cause = error.__context__
    if not isinstance(error, httptools.HttpParserCallbackError) or not isinstance(cause, Exception):
        return None
    return None if isinstance(cause, _HeadTooLarge) else cause


class UpstreamPool:
    """Warm connections by origin: the one used last is used first."""

    def __init__(self, dial: Dial, *, now: Callable[[], float]) -> None:
        """`dial` opens connections; `now` gives seconds on the loop's clock."""
        self._dial = dial
        self._now = now
        self._idle: dict[Origin, deque[UpstreamConnection]] = {}
        self._buffer = memoryview(bytearray(READ_BUFFER_BYTES))

    def take_idle(self, origin: Origin) -> UpstreamConnection | None:
        """Return a warm connection, or None."""
        idle = self._idle.get(origin)
        oldest = self._now() - IDLE_CONNECTION_SECONDS_MAX
        while idle:
            connection = idle.pop()
            if not connection.is_open:
                continue
            if connection.idle_since < oldest:
                connection.abort()
                continue
            return connection
        return None

    async def connect(self, origin: Origin) -> UpstreamConnection:
        """Open a new connection. Raises VendorUnreachable, VendorTimeout."""

        def release(connection: UpstreamConnection) -> None:
            self._put_back(origin, connection)

        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                connection = await self._dial(
                    origin, lambda: UpstreamConnection(release, buffer=self._buffer)
                )
        except TimeoutError as error:
            raise VendorTimeout from error
        except OSError as error:
            raise VendorUnreachable from error
        if not connection.is_open:  # the vendor closed it at once
            raise VendorUnreachable
        return connection

    def _put_back(self, origin: Origin, connection: UpstreamConnection) -> None:
        idle = self._idle.setdefault(origin, deque())
        connection.idle_since = self._now()
        idle.append(connection)
        if len(idle) > IDLE_CONNECTIONS_MAX:
            idle.popleft().abort()

    def put_back(self, connection: UpstreamConnection) -> None:
        """Take a connection back that was not used after all."""
        connection.release()

    def sweep(self) -> None:
        """Close connections that were idle for too long; call every few seconds."""
        oldest = self._now() - IDLE_CONNECTION_SECONDS_MAX
        for idle in self._idle.values():
            while idle and (idle[0].idle_since < oldest or not idle[0].is_open):
                idle.popleft().abort()

    def close(self) -> None:
        """Close every idle connection."""
        for idle in self._idle.values():
            while idle:
                idle.pop().abort()


def make_dial(
    resolve: Callable[[Origin], Awaitable[list[str]]],
    check_peer: Callable[[Origin, str], None],
    tls: ssl.SSLContext,
) -> Dial:
    """Return a Dial over the running loop.

    `resolve` gives the addresses that an origin may have, `check_peer` raises OSError for a
    connected peer that it may not: the answer of a resolver can change between the two.
    """

    async def dial(
        origin: Origin, protocol: Callable[[], UpstreamConnection]
    ) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        last: OSError = OSError(f"{origin.host} has no address that the gateway may connect to")
        for address in await resolve(origin):
            try:
                transport, connection = await loop.create_connection(
                    protocol,
                    address,
                    origin.port,
                    ssl=tls if origin.scheme == "https" else None,
                    server_hostname=origin.host if origin.scheme == "https" else None,
                )
            except OSError as error:
                last = error
                continue
            peer = transport.get_extra_info("peername")
            if peer is None:  # reset already
                transport.abort()
                last = ConnectionResetError(f"{origin.host} closed the connection at once")
                continue
            try:
                check_peer(origin, peer[0])
            except OSError:
                transport.abort()
                raise
            return connection
        raise last

    return dial
