import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.metering.openai_chat import OpenAIChat
from gateway.metering.sse import SseEvent
from gateway.metering.usage import METERS, Flag, Usage


def usage_of(reported: dict[str, Any]) -> Usage:
    reader = OpenAIChat()
    reader.read_object(json.dumps({"usage": reported}).encode())
    return reader.usage(complete=True)


def told(usage: Usage) -> dict[str, int | float]:
    return {name: value for name in METERS if (value := getattr(usage, name)) is not None}


@pytest.mark.parametrize(
    ("reported", "meters", "flags"),
    [
        pytest.param(
            {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
            {"input_tokens": 10, "output_tokens": 2},
            (),
            id="only what is said",
        ),
        pytest.param(
            {
                "prompt_tokens": 10,
                "completion_tokens": 7,
                "total_tokens": 17,
                "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
                "completion_tokens_details": {"reasoning_tokens": 5},
            },
            {
                "input_tokens": 5,
                "cache_read_tokens": 4,
                "cache_write_tokens": 1,
                "output_tokens": 7,
                "reasoning_tokens": 5,
            },
            (),
            id="cached and reasoning included",
        ),
        pytest.param(
            {
                "prompt_tokens": 10,
                "completion_tokens": 2,
                "total_tokens": 17,
                "completion_tokens_details": {"reasoning_tokens": 5},
            },
            {"input_tokens": 10, "output_tokens": 7, "reasoning_tokens": 5},
            (),
            id="reasoning beside the completion",
        ),
        pytest.param(
            {
                "prompt_tokens": 10,
                "completion_tokens": 2,
                "total_tokens": 387,
                "prompt_audio_seconds": 3,
                "prompt_tokens_details": {"audio_tokens": 375},
            },
            {"input_tokens": 385, "output_tokens": 2, "audio_input_tokens": 375, "seconds": 3},
            (),
            id="audio beside the prompt",
        ),
        pytest.param(
            {
                "prompt_tokens": 10,
                "completion_tokens": 2,
                "total_tokens": 118,
                "prompt_tokens_details": {"audio_tokens": 6},
                "completion_tokens_details": {"reasoning_tokens": 100},
            },
            {
                "input_tokens": 16,
                "output_tokens": 102,
                "audio_input_tokens": 6,
                "reasoning_tokens": 100,
            },
            (),
            id="both beside",
        ),
        pytest.param(
            {"prompt_tokens": 66, "completion_tokens": 6, "total_tokens": 100},
            {"input_tokens": 66, "output_tokens": 6},
            (Flag.TOTAL_DIFFERS,),
            id="a rest that nothing explains",
        ),
        pytest.param(
            {
                "prompt_tokens": 10,
                "completion_tokens": 2,
                "total_tokens": 12,
                "prompt_tokens_details": {"cached_tokens": 30},
            },
            {"input_tokens": 0, "cache_read_tokens": 10, "output_tokens": 2},
            (Flag.CACHE_EXCEEDS_INPUT,),
            id="more cached than input",
        ),
        pytest.param(
            {
                "prompt_tokens": 10,
                "completion_tokens": 2,
                "total_tokens": 12,
                "completion_tokens_details": {"reasoning_tokens": 9, "audio_tokens": 3},
                "prompt_tokens_details": {"audio_tokens": 11, "image_tokens": 12},
            },
            {
                "input_tokens": 10,
                "output_tokens": 2,
                "reasoning_tokens": 2,
                "audio_input_tokens": 10,
                "audio_output_tokens": 2,
                "image_input_tokens": 10,
            },
            (
                Flag.REASONING_EXCEEDS_OUTPUT,
                Flag.AUDIO_EXCEEDS_INPUT,
                Flag.AUDIO_EXCEEDS_OUTPUT,
                Flag.IMAGE_EXCEEDS_INPUT,
            ),
            id="parts larger than their whole",
        ),
        pytest.param(
            {"prompt_tokens": -1, "completion_tokens": "2", "total_tokens": 1.5},
            {},
            (Flag.BAD_NUMBER,),
            id="absurd numbers",
        ),
        pytest.param(
            {"prompt_tokens": 5, "completion_tokens": 1, "cached_tokens": 2, "reasoning_tokens": 1},
            {
                "input_tokens": 3,
                "cache_read_tokens": 2,
                "output_tokens": 1,
                "reasoning_tokens": 1,
            },
            (),
            id="counts at the top",
        ),
        pytest.param(
            {"prompt_tokens": 5, "prompt_cache_hit_tokens": 5, "prompt_tokens_details": None},
            {"input_tokens": 0, "cache_read_tokens": 5},
            (),
            id="another name for cached",
        ),
        pytest.param(
            {"prompt_tokens": 5, "num_search_queries": 3},
            {"input_tokens": 5, "searches": 3},
            (),
            id="searches",
        ),
        pytest.param(
            {"prompt_tokens": 5, "server_tool_use_details": {"web_search_requests": 2}},
            {"input_tokens": 5, "searches": 2},
            (),
            id="searches by a server tool",
        ),
    ],
)
def test_counts_become_disjoint_meters(
    reported: dict[str, Any], meters: dict[str, int], flags: tuple[str, ...]
) -> None:
    usage = usage_of(reported)
    assert told(usage) == meters
    assert usage.flags == flags
    assert usage.vendor_usage == json.dumps(reported).encode()
    assert usage.source == ("vendor" if meters else "none")


anything = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["cached_tokens", "audio_tokens", "reasoning_tokens", "cache_write_tokens"]
        ),
        st.integers(-3, 40) | st.none(),
    )
)
FIELDS = [
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "prompt_tokens_details",
    "completion_tokens_details",
    "prompt_cache_hit_tokens",
    "reasoning_tokens",
    "prompt_audio_seconds",
    "service_tier",
]


