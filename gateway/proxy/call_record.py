"""What one attempt of a call leaves behind: its open line, its close line, its row.

The open part of a row is written in the step in which the first byte goes to the vendor; the whole
row before the last byte goes to the client. Names are the usage event's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from gateway.clock import DatabaseClock
from gateway.metering.usage import Usage
from gateway.proxy.call_row import (
    ClosePart,
    MeteredObject,
    encode_whole,
    open_part,
    rfc3339,
)

TEXT_CHARS_MAX: Final = 256  # of what a client or vendor put in a header

_MICROSECONDS: Final = 1_000_000


class Status(StrEnum):
    """How an attempt ended."""

    COMPLETE = "complete"
    CLIENT_CLOSED = "client_closed"
    REVOKED = "revoked"
    DEADLINE = "deadline"
    VENDOR_ERROR = "vendor_error"
    VENDOR_BROKE = "vendor_broke"
    INTERRUPTED = "interrupted"  # by a defect of ours; also what a killed process leaves


class CallLog(Protocol):
    """Where lines go; a journal."""

    def open_call(
        self, call_id: str, row: bytes, *, admitted: float, block_ids: tuple[str, ...]
    ) -> None:
        """Record that a call goes to a vendor. Raises JournalFull."""

    def note_end(self, call_id: str, row: bytes) -> None:
        """Record how it ends if nothing more comes."""

    def close_call(self, call_id: str, row: bytes) -> None:
        """Record how it ended; there is room for it."""


class OnClosed(Protocol):
    """Counts what ended."""

    def __call__(
        self,
        *,
        vendor: str,
        endpoint: str,
        status: str,
        ttfb_seconds: float | None,
        duration_seconds: float,
        usage: Usage,
    ) -> None:
        """Count one attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordKeeper:
    """What every record needs: where lines go, what time it is, who counts."""

    log: CallLog
    clock: DatabaseClock
    now: Callable[[], float]  # seconds on a clock that never steps; the loop's is too coarse
    on_closed: OnClosed


class CallRecord:
    """One attempt, from its first byte to the vendor to its last byte to the client."""

    closed = False
    http_status: int | None = None
    vendor_request_id: str | None = None
    # The stored object whose usage this is: the ledger takes it once.
    metered_object: MeteredObject | None = None
    _first_byte_at: float | None = None

    def __init__(self, keeper: RecordKeeper) -> None:
        self._keeper = keeper

    def open(
        self,
        *,
        attempt_id: str,
        call_id: str,
        attempt: int,
        retry_of: str | None,
        vendor: str,
        endpoint_name: str,
        purpose: bytes,
        block_ids: tuple[str, ...],
        started: float,
    ) -> None:
        """Write the open line; `started` is when the call came. Raises JournalFull.

        `purpose` is what `encode_purpose` gave.
        """
        admitted = self._keeper.clock.earliest()
        self._id = attempt_id
        self._vendor = vendor
        self._endpoint_name = endpoint_name
        self._started = started
        self._open_row = open_part(
            purpose,
            attempt_id=attempt_id,
            call_id=call_id,
            attempt=attempt,
            retry_of=retry_of,
            time=rfc3339(admitted),
        )
        self._keeper.log.open_call(
            attempt_id, self._open_row, admitted=admitted, block_ids=block_ids
        )

    def first_byte(self, http_status: int) -> None:
        """An answer begins."""
        self._first_byte_at = self._keeper.now()
        self.http_status = http_status

    def note_end(self, status: Status, usage: Usage, *, bytes_up: int, bytes_down: int) -> None:
        """Write what the row is if nothing more comes: the client may have the whole answer."""
        self._keeper.log.note_end(
            self._id,
            self._row(status, usage, None, bytes_up=bytes_up, bytes_down=bytes_down),
        )

    def close(
        self,
        status: Status,
        usage: Usage,
        *,
        reason: str | None = None,
        bytes_up: int,
        bytes_down: int,
    ) -> None:
        """Write the whole row, once; a second call changes nothing."""
        if self.closed:
            return
        keeper = self._keeper
        row = self._row(status, usage, reason, bytes_up=bytes_up, bytes_down=bytes_down)
        self.closed = True  # a row that can't be made of this leaves it open for another
        keeper.log.close_call(self._id, row)
        first = self._first_byte_at
        keeper.on_closed(
            vendor=self._vendor,
            endpoint=self._endpoint_name,
            status=status,
            ttfb_seconds=None if first is None else first - self._started,
            duration_seconds=keeper.now() - self._started,
            usage=usage,
        )

    def _row(
        self, status: Status, usage: Usage, reason: str | None, *, bytes_up: int, bytes_down: int
    ) -> bytes:
        """Return the whole row as JSON."""
        keeper, first = self._keeper, self._first_byte_at
        part = ClosePart(
            ended_at=rfc3339(keeper.clock.latest()),
            status=status,
            http_status=self.http_status,
            reason=reason,
            vendor_request_id=self.vendor_request_id,
            ttfb_ms=None if first is None else _milliseconds(first - self._started),
            duration_ms=_milliseconds(keeper.now() - self._started),
            bytes_up=bytes_up,
            bytes_down=bytes_down,
        )
        part.tell(usage, self.metered_object)
        return encode_whole(self._open_row, part)


def _milliseconds(seconds: float) -> float:
    return int(seconds * _MICROSECONDS) / 1000  # as whole microseconds, for they are read by people


def header_text(value: bytes) -> str | None:
    """Return a header's value as a row can hold it, or None."""
    text = value.decode("ascii", "replace").strip()
    return text[:TEXT_CHARS_MAX] if text and text.isprintable() else None
