"""Usage of Bedrock's InvokeModel, whose answers are each model family's own.

Anthropic's are read as Anthropic's messages. Of the others only names are known: `usage` as
Converse (Amazon Nova) or as OpenAI writes it, and the counts beside the text of Titan and Llama.
Where a family tells nothing, Bedrock's own counts hold: `amazon-bedrock-invocationMetrics` in the
last chunk of a stream, headers of an answer in one piece.

A stream's message holds a chunk in base64. The metrics end the last one, whatever the family.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec

from gateway.metering.anthropic_messages import AnthropicMessages
from gateway.metering.aws_event_stream import ERROR, UNREADABLE
from gateway.metering.bedrock_converse import converse_meters
from gateway.metering.sse import SseEvent
from gateway.metering.usage import Flag, Reported, disjoint_input, join_members
from gateway.metering.usage_reader import Meters, UsageReader, is_object, value

RESULTS_MAX: Final = 64  # results of one answer that are counted; Titan gives one
COUNT_DIGITS_MAX: Final = 16  # of a header's value

# A chunk without any of these is nothing but text.
_TELLING: Final = (
    b'"message_',
    b"sage",  # usage; messageStop
    b"TokenCount",
    b"token_count",
    b"nvocationMetrics",
    b"eason",
    b'"error"',
)
_HEADERS: Final[Mapping[bytes, str]] = MappingProxyType(
    {
        b"x-amzn-bedrock-input-token-count": "inputTokenCount",
        b"x-amzn-bedrock-output-token-count": "outputTokenCount",
        b"x-amzn-bedrock-cache-read-input-token-count": "cacheReadInputTokenCount",
        b"x-amzn-bedrock-cache-write-input-token-count": "cacheWriteInputTokenCount",
    }
)
_ABSENT: Final = msgspec.Raw()
_RESULTS: Final = "results[].tokenCount"


class _Message(msgspec.Struct):
    """A message of a stream."""

    bytes: bytes


class _Result(msgspec.Struct, rename="camel"):
    token_count: msgspec.Raw = _ABSENT
    completion_reason: msgspec.Raw = _ABSENT


class _Choice(msgspec.Struct):
    finish_reason: msgspec.Raw = _ABSENT
    stop_reason: msgspec.Raw = _ABSENT


class _Inner(msgspec.Struct, rename="camel"):
    """What Amazon's own models wrap a part of their stream in."""

    usage: msgspec.Raw = _ABSENT
    stop_reason: msgspec.Raw = _ABSENT


class _Answer(msgspec.Struct):
    type: msgspec.Raw = _ABSENT
    usage: msgspec.Raw = _ABSENT
    metadata: msgspec.Raw = _ABSENT
    messageStop: msgspec.Raw = _ABSENT  # noqa: N815 - the API's name
    stop_reason: msgspec.Raw = _ABSENT
    stopReason: msgspec.Raw = _ABSENT  # noqa: N815 - the API's name
    completionReason: msgspec.Raw = _ABSENT  # noqa: N815 - the API's name
    choices: msgspec.Raw = _ABSENT
    results: msgspec.Raw = _ABSENT
    inputTextTokenCount: msgspec.Raw = _ABSENT  # noqa: N815 - the API's name
    totalOutputTextTokenCount: msgspec.Raw = _ABSENT  # noqa: N815 - the API's name
    prompt_token_count: msgspec.Raw = _ABSENT
    generation_token_count: msgspec.Raw = _ABSENT
    metrics: msgspec.Raw = msgspec.field(default=_ABSENT, name="amazon-bedrock-invocationMetrics")


_MESSAGE: Final = msgspec.json.Decoder(_Message)
_ANSWER: Final = msgspec.json.Decoder(_Answer)
_INNER: Final = msgspec.json.Decoder(_Inner)
_RESULT_LIST: Final = msgspec.json.Decoder(list[_Result] | None)
_CHOICE_LIST: Final = msgspec.json.Decoder(list[_Choice] | None)
_OF_TITAN: Final = ("inputTextTokenCount", "totalOutputTextTokenCount")
_OF_LLAMA: Final = ("prompt_token_count", "generation_token_count")


