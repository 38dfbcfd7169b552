"""`python -m benchmarks`: install, measure in turn, print the table, write the JSON.

Beside its peers; or with `--shares` its own features, or with `--workers` its own workers.
"""

import argparse
import datetime as dt
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.certificate import make_certificate
from benchmarks.install import HERE, WORK, Unavailable, build_programs
from benchmarks.measure import (
    Bench,
    Direct,
    Measurement,
    measure,
    measure_direct,
    measure_store,
    opened_bench,
)
from benchmarks.ours import Ours, remove_data
from benchmarks.peers import PEERS
from benchmarks.processes import Placement, RigError, kept_awake
from benchmarks.report import OURS, Machine, Run, header, render, to_json
from benchmarks.shares import NONE, Shares, Variant, render_shares, shares_of, variants
from benchmarks.systems import Around, System
from benchmarks.workers import WorkerRuns, parse_workers, render_workers, workload_of
from benchmarks.workloads import (
    DISTINCT_TOKENS,
    FAST_STREAMS,
    IDE,
    MANY_STREAMS_LEAST,
    SLOW_STREAMS,
    SMALL,
    STORES,
    TLS_CALLS,
    TLS_STREAMS,
    Workload,
    many_streams,
    store_of,
    streams_most,
)

ROUNDS: Final = 5
ROUNDS_QUICK: Final = 2
SYSTEMS: Final = (OURS, *PEERS)
WORKLOADS: Final = ("a", "b", "c", "d", "e", "f", "g")
QUICK_STREAMS_MOST: Final = 2_500


@dataclass(kw_only=True)
class Session:
    """A run under way."""

    bench: Bench
    folder: Path
    systems: Sequence[System]
    ours: Ours | None
    is_quick: bool
    measurements: list[Measurement] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)  # of latency runs, by workload

    def round(self, number: int, workloads: Sequence[Workload], stores: Sequence[int]) -> None:
        """Measure every system on every workload once; each round begins with another system."""
        for workload in workloads:
            taken: dict[tuple[str, float], Direct] = {}
            for system in self._turn(number, workload):
                self._note(self._one(system, workload, number, taken))
        if self.ours is not None:
            for tokens in stores:
                self._note(self._store(self.ours, tokens, number))

    def _turn(self, number: int, workload: Workload) -> Iterator[System]:
        start = number % len(self.systems)
        for system in [*self.systems[start:], *self.systems[:start]]:
            if workload.systems is None or system.name in workload.systems:
                yield system

    def _one(
        self,
        system: System,
        workload: Workload,
        number: int,
        taken: dict[tuple[str, float], Direct],
    ) -> Measurement:
        if workload.answer in system.streams_most:
            workload = workload.with_streams(system.streams_most[workload.answer])

        def direct(rate: float) -> Direct:
            key = (f"{workload.answer} {workload.connections}", round(rate, -2))
            if key not in taken:
                taken[key] = measure_direct(self.bench, workload, rate=rate)
            return taken[key]

        try:
            with system.start(workload, self._around(system)) as running:
                measured = measure(
                    self.bench,
                    workload,
                    running,
                    system=system.name,
                    number=number,
                    rewrites=system.rewrites,
                    rate_most=self.rates.get(workload.name),
                    direct=direct,
                )
        except RigError as error:
            return Measurement(
                workload=workload.name, system=system.name, round=number, error=str(error)
            )
        if measured.calls_per_second is not None:  # the first one's: all others take it or less
            self.rates.setdefault(workload.name, measured.calls_per_second)
        return measured

    def _store(self, ours: Ours, tokens: int, number: int) -> Measurement:
        workload = store_of(tokens)
        if self.is_quick:
            workload = workload.shortened()
        try:
            with ours.start_with_store(workload, self._around(ours), tokens=tokens) as running:
                return measure_store(
                    self.bench,
                    workload,
                    running,
                    system=ours.name,
                    number=number,
                    callers=min(tokens, DISTINCT_TOKENS),
                )
        except RigError as error:
            return Measurement(
                workload=workload.name, system=ours.name, round=number, error=str(error)
            )

    def _around(self, system: System) -> Around:
        folder = self.folder / system.name
        folder.mkdir(exist_ok=True)
        return Around(vendor=self.bench.vendor, placement=self.bench.placement, folder=folder)

    def _note(self, one: Measurement) -> None:
        self.measurements.append(one)
        note(one)


