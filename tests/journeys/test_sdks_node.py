"""The vendors' Node SDKs, with nothing changed but base URL and key.

`node/` has a script for each; it plays its scenarios and prints what came of them. What the ledger
has of a scenario is held against the simulator's own tally, and both against the table below.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import pytest

from tests.journeys.node_sdks import Result, play
from tests.journeys.product import VISIBLE_SECONDS_MAX, Product, Row, eventually, mistyped

pytestmark = pytest.mark.journey

RETRY_AFTER_SECONDS: Final = 1.0  # the simulator's


class Expected(NamedTuple):
    """What a scenario's result has, beside more, and the rows that it leaves."""

    result: Mapping[str, object]
    endpoint: str = ""
    calls: int = 1  # that went to the vendor
    input_tokens: int | None = 5
    output_tokens: int | None = 6


UNKNOWN: Final = "This gateway token is not valid."
SPENT: Final = "The limit of this token, 0 calls a month, is reached."

EXPECTED: Final[Mapping[str, Mapping[str, Expected]]] = {
    "openai": {
        "chat": Expected({"words": 6, "usage": [5, 6]}, "chat.completions"),
        "chat_stream": Expected({"words": 6, "told_usage": False}, "chat.completions"),
        "chat_stream_with_usage": Expected({"choices": [], "usage": [5, 6]}, "chat.completions"),
        "responses": Expected({"words": 6, "usage": [5, 6]}, "responses"),
        "responses_stream": Expected(
            {"words": 20, "usage": [5, 20]}, "responses", output_tokens=20
        ),
        "completions_stream": Expected({"words": 6}, "completions"),
        "embeddings": Expected({"sizes": [4, 4]}, "embeddings", input_tokens=7, output_tokens=None),
        "moderations": Expected(
            {"flagged": [False]}, "moderations", input_tokens=None, output_tokens=None
        ),
        "images": Expected({"png": "PNG"}, "images.generations", output_tokens=20),
        "models": Expected({"found": True}, calls=0),
        "unknown_token": Expected(
            {"name": "AuthenticationError", "status": 401, "reason": "token_invalid"}, calls=0
        ),
        "spent_month": Expected(
            {"name": "RateLimitError", "status": 429, "reason": "monthly_limit"}, calls=0
        ),
        "repeated": Expected({"words": 6}, "chat.completions", calls=2),
        "repeated_in_vain": Expected(
            {"name": "InternalServerError", "status": 503, "reason": None},
            "chat.completions",
            calls=3,
        ),
        "not_repeated": Expected(
            {"name": "InternalServerError", "status": 502, "reason": "vendor_key"},
            "chat.completions",
        ),
    },
    "anthropic": {
        "messages": Expected({"words": 6, "usage": [5, 6]}, "messages"),
        "messages_stream": Expected(
            {"words": 6, "usage": [5, 6], "stop_reason": "max_tokens"}, "messages"
        ),
        "count_tokens": Expected({"tokens": 5}, calls=0),
        "models": Expected({"found": True}, calls=0),
        "unknown_token": Expected(
            {"name": "AuthenticationError", "status": 401, "reason": "token_invalid"}, calls=0
        ),
        "spent_month": Expected(
            {"name": "RateLimitError", "status": 429, "reason": "monthly_limit"}, calls=0
        ),
        "error_in_a_stream": Expected({}, "messages"),
        "repeated": Expected({"words": 6}, "messages", calls=2),
        "repeated_in_vain": Expected(
            {"name": "OverloadedError", "status": 529, "reason": None}, "messages", calls=3
        ),
        "not_repeated": Expected(
            {"name": "InternalServerError", "status": 502, "reason": "vendor_key"}, "messages"
        ),
    },
    "genai": {
        "generate": Expected({"words": 6, "usage": [5, 6]}, "generateContent"),
        "generate_stream": Expected({"words": 6, "usage": [5, 6]}, "streamGenerateContent"),
        "count_tokens": Expected({"tokens": 5}, calls=0),
        "models": Expected({"found": True}, calls=0),
        "unknown_token": Expected({"name": "ApiError", "status": 401}, calls=0),
        "spent_month": Expected({"name": "ApiError", "status": 429}, calls=0),
        "repeated": Expected({"words": 6}, "generateContent", calls=2),
        "repeated_in_vain": Expected({"status": 503}, "generateContent", calls=3),
    },
    "ai": {
        "openai_responses": Expected(
            {"words": 16, "usage": [5, 16]}, "responses", output_tokens=16
        ),
        "openai_responses_stream": Expected(
            {"words": 16, "usage": [5, 16]}, "responses", output_tokens=16
        ),
        "openai_chat": Expected(
            {"words": 16, "usage": [5, 16]}, "chat.completions", output_tokens=16
        ),
        "openai_chat_stream": Expected(
            {"words": 16, "usage": [5, 16]}, "chat.completions", output_tokens=16
        ),
        "openai_embeddings": Expected(
            {"sizes": [4, 4], "tokens": 7}, "embeddings", input_tokens=7, output_tokens=None
        ),
        "anthropic_messages": Expected(
            {"words": 16, "usage": [5, 16]}, "messages", output_tokens=16
        ),
        "anthropic_messages_stream": Expected(
            {"words": 16, "usage": [5, 16]}, "messages", output_tokens=16
        ),
        "google_generate": Expected(
            {"words": 16, "usage": [5, 16]}, "generateContent", output_tokens=16
        ),
        "google_generate_stream": Expected(
            {"words": 16, "usage": [5, 16]}, "streamGenerateContent", output_tokens=16
        ),
        "unknown_token": Expected(
            {"name": "APICallError", "status": 401, "reason": "token_invalid"}, calls=0
        ),
        "spent_month": Expected({"status": 429, "reason": "monthly_limit"}, calls=0),
        "repeated": Expected({"words": 16}, "responses", calls=2, output_tokens=16),
        "repeated_in_vain": Expected(
            {"name": "RetryError", "status": 529, "reason": None}, "messages", calls=3
        ),
    },
}
SCENARIOS: Final = [(sdk, scenario) for sdk, table in EXPECTED.items() for scenario in table]


