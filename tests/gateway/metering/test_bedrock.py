"""Usage in Bedrock's answers, as Converse and as the model families tell it."""

import json
from typing import Any

import pytest

from gateway.metering.meter import Meter, MeterFormat, open_meter
from gateway.metering.usage import Flag, Usage
from tests.gateway.metering.aws_messages import chunk, event, exception

EVENTS = b"application/vnd.amazon.eventstream"


def meter_of(
    meter: str, content_type: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> Meter:
    return open_meter(
        meter, stream=True, status=200, content_type=content_type, content_encoding=b"",
        headers=headers,
    )  # fmt: skip


def streamed(meter: str, *messages: bytes, complete: bool = True) -> tuple[Usage, Meter]:
    one = meter_of(meter, EVENTS)
    for message in messages:
        one.feed(message)
    return one.finish(complete=complete), one


def invoked(answer: Any, *headers: tuple[bytes, bytes]) -> Usage:
    one = meter_of(MeterFormat.BEDROCK_INVOKE, b"application/json", headers)
    one.feed(json.dumps(answer).encode())
    return one.finish(complete=True)


USAGE = {"inputTokens": 3, "cacheReadInputTokens": 5, "outputTokens": 7, "totalTokens": 15}


def test_a_converse_stream_is_over_with_its_metadata() -> None:
    start = event("messageStart", {"role": "assistant"})
    stop = event("messageStop", {"stopReason": "end_turn"})
    usage, meter = streamed(MeterFormat.BEDROCK_CONVERSE, start, stop)
    assert (usage.source, meter.saw_end, meter.is_over) == ("none", False, False)
    tier = {"usage": USAGE, "serviceTier": {"type": "flex"}}
    usage, meter = streamed(MeterFormat.BEDROCK_CONVERSE, start, stop, event("metadata", tier))
    assert (meter.saw_end, meter.is_over, usage.source) == (True, True, "vendor")
    assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens) == (3, 5, 7)
    assert (usage.finish_reason, usage.service_tier, usage.flags) == ("end_turn", "flex", ())


def test_cache_writes_are_told_by_their_time_to_live() -> None:
    details = [{"ttl": "5m", "inputTokens": 2}, {"ttl": "1h", "inputTokens": 4}, "odd"]
    told = {**USAGE, "cacheWriteInputTokens": 6, "cacheDetails": details, "totalTokens": 20}
    usage, _ = streamed(MeterFormat.BEDROCK_CONVERSE, event("metadata", {"usage": told}))
    assert (usage.cache_write_tokens, usage.cache_write_5m_tokens) == (6, 2)
    assert usage.cache_write_1h_tokens == 4
    assert usage.flags == (Flag.TOTAL_DIFFERS,)  # 3 + 5 + 6 + 7


@pytest.mark.parametrize("meter", [MeterFormat.BEDROCK_CONVERSE, MeterFormat.BEDROCK_INVOKE])
def test_an_exception_in_the_stream_is_the_vendors_error(meter: str) -> None:
    usage, found = streamed(meter, exception("throttlingException"))
    assert (found.stream_error, found.saw_end) == (True, False)
    assert usage.flags == (Flag.IN_STREAM_ERROR,)


@pytest.mark.parametrize("meter", [MeterFormat.BEDROCK_CONVERSE, MeterFormat.BEDROCK_INVOKE])
def test_a_broken_framing_is_unreadable_and_has_no_end(meter: str) -> None:
    usage, found = streamed(meter, bytes(16), event("metadata", {"usage": USAGE}))
    assert (usage.source, usage.flags, found.saw_end) == ("none", (Flag.UNREADABLE,), False)


ANTHROPIC = (
    chunk({"type": "message_start",
           "message": {"model": "claude-x", "usage": {"input_tokens": 9, "output_tokens": 1}}}),
    chunk({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "usage"}}),
    chunk({"type": "message_delta", "delta": {"stop_reason": "end_turn"},
           "usage": {"output_tokens": 4}}),
)  # fmt: skip
METRICS = {"inputTokenCount": 9, "outputTokenCount": 4}


