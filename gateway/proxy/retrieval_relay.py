"""The answer to a call that retrieves: read to its end, though the client has left.

What was made before costs nothing more when it is told again, and a client may have all that it
wants of it before the usage comes. So leaving cancels nothing here: the vendor's answer is read on
for the meter alone, within bounds, and the call goes on as one until then.
"""

from typing import Final

from gateway.errors import GatewayError
from gateway.proxy.call_record import Status
from gateway.proxy.relay import Outcome, Relay

READ_ON_BYTES_MAX: Final = 16 * 1024 * 1024  # the longest answers of a model are a few MB of events
READ_ON_SECONDS_MAX: Final = 60.0  # the call holds its permits meanwhile


class RetrievalRelay(Relay):
    """The answer to one attempt, metered to its end."""

    _is_left = False  # the client is gone, and its answer is read on
    _room = READ_ON_BYTES_MAX

    def on_client_gone(self) -> None:
        """Read on, where an answer has begun."""
        has_begun = self._status != 0 and self._error_body is None
        if self.outcome.is_told or not has_begun or self._ending or self._meter.is_over:
            super().on_client_gone()
            return
        self._is_left = True
        self._exchange.sink = None
        self._timer = self._loop.call_later(READ_ON_SECONDS_MAX, self._end_in_time)
        self.on_client_ready()  # it may have been behind: nobody is any more

    def on_chunk(self, chunk: bytes, size: int) -> bool:
        """Pass a chunk on, as long as there is somebody."""
        return not self._is_left and super().on_chunk(chunk, size)

    def on_data(self, data: bytes) -> None:
        """Let those have a piece of the body who read it."""
        if not self._is_left:
            super().on_data(data)
            return
        self._last_byte = self._loop.time()
        self._feed(data)
        self._room -= len(data)
        if self._room < 0:
            self._end_left(is_whole=False)

    def on_read_done(self) -> None:
        """Stop where all is told."""
        if not self._is_left:
            super().on_read_done()
        elif self._meter.is_over:
            self._end_left(is_whole=True)

    def on_end(self) -> None:
        """The answer is whole."""
        if self._is_left:
            self._end_left(is_whole=self._final_status() is Status.COMPLETE)
        else:
            super().on_end()

    def on_broken(self, *, any_byte: bool) -> None:
        """The vendor's connection died in the middle."""
        if self._is_left:
            self.connection = None
            self._end_left(is_whole=False)
        else:
            super().on_broken(any_byte=any_byte)

    def _fail(self, status: Status, error: GatewayError) -> None:
        if self._is_left:
            self._end_left(is_whole=False)
        else:
            super()._fail(status, error)

    def _end_with_error(self) -> None:
        if self._is_left:  # the time to read on is over
            self._end_left(is_whole=False)
        else:
            super()._end_with_error()

    def _end_left(self, *, is_whole: bool) -> None:
        """Close the record of a client that has left, with what was told until now."""
        if self.outcome.is_told:
            return
        self._record.close(
            Status.CLIENT_CLOSED,
            self._told(self._meter.finish(complete=is_whole)),
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
        )
        self._abort_vendor()
        self._done(Outcome.ANSWERED)