def note(one: Measurement) -> None:
    """Tell what was just measured."""
    if one.error is not None:
        told = f"NOT TIMED: {one.error}"
    else:
        told = f"{one.cpu_us:.1f} µs, {one.per_second:,.0f}/s, crowd {one.crowd_percent:.0f} %"
    say(f"round {one.round + 1} ({one.workload}) {one.system}: {told}")


def say(text: str) -> None:
    """Tell how far it is, on stderr: stdout is the report's."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def choose(names: str, known: Sequence[str], *, what: str) -> list[str]:
    """Return the names of a list with commas. Raises SystemExit for one that is not known."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise SystemExit(f"--{what}: give some of {', '.join(known)}.")
    return [name for name in known if name in chosen]


def chosen_workloads(
    letters: Sequence[str], *, is_quick: bool, has_tls: bool, left_out: dict[str, str]
) -> tuple[list[Workload], list[int]]:
    """Return the workloads, and the stores of (g)."""
    plain = {"a": SMALL, "b": IDE, "c": FAST_STREAMS, "d": SLOW_STREAMS}
    found = [workload for letter, workload in plain.items() if letter in letters]
    if "e" in letters and has_tls:
        found += [TLS_CALLS, TLS_STREAMS]
    elif "e" in letters:
        left_out["(e)"] = "OpenSSL's headers are not installed (Debian, Ubuntu: libssl-dev)"
    if is_quick:
        found = [workload.shortened() for workload in found]
    if "f" in letters:
        most = streams_most(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        most = min(most, QUICK_STREAMS_MOST) if is_quick else most
        found += [many_streams(n, is_quick=is_quick) for n in (MANY_STREAMS_LEAST, most)]
    stores = list(STORES[:2] if is_quick else STORES) if "g" in letters else []
    return found, stores


@dataclass(kw_only=True)
class Found:
    """What was measured. `text`: the tables, where they are not the ordinary ones."""

    measurements: Sequence[Measurement]
    workloads: tuple[Workload, ...]
    text: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # for the JSON


@dataclass(kw_only=True)
class Plan:
    """What is to be measured, and how it is done."""

    rounds: int
    is_quick: bool
    names: Sequence[str]  # of systems
    letters: Sequence[str]  # of workloads
    has_tls: bool = False
    systems: list[System] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def install(self) -> None:
        """Install the systems; those that can't be had are left out, and why."""
        self.left_out["agentgateway"] = "crates.io has no package of this name"
        for name in self.names:
            if name == OURS:
                self.systems.append(Ours())
                continue
            say(f"Installing {name} ...")
            try:
                self.systems.append(PEERS[name]())
            except Unavailable as error:
                self.left_out[name] = str(error)
                say(f"{name} is left out: {error}")

    def run_systems(self, bench: Bench, folder: Path) -> Found:
        """Measure all systems on all workloads."""
        workloads, stores = chosen_workloads(
            self.letters, is_quick=self.is_quick, has_tls=self.has_tls, left_out=self.left_out
        )
        ours = next((one for one in self.systems if isinstance(one, Ours)), None)
        session = Session(
            bench=bench, folder=folder, systems=self.systems, ours=ours, is_quick=self.is_quick
        )
        for number in range(self.rounds):
            session.round(number, workloads, stores)
        names = (*workloads, *(store_of(tokens) for tokens in stores))
        return Found(measurements=session.measurements, workloads=names)

    def run_shares(self, bench: Bench, folder: Path) -> Found:
        """Measure ours without one feature after the other."""
        counts = folder / "counts"
        chosen = variants(counts, has_tls=self.has_tls, left_out=self.left_out)
        shares = Shares(
            bench=bench,
            around=self._around(bench, folder),
            everything=Variant(NONE, counts=counts),
            variants=chosen,
            is_quick=self.is_quick,
            note=note,
        )
        for number in range(self.rounds):
            shares.round(number)
        found = shares_of(shares.measurements)
        return Found(
            measurements=shares.measurements,
            workloads=(),
            text=render_shares(found),
            facts={"shares": [asdict(one) for one in found]},
        )

    def run_workers(self, bench: Bench, folder: Path, numbers: Sequence[int]) -> Found:
        """Measure ours with each number of workers."""
        runs = WorkerRuns(
            bench=bench,
            around=self._around(bench, folder),
            numbers=numbers,
            is_quick=self.is_quick,
            note=note,
        )
        for number in range(self.rounds):
            runs.round(number)
        return Found(
            measurements=[one.measured for one in runs.found],
            workloads=tuple(workload_of(one, is_quick=self.is_quick) for one in numbers),
            text=render_workers(runs.found),
            facts={"workers": [asdict(one) for one in runs.found]},
        )

    def _around(self, bench: Bench, folder: Path) -> Around:
        self.systems.append(Ours())  # told of in the report's head
        own = folder / OURS
        own.mkdir(exist_ok=True)
        return Around(vendor=bench.vendor, placement=bench.placement, folder=own)


def revision() -> str:
    """Return the commit that is measured, with a + where files differ from it."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, help=f"[default: {ROUNDS}; quick: {ROUNDS_QUICK}]")
    parser.add_argument("--quick", action="store_true", help="short runs, for a look")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="[default: %(default)s]")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="[default: %(default)s]")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--shares", action="store_true", help="what each of our features costs")
    modes.add_argument("--workers", metavar="1,2,4", help="what a call costs with more workers")
    parser.add_argument("--sleep", action="store_true", help="let idle CPUs go to sleep")
    parser.add_argument("--json", type=Path, default=WORK / "result.json", help="where to write it")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run. Exit code 1: some system was not timed; 2: there is nothing to run with."""
    options = parse(arguments)
    rounds = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)
    numbers = (1,) if options.workers is None else parse_workers(options.workers)
    plan = Plan(
        rounds=rounds,
        is_quick=options.quick,
        names=choose(options.systems, SYSTEMS, what="systems"),
        letters=choose(options.workloads, WORKLOADS, what="workloads"),
    )
    try:
        programs = build_programs()
    except Unavailable as error:
        say(str(error))
        return 2
    plan.has_tls = programs.has_tls
    folder = WORK / "run"
    remove_data(folder)
    if not (options.shares or options.workers):
        plan.install()
    placement = Placement.for_workers(max(numbers))
    began_at, began = dt.datetime.now(dt.UTC), time.monotonic()
    certificate = make_certificate(folder, now=began_at)
    with ExitStack() as opened:
        is_awake = not options.sleep and opened.enter_context(kept_awake())
        machine = Machine.here(placement=told_placement(placement), is_awake=is_awake)
        bench = opened.enter_context(
            opened_bench(
                programs,
                placement=placement,
                folder=folder,
                certificate=(certificate.authority, certificate.chain, certificate.key),
            )
        )
        if options.shares:
            found = plan.run_shares(bench, folder)
        elif options.workers:
            found = plan.run_workers(bench, folder, numbers)
        else:
            found = plan.run_systems(bench, folder)
    run = Run(
        machine=machine,
        started_at=began_at.isoformat(timespec="seconds"),
        seconds=time.monotonic() - began,
        rounds=rounds,
        is_quick=options.quick,
        revision=revision(),
        workloads=found.workloads,
        systems=tuple(plan.systems),
        left_out=plan.left_out,
        measurements=tuple(found.measurements),
    )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({**to_json(run), **found.facts}, indent=1) + "\n")
    sys.stdout.write(render(run) if found.text is None else f"{header(run)}\n\n{found.text}")
    say(f"All figures: {options.json}")
    return 1 if any(one.error is not None for one in run.measurements) else 0


def told_placement(placement: Placement) -> str:
    """Return in words which CPU is whose."""
    if placement.system & placement.others:
        return "one CPU for all"
    own, others = (
        ", ".join(str(cpu) for cpu in sorted(cpus)) for cpus in (placement.system, placement.others)
    )
    return f"systems on CPU {own}, vendor, load and database on {others}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
