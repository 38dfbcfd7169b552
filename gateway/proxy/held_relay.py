"""An answer that is held until it is whole, because some of it is not the caller's to see.

Lists of stored objects are cut down to the caller's own; the address of a batch's results is cut to
its path. Whose the rows are may have to be asked, so the record stays open until that is known.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from gateway.errors import GatewayError, VendorBroke
from gateway.metering.decoding import DECODERS, DecodingStopped
from gateway.proxy.call_record import Status
from gateway.proxy.headers import Headers
from gateway.proxy.relay import STATUS_ERROR_MIN, Outcome, Relay
from gateway.proxy.stored_pages import PAGE_BYTES_MAX, PageUnreadable

Edit = Callable[[bytes], Awaitable[bytes]]

_TOO_LARGE: Final = "The vendor's list is larger than the gateway can look through. Ask for fewer."
_UNREADABLE: Final = "The vendor's list can't be read, so it can't be said whose it is."


class HeldRelay(Relay):
    """The answer to one attempt, passed on whole and edited."""

    _held: bytearray | None = None
    _cut_by: tuple[Status, GatewayError] | None = None  # since it is whole

    def _begin(self, headers: Headers, *, length: int | None = None) -> None:
        if self._status < STATUS_ERROR_MIN and length is None:
            self._held = bytearray()
            return
        super()._begin(headers, length=length)

    def on_data(self, data: bytes) -> None:
        """Hold a piece of the body."""
        if self._held is None or self.outcome.is_told:
            super().on_data(data)
            return
        self._last_byte = self._loop.time()
        self._held += data
        self._feed(data)
        if len(self._held) > PAGE_BYTES_MAX:
            self._fail(Status.VENDOR_BROKE, VendorBroke(_TOO_LARGE))

    def on_read_done(self) -> None:
        """Nothing of a held answer is written before its end."""
        if self._held is None:
            super().on_read_done()

    def on_end(self) -> None:
        """The answer is whole: it is for `answer` to pass it on."""
        if self._held is None or self.outcome.is_told:
            super().on_end()
            return
        self._done(Outcome.HELD)

    def on_client_gone(self) -> None:
        """Nobody passes the answer on any more, whether it is whole or not."""
        if self._held is not None and self.outcome.is_told:
            self._close(Status.CLIENT_CLOSED, complete=True)
            return
        super().on_client_gone()

    def cut(self, status: Status, error: GatewayError) -> None:
        """End the answer now; one that is whole is not passed on any more."""
        if self._held is not None and self.outcome.is_told:
            self._cut_by = self._cut_by or (status, error)
            return
        super().cut(status, error)

    async def answer(self, edit: Edit) -> None:
        """Pass the answer on as `edit` leaves it. Raises GatewayError where that can't be told.

        `edit` raises PageUnreadable where the answer is not what it should be. Whatever else it
        raises is raised on; the record is closed in any case.
        """
        try:
            await self._answer(edit)
        except Exception as error:
            self._interrupt(error)
            raise

    async def _answer(self, edit: Edit) -> None:
        assert self._held is not None
        if self._cut_by is not None:
            status, error = self._cut_by
            self._close(status, complete=True, reason=error.reason)
            raise error
        try:
            text = await edit(self._opened(bytes(self._held)))
        except (PageUnreadable, DecodingStopped) as error:
            self._close(Status.VENDOR_BROKE, complete=False, reason=VendorBroke.reason)
            raise VendorBroke(_UNREADABLE) from error
        except GatewayError as error:
            self._close(Status.COMPLETE, complete=True, reason=error.reason)
            raise
        except asyncio.CancelledError:
            self._close(Status.CLIENT_CLOSED, complete=True)
            raise
        headers = [header for header in self._headers if header[0] != b"content-encoding"]
        self._bytes_down = len(text)
        self._close(Status.COMPLETE, complete=True)
        super()._begin(headers, length=len(text))
        self._exchange.send(text)
        self._exchange.finish()

    def _opened(self, body: bytes) -> bytes:
        """Return a body without its content encoding. Raises DecodingStopped."""
        for name, value in self._headers:
            if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                made = DECODERS.get(value.strip().lower())
                if made is None:
                    raise DecodingStopped
                body = made().feed(body)
        if len(body) > PAGE_BYTES_MAX:
            raise DecodingStopped
        return body
