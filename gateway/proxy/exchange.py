"""One request of a client and its answer, as whoever answers it sees them.

The lane makes an exchange when a request's head is whole. Its body is held here, within the budget;
the answer is framed here, as the client's version of HTTP takes it, and written by plain calls.
"""

from collections.abc import Callable
from typing import Final, Protocol

from gateway.errors import BodyBudgetSpent, BodyTooLarge, GatewayError
from gateway.limits import REQUEST_BODY_BYTES_MAX
from gateway.proxy.body_budget import BodyBudget
from gateway.proxy.call_plan import CallPlan
from gateway.proxy.errand import Errand, News
from gateway.proxy.headers import Headers, upstream_query
from gateway.proxy.known_heads import KnownHead, KnownHeads

_LINE_END: Final = b"\r\n"
_CORS_PREFIX: Final = b"access-control-"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Sink(Protocol):
    """Who hears of the client while an answer is under way."""

    def on_client_gone(self) -> None:
        """The client closed the connection, or it broke."""

    def on_client_behind(self) -> None:
        """The client reads too slowly: send no more for now."""

    def on_client_ready(self) -> None:
        """The client has caught up."""


class Connection(Protocol):
    """What an exchange asks of the connection that it is on."""

    address: str
    body_holders: tuple[str, ...]
    budget: BodyBudget
    known_heads: KnownHeads
    is_behind: bool  # more waits for the client than may

    @property
    def draining(self) -> bool:
        """Whether this connection ends with the present answer."""
        ...

    def unsent_bytes(self) -> int:
        """Return how many bytes wait for the client."""
        ...

    def write(self, data: bytes) -> None:
        """Write, if the client is still there."""

    def writer(self) -> Callable[[bytes], None]:
        """Return what does that by a plain call, until the sink hears that the client is gone."""
        ...

    def on_answered(self, exchange: "Exchange") -> None:
        """Close, where no other request is to be answered."""

    def on_over(self, exchange: "Exchange") -> None:
        """Go on with the next request."""

    def abort(self) -> None:
        """Break the connection."""


