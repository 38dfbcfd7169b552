import json

import pytest

from gateway.metering.meter import Meter, MeterFormat, open_meter

USAGE = {
    "total_tokens": 1983,
    "total_input_tokens": 22,
    "input_tokens_by_modality": [{"modality": "audio", "tokens": 5}],
    "total_cached_tokens": 4,
    "total_output_tokens": 590,
    "total_tool_use_tokens": 198,
    "total_thought_tokens": 1173,
}
WHOLE = {"id": "v1_a", "status": "completed", "model": "gemini-x", "usage": USAGE}


def meter(content_type: bytes) -> Meter:
    return open_meter(
        MeterFormat.GEMINI_INTERACTIONS,
        stream=False,
        status=200,
        content_type=content_type,
        content_encoding=b"",
    )


@pytest.mark.parametrize("size", [1, 50, 10**6])
def test_a_stream_tells_its_usage_at_the_end(size: int) -> None:
    begun = {"event_type": "interaction.created", "interaction": {"status": "in_progress"}}
    ended = {"event_type": "interaction.completed", "interaction": WHOLE}
    text = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in (begun, ended))
    stream = meter(b"text/event-stream")
    for at in range(0, len(text), size):
        stream.feed(text[at : at + size])
    usage = stream.finish(complete=True)
    assert stream.saw_end
    assert (usage.input_tokens, usage.cache_read_tokens) == (216, 4)
    assert (usage.output_tokens, usage.reasoning_tokens) == (1763, 1173)
    assert (usage.audio_input_tokens, usage.model_served) == (5, "gemini-x")
    assert (usage.source, usage.flags, usage.finish_reason) == ("vendor", (), "completed")


def test_an_answer_in_one_piece_tells_the_same() -> None:
    one = meter(b"application/json")
    one.feed(json.dumps(WHOLE).encode())
    usage = one.finish(complete=True)
    assert (usage.input_tokens, usage.output_tokens, usage.source) == (216, 1763, "vendor")


def test_an_error_and_a_stream_without_its_end_are_seen() -> None:
    stream = meter(b"text/event-stream")
    stream.feed(b'event: error\ndata: {"event_type":"error","error":{"message":"x"}}\n\n')
    assert stream.stream_error
    assert not stream.saw_end
    assert stream.finish(complete=False).source == "none"
