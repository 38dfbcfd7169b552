"""The report: the table of ratios, the goals, what was not timed."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType

from benchmarks.figures import Latency
from benchmarks.measure import Measurement
from benchmarks.report import Machine, Run, render, to_json
from benchmarks.systems import Around, Running
from benchmarks.workloads import SMALL, Workload, many_streams


class Named:
    """A system that is only told of."""

    version = "1.2.3"
    notes: tuple[str, ...] = ("a workaround",)
    rewrites = False
    streams_most: Mapping[str, int] = MappingProxyType({})
    speaks = "proxying"

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, workload: Workload, around: Around) -> AbstractContextManager[Running]:
        raise AssertionError("nothing is started for a report")


def measured(system: str, number: int, cpu_us: float, *, workload: str = "a") -> Measurement:
    return Measurement(
        workload=workload,
        system=system,
        round=number,
        cpu_us=cpu_us,
        per_second=20_000.0,
        added=Latency(p50=100, p99=200, p999=300),
        calls_per_second=8_000.0,
        steal_percent=1.0,
    )


def run_of(*measurements: Measurement, workloads: tuple[Workload, ...] = (SMALL,)) -> Run:
    names = list(dict.fromkeys(one.system for one in measurements))
    return Run(
        machine=Machine(
            processor="a processor",
            cpus=2,
            memory_gib=8.0,
            kernel="6.1",
            python="3.11.7",
            load_average=(0.5, 0.4, 0.3),
            placement="systems on CPU 0",
            is_awake=True,
        ),
        started_at="2026-11-25T00:00:00+00:00",
        seconds=60.0,
        rounds=2,
        is_quick=False,
        revision="abc",
        workloads=workloads,
        systems=tuple(Named(name) for name in names),
        left_out={"absent": "it can't be had"},
        measurements=measurements,
    )


def cells(report: str, system: str) -> list[str]:
    (line,) = (line for line in report.splitlines() if line.startswith(f"| {system} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_system_is_compared_with_ours_by_the_medians_of_its_cpu_time() -> None:
    report = render(
        run_of(
            measured("ours", 0, 30), measured("nginx", 0, 20),
            measured("ours", 1, 50), measured("nginx", 1, 60),
        )
    )  # fmt: skip
    assert cells(report, "ours")[1:3] == ["40.0 (30.0-50.0)", "1.00 (1.00-1.00)"]
    assert cells(report, "nginx")[1:3] == ["40.0 (20.0-60.0)", "1.00 (0.67-1.20)"]
    assert "| 100 / 200 / 300 |" in report
    assert "Left out: absent: it can't be had" in report
    assert "nginx: a workaround" in report
    assert "CPU time stolen by the host: 1.0 % (median), 1.0 % (worst); used by" in report


def test_goals_say_what_was_reached() -> None:
    report = render(
        run_of(measured("ours", 0, 30), measured("nginx", 0, 20), measured("envoy", 0, 20))
    )
    rows = [line for line in report.splitlines() if line.startswith("| (a) |")]
    assert rows == [
        "| (a) | nginx | 1.5 (1.5-1.5) | 1.6 | yes | 1 |",
        "| (a) | envoy | 1.5 (1.5-1.5) | 1.25 | no |  |",
    ]


def test_a_round_that_went_wrong_is_told_and_not_counted() -> None:
    wrong = Measurement(workload="a", system="nginx", round=1, error="wrong answers: 3 bytes")
    run = run_of(measured("ours", 0, 30), measured("nginx", 0, 20), wrong)
    report = render(run)
    assert "not timed (1 of 2 rounds): wrong answers: 3 bytes" in report
    assert "| nginx | 20.0 (20.0-20.0) |" in report
    (summary,) = (one for one in to_json(run)["summary"] if one["system"] == "nginx")
    assert summary["rounds_failed"] == 1
    assert summary["cpu_us"]["rounds"] == 1


def test_many_streams_are_told_by_what_each_one_more_costs() -> None:
    few, many = many_streams(1_000, is_quick=False), many_streams(5_000, is_quick=False)
    run = run_of(
        Measurement(
            workload=few.name, system="ours", round=0, cpu_us=20.0, per_second=1_000.0,
            memory_mib=100.0, latency=Latency(p50=100, p99=400, p999=900),
        ),
        Measurement(
            workload=many.name, system="ours", round=0, cpu_us=21.0, per_second=5_000.0,
            memory_mib=140.0, latency=Latency(p50=110, p99=800, p999=1900),
        ),
        workloads=(few, many),
    )  # fmt: skip
    assert "| ours | 10.2 | 100 / 110 | 400 / 800 |" in render(run)


def test_a_run_can_be_written_as_json() -> None:
    written = json.loads(json.dumps(to_json(run_of(measured("ours", 0, 30)))))
    assert written["measurements"][0]["added"] == {"p50": 100, "p99": 200, "p999": 300}
    assert written["machine"]["load_average"] == [0.5, 0.4, 0.3]
