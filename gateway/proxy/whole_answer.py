"""An answer of a vendor's to a question of the gateway's own: kept whole, up to a bound."""

import asyncio
from typing import Final

from gateway.proxy.upstream import Headers

NO_ANSWER: Final = 0  # as a status: the connection broke, or the answer is over its bound


class WholeAnswer:
    """A Reply whose `done` gives status and body."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, bytes_max: int) -> None:
        """Wait for an answer; more than `bytes_max` of a body is none."""
        self.done: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self._loop = loop
        self._bytes_max = bytes_max
        self._status = NO_ANSWER
        self._body = bytearray()

    def on_head(self, status: int, reason: bytes, headers: Headers) -> None:  # noqa: ARG002
        """Keep the status."""
        self._status = status

    def on_data(self, data: bytes) -> None:
        """Keep a piece of the body."""
        self._body += data
        if len(self._body) > self._bytes_max:
            self._end(NO_ANSWER, b"")

    def on_chunk(self, chunk: bytes, size: int) -> bool:  # noqa: ARG002 - as Reply
        """Take it as data."""
        return False

    def on_end(self) -> None:
        """Give what came."""
        self._end(self._status, bytes(self._body))

    def on_read_done(self) -> None:
        """Nothing is written on."""

    def on_broken(self, *, any_byte: bool) -> None:  # noqa: ARG002 - as Reply
        """Give nothing."""
        self._end(NO_ANSWER, b"")

    def on_drained(self) -> None:
        """Nothing waits."""

    def on_defect(self, error: Exception) -> None:
        """Give nothing; the loop's handler tells what failed."""
        self._loop.call_exception_handler(
            {"message": "A vendor's answer could not be read", "exception": error}
        )
        self._end(NO_ANSWER, b"")

    def _end(self, status: int, body: bytes) -> None:
        if not self.done.done():
            self.done.set_result((status, body))
