"""One vendor's answer on its way to the client: bytes pass as they come, a copy is metered.

A relay hears from three sides: the vendor's connection (`Reply`), the client's (`Sink`), and
whoever cuts the call (`cut`). Whatever happens first closes the record, before the last bytes go
out and in the same step of the loop; what comes after that changes nothing.

An answer that can't go on never looks as if it had ended: the client gets its format's own error
event, at an event boundary, or where no event of ours can be put in, a broken connection.
"""

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from gateway.errors import (
    GatewayError,
    VendorBroke,
    VendorKeyRefused,
    VendorTimeout,
)
from gateway.limits import FIRST_BYTE_SECONDS_MAX, IDLE_SECONDS_MAX, STREAM_TOTAL_SECONDS_MAX
from gateway.metering.aws_event_stream import FrameBoundary, is_aws_events
from gateway.metering.decoding import DECODERS, DecodingStopped
from gateway.metering.meter import Meter, NullMeter, StreamMeter, is_in_lines, open_meter
from gateway.metering.sse import EVENT_ENDS, EventBoundary, UsageEventFilter
from gateway.metering.usage import Usage
from gateway.proxy.call_record import CallRecord, Status, header_text
from gateway.proxy.errand import News
from gateway.proxy.error_responses import mask_keys, stream_error
from gateway.proxy.exchange import Exchange
from gateway.proxy.headers import Headers, downstream_headers
from gateway.proxy.preparation import Request
from gateway.proxy.stored_answer import StoredAnswer
from gateway.proxy.upstream import UpstreamConnection

ERROR_BODY_BYTES_MAX: Final = 1024 * 1024  # held to look for the vendor key; a longer one is broken
BOUNDARY_WAIT_SECONDS: Final = 0.1  # for the event that is under way to end, before ours
STATUS_ERROR_MIN: Final = 400

_NO_BODY: Final = (204, 304)
_NO_METER: Final = NullMeter()  # keeps nothing of what it is fed
_REQUEST_ID_HEADERS: Final = frozenset(
    {
        b"x-request-id",
        b"request-id",
        b"x-goog-request-id",
        b"apim-request-id",
        b"x-amzn-requestid",
        b"x-debug-trace-id",
    }
)
_PARTIAL_CONTENT: Final = 206
_ENDS_OF_EVENT_AND_CHUNK: Final = tuple(end + b"\r\n" for end in EVENT_ENDS)
_READ_HEADERS: Final = _REQUEST_ID_HEADERS | {
    b"content-encoding",
    b"content-length",
    b"content-type",
}


class Outcome(Enum):
    """What is left to do for whoever dispatched the request."""

    ANSWERED = auto()  # nothing: the client has its answer, or is gone
    RETRY = auto()  # a reused connection died before any byte: another attempt may be made
    HELD = auto()  # a HeldRelay has the whole answer: it is to be passed on
    REFUSED = auto()  # nothing was written to the client yet: `error` is to be told


class RelayTimes:
    """Deadlines of an answer, in seconds. Settings may lower them."""

    def __init__(
        self,
        *,
        first_byte_seconds: float = FIRST_BYTE_SECONDS_MAX,
        idle_seconds: float = IDLE_SECONDS_MAX,
        total_seconds: float = STREAM_TOTAL_SECONDS_MAX,
    ) -> None:
        """`total_seconds` is counted from the dispatch."""
        self.first_byte_seconds = first_byte_seconds
        self.idle_seconds = idle_seconds
        self.total_seconds = total_seconds


