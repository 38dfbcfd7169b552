"""Usage in Gemini's Interactions API.

One usage object: `usage` of the interaction; in a stream that of the interaction which the event
`interaction.completed` carries. `total_input_tokens` includes what came from a cache, and leaves
out what tools put into the prompt; `total_output_tokens` leaves out the thoughts.
"""

import re
from typing import Any, Final

import msgspec

from gateway.metering.sse import SSE_WHOLE_OUTPUT_BYTES_MAX, SseEvent
from gateway.metering.usage import Flag, Reported, disjoint_input
from gateway.metering.usage_reader import Meters, UsageReader, is_object, value

MODALITIES_MAX: Final = 16  # rows looked at; there are five modalities

_WANTED: Final = (b'"interaction.created"', b'"interaction.completed"', b'"error"')


class _Interaction(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw()
    status: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    service_tier: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()


class _Event(msgspec.Struct):
    event_type: msgspec.Raw = msgspec.Raw()
    interaction: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_EVENT: Final = msgspec.json.Decoder(_Event)
_INTERACTION: Final = msgspec.json.Decoder(_Interaction)


class GeminiInteractions(UsageReader):
    """Reads one interaction."""

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
        kind = value(told.event_type)
        if kind == "error" or event.name == b"error" or (kind is None and value(told.error)):
            self.tell_error()
        if is_object(told.interaction):
            self.read_object(bytes(told.interaction))
        if kind == "interaction.completed":
            self.saw_end = self.final = True

    def read_object(self, document: bytes) -> None:
        """Take in an interaction, or a part of one."""
        told = self.decode(_INTERACTION, document)
        if told is None:
            return
        self.model = self.text(told.model) or self.model
        self.service_tier = self.text(told.service_tier) or self.service_tier
        self.finish_reason = self.text(told.status) or self.finish_reason
        if value(told.error):
            self.tell_error()
        if is_object(told.usage):
            self._usage = bytes(told.usage)

    def raw_usage(self) -> bytes:
        """Return the last usage object."""
        return self._usage

    def meters(self, reported: Reported) -> Meters:
        """Return the counts, disjoint."""
        thoughts = reported.count("total_thought_tokens")
        all_input = _sum(
            reported.count("total_input_tokens"), reported.count("total_tool_use_tokens")
        )
        output = _sum(reported.count("total_output_tokens"), thoughts)
        total = reported.count("total_tokens")
        if total is not None and total != (all_input or 0) + (output or 0):
            reported.flags.raise_(Flag.TOTAL_DIFFERS)
        uncached, cache_read, _ = disjoint_input(
            all_input, reported.count("total_cached_tokens"), None, reported.flags
        )
        return {
            "input_tokens": uncached,
            "cache_read_tokens": cache_read,
            "output_tokens": output,
            "reasoning_tokens": thoughts,
            "audio_input_tokens": reported.of_which(
                _of_modality(reported, "audio", "input_tokens_by_modality"),
                all_input,
                Flag.AUDIO_EXCEEDS_INPUT,
            ),
            "audio_output_tokens": reported.of_which(
                _of_modality(reported, "audio", "output_tokens_by_modality"),
                output,
                Flag.AUDIO_EXCEEDS_OUTPUT,
            ),
            "image_input_tokens": reported.of_which(
                _of_modality(reported, "image", "input_tokens_by_modality"),
                all_input,
                Flag.IMAGE_EXCEEDS_INPUT,
            ),
        }


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None and other is None else (one or 0) + (other or 0)


def _of_modality(reported: Reported, modality: str, member: str) -> int | None:
    rows: Any = reported.at(member)
    if not isinstance(rows, list):
        return None
    counts = [
        Reported(row, reported.flags).count("tokens")
        for row in rows[:MODALITIES_MAX]
        if isinstance(row, dict) and row.get("modality") == modality
    ]
    told = [count for count in counts if count is not None]
    return sum(told) if told else None
