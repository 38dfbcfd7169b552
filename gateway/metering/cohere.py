"""Usage of Cohere's chat, embeddings and reranking, in both versions of its API.

Version 2 of chat tells it in `usage`, everything else in `meta`; a stream in its last event,
`message-end` or `stream-end`. `tokens` are those that a model processed, `cached_tokens` are among
them; `billed_units`, which are much less for a chat, stay in `vendor_usage`, and count only what is
told nowhere else: the input of embeddings, where images are beside the text, and search units. No
answer names the model.
"""

import re
from typing import Final

import msgspec

from gateway.metering.sse import SseEvent
from gateway.metering.usage import Flag, Reported, disjoint_input
from gateway.metering.usage_reader import Meters, UsageReader, is_object, value

_DONE: Final = b"[DONE]"
_ENDS: Final = ("message-end", "stream-end")
_TELLING: Final = (b'"message-end"', b'"stream-end"', b'"error"', b"event: error")
_FAILED: Final = "ERROR"  # a finish reason


class _Part(msgspec.Struct):
    """What tells of an answer: the answer itself, or a member of a stream's last event."""

    finish_reason: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    meta: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Answer(_Part):
    type: msgspec.Raw = msgspec.Raw()  # of an event of version 2
    event_type: msgspec.Raw = msgspec.Raw()  # of version 1
    delta: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_PART: Final = msgspec.json.Decoder(_Part)


class Cohere(UsageReader):
    """Reads one answer that tells its usage in `meta`."""

    usage_member = b"meta"
    finish_pattern = re.compile(rb'"finish_reason"\s*:\s*"([A-Z_]{1,64})"')

    def __init__(self) -> None:
        super().__init__()
        self._usage = b""

    def wants(self, raw: bytes) -> bool:
        """Return whether the stream ends here, or an error is told."""
        return any(raw.find(mark) >= 0 for mark in _TELLING)

    def read_event(self, event: SseEvent) -> None:
        """Take in one event of a stream."""
        if event.name == b"error":
            self.tell_error()
        if event.data.strip() != _DONE:  # comes after the last event that tells anything
            self.read_object(event.data)

    def read_object(self, document: bytes) -> None:
        """Take in an answer, a part of one, or an event."""
        answer = self.decode(_ANSWER, document)
        if answer is None:
            return
        self._read_part(answer)
        kind = value(answer.type) or value(answer.event_type)
        if kind not in _ENDS:
            return
        inner = answer.delta if is_object(answer.delta) else answer.response
        if is_object(inner) and (part := self.decode(_PART, bytes(inner))) is not None:
            self._read_part(part)
        self.saw_end = True
        self.final = True
        self.is_over = True

    def _read_part(self, part: _Part) -> None:
        usage = part.usage if is_object(part.usage) else part.meta
        if is_object(usage):
            self._usage = bytes(usage)
        reason = self.text(part.finish_reason)
        if reason is not None:
            self.finish_reason = reason
        if reason == _FAILED or value(part.error):
            self.tell_error()

    def raw_usage(self) -> bytes:
        """Return the usage object."""
        return self._usage

    def meters(self, reported: Reported) -> Meters:
        """Return the counts, disjoint."""
        output = reported.first_count(
            ("tokens", "output_tokens"), ("billed_units", "output_tokens")
        )
        images = reported.count("billed_units", "image_tokens")
        all_input = reported.count("tokens", "input_tokens")
        if all_input is None:
            billed = reported.count("billed_units", "input_tokens")
            counts = [count for count in (billed, images) if count is not None]
            all_input = sum(counts) if counts else None
        uncached, cache_read, _ = disjoint_input(
            all_input, reported.count("cached_tokens"), None, reported.flags
        )
        return {
            "input_tokens": uncached,
            "cache_read_tokens": cache_read,
            "output_tokens": output,
            "reasoning_tokens": reported.of_which(
                reported.count("tokens", "reasoning_tokens"),
                output,
                Flag.REASONING_EXCEEDS_OUTPUT,
            ),
            "image_input_tokens": reported.of_which(images, all_input, Flag.IMAGE_EXCEEDS_INPUT),
            "searches": reported.count("billed_units", "search_units"),
        }


class CohereChat(Cohere):
    """Reads one chat of version 2, which tells its usage in `usage`."""

    usage_member = b"usage"
