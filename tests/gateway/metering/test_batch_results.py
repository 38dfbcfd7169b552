import json

import pytest

from gateway.metering.batch_results import BatchResults
from gateway.metering.meter import MeterFormat, open_meter
from gateway.metering.usage import Usage, told_later


def openai(model: str, read: int, written: int) -> dict[str, object]:
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    body = {"object": "chat.completion", "model": model, "choices": [], "usage": usage}
    return {"custom_id": "1", "response": {"status_code": 200, "body": body}, "error": None}


def anthropic(model: str, read: int, written: int) -> dict[str, object]:
    usage = {"input_tokens": read, "output_tokens": written, "cache_read_input_tokens": 1}
    message = {"type": "message", "model": model, "content": [], "usage": usage}
    return {"custom_id": "1", "result": {"type": "succeeded", "message": message}}


RESPONSE = {
    "response": {
        "body": {
            "object": "response",
            "model": "c",
            "usage": {"input_tokens": 5, "output_tokens": 6, "total_tokens": 11},
        }
    }
}
EMBEDDING = {
    "response": {
        "body": {"object": "list", "model": "e", "usage": {"prompt_tokens": 7, "total_tokens": 7}}
    }
}
FAILED = {"custom_id": "2", "result": {"type": "errored", "error": {"type": "x"}}}
REFUSED = {"response": {"status_code": 400, "body": {"error": {"message": "x"}}}, "error": None}


def metered(*lines: object, size: int = 10**6, complete: bool = True) -> Usage:
    content = b"\n".join(json.dumps(line).encode() for line in lines)
    meter = open_meter(
        MeterFormat.ANTHROPIC_BATCH_RESULTS,
        stream=False,
        status=200,
        content_type=b"application/octet-stream",
        content_encoding=b"",
    )
    assert isinstance(meter, BatchResults)
    for at in range(0, len(content), size):
        meter.feed(content[at : at + size])
    return meter.finish(complete=complete)


@pytest.mark.parametrize("size", [1, 13, 10**6])
def test_the_answers_of_a_batch_are_summed(size: int) -> None:
    usage = metered(openai("a", 1, 2), openai("a", 3, 4), REFUSED, size=size)
    assert (usage.input_tokens, usage.output_tokens) == (4, 6)
    assert (usage.model_served, usage.source) == ("a", "vendor")
    usage = metered(anthropic("b", 1, 2), FAILED, anthropic("b", 3, 4), size=size)
    assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens) == (4, 2, 6)


def test_several_models_are_told_apart() -> None:
    usage = metered(openai("a", 1, 2), RESPONSE, EMBEDDING)
    assert (usage.input_tokens, usage.output_tokens, usage.model_served) == (13, 8, None)
    by_model = json.loads(usage.vendor_usage or b"")["by_model"]
    assert by_model["c"] == {"requests": 1, "input_tokens": 5, "output_tokens": 6}
    assert set(by_model) == {"a", "c", "e"}


def test_what_was_cut_is_partial_and_what_is_no_json_is_flagged() -> None:
    assert metered(openai("a", 1, 2), complete=False).source == "partial"
    usage = metered("x", [], openai("a", 1, 2))
    assert (usage.output_tokens, usage.flags) == (2, ("unreadable",))
    assert metered().source == "none"


@pytest.mark.parametrize(
    ("usage", "retrieves", "defers", "tokens", "flags"),
    [
        (Usage(output_tokens=5, source="vendor"), False, False, 5, ()),
        (Usage(output_tokens=5, source="vendor"), False, True, 5, ()),
        (Usage(source="none"), False, True, None, ("deferred",)),
        (Usage(output_tokens=0, source="vendor", finish_reason="queued"), False, True, None,
         ("deferred",)),
        (Usage(output_tokens=5, source="vendor"), True, False, 5, ("deferred",)),
        (Usage(output_tokens=5, source="partial"), True, False, None, ()),
        (Usage(output_tokens=0, source="vendor", finish_reason="in_progress"), True, False, None,
         ()),
        (Usage(output_tokens=5, source="partial"), False, False, 5, ()),
    ],
)  # fmt: skip
def test_only_a_last_word_is_told_of_what_is_fetched_again(
    usage: Usage, *, retrieves: bool, defers: bool, tokens: int | None, flags: tuple[str, ...]
) -> None:
    told = told_later(usage, retrieves=retrieves, defers=defers)
    assert (told.output_tokens, told.flags) == (tokens, flags)
    assert (told.source == "none") == (tokens is None)
