"""The line between a worker and its supervisor: JSON objects, one a line, over a socket pair.

To the supervisor: `{"state": …}` whenever it changes, and `{"metrics": …}` when asked. To the
worker: `{"ask": "metrics"}` and `{"ask": "drain"}`. The line's end says that the other side is
gone, however it went: a worker whose supervisor died drains by itself.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from gateway.metrics import Snapshot

LINE_BYTES_MAX: Final = 8 * 1024 * 1024  # metrics of a worker that knows thousands of series
FDS_VARIABLE: Final = "KAIXU_WORKER_FDS"  # "listener,channel": what a worker inherits
NUMBER_VARIABLE: Final = "KAIXU_WORKER_NUMBER"  # its place on the machine, from 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """What a worker is handed by its supervisor."""

    number: int
    listener: socket.socket
    channel: socket.socket


class State(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker is: ready when `not_ready` names nothing."""

    worker_id: str
    not_ready: tuple[str, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line to the supervisor."""

    state: State | None = None
    metrics: Snapshot | None = None


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A line to the worker: "metrics" or "drain"."""

    ask: str


METRICS: Final = "metrics"
DRAIN: Final = "drain"


class SupervisorLink:
    """The worker's end."""

    def __init__(
        self,
        channel: socket.socket,
        *,
        snapshot: Callable[[], Snapshot],
        on_drain: Callable[[], None],
        on_supervisor_gone: Callable[[], None],
    ) -> None:
        """`snapshot` gives the metrics; the others are called once, from the loop."""
        self._channel = channel
        self._snapshot = snapshot
        self._on_drain = on_drain
        self._on_supervisor_gone = on_supervisor_gone
        self._writer: asyncio.StreamWriter | None = None
        self._state: State | None = None

    def tell_state(self, state: State) -> None:
        """Tell how this worker is, if that is new."""
        if state != self._state:
            self._state = state
            self._send(Report(state=state))

    async def run(self) -> None:
        """Answer the supervisor until it is gone; then there is nobody left to answer."""
        reader, self._writer = await asyncio.open_unix_connection(
            sock=self._channel, limit=LINE_BYTES_MAX
        )
        if self._state is not None:
            self._send(Report(state=self._state))
        try:
            while line := await read_line(reader):
                ask = msgspec.json.decode(line, type=Ask).ask
                if ask == METRICS:
                    self._send(Report(metrics=self._snapshot()))
                elif ask == DRAIN:
                    self._on_drain()
        finally:
            self._writer.close()
            self._writer = None
        self._on_supervisor_gone()

    def _send(self, report: Report) -> None:
        writer = self._writer
        # A supervisor that reads nothing more gets nothing more.
        if writer is not None and writer.transport.get_write_buffer_size() < LINE_BYTES_MAX:
            writer.write(msgspec.json.encode(report) + b"\n")


async def read_line(reader: asyncio.StreamReader) -> bytes:
    """Return the next line with its end, or b"" where the other side is gone or talks nonsense."""
    try:
        line = await reader.readline()
    except (OSError, ValueError):  # reset; longer than LINE_BYTES_MAX
        return b""
    return line if line.endswith(b"\n") else b""


def encode_ask(ask: str) -> bytes:
    """Return a line to a worker."""
    return msgspec.json.encode(Ask(ask=ask)) + b"\n"
