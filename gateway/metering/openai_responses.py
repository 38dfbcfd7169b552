"""Usage in OpenAI's Responses API, as OpenAI and the vendors that took it over report it.

One usage object: `usage` of the response; in a stream that of the response which the last event
(`response.completed`, `response.incomplete`, `response.failed`) carries whole, and of the last
response where there are several. `input_tokens` includes what came from and went to a cache,
`output_tokens` includes reasoning.
"""

import re
from typing import Any, Final

import msgspec

from gateway.metering.lenient import Count, Lenient
from gateway.metering.sse import SSE_WHOLE_OUTPUT_BYTES_MAX, SseEvent
from gateway.metering.usage import Flag, clean_text, disjoint_input, of_which
from gateway.metering.usage_reader import Meters, UsageReader, is_object

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
    reason: Any = None


class _Response(msgspec.Struct):
    model: Any = None
    status: Any = None
    incomplete_details: _Details | None = None
    error: Any = None
    service_tier: Any = None
    usage: msgspec.Raw = msgspec.Raw()


class _Event(msgspec.Struct):
    type: Any = None
    response: msgspec.Raw = msgspec.Raw()
    error: Any = None


class _InputDetails(msgspec.Struct):
    cached_tokens: Count = None
    cache_write_tokens: Count = None
    audio_tokens: Count = None
    image_tokens: Count = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: Count = None
    audio_tokens: Count = None


class _Usage(msgspec.Struct):
    input_tokens: Count = None
    output_tokens: Count = None
    total_tokens: Count = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


_EVENT: Final = Lenient(_Event)
_RESPONSE: Final = Lenient(_Response)
_USAGE: Final = Lenient(_Usage)
_NO_INPUT_DETAILS: Final = _InputDetails()
_NO_OUTPUT_DETAILS: Final = _OutputDetails()


class OpenAIResponses(UsageReader):
    """Reads one response."""

    usage_member = b"usage"
    event_bytes_max = SSE_WHOLE_OUTPUT_BYTES_MAX
    finish_pattern = re.compile(rb'"status"\s*:\s*"([a-z_]{1,64})"')

    _usage = b""

    def wants(self, raw: bytes) -> bool:
        """Return whether this may be the beginning, the end or an error."""
        for name in _WANTED:  # noqa: SIM110 - half as dear as a generator, and it is each event's
            if raw.find(name) >= 0:
                return True
        return False

    def read_event(self, event: SseEvent) -> None:
        """Take in one event of a stream."""
        told = _EVENT.read(event.data, self.flags)
        if told is None:
            return
        kind = told.type
        if kind == "error" or event.name == b"error" or (kind is None and told.error):
            self.tell_error()
        if is_object(told.response):
            self.read_object(bytes(told.response))
        if kind == "response.created":
            self.saw_end = self.is_over = self.final = False
        elif isinstance(kind, str) and kind in _ENDS:
            self.saw_end = self.is_over = self.final = True
            if kind == "response.failed":
                self.tell_error()

    def read_object(self, document: bytes) -> None:
        """Take in a response, or a part of one."""
        response = _RESPONSE.read(document, self.flags)
        if response is None:
            return
        flags = self.flags
        self.model = clean_text(response.model, flags) or self.model
        self.service_tier = clean_text(response.service_tier, flags) or self.service_tier
        if response.error:
            self.tell_error()
        if status := clean_text(response.status, flags):
            details = response.incomplete_details
            reason = None if details is None else clean_text(details.reason, flags)
            self.finish_reason = f"{status}:{reason}" if reason else status
        if is_object(response.usage):
            self._usage = bytes(response.usage)

    def raw_usage(self) -> bytes:
        """Return the last usage object."""
        return self._usage

    def counts(self, raw: bytes) -> Meters:
        """Return the counts, disjoint."""
        told, flags = _USAGE.read(raw, self.flags), self.flags
        if told is None:
            return {}
        all_input, output, total = told.input_tokens, told.output_tokens, told.total_tokens
        of_input = told.input_tokens_details or _NO_INPUT_DETAILS
        of_output = told.output_tokens_details or _NO_OUTPUT_DETAILS
        if None not in (all_input, output, total) and total != (all_input or 0) + (output or 0):
            flags.raise_(Flag.TOTAL_DIFFERS)
        uncached, cache_read, cache_write = disjoint_input(
            all_input, of_input.cached_tokens, of_input.cache_write_tokens, flags
        )
        return {
            "input_tokens": uncached,
            "cache_read_tokens": cache_read,
            "cache_write_tokens": cache_write,
            "output_tokens": output,
            "reasoning_tokens": of_which(
                of_output.reasoning_tokens, output, Flag.REASONING_EXCEEDS_OUTPUT, flags
            ),
            "audio_input_tokens": of_which(
                of_input.audio_tokens, all_input, Flag.AUDIO_EXCEEDS_INPUT, flags
            ),
            "audio_output_tokens": of_which(
                of_output.audio_tokens, output, Flag.AUDIO_EXCEEDS_OUTPUT, flags
            ),
            "image_input_tokens": of_which(
                of_input.image_tokens, all_input, Flag.IMAGE_EXCEEDS_INPUT, flags
            ),
        }