class Relay:
    """The answer to one attempt. It is the vendor connection's Reply and the client's Sink."""

    # As it is until an answer begins; what each call has of its own costs each call.
    error: GatewayError | None = None
    connection: UpstreamConnection | None = None
    _status = 0
    _reason = b""
    _headers: Headers = []  # noqa: RUF012 - replaced, never changed
    _length: int | None = None  # of the body, as the vendor says
    _error_body: bytearray | None = None  # held until it is whole
    _meter: Meter = _NO_METER
    # Where events may be passed on unread: whether these can't be, and what writes them.
    _wants: Callable[[bytes], bool] | None = None
    _write_chunk: Callable[[bytes], None] | None = None
    _boundary: EventBoundary | FrameBoundary | None = None  # where there are events
    _filter: UsageEventFilter | None = None
    _is_encoded = False
    _has_end_mark = False
    _has_length = False
    _bytes_down = 0
    _ending: tuple[Status, GatewayError] | None = None  # at the next boundary
    _timer: asyncio.TimerHandle | None = None

    def __init__(
        self,
        exchange: Exchange,
        request: Request,
        record: CallRecord,
        *,
        call_id: str,
        may_retry: bool,
        times: RelayTimes,
        loop: asyncio.AbstractEventLoop,
        stored: StoredAnswer | None = None,
    ) -> None:
        """`request` is what goes up; its body is let go when an answer begins.

        `may_retry`: it may be sent again where no byte of an answer came. `stored`: the answer has
        to do with stored objects.
        """
        self.outcome: News[Outcome] = News()
        self._exchange = exchange
        self._request = request
        self._record = record
        self._call_id = call_id
        self._bytes_up = len(request.sent.body)
        self._may_retry = may_retry
        self._times = times
        self._loop = loop
        self._stored = stored
        if request.sent.asked_usage:  # the stream's usage event is there for the gateway alone
            self._filter = UsageEventFilter()
        self._started = self._last_byte = loop.time()

    def dispatch(self, connection: UpstreamConnection, head: bytes) -> None:
        """Send the request. The record has to be open."""
        self.connection = connection
        self._exchange.sink = self
        connection.send(self, head, self._request.sent.body)
        if self._exchange.is_behind:
            self.on_client_behind()

    # Reply: what the vendor sends

    def on_head(self, status: int, reason: bytes, headers: Headers) -> None:
        """Decide how the answer is passed on."""
        record, exchange = self._record, self._exchange
        self._last_byte = self._loop.time()
        self._request.sent.body = b""  # many streams are open for long; their requests are large
        exchange.release_body()
        record.first_byte(status)
        self._status = status
        self._reason = reason
        self._headers = headers
        content_type, content_encoding = self._read_headers(headers)
        if status >= STATUS_ERROR_MIN:
            self._error_body = bytearray()
            return
        self._meter = open_meter(
            self._request.endpoint.meter,
            stream=self._request.stream,
            status=status,
            content_type=content_type,
            content_encoding=content_encoding,
            headers=headers,
        )
        if status == _PARTIAL_CONTENT:
            self._meter, self._stored = _NO_METER, None  # a part tells nothing of the whole
        if self._stored is not None:
            self._stored.begin(content_type=content_type, content_encoding=content_encoding)
        if content_type != b"application/json":
            self._boundary = _boundary_in(content_type)
            self._has_end_mark = self._boundary is not None or is_in_lines(content_type)
        if content_encoding or self._boundary is None:
            self._filter = None
        self._is_encoded = bool(content_encoding)
        self._begin(headers)
        if exchange.started:  # streams are open for long, and heads are some KiB
            self._headers = []
            exchange.forget_headers()

    def _read_headers(self, headers: Headers) -> tuple[bytes, bytes]:
        """Take in what an answer's head says; return its content type and encoding."""
        content_type = content_encoding = b""
        for name, value in headers:
            if name not in _READ_HEADERS:
                continue
            if name == b"content-type":
                content_type = value
            elif name == b"content-length":
                self._length = int(value)  # the parser has checked it
            elif name == b"content-encoding":
                content_encoding = value
            elif self._record.vendor_request_id is None:
                self._record.vendor_request_id = header_text(value)
        return content_type, content_encoding

    def _begin(self, headers: Headers, *, length: int | None = None) -> None:
        """Write the answer's head to the client."""
        if length is None and self._filter is None:
            length = self._length
        no_body = self._exchange.is_head or self._status in _NO_BODY
        self._has_length = length is not None
        passed = downstream_headers(headers)
        passed.append((b"x-kaixu-call-id", self._call_id.encode()))
        self._exchange.begin(self._status, self._reason, passed, length=length, no_body=no_body)

    def on_chunk(self, chunk: bytes, size: int) -> bool:
        """Pass on whole events that tell nothing, which is most of what a stream brings.

        What is no usage event for the meter is none for the filter; and between two events the
        boundary stays where it is.
        """
        wants, write = self._wants, self._write_chunk
        if wants is None or write is None or not chunk.endswith(_ENDS_OF_EVENT_AND_CHUNK):
            return False
        try:
            if wants(chunk):
                return False
        except Exception:  # noqa: BLE001 - the meter is fed, and takes note of it
            return False
        self._last_byte = self._loop.time()
        self._bytes_down += size
        write(chunk)
        return True

    def _see_what_passes(self) -> None:
        """Find out whether events that come next may go by all who read the answer."""
        self._wants = None
        meter, sieve = self._meter, self._filter
        if not isinstance(meter, StreamMeter) or not isinstance(self._boundary, EventBoundary):
            return
        if self._is_encoded or meter.is_over or self._ending is not None:
            return
        if sieve is None or sieve.is_between:
            wants = meter.wants
            if wants is not None and self._stored is not None:
                wants = _either(wants, self._stored.wants)
            self._wants = wants
            self._write_chunk = self._exchange.chunk_writer()

    def on_data(self, data: bytes) -> None:
        """Pass a piece of the body on, feed the meter with the copy."""
        self._last_byte = self._loop.time()
        if self._error_body is not None:
            self._error_body += data
            if len(self._error_body) > ERROR_BODY_BYTES_MAX:
                self._fail(Status.VENDOR_BROKE, VendorBroke())
            return
        passed = data if self._filter is None else self._filter.feed(data)
        if passed:
            self._bytes_down += len(passed)
            self._exchange.send(passed)
            if self._boundary is not None:
                self._boundary.feed(passed)
        self._meter.feed(data)
        if self._stored is not None:
            self._stored.feed(data)

    def _feed(self, data: bytes) -> None:
        """Let those have the copy who read it."""
        self._meter.feed(data)
        if self._stored is not None:
            self._stored.feed(data)

    def on_read_done(self) -> None:
        """Write what one read brought."""
        if self.outcome.is_told or self._error_body is not None:
            return
        if self._meter.is_over:
            self._note_end()
        self._exchange.flush()
        self._see_what_passes()
        if self._ending is not None and (self._boundary is None or self._boundary.at_boundary):
            self._end_with_error()

    def _note_end(self) -> None:
        """Have it in the journal that the client may have all, before it gets the end mark."""
        self._record.note_end(
            self._final_status(),
            self._told(self._meter.usage_so_far()),
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
        )

    def on_end(self) -> None:
        """The answer is whole."""
        if self.outcome.is_told:
            return
        if self._error_body is not None:
            self._end_refusal(bytes(self._error_body))
            return
        rest = self._filter.finish() if self._filter is not None else b""
        if rest:
            self._bytes_down += len(rest)
            self._exchange.send(rest)
        status = self._final_status()
        self._close(status, complete=status is Status.COMPLETE)
        self._exchange.finish()
        self._done(Outcome.ANSWERED)

    def _final_status(self) -> Status:
        """Return how an answer ended whose framing says that it is whole."""
        if self._meter.stream_error:
            return Status.VENDOR_ERROR
        if self._has_end_mark and not self._meter.saw_end:
            return Status.VENDOR_BROKE
        return Status.COMPLETE

    def _end_refusal(self, body: bytes) -> None:
        """Pass a vendor's refusal on, unless it is about our own key."""
        target = self._request.target
        kind = target.kind
        plain = _decoded(body, self._headers)
        if kind.bad_key(self._status, plain) or (
            kind.bad_key_headers is not None and kind.bad_key_headers(self._status, self._headers)
        ):
            if target.signer is not None:
                target.signer.on_refused()
            self._fail(Status.VENDOR_ERROR, VendorKeyRefused())
            return
        secrets = target.secrets
        headers = [(name, mask_keys(value, secrets)) for name, value in self._headers]
        masked = mask_keys(plain, secrets)
        if masked != plain:
            body = masked
            headers = [header for header in headers if header[0] != b"content-encoding"]
        self._bytes_down = len(body)
        self._close(Status.VENDOR_ERROR, complete=True)
        if self._exchange.is_head:
            self._begin(headers)
        else:
            self._begin(headers, length=len(body))
            self._exchange.send(body)
        self._exchange.finish()
        self._done(Outcome.ANSWERED)

    def on_broken(self, *, any_byte: bool) -> None:
        """The vendor's connection died in the middle."""
        self.connection = None
        if self.outcome.is_told:
            return
        if not any_byte:
            reason = "no_answer"
            self._close(Status.VENDOR_BROKE, complete=False, reason=reason)
            self.error = VendorBroke()
            self._done(Outcome.RETRY if self._may_retry else Outcome.REFUSED)
            return
        self._fail(Status.VENDOR_BROKE, VendorBroke())

    def on_drained(self) -> None:
        """The vendor took what waited; the request was written in one piece anyway."""

    def on_defect(self, error: Exception) -> None:
        """End a call that our own code failed: its record is closed, whoever waits gets the error.

        The client's connection is broken, or it gets a refusal where nothing was written to it.
        """
        if self.outcome.is_told:  # whoever waited knows how it ended
            self._loop.call_exception_handler(
                {"message": "A call failed after its end", "exception": error}
            )
            return
        self._interrupt(error)
        self._abort_vendor()
        self._leave()
        self.outcome.fail(error)

    def _interrupt(self, error: Exception) -> None:
        """Close the record of a call that our own code failed, if it is still open."""
        try:
            self._close(Status.INTERRUPTED, complete=False, reason=GatewayError.reason)
        except Exception as second:  # noqa: BLE001 - the meter may be what failed: do without it
            error.add_note(f"and then, when its usage was asked for: {type(second).__name__}")
            self._record.close(
                Status.INTERRUPTED,
                Usage(),
                reason=GatewayError.reason,
                bytes_up=self._bytes_up,
                bytes_down=self._bytes_down,
            )

    # Sink: what becomes of the client

    def on_client_gone(self) -> None:
        """Cancel the vendor's work at once."""
        if self.outcome.is_told:
            return
        try:
            self._close(Status.CLIENT_CLOSED, complete=False)
        except Exception as error:  # noqa: BLE001 - whoever waits for this call hears of it
            self.on_defect(error)
            return
        self._abort_vendor()
        self._done(Outcome.ANSWERED)

    def on_client_behind(self) -> None:
        """Read no more from the vendor."""
        if self.connection is not None:
            self.connection.pause()

    def on_client_ready(self) -> None:
        """Read on."""
        if self.connection is not None:
            self._last_byte = self._loop.time()
            self.connection.resume()

    # cutting

    def cut(self, status: Status, error: GatewayError) -> None:
        """End the answer now: its token is revoked, its time is over."""
        if self.outcome.is_told or self._ending is not None:
            return
        try:
            self._fail(status, error)
        except Exception as defect:  # noqa: BLE001 - a call that can't be cut cleanly is cut anyhow
            self.on_defect(defect)

    def check_deadlines(self, now: float) -> None:
        """Cut what is over a deadline; call about once a second."""
        if self.outcome.is_told or self._ending is not None:
            return
        if now - self._started > self._times.total_seconds:
            self.cut(Status.DEADLINE, VendorTimeout("The longest time for a call is over."))
        elif self._status == 0:
            if now - self._started > self._times.first_byte_seconds:
                self.cut(Status.DEADLINE, VendorTimeout())
        elif now - self._last_byte > self._times.idle_seconds and not self._is_behind():
            self.cut(Status.DEADLINE, VendorTimeout("The vendor fell silent."))

    def _is_behind(self) -> bool:
        return self.connection is not None and self.connection.paused

    def _fail(self, status: Status, error: GatewayError) -> None:
        """End an answer that can't go on."""
        if not self._exchange.started:
            self._close(status, complete=False, reason=error.reason)
            self._abort_vendor()
            self.error = error
            self._done(Outcome.REFUSED)
            return
        event = stream_error(
            self._request.endpoint,
            reason=error.reason,
            message=error.message,
            call_id=self._call_id,
        )
        boundary = self._boundary
        if event is None or boundary is None or self._has_length:
            self._break(status, error)
            return
        self._ending = (status, error)
        self._wants = None
        if self.connection is None or boundary.at_boundary:
            self._end_with_error()
        else:
            self._timer = self._loop.call_later(BOUNDARY_WAIT_SECONDS, self._end_in_time)

    def _end_in_time(self) -> None:
        """The event under way did not end in time."""
        try:
            self._end_with_error()
        except Exception as error:  # noqa: BLE001 - whoever waits for this call hears of it
            self.on_defect(error)

    def _end_with_error(self) -> None:
        """Write the format's error event, after which a client knows that this was not all."""
        if self.outcome.is_told or self._ending is None:
            return
        status, error = self._ending
        exchange, boundary = self._exchange, self._boundary
        assert boundary is not None
        event = stream_error(
            self._request.endpoint,
            reason=error.reason,
            message=error.message,
            call_id=self._call_id,
        )
        # A message of AWS's can't be broken off by a blank line.
        is_within = isinstance(boundary, FrameBoundary) and not boundary.at_boundary
        if event is None or is_within or not exchange.can_take_bytes_of_ours or self._is_encoded:
            self._break(status, error)
            return
        self._close(status, complete=False, reason=error.reason)
        self._abort_vendor()
        exchange.keep_alive = False
        exchange.send(event if boundary.at_boundary else b"\n\n" + event)
        exchange.finish()
        self._done(Outcome.ANSWERED)

    def _break(self, status: Status, error: GatewayError) -> None:
        self._close(status, complete=False, reason=error.reason)
        self._abort_vendor()
        self._exchange.abort()
        self._done(Outcome.ANSWERED)

    def _close(self, status: Status, *, complete: bool, reason: str | None = None) -> None:
        if self._record.closed:
            return
        if self._meter.is_over and not self._meter.stream_error:
            status, complete, reason = Status.COMPLETE, True, None  # the client has it all
        usage = self._meter.finish(complete=complete) if self._status else Usage()
        self._record.close(
            status,
            usage if self._stored is None else self._told(usage),
            reason=reason,
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
        )

    def _told(self, usage: Usage) -> Usage:
        """Return the usage as the row tells it; whose it is, where that is stored."""
        stored = self._stored
        if stored is None or not 0 < self._status < STATUS_ERROR_MIN:
            return usage
        stored.finish()
        self._record.metered_object = stored.metered_object
        return stored.usage(usage)

    def _abort_vendor(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.give_up(self)

    def _leave(self) -> None:
        """Hear of nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        self.connection = None
        self._exchange.sink = None

    def _done(self, outcome: Outcome) -> None:
        self._leave()
        if not self.outcome.is_told:
            self.outcome.tell(outcome)


def _either(
    one: Callable[[bytes], bool], other: Callable[[bytes], bool] | None
) -> Callable[[bytes], bool] | None:
    """Return what tells whether one of two readers has to be fed, None where the other has to."""
    return None if other is None else lambda raw: one(raw) or other(raw)


def _boundary_in(content_type: bytes) -> EventBoundary | FrameBoundary | None:
    """Return what tells in an answer of this type where an event ends, None where it has none."""
    if is_aws_events(content_type):
        return FrameBoundary()
    is_events = content_type.partition(b";")[0].strip().lower() == b"text/event-stream"
    return EventBoundary() if is_events else None


def _decoded(body: bytes, headers: Headers) -> bytes:
    """Return a refusal's body opened, or as it came where it can't be."""
    for name, value in headers:
        if name == b"content-encoding":
            decoder = DECODERS.get(value.strip().lower())
            if decoder is None:
                return body
            try:
                return decoder().feed(body)
            except DecodingStopped:
                return body
    return body