@given(st.dictionaries(st.sampled_from(FIELDS), anything))
def test_no_report_makes_an_absurd_usage(reported: dict[str, Any]) -> None:
    usage = usage_of(reported)
    meters = told(usage)
    assert all(value >= 0 for value in meters.values())
    assert "meter_failed" not in usage.flags
    if usage.output_tokens is not None:
        assert (usage.reasoning_tokens or 0) <= usage.output_tokens


@pytest.mark.parametrize(
    "chunk",
    [
        {"x_groq": {"id": "r", "usage": {"prompt_tokens": 7, "completion_tokens": 1}}},
        {"choices": [{"usage": {"prompt_tokens": 7, "completion_tokens": 1}}]},
        {
            "usage": {"prompt_tokens": 7, "completion_tokens": 1},
            "x_groq": {"usage": {"prompt_tokens": 8, "completion_tokens": 8}},
            "choices": [{"usage": {"prompt_tokens": 9, "completion_tokens": 9}}],
        },
    ],
)
def test_usage_is_found_wherever_vendors_put_it(chunk: dict[str, Any]) -> None:
    reader = OpenAIChat()
    reader.read_event(SseEvent(b"", json.dumps(chunk).encode()))
    assert told(reader.usage(complete=True)) == {"input_tokens": 7, "output_tokens": 1}


@pytest.mark.parametrize(
    "raw",
    [
        b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n',
        b'data: {"choices":[],"usage" : {"prompt_tokens":1}}\n\n',
        b'data: {"choices":[{"finish_reason":"stop"}],"usage":null}\n\n',
        b'data: {"choices":[{"finish_reason": "stop"}]}\n\n',
        b'data: {"error":{"message":"x"}}\n\n',
        b"data: [DONE]\n\n",
    ],
)
def test_what_tells_something_is_wanted(raw: bytes) -> None:
    assert after_the_first_event().wants(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":null}],"usage":null}\n\n',
        rb'data: {"choices":[{"delta":{"content":"the \"usage\""}}]}' + b"\n\n",
        b": keep-alive\n\n",
    ],
)
def test_a_delta_is_not_wanted(raw: bytes) -> None:
    assert not after_the_first_event().wants(raw)


def after_the_first_event() -> OpenAIChat:
    reader = OpenAIChat()
    reader.read_event(SseEvent(b"", b'{"model":"gpt-small-1","choices":[]}'))
    return reader


def test_the_search_for_a_model_ends() -> None:
    reader = OpenAIChat()
    looked_at = 0
    while reader.wants(b"data: {}\n\n"):
        reader.read_event(SseEvent(b"", b'{"model":""}'))
        looked_at += 1
    assert looked_at == 8


def test_an_odd_number_elsewhere_does_not_hide_the_usage() -> None:
    reader = OpenAIChat()
    reader.read_object(b'{"usage":{"prompt_tokens":4,"rate":NaN},"x":Infinity}')
    usage = reader.usage(complete=True)
    assert usage.input_tokens == 4
    assert usage.vendor_usage == b'{"prompt_tokens":4,"rate":null}'
    assert usage.flags == (Flag.BAD_NUMBER,)


@pytest.mark.parametrize("document", [b"", b"{", b"[]", b"7", b'{"choices":"none"}', b"\xff"])
def test_what_is_not_a_completion_is_flagged(document: bytes) -> None:
    reader = OpenAIChat()
    reader.read_object(document)
    assert reader.usage(complete=True) == Usage(flags=(Flag.UNREADABLE,))


@pytest.mark.parametrize("error", ["null", "{}", '""'])
def test_an_error_that_says_nothing_is_none(error: str) -> None:
    reader = OpenAIChat()
    reader.read_object(f'{{"error":{error}}}'.encode())
    assert not reader.stream_error


def test_a_tier_may_stand_in_the_usage() -> None:
    assert usage_of({"prompt_tokens": 1, "service_tier": "flex"}).service_tier == "flex"
