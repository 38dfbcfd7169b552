"""The features' shares: each is really off in its own measurement, and all others are on."""

import shutil
from pathlib import Path

import pytest

from benchmarks.measure import Bench, Measurement
from benchmarks.processes import RigError
from benchmarks.shares import (
    FEATURES,
    Feature,
    Variant,
    beside,
    compare,
    expected_marks,
    render_shares,
    shares_of,
    variants,
)
from benchmarks.systems import Around
from benchmarks.workloads import FAST_STREAMS, SMALL

ENOUGH = 40  # calls
BY_NAME = {one.name: one for one in FEATURES}

needs_programs = pytest.mark.skipif(
    shutil.which("cc") is None, reason="not installed: a C compiler"
)


def measured(system: str, number: int, cpu_us: float, *, workload: str = "a") -> Measurement:
    return Measurement(workload=workload, system=system, round=number, cpu_us=cpu_us)


def cells(report: str, feature: str) -> list[str]:
    (line,) = (line for line in report.splitlines() if line.startswith(f"| {feature} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_feature_costs_what_its_pairs_differ_by() -> None:
    report = render_shares(
        shares_of(
            [
                measured(beside("metering"), 0, 50), measured("metering", 0, 40),
                measured(beside("metering"), 1, 90), measured("metering", 1, 60),
                measured(beside("metering"), 2, 60), measured("metering", 2, 45),
            ]
        )
    )  # fmt: skip
    assert cells(report, "metering")[1:] == [
        "60.0 (50.0-90.0)", "45.0 (40.0-60.0)", "15.0 (10.0-30.0)", "25",
    ]  # fmt: skip


def test_what_is_added_is_told_as_what_it_costs_on_top() -> None:
    tls = "TLS to the vendor"
    report = render_shares(shares_of([measured(beside(tls), 0, 40), measured(tls, 0, 50)]))
    assert cells(report, tls)[1:4] == ["50.0 (50.0-50.0)", "40.0 (40.0-40.0)", "10.0 (10.0-10.0)"]


def test_a_round_that_was_not_counted_is_told() -> None:
    wrong = Measurement(workload="a", system="ledger: shipping rows", round=0, error="rows: 3")
    report = render_shares(shares_of([wrong]))
    assert "Not counted: ledger: shipping rows: rows: 3" in report
    assert cells(report, "ledger: shipping rows")[1:] == ["-", "-", "-", "-"]


def test_a_feature_that_was_on_or_another_that_was_off_is_told() -> None:
    expected = expected_marks(BY_NAME["metering"], 10)
    compare(expected, expected)
    with pytest.raises(RigError, match="whole: 10 in place of 0, unmetered: 0 in place of 10"):
        compare({**expected, "whole": 10, "unmetered": 0}, expected)
    with pytest.raises(RigError, match="journal: 9 in place of 10"):
        compare({**expected, "journal": 9}, expected)


def test_a_feature_without_its_part_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("gateway.app.Ledger")
    left_out: dict[str, str] = {}
    found = variants(tmp_path, has_tls=False, left_out=left_out)
    assert left_out == {
        "ledger: shipping rows": "gateway.app has no Ledger to be replaced",
        "TLS to the vendor": "OpenSSL's headers are not installed",
    }
    assert len(found) == len(FEATURES) - 2


def make_calls(bench: Bench, feature: Feature, around: Around) -> None:
    base = SMALL if SMALL.name in feature.workloads else FAST_STREAMS.first_calls()
    workload = feature.changed(base)
    variant = Variant(feature, counts=around.folder / "counts")
    with variant.start(workload, around) as running:
        assert running.check is not None
        running.check(bench.run(workload, running, requests=ENOUGH).calls_sent)


@needs_programs
@pytest.mark.journey
def test_calls_go_on_without_a_journal_or_a_meter_and_show_it(bench: Bench, around: Around) -> None:
    for name in ("journal", "metering"):
        make_calls(bench, BY_NAME[name], around)


@needs_programs
@pytest.mark.journey
@pytest.mark.slow
def test_calls_go_on_without_each_feature_and_show_it(bench: Bench, around: Around) -> None:
    for feature in FEATURES:
        if not feature.is_added:
            make_calls(bench, feature, around)


@needs_programs
@pytest.mark.journey
def test_a_feature_that_is_merely_believed_to_be_off_is_not_timed(
    bench: Bench, around: Around
) -> None:
    believed = Feature(name="journal", absent=("journal",))
    with pytest.raises(RigError, match=f"journal: {ENOUGH} in place of 0$"):
        make_calls(bench, believed, around)
