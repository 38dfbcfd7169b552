import json
from typing import Any

import pytest

from gateway.metering.cohere import Cohere, CohereChat
from gateway.metering.meter import MeterFormat, open_meter
from gateway.metering.usage import METERS, Flag, Usage


def told(usage: Usage) -> dict[str, int | float]:
    return {name: value for name in METERS if (value := getattr(usage, name)) is not None}


@pytest.mark.parametrize(
    ("reported", "meters", "flags"),
    [
        pytest.param(
            {
                "billed_units": {"input_tokens": 51, "output_tokens": 66},
                "tokens": {"input_tokens": 267, "output_tokens": 91, "reasoning_tokens": 58},
                "cached_tokens": 144,
            },
            {
                "input_tokens": 123,
                "cache_read_tokens": 144,
                "output_tokens": 91,
                "reasoning_tokens": 58,
            },
            (),
            id="what was processed, not what is billed",
        ),
        pytest.param(
            {"billed_units": {"input_tokens": 7, "image_tokens": 40}},
            {"input_tokens": 47, "image_input_tokens": 40},
            (),
            id="embedded images beside text",
        ),
        pytest.param({"billed_units": {"search_units": 3}}, {"searches": 3}, (), id="search units"),
        pytest.param({"billed_units": {}}, {}, (), id="nothing"),
        pytest.param(
            {"tokens": {"input_tokens": 5, "output_tokens": 1}, "cached_tokens": 6},
            {"input_tokens": 0, "cache_read_tokens": 5, "output_tokens": 1},
            (Flag.CACHE_EXCEEDS_INPUT,),
            id="more cached than there is",
        ),
        pytest.param(
            {"tokens": {"input_tokens": -1, "output_tokens": 2, "reasoning_tokens": 3}},
            {"output_tokens": 2, "reasoning_tokens": 2},
            (Flag.BAD_NUMBER, Flag.REASONING_EXCEEDS_OUTPUT),
            id="absurd numbers",
        ),
    ],
)
def test_tokens_processed_are_counted_and_units_billed_only_where_nothing_else_is_told(
    reported: dict[str, Any], meters: dict[str, int], flags: tuple[str, ...]
) -> None:
    for reader, member in ((CohereChat(), "usage"), (Cohere(), "meta")):
        reader.read_object(json.dumps({"id": "1", member: reported}).encode())
        usage = reader.usage(complete=True)
        assert told(usage) == meters
        assert set(usage.flags) == set(flags)
        assert usage.vendor_usage == json.dumps(reported).encode()


@pytest.mark.parametrize(
    "end",
    [
        {"type": "message-end", "delta": {"finish_reason": "ERROR", "error": "no"}},
        {"type": "message-end", "delta": {"error": "no"}},
        {"is_finished": True, "event_type": "stream-end", "finish_reason": "ERROR"},
    ],
    ids=json.dumps,
)
def test_a_stream_may_end_by_an_error(end: dict[str, Any]) -> None:
    meter = open_meter(
        MeterFormat.COHERE_CHAT,
        stream=True,
        status=200,
        content_type=b"text/event-stream",
        content_encoding=b"",
    )
    meter.feed(b'event: message-start\ndata: {"type":"message-start"}\n\n')
    meter.feed(b"data: " + json.dumps(end).encode() + b"\n\n")
    assert meter.is_over
    assert meter.saw_end
    assert meter.stream_error
    assert meter.finish(complete=True).flags == (Flag.IN_STREAM_ERROR,)


def test_a_stream_that_is_cut_before_its_last_event_tells_nothing() -> None:
    meter = open_meter(
        MeterFormat.COHERE_META,
        stream=True,
        status=200,
        content_type=b"application/stream+json",
        content_encoding=b"",
    )
    meter.feed(b'{"is_finished":false,"event_type":"text-generation","text":"stream-end"}\n')
    meter.feed(b'{"is_finished":true,"event_type":"stream-end","response":{"meta":{"tokens":')
    assert not meter.is_over
    assert not meter.saw_end
    assert meter.finish(complete=False).source == "none"


def test_usage_of_large_embeddings_is_found_behind_them() -> None:
    vectors = [[0.125] * 100_000]
    meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 7}}
    answer = {"embeddings": {"float": vectors}, "id": "1", "meta": meta, "response_type": "x"}
    meter = open_meter(
        MeterFormat.COHERE_META,
        stream=False,
        status=200,
        content_type=b"application/json",
        content_encoding=b"",
    )
    meter.feed(json.dumps(answer).encode())
    usage = meter.finish(complete=True)
    assert (usage.input_tokens, usage.source) == (7, "vendor")


@pytest.mark.parametrize(
    ("event", "flags"),
    [
        (b'event: error\ndata: {"message":"too many"}\n\n', (Flag.IN_STREAM_ERROR,)),
        (b'data: {"type":"message-end","delta":\n\n', (Flag.UNREADABLE,)),
        (b'data: {"type":"message-end","delta":[]}\n\ndata: [DONE]\n\n', ()),
        (b'data: {"type":"content-delta","delta":{"text":"\\"message-end\\""}}\n\n', ()),
    ],
)
def test_odd_events_are_flagged_and_never_raise(event: bytes, flags: tuple[str, ...]) -> None:
    meter = open_meter(
        MeterFormat.COHERE_CHAT,
        stream=True,
        status=200,
        content_type=b"text/event-stream",
        content_encoding=b"",
    )
    meter.feed(event)
    usage = meter.finish(complete=True)
    assert (usage.flags, usage.source) == (flags, "none")
