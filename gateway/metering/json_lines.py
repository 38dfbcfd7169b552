"""Lines of JSON (NDJSON), read from a copy of the stream: bounded, cut anywhere.

Cohere's first version and Ollama stream like this. A line is an event without a name.
"""

from collections.abc import Callable, Sequence
from typing import Final

from gateway.metering.sse import SSE_EVENT_BYTES_MAX, SseEvent

MEDIA_TYPES: Final = frozenset(
    {b"application/jsonl", b"application/stream+json", b"application/x-ndjson"}
)


class LineParser:
    """Gives the wanted lines of a stream, however it is cut: an `SseParser` for another framing.

    `wanted(raw)` looks at raw bytes, of one line or of several, and says whether one of them may
    matter. `skipped` counts lines that were longer than allowed.
    """

    def __init__(
        self, wanted: Callable[[bytes], bool], *, event_bytes_max: int = SSE_EVENT_BYTES_MAX
    ) -> None:
        """Start at the beginning of a stream."""
        self._wanted = wanted
        self._event_bytes_max = event_bytes_max
        self._held = bytearray()  # the incomplete line at the end
        self._skipping = False  # within a line that is too long
        self.skipped = 0

    def feed(self, chunk: bytes) -> Sequence[SseEvent]:
        """Take in bytes, return the wanted lines that they complete. Never raises."""
        complete, newline, rest = chunk.rpartition(b"\n")
        if newline:
            if self._skipping:
                complete = complete.partition(b"\n")[2]
                self._skipping = False
            elif self._held:
                complete = bytes(self._held) + complete
                self._held.clear()
        if not self._skipping:
            self._held += rest
        if len(self._held) > self._event_bytes_max:
            self.skipped += 1
            self._skipping = True
            self._held.clear()
        return self._lines(complete) if complete and self._wanted(complete) else ()

    def finish(self) -> Sequence[SseEvent]:
        """Return the line that the stream's end completes."""
        rest = bytes(self._held)
        self._held.clear()
        return self._lines(rest) if rest and self._wanted(rest) else ()

    def _lines(self, complete: bytes) -> list[SseEvent]:
        lines = []
        for line in complete.split(b"\n"):
            if len(line) > self._event_bytes_max:
                self.skipped += 1
            elif line.strip() and self._wanted(line):
                lines.append(SseEvent(b"", line))
        return lines