class BedrockInvoke(UsageReader):
    """Reads one answer of InvokeModel."""

    usage_member = b"usage"
    finish_pattern = re.compile(
        rb'"(?:stop_reason|stopReason|finish_reason|completionReason)"\s*:\s*"([A-Za-z_]{1,64})"'
    )

    def __init__(self) -> None:
        super().__init__()
        self._anthropic = AnthropicMessages()
        self._anthropic.flags = self.flags
        self._is_anthropic = False
        self._usage = b""  # an object of the family's
        self._counts: dict[str, bytes] = {}  # members of the family's that stand alone
        self._metrics = b""  # Bedrock's own

    def wants(self, raw: bytes) -> bool:  # noqa: ARG002 - what matters is inside base64
        """Return True: the chunk has to be opened to know."""
        return True

    def read_headers(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep Bedrock's own counts of an answer in one piece."""
        counts = {
            _HEADERS[name]: count
            for name, count in headers
            if name in _HEADERS and count.isdigit() and len(count) <= COUNT_DIGITS_MAX
        }
        if counts:
            self._metrics = join_members({name: b"%d" % int(one) for name, one in counts.items()})

    def read_event(self, event: SseEvent) -> None:
        """Take in one message of a stream."""
        if event.name == ERROR:
            self.tell_error()
            return
        if event.name == UNREADABLE:
            self.flags.raise_(Flag.UNREADABLE)
            return
        message = self.decode(_MESSAGE, event.data)
        if message is None or not any(message.bytes.find(mark) >= 0 for mark in _TELLING):
            return
        answer = self.decode(_ANSWER, message.bytes)
        if answer is None:
            return
        if str(value(answer.type)).startswith("message_"):
            self._is_anthropic = True
        if self._is_anthropic:
            self._anthropic.read_event(SseEvent(b"", message.bytes))
            self._take_over()
        else:
            self._read(answer)
            self.saw_end = self.saw_end or is_number(answer.totalOutputTextTokenCount)
        if is_object(answer.metrics):
            self._metrics = bytes(answer.metrics)
            self.saw_end = self.is_over = self.final = True

    def read_object(self, document: bytes) -> None:
        """Take in an answer in one piece, or a part of one."""
        answer = self.decode(_ANSWER, document)
        if answer is None:
            return
        if value(answer.type) == "message" or b'"input_tokens"' in bytes(answer.usage):
            self._is_anthropic = True
        if self._is_anthropic:
            self._anthropic.read_object(document)
            self._take_over()
        else:
            self._read(answer)
            if is_number(answer.inputTextTokenCount):
                self._read_results(answer.results)

    def _take_over(self) -> None:
        inner = self._anthropic
        self.model, self.finish_reason = inner.model, inner.finish_reason
        self.final = self.final or inner.final
        self.saw_end = self.saw_end or inner.saw_end
        self.stream_error = self.stream_error or inner.stream_error

    def _read(self, answer: _Answer) -> None:
        """Take in what others write; a `model` there is a folder on SageMaker, if anything."""
        for name in (*_OF_TITAN, *_OF_LLAMA):
            count: msgspec.Raw = getattr(answer, name)
            if is_number(count):
                self._counts[name] = bytes(count)
        if is_object(answer.usage):
            self._usage = bytes(answer.usage)
        for wrapped in (answer.metadata, answer.messageStop):
            if is_object(wrapped) and (inner := self.decode(_INNER, bytes(wrapped))) is not None:
                self._usage = bytes(inner.usage) or self._usage
                self.finish_reason = self.text(inner.stop_reason) or self.finish_reason
        for reason in (answer.stop_reason, answer.stopReason, answer.completionReason):
            self.finish_reason = self.text(reason) or self.finish_reason
        if bytes(answer.choices).startswith(b"["):
            for choice in (self.decode(_CHOICE_LIST, bytes(answer.choices)) or [])[:1]:
                told = self.text(choice.finish_reason) or self.text(choice.stop_reason)
                self.finish_reason = told or self.finish_reason

    def _read_results(self, raw: msgspec.Raw) -> None:
        """Take in what Titan tells of each result."""
        found = self.decode(_RESULT_LIST, bytes(raw)) if bytes(raw) else None
        results = (found or [])[:RESULTS_MAX]
        counts = [bytes(one.token_count) for one in results if is_number(one.token_count)]
        self._counts[_RESULTS] = b"[" + b",".join(counts) + b"]"
        for result in results:
            self.finish_reason = self.text(result.completion_reason) or self.finish_reason

    def raw_usage(self) -> bytes:
        """Return the family's usage object, or its counts joined; without any, Bedrock's own."""
        if self._is_anthropic and (raw := self._anthropic.raw_usage()):
            return raw
        if self._usage:
            return self._usage
        return join_members(self._counts) if self._counts else self._metrics

    def shorten(self, raw: bytes) -> bytes:
        """Return a usage object that is too large for a row as well told in fewer bytes."""
        return self._anthropic.shorten(raw) if self._is_anthropic else raw

    def counts(self, raw: bytes) -> Meters:
        """Return the counts, disjoint."""
        if self._is_anthropic and self._anthropic.raw_usage():
            counts = self._anthropic.counts(raw)
            self.service_tier = self._anthropic.service_tier
            return counts
        return super().counts(raw)

    def meters(self, reported: Reported) -> Meters:
        """Return the counts of another family, disjoint."""
        if reported.at("inputTokens") is not None or reported.at("outputTokens") is not None:
            return converse_meters(reported)
        if reported.at("prompt_tokens") is not None:
            return _openai_meters(reported)
        return _bare_counts(reported)


def _openai_meters(reported: Reported) -> Meters:
    """Return the counts of a usage object as OpenAI writes it: cached input is within the input."""
    total_input, output = reported.count("prompt_tokens"), reported.count("completion_tokens")
    total = reported.count("total_tokens")
    if total is not None and total != (total_input or 0) + (output or 0):
        reported.flags.raise_(Flag.TOTAL_DIFFERS)
    uncached, read, _ = disjoint_input(
        total_input,
        reported.count("prompt_tokens_details", "cached_tokens"),
        None,
        reported.flags,
    )
    return {
        "input_tokens": uncached,
        "cache_read_tokens": read,
        "output_tokens": output,
        "reasoning_tokens": reported.of_which(
            reported.count("completion_tokens_details", "reasoning_tokens"),
            output,
            Flag.REASONING_EXCEEDS_OUTPUT,
        ),
    }


def _bare_counts(reported: Reported) -> Meters:
    """Return counts that stand alone; Titan writes them as 3.0."""
    names = (
        *_OF_TITAN, *_OF_LLAMA, "inputTokenCount", "outputTokenCount",
        "cacheReadInputTokenCount", "cacheWriteInputTokenCount",
    )  # fmt: skip
    whole = Reported({name: _whole(reported.at(name)) for name in names}, reported.flags)
    results = reported.at(_RESULTS)
    of_results = None
    if isinstance(results, list) and results:
        rows = [Reported({"n": _whole(one)}, reported.flags).count("n") for one in results]
        of_results = sum(one or 0 for one in rows)
    output = whole.first_count(
        ("totalOutputTextTokenCount",), ("generation_token_count",), ("outputTokenCount",)
    )
    return {
        "input_tokens": whole.first_count(
            ("inputTextTokenCount",), ("prompt_token_count",), ("inputTokenCount",)
        ),
        "cache_read_tokens": whole.count("cacheReadInputTokenCount"),
        "cache_write_tokens": whole.count("cacheWriteInputTokenCount"),
        "output_tokens": of_results if output is None else output,
    }


def _whole(count: Any) -> Any:  # noqa: ANN401 - JSON
    return int(count) if isinstance(count, float) and count.is_integer() else count


def is_number(raw: msgspec.Raw) -> bool:
    """Return whether a member is there and not null."""
    return bytes(raw) not in (b"", b"null")
