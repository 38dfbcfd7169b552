import json

import pytest

from gateway.metering.meter import Meter, MeterFormat, open_meter
from gateway.metering.usage import Flag

DONE = {
    "model": "gemma3:1b",
    "done_reason": "stop",
    "done": True,
    "total_duration": 9,
    "prompt_eval_count": 17,
    "eval_count": 63,
}


def meter_of(*, in_lines: bool) -> Meter:
    return open_meter(
        MeterFormat.OLLAMA,
        stream=in_lines,
        status=200,
        content_type=b"application/x-ndjson" if in_lines else b"application/json; charset=utf-8",
        content_encoding=b"",
    )


@pytest.mark.parametrize("in_lines", [False, True])
def test_the_object_that_is_done_tells_both_counts(*, in_lines: bool) -> None:
    meter = meter_of(in_lines=in_lines)
    if in_lines:
        for word in ("a", '"done":true'):
            line = {"model": "gemma3:1b", "response": word, "done": False}
            meter.feed(json.dumps(line).encode() + b"\n")
    meter.feed(json.dumps(DONE).encode() + b"\n")
    assert meter.is_over is in_lines
    assert meter.saw_end
    usage = meter.finish(complete=True)
    assert (usage.input_tokens, usage.output_tokens, usage.source) == (17, 63, "vendor")
    assert (usage.model_served, usage.finish_reason, usage.flags) == ("gemma3:1b", "stop", ())
    assert usage.vendor_usage == b'{"prompt_eval_count":17,"eval_count":63}'


def test_a_prompt_that_was_still_in_memory_has_no_count() -> None:
    meter = meter_of(in_lines=False)
    meter.feed(b'{"model":"m","done":true,"eval_count":5}')
    usage = meter.finish(complete=True)
    assert (usage.input_tokens, usage.output_tokens) == (None, 5)


def test_counts_are_found_behind_large_embeddings() -> None:
    answer = {"model": "e", "embeddings": [[0.25] * 100_000], "total_duration": 1}
    meter = meter_of(in_lines=False)
    meter.feed(json.dumps({**answer, "prompt_eval_count": 8}).encode())
    usage = meter.finish(complete=True)
    assert (usage.input_tokens, usage.output_tokens) == (8, None)
    assert (usage.model_served, usage.source) == ("e", "vendor")


def test_a_stream_that_is_cut_has_no_end_and_no_usage() -> None:
    meter = meter_of(in_lines=True)
    meter.feed(b'{"model":"m","response":"a","done":false}\n{"model":"m","done":tr')
    assert not meter.saw_end
    usage = meter.finish(complete=False)
    assert (usage.source, usage.model_served) == ("none", "m")


def test_what_is_not_json_is_flagged() -> None:
    meter = meter_of(in_lines=True)
    meter.feed(b"Ollama is running\n")
    assert meter.finish(complete=True).flags == (Flag.UNREADABLE,)


def test_an_error_may_come_in_a_stream() -> None:
    meter = meter_of(in_lines=True)
    meter.feed(b'{"model":"m","response":"a","done":false}\n{"error":"out of memory"}\n')
    assert meter.stream_error
    assert meter.finish(complete=True).flags == (Flag.IN_STREAM_ERROR,)
