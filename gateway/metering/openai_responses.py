"""Usage in OpenAI's Responses API, as OpenAI and the vendors that took it over report it.

One usage object: `usage` of the response; in a stream that of the response which the last event
(`response.completed`, `response.incomplete`, `response.failed`) carries whole, and of the last
response where there are several. `input_tokens` includes what came from and went to a cache,
`output_tokens` includes reasoning.
"""

import re
from typing import Final

import msgspec

from gateway.metering.sse import SSE_WHOLE_OUTPUT_BYTES_MAX, SseEvent
from gateway.metering.usage import Flag, Reported, disjoint_input
from gateway.metering.usage_reader import Meters, UsageReader, is_object, value

_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
# What is read of a stream: how it begins (the model's name), ends, and fails.
_WANTED: Final = (
    b'"response.created"',
    b'"response.completed"',
    b'"response.incomplete"',
    b'"response.failed"',
    b'"error"',
)


class _Details(msgspec.Struct):
    reason: msgspec.Raw = msgspec.Raw()


class _Response(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw()
    status: msgspec.Raw = msgspec.Raw()
    incomplete_details: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    service_tier: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()


class _Event(msgspec.Struct):
    type: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_EVENT: Final = msgspec.json.Decoder(_Event)
_RESPONSE: Final = msgspec.json.Decoder(_Response)
_DETAILS: Final = msgspec.json.Decoder(_Details)


class OpenAIResponses(UsageReader):
    """Reads one response."""

    usage_member = b"usage"
    event_bytes_max = SSE_WHOLE_OUTPUT_BYTES_MAX
    finish_pattern = re.compile(rb'"status"\s*:\s*"([a-z_]{1,64})"')

    def __init__(self) -> None:
        super().__init__()
        self._usage = b""

    def wants(self, raw: bytes) -> bool:
        """Return whether this may be the beginning, the end or an error."""
        return any(raw.find(name) >= 0 for name in _WANTED)

    def read_event(self, event: SseEvent) -> None:
        """Take in one event of a stream."""
        told = self.decode(_EVENT, event.data)
        if told is None:
            return
        kind = value(told.type)
        if kind == "error" or event.name == b"error" or (kind is None and value(told.error)):
            self.tell_error()
        if is_object(told.response):
            self.read_object(bytes(told.response))
        if kind == "response.created":
            self.saw_end = self.is_over = self.final = False
        elif kind in _ENDS:
            self.saw_end = self.is_over = self.final = True
            if kind == "response.failed":
                self.tell_error()

    def read_object(self, document: bytes) -> None:
        """Take in a response, or a part of one."""
        response = self.decode(_RESPONSE, document)
        if response is None:
            return
        self.model = self.text(response.model) or self.model
        self.service_tier = self.text(response.service_tier) or self.service_tier
        if value(response.error):
            self.tell_error()
        if status := self.text(response.status):
            reason = self._reason(response.incomplete_details)
            self.finish_reason = f"{status}:{reason}" if reason else status
        if is_object(response.usage):
            self._usage = bytes(response.usage)

    def _reason(self, raw: msgspec.Raw) -> str | None:
        details = self.decode(_DETAILS, bytes(raw)) if is_object(raw) else None
        return None if details is None else self.text(details.reason)

    def raw_usage(self) -> bytes:
        """Return the last usage object."""
        return self._usage

    def meters(self, reported: Reported) -> Meters:
        """Return the counts, disjoint."""
        all_input = reported.count("input_tokens")
        output = reported.count("output_tokens")
        total = reported.count("total_tokens")
        if None not in (all_input, output, total) and total != (all_input or 0) + (output or 0):
            reported.flags.raise_(Flag.TOTAL_DIFFERS)
        uncached, cache_read, cache_write = disjoint_input(
            all_input,
            reported.count("input_tokens_details", "cached_tokens"),
            reported.count("input_tokens_details", "cache_write_tokens"),
            reported.flags,
        )
        return {
            "input_tokens": uncached,
            "cache_read_tokens": cache_read,
            "cache_write_tokens": cache_write,
            "output_tokens": output,
            "reasoning_tokens": reported.of_which(
                reported.count("output_tokens_details", "reasoning_tokens"),
                output,
                Flag.REASONING_EXCEEDS_OUTPUT,
            ),
            "audio_input_tokens": reported.of_which(
                reported.count("input_tokens_details", "audio_tokens"),
                all_input,
                Flag.AUDIO_EXCEEDS_INPUT,
            ),
            "audio_output_tokens": reported.of_which(
                reported.count("output_tokens_details", "audio_tokens"),
                output,
                Flag.AUDIO_EXCEEDS_OUTPUT,
            ),
            "image_input_tokens": reported.of_which(
                reported.count("input_tokens_details", "image_tokens"),
                all_input,
                Flag.IMAGE_EXCEEDS_INPUT,
            ),
        }
