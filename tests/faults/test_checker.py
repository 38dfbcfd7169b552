"""What the checker says of histories that are not as they have to be."""

from typing import Any

import pytest

from tests.faults.checker import Verdict, check_limit, check_metering
from tests.faults.load import Sent
from tests.faults.world import Token
from tests.journeys.client import Answer

TOKEN = Token(id="t", text="", limit=None)
WHOLE = Answer(status=200, body=b"{}")
BROKEN = Answer(status=200, broke="in the middle")
USAGE = {"input_tokens": 5, "output_tokens": 3}
KILL = {"m0": [(100.0, 101.0)]}


def call(answer: Answer | None = WHOLE, **members: Any) -> Sent:
    base: dict[str, Any] = {
        "session_id": "s",
        "machine": "m0",
        "token": TOKEN,
        "model": "m",
        "format": "openai",
        "stream": False,
        "began": 10.0,
        "ended": 11.0,
    }
    return Sent(**{**base, **members}, answer=answer)


def row(**members: Any) -> dict[str, Any]:
    base = {
        "id": "r",
        "session_id": "s",
        "corrects": None,
        "status": "complete",
        "reason": None,
        "vendor_request_id": "v",
        "http_status": 200,
        **USAGE,
    }
    return {**base, **members}


OPEN = {"vendor_request_id": None, "http_status": None, "status": "interrupted"}
TALLIED = [{"id": "v", "usage": USAGE}]
CASES = {
    "as it has to be": (call(), TALLIED, [row()], {}),
    "no row": (call(BROKEN), TALLIED, [], {"lost": 1}),
    "two rows": (call(), TALLIED, [row(), row(id="r2")], {"double": 1, "misjudged": 1}),
    "a row too many": (
        call(BROKEN),
        TALLIED,
        [row(status="vendor_broke"), row(id="r2", vendor_request_id=None)],
        {"unexplained": 1},
    ),
    "other usage": (call(), TALLIED, [row(output_tokens=4)], {"mismetered": 1}),
    "interrupted at a kill": (
        call(BROKEN, began=99.0, ended=100.5), TALLIED, [row(**OPEN)], {},
    ),
    "interrupted at no kill": (call(BROKEN), TALLIED, [row(**OPEN)], {"unexplained": 1}),
    "interrupted at another machine's kill": (
        call(BROKEN, machine="m1", began=99.0, ended=100.5),
        TALLIED,
        [row(**OPEN)],
        {"unexplained": 1},
    ),
    "whole, and interrupted": (
        call(began=99.0, ended=100.5), TALLIED, [row(**OPEN)], {"misjudged": 1},
    ),
    "corrected": (
        call(began=99.0, ended=100.5),
        TALLIED,
        [row(**OPEN), row(id="c", corrects="r")],
        {},
    ),
    "never at the vendor": (
        call(Answer(status=503)),
        [],
        [row(status="vendor_error", reason="no_answer", vendor_request_id=None)],
        {},
    ),
    "a retry": (
        call(),
        TALLIED,
        [row(), row(id="r2", status="vendor_broke", reason="no_answer", vendor_request_id=None)],
        {},
    ),
    "an odd answer": (call(Answer(status=401)), [], [], {"odd": 1}),
    "no end": (call(None, stuck=True), TALLIED, [row(status="client_closed")], {"stuck": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_calls_tally_and_rows_are_held_against_each_other(name: str) -> None:
    sent, tallied, rows, faulty = CASES[name]
    verdict = Verdict()
    check_metering(
        verdict, sent=[sent], tallied={"s": tallied}, rows=rows, kills=KILL, vendor_fails=False
    )
    assert verdict.faulty == faulty, verdict.explained


@pytest.mark.parametrize(
    ("counted", "tallied", "used", "faulty"),
    [
        (7, 7, 7, {}),
        (8, 8, 8, {"over_limit": 1}),
        (7, 9, 7, {"over_limit": 2}),
        (5, 5, 5, {"unusable": 2}),
        (5, 5, 7, {"unsettled": 2}),
    ],
)
def test_limits_are_held_against_rows_and_blocks(
    counted: int, tallied: int, used: int, faulty: dict[str, int]
) -> None:
    verdict = Verdict()
    limited = Token(id="t", text="", limit=7)
    check_limit(verdict, limited, counted=counted, tallied=tallied, used=used)
    assert verdict.faulty == faulty


@pytest.mark.parametrize(("revoked_at", "faulty"), [(10.5, {}), (11.5, {"odd": 1})])
def test_a_token_is_refused_only_once_it_is_revoked(
    revoked_at: float, faulty: dict[str, int]
) -> None:
    verdict = Verdict()
    check_metering(
        verdict,
        sent=[call(Answer(status=401))],
        tallied={},
        rows=[],
        kills=KILL,
        vendor_fails=False,
        revoked={TOKEN.id: revoked_at},
    )
    assert verdict.faulty == faulty
