"""What a meter knows of one wire format: which bytes matter, and the usage in them.

A reader is fed the objects of one answer, the whole body or event by event, and keeps the raw usage
until the end: an event costs one pass over its top level, the usage is decoded once. All formats
share the rules below; a new format is one more file beside `openai_chat.py`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

import msgspec

from gateway.metering.lenient import UNREADABLE_FAULTS
from gateway.metering.sse import SSE_EVENT_BYTES_MAX, SseEvent
from gateway.metering.usage import (
    Flag,
    Flags,
    Reported,
    Usage,
    clean_text,
    decode_object,
    storable_usage,
    without_nan,
)

MODEL_EVENTS_MAX: Final = 8  # events looked at for the model's name; it comes in the first two

Answer = TypeVar("Answer")
Meters = Mapping[str, int | float | None]


class UsageReader:
    """Reads one answer. Subclasses fill in `wants`, `read_object`, `raw_usage` and `counts`.

    `saw_end`: the format's own end was seen. `stream_error`: the vendor told of an error inside
    the answer. `final`: the vendor's last word on usage was seen. `is_over`: the mark was seen
    after which a stream has nothing more.
    """

    usage_member: ClassVar[bytes]  # the top-level member that holds the usage, in an answer
    tail_members: ClassVar[tuple[bytes, ...]] = ()  # others that are looked for in a tail
    finish_pattern: ClassVar[re.Pattern[bytes]]  # group 1 is the finish reason, in a tail
    answers_in_json_only: ClassVar[bool] = True  # or in events; else what comes as text tells none
    event_bytes_max: ClassVar[int] = SSE_EVENT_BYTES_MAX  # a longer event of a stream is skipped

    saw_end = False
    is_over = False
    stream_error = False
    final = False
    model: str | None = None
    finish_reason: str | None = None
    service_tier: str | None = None

    def __init__(self) -> None:
        self.flags = Flags()

    def wants(self, raw: bytes) -> bool:
        """Return whether raw bytes of one or more events may hold something to read.

        The line of a chunk may be before them, and a line's end behind.
        """
        raise NotImplementedError

    def read_object(self, document: bytes) -> None:
        """Take in one JSON object: an event's data, an answer in one piece, or a part of it."""
        raise NotImplementedError

    def raw_usage(self) -> bytes:
        """Return the usage object as seen so far, b"" if none was."""
        raise NotImplementedError

    def counts(self, raw: bytes) -> Meters:
        """Return the counts of `Usage` by name, from the raw usage object; none where it is none.

        Formats that are called much declare the object; of the others `meters` takes its members.
        """
        members = decode_object(raw)
        if members is None:
            self.flags.raise_(Flag.UNREADABLE)
        return self.meters(Reported(members, self.flags)) if members else {}

    def meters(self, reported: Reported) -> Meters:
        """Return the counts of `Usage` by name, from the usage object."""
        raise NotImplementedError

    def read_headers(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Take in an answer's headers, names in lower case; most formats tell nothing there."""

    def read_event(self, event: SseEvent) -> None:
        """Take in one event of a stream."""
        self.read_object(event.data)

    def shorten(self, raw: bytes) -> bytes:
        """Return a usage object that is too large for a row as well told in fewer bytes."""
        return raw

    def usage(self, *, complete: bool) -> Usage:
        """Return what was told until now; `complete` says that the answer was not cut."""
        raw = self.raw_usage()
        meters = self.counts(raw) if raw else {}
        is_told = [*meters.values()].count(None) < len(meters)
        return Usage(
            **meters,  # type: ignore[arg-type]
            model_served=self.model,
            finish_reason=self.finish_reason,
            service_tier=self.service_tier,
            vendor_usage=storable_usage(raw, self.flags, shorten=self.shorten) if meters else None,
            flags=self.flags.names(),
            source="none" if not is_told else "vendor" if complete or self.final else "partial",
        )

    def decode(self, decoder: msgspec.json.Decoder[Answer], document: bytes) -> Answer | None:
        """Return the decoded document; None, and flagged, where it is not readable as that."""
        try:
            return decoder.decode(document)
        except UNREADABLE_FAULTS:
            pass
        try:
            answer = decoder.decode(without_nan(document))
        except UNREADABLE_FAULTS:
            self.flags.raise_(Flag.UNREADABLE)
            return None
        self.flags.raise_(Flag.BAD_NUMBER)
        return answer

    def tell_error(self) -> None:
        """Note that the vendor told of an error inside the answer."""
        self.stream_error = True
        self.flags.raise_(Flag.IN_STREAM_ERROR)

    def text(self, raw: msgspec.Raw) -> str | None:
        """Return the text in `raw`; None where it is absent, null, or (flagged) no text."""
        return clean_text(value(raw), self.flags)


def value(raw: msgspec.Raw) -> Any:  # noqa: ANN401 - JSON
    """Return what `raw` holds, None where that is nothing readable. Never raises."""
    document = bytes(raw)
    if not document:
        return None
    try:
        return msgspec.json.decode(document)
    except UNREADABLE_FAULTS:
        return None


def is_object(raw: msgspec.Raw) -> bool:
    """Return whether `raw` holds a JSON object with something in it."""
    document = bytes(raw)
    return document.startswith(b"{") and document != b"{}"
