"""Several workers: each call is one worker's, and how evenly they are spread is told."""

import shutil

import pytest

from benchmarks.marks import calls_since
from benchmarks.measure import Bench, Measurement
from benchmarks.processes import Placement, RigError
from benchmarks.systems import Around
from benchmarks.workers import (
    Spreading,
    WorkerRuns,
    of_workers,
    parse_workers,
    render_workers,
    workload_of,
)


def test_numbers_of_workers_are_read_in_order() -> None:
    assert parse_workers("4, 1,2,2") == (1, 2, 4)
    for wrong in ("", "0", "two", "65", "1,,2"):
        with pytest.raises(SystemExit, match="--workers: give numbers"):
            parse_workers(wrong)


def test_each_worker_gets_as_many_connections_as_a_single_one() -> None:
    assert (
        workload_of(4, is_quick=True).connections == 4 * workload_of(1, is_quick=True).connections
    )


def test_a_cpu_is_left_for_all_around_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert Placement.for_workers(2) == Placement(system=frozenset({0, 1}), others=frozenset({2, 3}))
    assert Placement.for_workers(8) == Placement(system=frozenset({0, 1, 2}), others=frozenset({3}))


def test_calls_that_a_journal_got_from_another_are_nobodys() -> None:
    before = {"gone": {"a", "b"}}
    after = {"gone": {"a"}, "new": {"b", "c", "d"}}
    assert calls_since(before, after) == {"gone": 0, "new": 2}


def test_calls_that_no_worker_has_closed_are_told() -> None:
    assert of_workers({"one": 3, "gone": 0, "two": 5}, workers=2, made=8) == (5, 3)
    assert of_workers({"one": 3}, workers=2, made=3) == (3, 0)
    with pytest.raises(RigError, match=r"9 calls were made, 2 workers have closed \(5, 3\)"):
        of_workers({"one": 3, "two": 5}, workers=2, made=9)


def test_the_table_tells_how_even_it_was() -> None:
    measured = Measurement(workload="w2", system="ours", round=0, cpu_us=50.0, per_second=9_000.0)
    wrong = Measurement(workload="w2", system="ours", round=1, error="wrong answers")
    told = render_workers(
        [
            Spreading(workers=2, measured=measured, calls=(3_000, 2_000)),
            Spreading(workers=2, measured=wrong),
        ]
    )
    assert "| 2 | 64 | 50.0 (50.0-50.0) | 9,000 (9,000-9,000) | 3,000, 2,000 | 1.50" in told
    assert "Not counted: 2 workers, round 2: wrong answers" in told


@pytest.mark.journey
@pytest.mark.skipif(shutil.which("cc") is None, reason="not installed: a C compiler")
def test_two_workers_share_the_calls(bench: Bench, around: Around) -> None:
    noted: list[Measurement] = []
    runs = WorkerRuns(bench=bench, around=around, numbers=(2,), is_quick=True, note=noted.append)
    runs.round(0)
    (found,) = runs.found
    assert found.measured.error is None
    assert noted == [found.measured]
    assert len(found.calls) == 2
    assert min(found.calls) > 0
    assert sum(found.calls) == found.measured.ledger_calls
