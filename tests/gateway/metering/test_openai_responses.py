import json
from typing import Any

import pytest

from gateway.metering.meter import Meter, MeterFormat, open_meter
from gateway.metering.usage import Flag, Usage

USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 17,
}
RESPONSE: dict[str, Any] = {"model": "gpt-5", "status": "completed", "service_tier": "flex"}


def metering(*, stream: bool) -> Meter:
    return open_meter(
        MeterFormat.OPENAI_RESPONSES,
        stream=stream,
        status=200,
        content_type=b"text/event-stream" if stream else b"application/json",
        content_encoding=b"",
    )


def event(kind: str, **members: object) -> bytes:
    document = json.dumps({"type": kind, **members})
    return f"event: {kind}\ndata: {document}\n\n".encode()


def usage_of(response: dict[str, Any]) -> Usage:
    meter = metering(stream=False)
    meter.feed(json.dumps(response).encode())
    return meter.finish(complete=True)


CREATED = event("response.created", response={"model": "gpt-5", "status": "in_progress"})
DELTA = event("response.output_text.delta", delta='say "response.completed" and "error"')


@pytest.mark.parametrize(
    ("kind", "status", "details", "finish"),
    [
        ("response.completed", "completed", None, "completed"),
        ("response.incomplete", "incomplete", {"reason": "max_output_tokens"}, None),
    ],
)
def test_a_stream_is_over_with_its_last_event(
    kind: str, status: str, details: object, finish: str | None
) -> None:
    meter = metering(stream=True)
    meter.feed(CREATED + DELTA)
    was_over = meter.is_over
    last = {**RESPONSE, "status": status, "incomplete_details": details, "usage": USAGE}
    meter.feed(event(kind, response=last))
    assert (was_over, meter.is_over) == (False, True)
    assert meter.saw_end
    assert not meter.stream_error
    usage = meter.finish(complete=False)
    assert usage.source == "vendor"
    assert usage.finish_reason == (finish or "incomplete:max_output_tokens")
    assert (usage.model_served, usage.service_tier) == ("gpt-5", "flex")
    assert (usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens) == (5, 4, 1)
    assert (usage.output_tokens, usage.reasoning_tokens) == (7, 5)


def test_a_cut_stream_tells_the_model_and_no_usage() -> None:
    meter = metering(stream=True)
    meter.feed(CREATED + DELTA)
    assert not meter.saw_end
    usage = meter.finish(complete=False)
    assert (usage.source, usage.model_served, usage.flags) == ("none", "gpt-5", ())


def test_a_response_that_fails_is_an_error_with_the_usage_until_then() -> None:
    meter = metering(stream=True)
    failed = {**RESPONSE, "status": "failed", "error": {"code": "server_error"}, "usage": USAGE}
    meter.feed(CREATED + event("response.failed", response=failed))
    assert meter.is_over
    assert meter.stream_error
    usage = meter.finish(complete=True)
    assert (usage.finish_reason, usage.output_tokens) == ("failed", 7)
    assert usage.flags == (Flag.IN_STREAM_ERROR,)


@pytest.mark.parametrize(
    "error",
    [
        event("error", code="rate_limit_exceeded", message="Later."),
        b'data: {"error":{"message":"Later."}}\n\n',
    ],
)
def test_an_error_event_is_an_error_and_no_end(error: bytes) -> None:
    meter = metering(stream=True)
    meter.feed(CREATED + error)
    assert meter.stream_error
    assert not meter.saw_end


def test_a_mark_of_another_format_after_the_end_changes_nothing() -> None:
    meter = metering(stream=True)
    meter.feed(event("response.completed", response={**RESPONSE, "usage": USAGE}))
    meter.feed(b"data: [DONE]\n\n")
    assert meter.is_over
    assert meter.finish(complete=True).flags == ()


def test_of_several_responses_the_last_one_counts() -> None:
    meter = metering(stream=True)
    meter.feed(event("response.completed", response={**RESPONSE, "usage": USAGE}) + CREATED)
    assert not meter.is_over
    assert meter.finish(complete=False).source == "partial"


@pytest.mark.parametrize(
    ("reported", "meters", "flags"),
    [
        pytest.param(
            {"input_tokens": 3, "output_tokens": 1, "total_tokens": 9},
            (3, None, 1),
            (Flag.TOTAL_DIFFERS,),
            id="a total that is more",
        ),
        pytest.param(
            {"input_tokens": 3, "input_tokens_details": {"cached_tokens": 5}, "output_tokens": 1},
            (0, 3, 1),
            (Flag.CACHE_EXCEEDS_INPUT,),
            id="more cached than input",
        ),
        pytest.param(
            {"input_tokens": -3, "output_tokens": "1"},
            (None, None, None),
            (Flag.BAD_NUMBER,),
            id="absurd numbers",
        ),
        pytest.param(None, (None, None, None), (), id="nothing"),
    ],
)
def test_counts_hold_together(
    reported: object, meters: tuple[int | None, ...], flags: tuple[str, ...]
) -> None:
    usage = usage_of({**RESPONSE, "usage": reported})
    assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens) == meters
    assert usage.flags == flags


def test_a_picture_in_the_output_hides_no_usage() -> None:
    meter = metering(stream=True)
    picture = {"type": "image_generation_call", "result": "A" * 3_000_000}
    last = event("response.completed", response={**RESPONSE, "output": [picture], "usage": USAGE})
    for at in range(0, len(last), 65_536):
        meter.feed(last[at : at + 65_536])
    assert meter.saw_end
    usage = meter.finish(complete=True)
    assert (usage.source, usage.output_tokens, usage.flags) == ("vendor", 7, ())


def test_an_end_too_long_to_be_read_is_flagged_and_no_broken_stream() -> None:
    meter = metering(stream=True)
    meter.feed(CREATED)
    for _ in range(18):
        meter.feed(b"x" * 1024 * 1024)
    meter.feed(b"\n\n")
    assert meter.saw_end
    usage = meter.finish(complete=True)
    assert (usage.source, usage.flags) == ("none", (Flag.EVENT_TOO_LARGE,))


def test_a_background_response_tells_no_usage_yet() -> None:
    usage = usage_of({**RESPONSE, "status": "queued", "usage": None})
    assert (usage.source, usage.finish_reason) == ("none", "queued")


@pytest.mark.parametrize("data", ["[]", "{", '{"type":5,"response":7}', '{"response":[1]}'])
def test_nonsense_never_raises(data: str) -> None:
    meter = metering(stream=True)
    meter.feed(f'data: {data} "response.completed"\n\ndata: {data}\n\n'.encode())
    assert Flag.METER_FAILED not in meter.finish(complete=True).flags
