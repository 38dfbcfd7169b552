import json
from typing import Any

import pytest

from gateway.metering.anthropic_messages import AnthropicMessages
from gateway.metering.sse import SseEvent
from gateway.metering.usage import METERS, VENDOR_USAGE_BYTES_MAX, Flag, Usage


def usage_of(reported: dict[str, Any]) -> Usage:
    reader = AnthropicMessages()
    reader.read_object(json.dumps({"type": "message", "usage": reported}).encode())
    return reader.usage(complete=True)


def told(usage: Usage) -> dict[str, int | float]:
    return {name: value for name in METERS if (value := getattr(usage, name)) is not None}


def iteration(kind: str, tokens: int, **more: str) -> dict[str, Any]:
    return {
        "type": kind,
        "input_tokens": tokens,
        "output_tokens": 1,
        "cache_read_input_tokens": 0,
        "cache_creation_input_tokens": 0,
        **more,
    }


@pytest.mark.parametrize(
    ("reported", "meters", "flags"),
    [
        pytest.param(
            {"input_tokens": 3, "output_tokens": 2},
            {"input_tokens": 3, "output_tokens": 2},
            (),
            id="only what is said",
        ),
        pytest.param(
            {
                "input_tokens": 3,
                "output_tokens": 20,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 60,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 10,
                    "ephemeral_1h_input_tokens": 50,
                },
                "output_tokens_details": {"thinking_tokens": 12},
                "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
            },
            {
                "input_tokens": 3,
                "cache_read_tokens": 100,
                "cache_write_tokens": 60,
                "cache_write_5m_tokens": 10,
                "cache_write_1h_tokens": 50,
                "output_tokens": 20,
                "reasoning_tokens": 12,
                "searches": 2,
            },
            (),
            id="cache beside the input",
        ),
        pytest.param(
            {"input_tokens": 3, "cache_creation": {"ephemeral_1h_input_tokens": 50}},
            {"input_tokens": 3, "cache_write_tokens": 50, "cache_write_1h_tokens": 50},
            (),
            id="writes without a total",
        ),
        pytest.param(
            {
                "cache_creation_input_tokens": 40,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 30,
                    "ephemeral_1h_input_tokens": 20,
                },
            },
            {"cache_write_tokens": 50, "cache_write_5m_tokens": 30, "cache_write_1h_tokens": 20},
            (Flag.CACHE_WRITE_SPLIT_DIFFERS,),
            id="writes larger than their total",
        ),
        pytest.param(
            {"output_tokens": 2, "output_tokens_details": {"thinking_tokens": 12}},
            {"output_tokens": 2, "reasoning_tokens": 2},
            (Flag.REASONING_EXCEEDS_OUTPUT,),
            id="more thinking than output",
        ),
        pytest.param(
            {"input_tokens": 9, "iterations": [iteration("message", 9)]},
            {"input_tokens": 9},
            (),
            id="iterations of the message itself",
        ),
        pytest.param(
            {
                "input_tokens": 9,
                "iterations": [iteration("compaction", 5), iteration("message", 9)],
            },
            {"input_tokens": 9},
            (Flag.ITERATIONS_ON_TOP,),
            id="iterations billed on top",
        ),
        pytest.param(
            {"input_tokens": 9, "iterations": [7, {"type": "compaction"}]},
            {"input_tokens": 9},
            (),
            id="iterations that count nothing",
        ),
    ],
)
def test_counts_become_disjoint_meters(
    reported: dict[str, Any], meters: dict[str, int], flags: tuple[str, ...]
) -> None:
    usage = usage_of(reported)
    assert told(usage) == meters
    assert usage.flags == flags
    assert usage.vendor_usage is not None
    assert json.loads(usage.vendor_usage) == reported


def test_iterations_too_many_for_a_row_are_summed_by_type_and_model() -> None:
    many = [iteration("advisor_message", 10, model="claude-large-1") for _ in range(100)]
    usage = usage_of({"input_tokens": 9, "iterations": [*many, iteration("message", 9), "odd"]})
    assert usage.vendor_usage is not None
    assert len(usage.vendor_usage) <= VENDOR_USAGE_BYTES_MAX
    assert json.loads(usage.vendor_usage) == {
        "input_tokens": 9,
        "iterations": [
            {**iteration("advisor_message", 1000, model="claude-large-1"), "output_tokens": 100}
            | {"iterations": 100},
            {**iteration("message", 9), "iterations": 1},
        ],
    }
    assert usage.flags == (Flag.ITERATIONS_ON_TOP, Flag.VENDOR_USAGE_CUT)


def test_iterations_of_too_many_kinds_stay_bounded() -> None:
    many = [iteration(f"kind-{number}", 1) for number in range(1000)]
    usage = usage_of({"input_tokens": 9, "iterations": many})
    assert usage.vendor_usage is not None
    assert len(json.loads(usage.vendor_usage)["iterations"]) == 16


def test_a_long_report_without_iterations_is_cut() -> None:
    usage = usage_of({"input_tokens": 9, "novelty": "x" * VENDOR_USAGE_BYTES_MAX})
    assert usage.vendor_usage == b'{"input_tokens":9}'
    assert usage.flags == (Flag.VENDOR_USAGE_CUT,)


def test_each_delta_is_laid_over_the_start() -> None:
    reader = AnthropicMessages()
    for event in (
        {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 5}}},
        {"type": "content_block_start", "usage": {"input_tokens": 99}},
        {"type": "message_delta", "usage": {"output_tokens": 3, "input_tokens": None}},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": 4},
        },
    ):
        assert reader.wants(json.dumps(event).encode()) is event["type"].startswith("message_")  # type: ignore[attr-defined]
        reader.read_event(SseEvent(b"", json.dumps(event).encode()))
    usage = reader.usage(complete=False)
    assert told(usage) == {"input_tokens": 5, "output_tokens": 4}
    assert usage.vendor_usage == b'{"input_tokens":5,"output_tokens":4}'
    assert usage.source == "vendor"  # its last word on usage was heard


@pytest.mark.parametrize("document", [b"", b"[]", b'{"message":7}', b"\xff"])
def test_what_is_not_a_message_is_flagged(document: bytes) -> None:
    for read in (
        AnthropicMessages.read_object,
        lambda reader, document: reader.read_event(SseEvent(b"", document)),
    ):
        reader = AnthropicMessages()
        read(reader, document)
        assert reader.usage(complete=True) == Usage(flags=(Flag.UNREADABLE,))


def test_an_error_in_one_piece_is_told() -> None:
    reader = AnthropicMessages()
    reader.read_object(b'{"type":"error","error":{"type":"api_error"}}')
    assert reader.stream_error
