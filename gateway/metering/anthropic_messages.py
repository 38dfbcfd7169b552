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

from gateway.metering.lenient import Count, Lenient
from gateway.metering.sse import SseEvent
from gateway.metering.usage import (
    COUNT_MAX,
    Flag,
    Flags,
    clean_text,
    decode_object,
    join_members,
    of_which,
    split_members,
)
from gateway.metering.usage_reader import Meters, UsageReader, is_object

ITERATION_KINDS_MAX: Final = 16  # sums of a list that is too long

_ITERATION_COUNTS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)


class _Message(msgspec.Struct):
    model: Any = None
    usage: msgspec.Raw = msgspec.Raw()
    stop_reason: Any = None


class _Answer(_Message):
    type: Any = None
    message: _Message | None = None
    delta: _Message | None = None
    error: Any = None


class _Writes(msgspec.Struct):
    ephemeral_5m_input_tokens: Count = None
    ephemeral_1h_input_tokens: Count = None


class _OutputDetails(msgspec.Struct):
    thinking_tokens: Count = None


class _Tools(msgspec.Struct):
    web_search_requests: Count = None


class _Usage(msgspec.Struct):
    input_tokens: Count = None
    cache_read_input_tokens: Count = None
    cache_creation_input_tokens: Count = None
    cache_creation: _Writes | None = None
    output_tokens: Count = None
    output_tokens_details: _OutputDetails | None = None
    server_tool_use: _Tools | None = None
    iterations: Any = None
    service_tier: Any = None


_ANSWER: Final = Lenient(_Answer)
_USAGE: Final = Lenient(_Usage)
_NO_WRITES: Final = _Writes()


class AnthropicMessages(UsageReader):
    """Reads one message."""

    usage_member = b"usage"
    finish_pattern = re.compile(rb'"stop_reason"\s*:\s*"([a-z_]{1,64})"')

    def __init__(self) -> None:
        super().__init__()
        self._usage = b""  # where there was one
        self._overlaid: dict[str, bytes] = {}  # its members, where there were more

    def wants(self, raw: bytes) -> bool:
        """Return whether there is more than content: the message's start, delta, end, an error."""
        return raw.find(b'"message_') >= 0 or raw.find(b'"error"') >= 0

    def read_event(self, event: SseEvent) -> None:
        """Take in one event of a stream."""
        answer = _ANSWER.read(event.data, self.flags)
        if answer is None:
            return
        match answer.type:
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
        answer = _ANSWER.read(document, self.flags)
        if answer is None:
            return
        if answer.error:
            self.tell_error()
        self._read_message(answer)

    def _read_message(self, message: _Message) -> None:
        self.model = self.model or clean_text(message.model, self.flags)
        self.finish_reason = clean_text(message.stop_reason, self.flags) or self.finish_reason
        self._overlay(message.usage)

    def _overlay(self, usage: msgspec.Raw) -> None:
        if not is_object(usage):
            return
        if not self._usage:
            self._usage = bytes(usage)
            return
        members = self._overlaid or split_members(self._usage) or {}
        for name, told in (split_members(bytes(usage)) or {}).items():
            if told != b"null" or name not in members:
                members[name] = told
        self._overlaid = members

    def raw_usage(self) -> bytes:
        """Return the overlaid usage object; each member is as the vendor wrote it."""
        return join_members(self._overlaid) if self._overlaid else self._usage

    def shorten(self, raw: bytes) -> bytes:
        """Return the usage object with its iterations summed by type and model."""
        iterations = (decode_object(raw) or {}).get("iterations")
        if not isinstance(iterations, list):
            return raw
        summed = msgspec.json.encode(_summed_by_kind(iterations))
        return join_members({**(split_members(raw) or {}), "iterations": summed})

    def counts(self, raw: bytes) -> Meters:
        """Return the counts, disjoint as they came."""
        told = _USAGE.read(raw, self.flags)
        if told is None:
            return {}
        if _has_iterations_on_top(told.iterations):
            self.flags.raise_(Flag.ITERATIONS_ON_TOP)
        self.service_tier = clean_text(told.service_tier, self.flags)
        writes = told.cache_creation or _NO_WRITES
        of_output, tools = told.output_tokens_details, told.server_tool_use
        return {
            "input_tokens": told.input_tokens,
            "cache_read_tokens": told.cache_read_input_tokens,
            "cache_write_tokens": _all_writes(told.cache_creation_input_tokens, writes, self.flags),
            "cache_write_5m_tokens": writes.ephemeral_5m_input_tokens,
            "cache_write_1h_tokens": writes.ephemeral_1h_input_tokens,
            "output_tokens": told.output_tokens,
            "reasoning_tokens": of_which(
                None if of_output is None else of_output.thinking_tokens,
                told.output_tokens,
                Flag.REASONING_EXCEEDS_OUTPUT,
                self.flags,
            ),
            "searches": None if tools is None else tools.web_search_requests,
        }


def _all_writes(total: int | None, writes: _Writes, flags: Flags) -> int | None:
    write_5m, write_1h = writes.ephemeral_5m_input_tokens, writes.ephemeral_1h_input_tokens
    if write_5m is None and write_1h is None:
        return total
    parts = (write_5m or 0) + (write_1h or 0)
    if total is not None and parts > total:
        flags.raise_(Flag.CACHE_WRITE_SPLIT_DIFFERS)
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
