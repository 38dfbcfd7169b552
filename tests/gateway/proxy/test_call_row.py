import json
from typing import Any

import msgspec
import pytest

from gateway.metering.usage import Flag, Usage
from gateway.proxy.call_row import (
    ClosePart,
    MeteredObject,
    Purpose,
    encode_purpose,
    encode_whole,
    open_part,
    rfc3339,
)

PURPOSE = Purpose(
    org_id="o",
    workspace_id="w",
    user_id="u",
    token_id="t",
    vendor="openai",
    endpoint="openai.chat",
    client_format="openai",
    stream=False,
    counted=False,
)


def opened(*, attempt: int = 1, retry_of: str | None = None, purpose: Purpose = PURPOSE) -> bytes:
    return open_part(
        encode_purpose(purpose),
        attempt_id="i",
        call_id="c",
        attempt=attempt,
        retry_of=retry_of,
        time="2026-11-24T12:00:00.000000Z",
    )


OPENED = opened()


def row(usage: Usage, metered: MeteredObject | None = None) -> dict[str, Any]:
    part = ClosePart(
        ended_at="2026-11-24T12:00:01.000000Z",
        status="complete",
        duration_ms=1000.0,
        bytes_up=3,
        bytes_down=0,
    )
    part.tell(usage, metered)
    told: dict[str, Any] = json.loads(encode_whole(OPENED, part))
    return told


def test_a_row_has_what_is_known_and_nothing_else() -> None:
    assert row(Usage(output_tokens=0, source="vendor", vendor_usage=b'{ "as": "it came" }')) == {
        **json.loads(OPENED),
        "ended_at": "2026-11-24T12:00:01.000000Z",
        "status": "complete",
        "duration_ms": 1000.0,
        "bytes_up": 3,
        "bytes_down": 0,
        "usage_source": "vendor",
        "output_tokens": 0,
        "vendor_usage": {"as": "it came"},
    }


def test_an_open_part_tells_who_calls_what_and_when() -> None:
    assert json.loads(OPENED) == {
        **{name: getattr(PURPOSE, name) for name in PURPOSE.__struct_fields__[:9]},
        "id": "i",
        "call_id": "c",
        "attempt": 1,
        "time": "2026-11-24T12:00:00.000000Z",
        "month": "2026-11",
    }


def test_a_second_attempt_names_the_first_and_texts_of_clients_are_quoted() -> None:
    text = 'a "model", \n\u2028\\'
    purpose = msgspec.structs.replace(PURPOSE, model_requested=text, session_id=text)
    told = json.loads(opened(attempt=2, retry_of="h", purpose=purpose))
    assert (told["attempt"], told["retry_of"]) == (2, "h")
    assert (told["model_requested"], told["session_id"]) == (text, text)


def test_what_no_call_can_be_without_is_told_also_where_it_says_no() -> None:
    told = row(Usage())
    assert (told["attempt"], told["stream"], told["counted"]) == (1, False, False)
    assert told["usage_source"] == "none"


def test_every_fact_of_a_usage_is_in_the_row() -> None:
    facts: dict[str, Any] = {name: n for n, name in enumerate(Usage.__struct_fields__, start=1)}
    facts.update(source="vendor", flags=("a",), vendor_usage=b"{}")
    facts.update(model_served="m", service_tier="s", finish_reason="f")
    told = row(Usage(**facts))
    facts.update(usage_source=facts.pop("source"), flags=["a"], vendor_usage={})
    assert {name: told[name] for name in facts} == facts


def test_a_stored_object_is_named_only_where_its_usage_is_told() -> None:
    stored = MeteredObject("v", "resp_1", is_retrieved=False, is_deferred=True)
    told = row(Usage(output_tokens=1, source="vendor"), stored)
    assert (told["metered_object"], told["metered_vendor_id"]) == ("resp_1", "v")
    assert (told["metered_again"], told["metered_deferred"]) == (False, True)
    assert "metered_object" not in row(Usage(), stored)


def test_half_a_surrogate_costs_the_texts_and_not_the_row() -> None:
    told = row(Usage(output_tokens=1, source="vendor", model_served="\ud800", flags=("a",)))
    assert "model_served" not in told
    assert (told["output_tokens"], told["flags"]) == (1, ["a", Flag.BAD_TEXT])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1_790_000_000.0, "2026-09-21T14:13:20.000000Z"),
        (1_790_000_000.25, "2026-09-21T14:13:20.250000Z"),
        (1_790_000_000.999_999_5, "2026-09-21T14:13:20.999999Z"),
    ],
)
def test_times_have_microseconds(seconds: float, text: str) -> None:
    assert rfc3339(seconds) == text
