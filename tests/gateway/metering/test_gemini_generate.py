import json
from typing import Any

import pytest

from gateway.metering.gemini_generate import GeminiGenerate
from gateway.metering.usage import METERS, Flag, Usage


def usage_of(*reports: dict[str, Any]) -> Usage:
    reader = GeminiGenerate()
    for reported in reports:
        reader.read_object(json.dumps({"usageMetadata": reported}).encode())
    return reader.usage(complete=True)


def told(usage: Usage) -> dict[str, int | float]:
    return {name: value for name in METERS if (value := getattr(usage, name)) is not None}


@pytest.mark.parametrize(
    ("reported", "meters", "flags"),
    [
        pytest.param(
            {"promptTokenCount": 8, "totalTokenCount": 8},
            {"input_tokens": 8},
            (),
            id="only what is said",
        ),
        pytest.param(
            {
                "promptTokenCount": 50,
                "cachedContentTokenCount": 30,
                "toolUsePromptTokenCount": 12,
                "candidatesTokenCount": 9,
                "thoughtsTokenCount": 7,
                "totalTokenCount": 78,
            },
            {
                "input_tokens": 32,
                "cache_read_tokens": 30,
                "output_tokens": 16,
                "reasoning_tokens": 7,
            },
            (),
            id="tool prompts and thoughts beside",
        ),
        pytest.param(
            {
                "promptTokenCount": 60,
                "candidatesTokenCount": 20,
                "promptTokensDetails": [
                    {"modality": "TEXT", "tokenCount": 10},
                    {"modality": "AUDIO", "tokenCount": 30},
                    {"modality": "IMAGE", "tokenCount": 12},
                    {"modality": "IMAGE", "tokenCount": 8},
                    "odd",
                ],
                "candidatesTokensDetails": [{"modality": "AUDIO"}],
            },
            {
                "input_tokens": 60,
                "output_tokens": 20,
                "audio_input_tokens": 30,
                "image_input_tokens": 20,
                "audio_output_tokens": 0,
            },
            (),
            id="modalities",
        ),
        pytest.param(
            {
                "promptTokenCount": 12,
                "promptTokenDetails": [
                    {"modality": "TEXT", "tokenCount": 2},
                    {"modality": "IMAGE", "tokenCount": 10},
                ],
            },
            {"input_tokens": 12, "image_input_tokens": 10},
            (),
            id="embeddings, whose details have another name",
        ),
        pytest.param(
            {
                "promptTokenCount": 5,
                "candidatesTokenCount": 1,
                "totalTokenCount": 99,
                "cachedContentTokenCount": 6,
                "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 7}],
            },
            {
                "input_tokens": 0,
                "cache_read_tokens": 5,
                "output_tokens": 1,
                "audio_input_tokens": 5,
            },
            (Flag.TOTAL_DIFFERS, Flag.CACHE_EXCEEDS_INPUT, Flag.AUDIO_EXCEEDS_INPUT),
            id="contradictions",
        ),
        pytest.param(
            {
                "promptTokenCount": 1.0,
                "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": -1}],
            },
            {},
            (Flag.BAD_NUMBER,),
            id="absurd numbers",
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


def test_the_last_report_that_counts_anything_holds() -> None:
    usage = usage_of(
        {"promptTokenCount": 8, "candidatesTokenCount": 2, "totalTokenCount": 10},
        {"promptTokenCount": 8, "candidatesTokenCount": 5, "totalTokenCount": 13},
        {"trafficType": "ON_DEMAND"},
    )
    assert told(usage) == {"input_tokens": 8, "output_tokens": 5}
    assert usage.flags == ()


def test_a_count_that_is_withdrawn_is_flagged() -> None:
    usage = usage_of(
        {"promptTokenCount": 8, "candidatesTokenCount": 2, "totalTokenCount": 10},
        {"promptTokenCount": 8, "totalTokenCount": 8},
    )
    assert told(usage) == {"input_tokens": 8}
    assert usage.flags == (Flag.FIELDS_WITHDRAWN,)


def test_a_blocked_prompt_is_an_end() -> None:
    reader = GeminiGenerate()
    reader.read_object(b'{"promptFeedback":{"blockReason":"SAFETY"}}')
    assert reader.saw_end


@pytest.mark.parametrize("document", [b"", b"[]", b'{"candidates":7}', b"\xff"])
def test_what_is_not_an_answer_is_flagged(document: bytes) -> None:
    reader = GeminiGenerate()
    reader.read_object(document)
    assert reader.usage(complete=True) == Usage(flags=(Flag.UNREADABLE,))


def test_every_event_is_wanted() -> None:
    assert GeminiGenerate().wants(b"")
