"""What a run tells: one table for each workload, the goals, and all of it as JSON."""

import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Spread, ratio, spread
from benchmarks.measure import Measurement
from benchmarks.systems import System
from benchmarks.workloads import Workload

OURS: Final = "ours"
FORMAT_VERSION: Final = 1
_WHOLE: Final = frozenset({"streams", "vendor_connections"})  # whole numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound on how our CPU per unit compares with a peer's: ours ÷ theirs, of the medians."""

    workload: str
    peer: str
    at_most: float
    aim: float | None = None  # beyond the bound


GOALS: Final = (
    Goal(workload="a", peer="nginx", at_most=1.6, aim=1.0),
    Goal(workload="a", peer="envoy", at_most=1.25),
    Goal(workload="a", peer="portkey", at_most=1 / 15),
    Goal(workload="a", peer="litellm", at_most=1 / 150),
    Goal(workload="b", peer="nginx", at_most=1.3, aim=1.0),
    Goal(workload="c", peer="nginx", at_most=1.35, aim=1.05),
    Goal(workload="c", peer="envoy", at_most=1.0),
    Goal(workload="d", peer="nginx", at_most=1.35),
    Goal(workload="d", peer="envoy", at_most=1.0),
    Goal(workload="ea", peer="nginx", at_most=1.6),
    Goal(workload="ec", peer="nginx", at_most=1.35),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where and when a run was made."""

    processor: str
    cpus: int
    memory_gib: float
    kernel: str
    python: str
    load_average: tuple[float, float, float]  # when it began
    placement: str
    is_awake: bool  # its idle CPUs don't go to sleep

    @classmethod
    def here(cls, *, placement: str, is_awake: bool) -> "Machine":
        """Return this machine, now."""
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line[:10] == "model name"]
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(
            processor=models[0] if models else platform.machine(),
            cpus=os.cpu_count() or 1,
            memory_gib=round(pages / 1024**3, 1),
            kernel=platform.release(),
            python=f"{platform.python_version()} in {sys.base_prefix}",
            load_average=os.getloadavg(),
            placement=placement,
            is_awake=is_awake,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A whole run."""

    machine: Machine
    started_at: str
    seconds: float
    rounds: int
    is_quick: bool
    revision: str
    workloads: tuple[Workload, ...]
    systems: tuple[System, ...]
    left_out: Mapping[str, str]  # system or workload: why
    measurements: tuple[Measurement, ...]


def by_round(measurements: Iterable[Measurement], what: str) -> dict[int, float]:
    """Return a figure of counted measurements by their round."""
    values = {one.round: getattr(one, what) for one in measurements if one.error is None}
    return {number: value for number, value in values.items() if value is not None}


def of(run: Run, workload: str, system: str) -> list[Measurement]:
    """Return the measurements of one system in one workload."""
    return [one for one in run.measurements if (one.workload, one.system) == (workload, system)]


# ----------------------------------------------------------------------------------------- as text


def render(run: Run) -> str:
    """Return the report in Markdown."""
    parts = [header(run)]
    parts += [_workload(run, workload) for workload in run.workloads]
    parts += [_slope(run), _goals(run)]
    return "\n\n".join(part for part in parts if part) + "\n"


def header(run: Run) -> str:
    """Return what was measured, where and when."""
    machine = run.machine
    timed = [one for one in run.measurements if one.error is None]
    load = ", ".join(f"{one:.1f}" for one in machine.load_average)
    stolen = _worst(spread(one.steal_percent for one in timed))
    crowd = _worst(spread(one.crowd_percent for one in timed))
    quiet = f"stolen by the host: {stolen}; used by other processes: {crowd}"
    lasted = f"{run.seconds / 60:.0f} min{', quick' if run.is_quick else ''}"
    box = f"{machine.processor}, {machine.cpus} CPUs, {machine.memory_gib} GiB"
    lines = [
        f"{run.started_at}, revision {run.revision}, {run.rounds} interleaved rounds, {lasted}",
        f"{box}, Linux {machine.kernel}, Python {machine.python}; {machine.placement}",
        f"Idle CPUs {'are kept awake' if machine.is_awake else 'go to sleep'}",
        f"Load average at the start: {load}; CPU time {quiet}",
    ]
    lines += [f"{one.name} {one.version}: {one.speaks}" for one in run.systems]
    lines += [f"{one.name}: {note}" for one in run.systems for note in one.notes]
    lines += [f"Left out: {name}: {why}" for name, why in run.left_out.items()]
    return "\n".join(f"- {line}" for line in lines)


def _worst(found: Spread | None) -> str:
    if found is None:
        return "not measured"
    return f"{found.median:.1f} % (median), {found.greatest:.1f} % (worst)"


def _workload(run: Run, workload: Workload) -> str:
    names = [one.name for one in run.systems if of(run, workload.name, one.name)]
    if not names:
        return ""
    columns, rows = _columns(workload), []
    for name in names:
        measured = of(run, workload.name, name)
        counted = [one for one in measured if one.error is None]
        failed = [one for one in measured if one.error is not None]
        if counted:
            compared = _ratio(run, workload.name, name)
            rows.append([name, *(_cell(counted, what, compared) for _, what in columns)])
        if failed:
            said = f"not timed ({len(failed)} of {len(measured)} rounds): {failed[0].error}"
            rows.append([name, said, *("" for _ in columns[1:])])
    head = ["system", *(title for title, _ in columns)]
    notes = [
        f"{one.system}, round {one.round + 1}: {one.note}"
        for name in names
        for one in of(run, workload.name, name)
        if one.note is not None
    ]
    told = "".join(f"\n\n{note}" for note in notes)
    return f"**({workload.name})** {workload.title}\n\n{table(head, rows)}{told}"


def _columns(workload: Workload) -> list[tuple[str, str]]:
    unit = workload.unit
    columns = [
        (f"CPU µs a {unit}", "cpu_us"),
        ("÷ ours", "ratio"),
        (f"{unit}s/s", "per_second"),
    ]
    if workload.by_clock or workload.is_stream:
        columns.append(("added p50/p99/p99.9 µs", "added"))
    if workload.is_stream:
        columns += [("first byte +µs", "added_first_byte_us"), ("streams", "streams")]
        columns.append(("KiB a stream", "memory_per_stream_kib"))
    elif workload.by_clock:
        columns.append(("at calls/s", "calls_per_second"))
    else:
        columns += [("miss CPU µs", "miss_cpu_us"), ("miss database µs", "miss_database_us")]
    if workload.by_tls:
        columns.append(("vendor connections", "vendor_connections"))
    return [
        *columns,
        ("MiB", "memory_mib"),
        ("database µs", "database_us"),
        ("vendor µs", "vendor_us"),
        ("steal %", "steal_percent"),
        ("crowd %", "crowd_percent"),
    ]


def _cell(counted: Sequence[Measurement], what: str, compared: Spread | None) -> str:
    if what == "ratio":
        return with_spread(compared, digits=2)
    if what == "added":
        parts = (
            spread(getattr(one.added, part) for one in counted if one.added is not None)
            for part in ("p50", "p99", "p999")
        )
        return " / ".join("-" if one is None else f"{one.median:,.0f}" for one in parts)
    found = spread(getattr(one, what) for one in counted)
    if what in {"cpu_us", "memory_per_stream_kib"}:
        return with_spread(found, digits=1)
    if found is None:
        return "-"
    digits = 0 if found.median >= 100 or what in _WHOLE else 1  # noqa: PLR2004
    return f"{found.median:,.{digits}f}"


def with_spread(found: Spread | None, *, digits: int) -> str:
    """Return a figure as a cell: the median, and the least and the greatest of the rounds."""
    if found is None:
        return "-"
    return f"{found.median:,.{digits}f} ({found.least:,.{digits}f}-{found.greatest:,.{digits}f})"


def _ratio(run: Run, workload: str, name: str) -> Spread | None:
    ours = by_round(of(run, workload, OURS), "cpu_us")
    return ratio(ours, by_round(of(run, workload, name), "cpu_us"))


def _slope(run: Run) -> str:
    """Tell what one more stream costs, from the least to the greatest number of (f)."""
    family = sorted(
        (one for one in run.workloads if one.name.startswith("f")), key=lambda one: one.connections
    )
    if len(family) < 2:  # noqa: PLR2004 - a slope has two ends
        return ""
    few, many = family[0], family[-1]
    rows = []
    for system in run.systems:
        ends = [_end_of_slope(run, one.name, system.name) for one in (few, many)]
        low, high = ends
        if low is not None and high is not None:
            grown = (high[0] - low[0]) * 1024 / (many.connections - few.connections)
            lag = [
                f"{before:,.0f} / {after:,.0f}"
                for before, after in zip(low[1:], high[1:], strict=True)
            ]
            rows.append([system.name, f"{grown:.1f}", *lag])
    if not rows:
        return ""
    title = f"From {few.connections:,} to {many.connections:,} streams"
    head = ["system", "KiB for each one more", "lag p50 µs, before / after", "lag p99 µs"]
    return f"**(f)** {title}\n\n{table(head, rows)}"


def _end_of_slope(run: Run, workload: str, system: str) -> tuple[float, float, float] | None:
    """Return the medians of memory in MiB, lag p50 and p99; the lag is not over the vendor's."""
    counted = [one for one in of(run, workload, system) if one.error is None]
    memory = spread(one.memory_mib for one in counted)
    lags = [one.latency for one in counted if one.latency is not None]
    p50, p99 = spread(one.p50 for one in lags), spread(one.p99 for one in lags)
    if memory is None or p50 is None or p99 is None:
        return None
    return memory.median, p50.median, p99.median


def _goals(run: Run) -> str:
    rows = []
    for goal in GOALS:
        ours = by_round(of(run, goal.workload, OURS), "cpu_us")
        found = ratio(by_round(of(run, goal.workload, goal.peer), "cpu_us"), ours)
        if found is not None:
            rows.append(
                [
                    f"({goal.workload})",
                    goal.peer,
                    f"{found.median:.3g} ({found.least:.3g}-{found.greatest:.3g})",
                    f"{goal.at_most:.3g}",
                    "yes" if found.median <= goal.at_most else "no",
                    "" if goal.aim is None else f"{goal.aim:.3g}",
                ]
            )
    if not rows:
        return ""
    head = ["workload", "peer", "CPU, ours ÷ theirs", "goal", "reached", "aim"]
    return f"**Goals**\n\n{table(head, rows)}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ----------------------------------------------------------------------------------------- as JSON


def to_json(run: Run) -> dict[str, Any]:
    """Return all figures, with the medians and ratios that the tables show."""
    summary = []
    for workload in run.workloads:
        for system in run.systems:
            found = of(run, workload.name, system.name)
            if found:
                cpu = spread(by_round(found, "cpu_us").values())
                compared = _ratio(run, workload.name, system.name)
                summary.append(
                    {
                        "workload": workload.name,
                        "system": system.name,
                        "rounds_failed": sum(one.error is not None for one in found),
                        "cpu_us": None if cpu is None else asdict(cpu),
                        "cpu_to_ours": None if compared is None else asdict(compared),
                    }
                )
    return {
        "format": FORMAT_VERSION,
        "machine": asdict(run.machine),
        "started_at": run.started_at,
        "seconds": run.seconds,
        "rounds": run.rounds,
        "quick": run.is_quick,
        "revision": run.revision,
        "workloads": [asdict(workload) for workload in run.workloads],
        "systems": [
            {"name": one.name, "version": one.version, "speaks": one.speaks, "notes": one.notes}
            for one in run.systems
        ],
        "left_out": dict(run.left_out),
        "summary": summary,
        "measurements": [asdict(one) for one in run.measurements],
    }