class Played(NamedTuple):
    """What the scripts printed, by SDK and scenario; rows and tally as they stood afterwards."""

    lines: Mapping[str, Mapping[str, Result]]
    refused_for_the_month: float
    rows: Mapping[str, list[Row]]  # by session
    tally: Mapping[str, list[Row]]


def by_session(rows: list[Row]) -> dict[str, list[Row]]:
    sessions: dict[str, list[Row]] = {}
    for row in rows:
        sessions.setdefault(row["session_id"] or "", []).append(row)
    return sessions


@pytest.fixture(scope="module")
def played(node: str, product: Product, spent: str) -> Played:
    environment = {
        "TEST_GATEWAY_URL": product.url,
        "TEST_TOKEN": product.token,
        "TEST_TOKEN_UNKNOWN": mistyped(product.token),
        "TEST_TOKEN_SPENT": spent,
    }
    before = product.metric("kaixu_refusals_total", reason="monthly_limit")
    with ThreadPoolExecutor(len(EXPECTED)) as pool:
        lines = pool.map(lambda sdk: play(node, sdk, environment), EXPECTED)
        printed = dict(zip(EXPECTED, lines, strict=True))
    refused = product.metric("kaixu_refusals_total", reason="monthly_limit") - before
    calls = sum(one.calls for table in EXPECTED.values() for one in table.values())

    def rows() -> list[Row]:
        return [row for row in product.events() if (row["session_id"] or "").startswith("node/")]

    found = eventually(
        lambda: some if len(some := rows()) >= calls else None,
        seconds=VISIBLE_SECONDS_MAX,
        what=f"{calls} rows of Node's calls",
    )
    return Played(printed, refused, by_session(found), by_session(product.tallied()))


@pytest.mark.parametrize(("sdk", "scenario"), SCENARIOS, ids=[f"{a}-{b}" for a, b in SCENARIOS])
def test_an_sdk_notices_nothing_and_each_call_has_a_row(
    played: Played, sdk: str, scenario: str
) -> None:
    line = played.lines[sdk][scenario]
    assert "error" not in line, line["error"]
    result, expected = line["result"], EXPECTED[sdk][scenario]
    assert {name: result[name] for name in expected.result} == expected.result
    session = f"node/{sdk}/{scenario}"
    tallied = played.tally.get(session, [])
    rows = sorted(played.rows.get(session, []), key=lambda row: str(row["time"]))
    assert [row["vendor_request_id"] for row in rows] == [one["id"] for one in tallied]
    assert [row["endpoint"] for row in rows] == [expected.endpoint] * expected.calls
    if rows and rows[-1]["status"] == "complete":
        tokens = (rows[-1]["input_tokens"], rows[-1]["output_tokens"])
        assert tokens == (expected.input_tokens, expected.output_tokens)


def test_every_scenario_was_played_and_no_other(played: Played) -> None:
    assert {sdk: set(lines) for sdk, lines in played.lines.items()} == {
        sdk: set(table) for sdk, table in EXPECTED.items()
    }


@pytest.mark.parametrize("sdk", EXPECTED)
def test_refusals_are_told_in_our_words(played: Played, sdk: str) -> None:
    lines = played.lines[sdk]
    assert UNKNOWN in lines["unknown_token"]["result"]["message"]
    assert SPENT in lines["spent_month"]["result"]["message"]


def test_an_error_in_a_stream_is_the_vendors_own(played: Played) -> None:
    result = played.lines["anthropic"]["error_in_a_stream"]["result"]
    assert "The simulated vendor is overloaded." in result["message"]


@pytest.mark.parametrize("sdk", ["openai", "anthropic", "ai"])
def test_what_is_repeated_waits_as_long_as_retry_after_says(played: Played, sdk: str) -> None:
    first, second = played.tally[f"node/{sdk}/repeated"]
    assert second["at"] - first["at"] >= RETRY_AFTER_SECONDS
    rows = sorted(played.rows[f"node/{sdk}/repeated"], key=lambda row: str(row["time"]))
    assert [row["status"] for row in rows] == ["vendor_error", "complete"]


def test_a_spent_month_is_asked_for_again_only_by_an_sdk_that_knows_no_better(
    played: Played,
) -> None:
    # openai, anthropic and genai once each; ai does not know x-should-retry and asks thrice.
    assert played.refused_for_the_month == 1 + 1 + 1 + 3