class Exchange:
    """One request of a client, and its answer."""

    # As it is until something happens; what each request has of its own costs each request.
    is_http10 = False
    keep_alive = True
    expects_continue = False
    cors_origin: bytes | None = None  # whose pages may read the answer
    sink: Sink | None = None
    errand: Errand | None = None
    plan: CallPlan | None = None
    head_digest: bytes | None = None  # under which the head may be remembered
    started = False  # some of the answer was written
    answered = False
    body_whole = False
    body_error: GatewayError | None = None
    _body: bytes | bytearray = b""
    _body_news: News[None] | None = None
    _charged = 0
    _chunked = False

    def __init__(
        self,
        connection: Connection,
        *,
        method: bytes,
        path: str,
        query: bytes,
        headers: Headers | None,
        known: KnownHead | None = None,
        raw_head: bytes = b"",
    ) -> None:
        """`path` and `query` are as sent, without the '?'; header names are in lower case.

        `headers` are None where the head is `known`: then they are read out of `raw_head`, if
        anyone asks for them.
        """
        self._connection = connection
        self.method = method
        self.path = path
        self.query = query
        self._headers = headers
        self._known = known
        self._raw_head = raw_head
        if known is not None:
            self.plan = known.plan
        self.is_head = method == b"HEAD"
        self._holders: tuple[str, ...] = connection.body_holders
        self._out: list[bytes] = []  # to be written

    # the request's head

    @property
    def headers(self) -> Headers:
        """The request's headers, names in lower case; none once they are forgotten."""
        headers = self._headers
        if headers is None:
            assert self._known is not None
            headers = self._headers = self._known.headers(self._raw_head)
        return headers

    def forget_headers(self) -> None:
        """Let the head go: streams are open for long, and heads are some KiB."""
        self._headers = []
        self._raw_head = b""

    def offer_head(self, digest: bytes, raw: bytes) -> None:
        """Take the bytes that the head was parsed from: it may be remembered, as `digest`."""
        if sum(name == b"content-length" for name, _ in self.headers) == 1:
            self.head_digest, self._raw_head = digest, raw

    def remember_head(self, plan: CallPlan) -> None:
        """Have the next request with this head go by this plan, if it is one to be remembered."""
        if self.head_digest is None:
            return
        if self.query and upstream_query(self.query) != self.query:
            self.head_digest = None  # there is a secret in it
            return
        known = KnownHead(
            method=self.method,
            path=self.path,
            query=self.query,
            headers=self.headers,
            plan=plan,
        )
        if known.headers(self._raw_head) == self.headers:
            self._connection.known_heads.remember(self.head_digest, known)
        self.head_digest = None

    @property
    def address(self) -> str:
        """The client's IP address."""
        return self._connection.address

    # the request's body

    async def read_body(self, *, org_id: str) -> bytes:
        """Return the whole body, once; its bytes are charged to the org too from now on.

        Raises BodyTooLarge, BodyBudgetSpent, RequestTooSlow.
        """
        holder = "org:" + org_id
        if self._charged:
            self._connection.budget.share(self._charged, holder)
        self._holders = (*self._holders, holder)
        if not self.body_whole and self.body_error is None:
            if self.expects_continue:
                self._connection.write(_CONTINUE)
            self._body_news = News()
            await self._body_news
        if self.body_error is not None:
            raise self.body_error
        body, self._body = self._body, b""
        return bytes(body)  # no copy of one that came in a piece

    def feed_body(self, data: bytes) -> None:
        """Take in a piece of the body. Past an error or the answer it is read and dropped."""
        if self.body_error is not None or self.answered:
            return
        size = len(data)
        if self._charged + size > REQUEST_BODY_BYTES_MAX:
            self.fail_body(BodyTooLarge())
            return
        try:
            self._connection.budget.take(size, self._holders)
        except BodyBudgetSpent as error:
            self.fail_body(error)
            return
        self._charged += size
        if not self._body:
            self._body = data
        elif isinstance(self._body, bytearray):
            self._body += data
        else:
            self._body = bytearray(self._body) + data

    def end_body(self) -> None:
        """The body is whole. Who waits for it hears of it from `tell_body`."""
        self.body_whole = True

    def fail_body(self, error: GatewayError) -> None:
        """The body won't be read: `read_body` raises. Who waits for it is told by `tell_body`."""
        self.body_error = error

    def tell_body(self) -> None:
        """Run on who waits for the body, if there is news of it."""
        news = self._body_news
        if news is not None and (self.body_whole or self.body_error is not None):
            self._body_news = None
            news.tell(None)

    def release_body(self) -> None:
        """Forget the body and give its bytes back."""
        if self._charged:
            self._connection.budget.give_back(self._charged, self._holders)
            self._charged = 0
            self._body = b""

    # the answer

    @property
    def is_behind(self) -> bool:
        """Whether the client is too slow already, with the answer before this one."""
        return self._connection.is_behind

    @property
    def can_take_bytes_of_ours(self) -> bool:
        """Whether bytes of the gateway's own can follow: a chunked body, all written so far."""
        return self._chunked and not self._connection.unsent_bytes()

    def respond(self, answer: bytes, *, close: bool = False) -> None:
        """Write a whole answer, head and body."""
        if self.answered:
            return
        if close or not self.body_whole:
            self.keep_alive = False
        self.started = True
        if self.cors_origin is not None:
            first, _, rest = answer.partition(b"\r\n")
            answer = b"%b\r\n%b%b" % (first, _cors_lines(self.cors_origin), rest)
        self._out.append(answer)
        self.finish_written()

    def begin(
        self, status: int, reason: bytes, headers: Headers, *, length: int | None, no_body: bool
    ) -> None:
        """Begin an answer: its head, framed as the client's version of HTTP takes it.

        `length` is the body's in bytes, None where it is not known; `no_body`: 204, 304, HEAD.
        """
        self.started = True
        head = [b"HTTP/1.1 %d %b" % (status, reason)]
        if self.cors_origin is not None:  # a second opinion on it would make browsers refuse
            headers = [one for one in headers if not one[0].startswith(_CORS_PREFIX)]
        head += map(b": ".join, headers)
        if self.cors_origin is not None:
            head.append(_cors_lines(self.cors_origin).removesuffix(_LINE_END))
        if length is not None:
            head.append(b"content-length: %d" % length)
        elif not no_body:
            if self.is_http10:
                self.keep_alive = False
            else:
                self._chunked = True
                head.append(b"transfer-encoding: chunked")
        if not self.keep_alive or not self.body_whole or self._connection.draining:
            self.keep_alive = False
            head.append(b"connection: close")
        head.append(_LINE_END)
        self._out.append(_LINE_END.join(head))

    def send(self, data: bytes) -> None:
        """Add a piece of the body to what `flush` writes."""
        if self._chunked:
            self._out.append(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._out.append(data)

    def chunk_writer(self) -> Callable[[bytes], None] | None:
        """Return what writes a chunk of the body as it is, where all before it was flushed.

        None: the client's version of HTTP takes no chunks.
        """
        return self._connection.writer() if self._chunked and not self._out else None

    def flush(self) -> None:
        """Write what was added."""
        if self._out:
            out = self._out
            self._connection.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def finish(self) -> None:
        """End the answer, cleanly."""
        if self._chunked:
            self._out.append(b"0\r\n\r\n")
        self.finish_written()

    def finish_written(self) -> None:
        """Write what was added and let the connection go on."""
        self.flush()
        self.answered = True
        self.release_body()
        self._connection.on_answered(self)

    def end(self) -> None:
        """Whoever answered it is done with it."""
        self._connection.on_over(self)

    def abort(self) -> None:
        """Break the connection: the client must not take what it got for the whole."""
        self.answered = True
        self._out.clear()
        self.release_body()
        self._connection.abort()


def _cors_lines(origin: bytes) -> bytes:
    """Return the headers that let a page of this origin read an answer."""
    return (
        b"access-control-allow-origin: %b\r\naccess-control-expose-headers: *\r\nvary: origin\r\n"
        % origin
    )