def test_an_anthropic_stream_is_read_as_anthropics() -> None:
    last = chunk({"type": "message_stop", "amazon-bedrock-invocationMetrics": METRICS})
    usage, meter = streamed(MeterFormat.BEDROCK_INVOKE, *ANTHROPIC, last)
    assert (usage.input_tokens, usage.output_tokens, usage.source) == (9, 4, "vendor")
    assert (usage.model_served, usage.finish_reason) == ("claude-x", "end_turn")
    assert (meter.saw_end, meter.is_over) == (True, True)


def test_a_cut_anthropic_stream_tells_what_it_had_told() -> None:
    usage, meter = streamed(MeterFormat.BEDROCK_INVOKE, ANTHROPIC[0], complete=False)
    assert (usage.input_tokens, usage.source, meter.saw_end) == (9, "partial", False)


def test_a_family_that_tells_nothing_has_bedrocks_own_counts() -> None:
    stream = chunk({"text": "usage"}), chunk({"amazon-bedrock-invocationMetrics": METRICS})
    usage, meter = streamed(MeterFormat.BEDROCK_INVOKE, *stream)
    assert (usage.input_tokens, usage.output_tokens, meter.is_over) == (9, 4, True)
    assert json.loads(usage.vendor_usage or b"") == METRICS
    plain = invoked(
        {"completion": "x"},
        (b"x-amzn-bedrock-input-token-count", b"6"),
        (b"x-amzn-bedrock-output-token-count", b"2"),
        (b"x-amzn-bedrock-cache-read-input-token-count", b"-1"),
    )
    assert (plain.input_tokens, plain.output_tokens) == (6, 2)
    assert (plain.cache_read_tokens, plain.source) == (None, "vendor")


def test_what_the_family_tells_goes_before_the_headers() -> None:
    llama = {"generation": "x", "prompt_token_count": 8, "generation_token_count": 3,
             "stop_reason": "stop"}  # fmt: skip
    usage = invoked(llama, (b"x-amzn-bedrock-input-token-count", b"99"))
    assert (usage.input_tokens, usage.output_tokens, usage.finish_reason) == (8, 3, "stop")


def test_titan_streams_its_counts_as_fractions() -> None:
    told = {"outputText": "x", "totalOutputTextTokenCount": 3.0, "inputTextTokenCount": 6.0,
            "completionReason": "FINISH"}  # fmt: skip
    usage, meter = streamed(MeterFormat.BEDROCK_INVOKE, chunk(told))
    assert (usage.input_tokens, usage.output_tokens, meter.saw_end) == (6, 3, True)
    assert (usage.finish_reason, usage.flags) == ("FINISH", ())
    odd, _ = streamed(MeterFormat.BEDROCK_INVOKE, chunk({**told, "inputTextTokenCount": 6.5}))
    assert (odd.input_tokens, odd.flags) == (None, (Flag.BAD_NUMBER,))


def test_openais_counts_have_the_cache_within() -> None:
    told = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 2}}  # fmt: skip
    usage = invoked({"choices": [{"finish_reason": "stop"}], "usage": told})
    assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens) == (7, 3, 4)
    assert (usage.reasoning_tokens, usage.finish_reason) == (2, "stop")


def test_what_is_no_base64_is_unreadable() -> None:
    usage, _ = streamed(MeterFormat.BEDROCK_INVOKE, event("chunk", {"bytes": "%%"}))
    assert usage.flags == (Flag.UNREADABLE,)


def test_predictions_are_counted_together() -> None:
    rows = [{"embeddings": {"statistics": {"token_count": n}, "values": [0.5]}} for n in (1, 4)]
    meter = meter_of(MeterFormat.VERTEX_PREDICT, b"application/json")
    meter.feed(json.dumps({"predictions": [*rows, {}], "metadata": {"b": 1}}).encode())
    usage = meter.finish(complete=True)
    assert (usage.input_tokens, usage.output_tokens, usage.source) == (5, None, "vendor")
