"""Several workers: what a call costs with each number of them, and how evenly calls are spread.

The connections are as many times more, so that each worker could have as many as a single one. How
many calls each worker answered is read from its journal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from benchmarks.figures import spread
from benchmarks.marks import JOURNAL_KEPT, calls_since, closed_calls
from benchmarks.measure import Bench, Direct, Measurement, measure
from benchmarks.ours import Ours, Setup
from benchmarks.processes import Placement, RigError
from benchmarks.report import by_round, table, with_spread
from benchmarks.systems import Around
from benchmarks.workloads import SMALL, Workload

WORKERS_MAX: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Spreading:
    """One measurement, and how many calls each worker answered."""

    workers: int
    measured: Measurement
    calls: tuple[int, ...] = ()

    @property
    def unevenness(self) -> float | None:
        """The busiest worker's calls over the idlest one's; None: one had none, or all failed."""
        least = min(self.calls, default=0)
        return max(self.calls) / least if least else None


def parse_workers(text: str) -> tuple[int, ...]:
    """Return the numbers of a list with commas, in order. Raises SystemExit."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= WORKERS_MAX for part in parts):
        raise SystemExit(f"--workers: give numbers from 1 to {WORKERS_MAX}, as in 1,2,4.")
    return tuple(sorted({int(part) for part in parts}))


def workload_of(workers: int, *, is_quick: bool) -> Workload:
    """Return (a) for so many workers."""
    workload = replace(
        SMALL,
        name=f"w{workers}",
        title=f"(a) with {workers} workers",
        connections=SMALL.connections * workers,
        by_clock=False,
    )
    return workload.shortened() if is_quick else workload


@dataclass(kw_only=True)
class WorkerRuns:
    """Measurements with several numbers of workers, under way."""

    bench: Bench
    around: Around
    numbers: Sequence[int]
    is_quick: bool
    note: Callable[[Measurement], None]
    found: list[Spreading] = field(default_factory=list)

    def round(self, number: int) -> None:
        """Measure each number of workers once; each round begins with another one."""
        start = number % len(self.numbers)
        for workers in [*self.numbers[start:], *self.numbers[:start]]:
            one = self._one(workers, number)
            self.found.append(one)
            self.note(one.measured)

    def _one(self, workers: int, number: int) -> Spreading:
        workload = workload_of(workers, is_quick=self.is_quick)
        placement = replace(self.around.placement, system=Placement.for_workers(workers).system)
        ours = Ours(Setup(workers=workers, settings=JOURNAL_KEPT))
        try:
            with ours.up(replace(self.around, placement=placement), name="plain") as product:
                running = product.ready(workload, self.around)
                before = closed_calls(product.journal)
                measured = measure(
                    self.bench,
                    workload,
                    running,
                    system=ours.name,
                    number=number,
                    rewrites=False,
                    rate_most=None,
                    direct=lambda _: Direct(latency=None, first_byte=None),
                )
                calls = of_workers(
                    calls_since(before, closed_calls(product.journal)),
                    workers=workers,
                    made=measured.ledger_calls or 0,
                )
        except RigError as error:
            failed = Measurement(
                workload=workload.name, system=ours.name, round=number, error=str(error)
            )
            return Spreading(workers=workers, measured=failed)
        return Spreading(workers=workers, measured=measured, calls=calls)


def of_workers(calls: Mapping[str, int], *, workers: int, made: int) -> tuple[int, ...]:
    """Return the calls of this many workers, the busiest first.

    Journals of workers that have ended may still be there: these have closed no call meanwhile.
    Raises RigError where these workers have not closed all calls that were made.
    """
    busiest = tuple(sorted(calls.values(), reverse=True)[:workers])
    if sum(busiest) != made:
        raise RigError(f"{made} calls were made, {workers} workers have closed {busiest}")
    return (*busiest, *[0] * (workers - len(busiest)))


def render_workers(found: Sequence[Spreading]) -> str:
    """Return the table in Markdown."""
    rows, errors = [], []
    for workers in sorted({one.workers for one in found}):
        here = [one for one in found if one.workers == workers]
        counted = [one.measured for one in here if one.measured.error is None]
        cpu = spread(by_round(counted, "cpu_us").values())
        rate = spread(one.per_second for one in counted)
        rows.append(
            [
                str(workers),
                str(SMALL.connections * workers),
                with_spread(cpu, digits=1),
                with_spread(rate, digits=0),
                "; ".join(
                    ", ".join(f"{calls:,}" for calls in one.calls) for one in here if one.calls
                ),
                with_spread(spread(one.unevenness for one in here), digits=2),
            ]
        )
        errors += [
            f"\n\nNot counted: {workers} workers, round {one.round + 1}: {one.error}"
            for one in (each.measured for each in here)
            if one.error is not None
        ]
    answered = ("calls of each worker", "most ÷ least")
    head = ["workers", "connections", "CPU µs a call", "calls/s", *answered]
    return f"**Workers**, (a): {SMALL.title}\n\n{table(head, rows)}{''.join(errors)}\n"


def _told(calls: Sequence[int]) -> str:
    return ", ".join(f"{one:,}" for one in calls)
