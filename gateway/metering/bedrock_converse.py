"""Usage of Bedrock's Converse: `usage` of the answer; in a stream that of its last event, metadata.

`inputTokens` leaves out what was read from and written to a cache, which have two names each.
`totalTokens` is the sum of all four. No answer names the model.
"""

import re
from typing import Any, Final

import msgspec

from gateway.metering.aws_event_stream import ERROR, UNREADABLE
from gateway.metering.sse import SseEvent
from gateway.metering.usage import Flag, Reported
from gateway.metering.usage_reader import Meters, UsageReader, is_object

CACHE_DETAILS_MAX: Final = 16  # rows of cache writes by their time to live; there are two kinds

_MESSAGE_STOP: Final = b"messageStop"
_METADATA: Final = b"metadata"
_TELLING: Final = (_METADATA, _MESSAGE_STOP, b"xception", ERROR)


class _Tier(msgspec.Struct):
    type: msgspec.Raw = msgspec.Raw()


class _Answer(msgspec.Struct, rename="camel"):
    stop_reason: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    service_tier: msgspec.Raw = msgspec.Raw()


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_TIER: Final = msgspec.json.Decoder(_Tier)


class BedrockConverse(UsageReader):
    """Reads one answer of Converse."""

    usage_member = b"usage"
    finish_pattern = re.compile(rb'"stopReason"\s*:\s*"([a-z_]{1,64})"')

    def __init__(self) -> None:
        super().__init__()
        self._usage = b""

    def wants(self, raw: bytes) -> bool:
        """Return whether a message tells an end, the usage or an error."""
        return any(raw.find(mark) >= 0 for mark in _TELLING)

    def read_event(self, event: SseEvent) -> None:
        """Take in one message of a stream."""
        if event.name == ERROR:
            self.tell_error()
        elif event.name == UNREADABLE:
            self.flags.raise_(Flag.UNREADABLE)
        elif event.name in (_MESSAGE_STOP, _METADATA):
            self.read_object(event.data)
            if event.name == _METADATA:
                self.saw_end = self.is_over = self.final = True

    def read_object(self, document: bytes) -> None:
        """Take in an answer, or the data of a message."""
        answer = self.decode(_ANSWER, document)
        if answer is None:
            return
        self.finish_reason = self.text(answer.stop_reason) or self.finish_reason
        if is_object(answer.usage):
            self._usage = bytes(answer.usage)
        if is_object(answer.service_tier):
            tier = self.decode(_TIER, bytes(answer.service_tier))
            self.service_tier = None if tier is None else self.text(tier.type)

    def raw_usage(self) -> bytes:
        """Return the usage object."""
        return self._usage

    def meters(self, reported: Reported) -> Meters:
        """Return the counts, disjoint as they came."""
        return converse_meters(reported)


def converse_meters(reported: Reported) -> Meters:
    """Return the counts of a usage object as Converse, and Amazon's own models, write it."""
    counts = {
        "input_tokens": reported.count("inputTokens"),
        "cache_read_tokens": reported.first_count(
            ("cacheReadInputTokens",), ("cacheReadInputTokenCount",)
        ),
        "cache_write_tokens": reported.first_count(
            ("cacheWriteInputTokens",), ("cacheWriteInputTokenCount",)
        ),
        "output_tokens": reported.count("outputTokens"),
    }
    total = reported.count("totalTokens")
    if total is not None and total != sum(count or 0 for count in counts.values()):
        reported.flags.raise_(Flag.TOTAL_DIFFERS)
    details = reported.at("cacheDetails")
    return {
        **counts,
        "cache_write_5m_tokens": _written(details, "5m", reported),
        "cache_write_1h_tokens": _written(details, "1h", reported),
    }


def _written(details: Any, ttl: str, reported: Reported) -> int | None:  # noqa: ANN401 - JSON
    """Return the tokens that were written to a cache for so long, None where nothing is told."""
    if not isinstance(details, list):
        return None
    rows = [row for row in details[:CACHE_DETAILS_MAX] if isinstance(row, dict)]
    counts = [
        Reported(row, reported.flags).count("inputTokens") for row in rows if row.get("ttl") == ttl
    ]
    told = [count for count in counts if count is not None]
    return sum(told) if told else None
