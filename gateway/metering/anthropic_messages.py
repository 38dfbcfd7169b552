"""Usage in Anthropic messages.

The answer's `usage`; in a stream that of `message_start`, overlaid member by member with that of
each `message_delta`, which is cumulative. `input_tokens` leaves out what was read from and written
to a cache; thinking is in `output_tokens`.

The top-level counts cover the message itself. What `usage.iterations` lists of any other type
(compaction, an advisor's message, perhaps by another model) is billed on top. Those counts are
meters of their own: they stay in `vendor_usage.iterations`, flagged `iterations_on_top`, and where
the list is too long for a row, it is summed by type and model.
"""

import re
from typing import Any, Final

import msgspec

from gateway.metering.sse import SseEvent
from gateway.metering.usage import (
    COUNT_MAX,
    Flag,
    Reported,
    decode_object,
    join_members,
    split_members,
)
from gateway.metering.usage_reader import Meters, UsageReader, is_object, value

ITERATION_KINDS_MAX: Final = 16  # sums of a list that is too long

_ITERATION_COUNTS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)


class _Message(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    stop_reason: msgspec.Raw = msgspec.Raw()


class _Answer(_Message):
    type: msgspec.Raw = msgspec.Raw()
    message: _Message | None = None
    delta: _Message | None = None
    error: msgspec.Raw = msgspec.Raw()


_ANSWER: Final = msgspec.json.Decoder(_Answer)


class AnthropicMessages(UsageReader):
    """Reads one message."""

    usage_member = b"usage"
    finish_pattern = re.compile(rb'"stop_reason"\s*:\s*"([a-z_]{1,64})"')

    def __init__(self) -> None:
        super().__init__()
        self._usage: dict[str, bytes] = {}

    def wants(self, raw: bytes) -> bool:
        """Return whether there is more than content: the message's start, delta, end, an error."""
        return raw.find(b'"message_') >= 0 or raw.find(b'"error"') >= 0

    def read_event(self, event: SseEvent) -> None:
        """Take in one event of a stream."""
        answer = self.decode(_ANSWER, event.data)
        if answer is None:
            return
        match value(answer.type):
            case "message_start" if answer.message is not None:
                self.saw_end = self.final = self.is_over = False
                self._read_message(answer.message)
            case "message_delta":
                if answer.delta is not None:
                    self._read_message(answer.delta)
                self._overlay(answer.usage)
                self.final = self.finish_reason is not None
            case "message_stop":
                self.saw_end = True
                self.is_over = True
            case "error":
                self.tell_error()

    def read_object(self, document: bytes) -> None:
        """Take in a message in one piece."""
        answer = self.decode(_ANSWER, document)
        if answer is None:
            return
        if value(answer.error):
            self.tell_error()
        self._read_message(answer)

    def _read_message(self, message: _Message) -> None:
        self.model = self.model or self.text(message.model)
        self.finish_reason = self.text(message.stop_reason) or self.finish_reason
        self._overlay(message.usage)

    def _overlay(self, usage: msgspec.Raw) -> None:
        if not is_object(usage):
            return
        for name, told in (split_members(bytes(usage)) or {}).items():
            if told != b"null" or name not in self._usage:
                self._usage[name] = told

    def raw_usage(self) -> bytes:
        """Return the overlaid usage object; each member is as the vendor wrote it."""
        return join_members(self._usage) if self._usage else b""

    def shorten(self, raw: bytes) -> bytes:
        """Return the usage object with its iterations summed by type and model."""
        iterations = (decode_object(raw) or {}).get("iterations")
        if not isinstance(iterations, list):
            return raw
        summed = msgspec.json.encode(_summed_by_kind(iterations))
        return join_members({**self._usage, "iterations": summed})

    def meters(self, reported: Reported) -> Meters:
        """Return the counts, disjoint as they came."""
        write_5m = reported.count("cache_creation", "ephemeral_5m_input_tokens")
        write_1h = reported.count("cache_creation", "ephemeral_1h_input_tokens")
        output = reported.count("output_tokens")
        if _has_iterations_on_top(reported.at("iterations")):
            reported.flags.raise_(Flag.ITERATIONS_ON_TOP)
        self.service_tier = reported.text("service_tier")
        return {
            "input_tokens": reported.count("input_tokens"),
            "cache_read_tokens": reported.count("cache_read_input_tokens"),
            "cache_write_tokens": _all_writes(
                reported, reported.count("cache_creation_input_tokens"), write_5m, write_1h
            ),
            "cache_write_5m_tokens": write_5m,
            "cache_write_1h_tokens": write_1h,
            "output_tokens": output,
            "reasoning_tokens": reported.of_which(
                reported.count("output_tokens_details", "thinking_tokens"),
                output,
                Flag.REASONING_EXCEEDS_OUTPUT,
            ),
            "searches": reported.count("server_tool_use", "web_search_requests"),
        }


def _all_writes(
    reported: Reported, total: int | None, write_5m: int | None, write_1h: int | None
) -> int | None:
    if write_5m is None and write_1h is None:
        return total
    parts = (write_5m or 0) + (write_1h or 0)
    if total is not None and parts > total:
        reported.flags.raise_(Flag.CACHE_WRITE_SPLIT_DIFFERS)
    return parts if total is None else max(total, parts)


def _has_iterations_on_top(iterations: object) -> bool:
    return isinstance(iterations, list) and any(
        isinstance(one, dict)
        and one.get("type") != "message"
        and any(one.get(name) for name in _ITERATION_COUNTS)
        for one in iterations
    )


def _summed_by_kind(iterations: list[Any]) -> list[dict[str, Any]]:
    """Return one iteration for each type and model, with the sums of its counts."""
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for one in iterations:
        if not isinstance(one, dict):
            continue
        kind = {name: str(one[name])[:64] for name in ("type", "model") if one.get(name)}
        key = (kind.get("type", ""), kind.get("model", ""))
        if key not in sums and len(sums) == ITERATION_KINDS_MAX:
            continue
        total = sums.setdefault(key, {**kind, "iterations": 0})
        total["iterations"] += 1
        for name in _ITERATION_COUNTS:
            count = one.get(name)
            if type(count) is int and 0 <= count <= COUNT_MAX:
                total[name] = total.get(name, 0) + count
    return list(sums.values())
