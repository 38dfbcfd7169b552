"""make soak: a machine under mixed load for long; its memory and its descriptors stay flat.

make soak                          half an hour
make soak ARGS="--minutes 120"     longer

The time goes in laps. After each one everything settles and the checker holds the ledger against
the vendor's tally, as after a fault; and then, at rest, what each process has is looked at. It is
looked at under load as well. After a warm-up, in which caches fill and the allocator finds its
size, neither may grow: the slope is the median of those between all pairs of samples, which no
single burst moves.
"""

import argparse
import asyncio
import itertools
import random
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import psutil

from tests.faults.load import ENDLESS_MODEL
from tests.faults.machine import Machine
from tests.faults.results import keep_log
from tests.faults.trial import Fault, Trial
from tests.faults.world import Settings, World
from tests.journeys.client import FORMATS, call, send
from tests.journeys.product import mistyped

MINUTES: Final = 30.0
LAP_SECONDS: Final = (20.0, 30.0)
SAMPLE_SECONDS: Final = 3.0
WARM_UP_SHARE: Final = 0.3  # of the time
SAMPLES_MIN: Final = 3
PAIRS_MAX: Final = 50_000
REFUSED_SECONDS: Final = 0.05  # between two calls with tokens that are none
REVOKED_SECONDS: Final = 2.0
MIB: Final = 1024 * 1024

# A byte a call that is never given back, at 100 calls a second, is 6 KiB a minute: nothing. What
# leaks a call's record, 2 KiB of it, is 12 MiB a minute. In half an hour at the bound: 4 MiB.
MIB_A_MINUTE_MAX: Final = 0.2
# A minute or two tell less: allocators still find their size.
SHORT_MINUTES: Final = 10.0
SHORT_MIB_A_MINUTE_MAX: Final = 3.0
DESCRIPTORS_MORE_MAX: Final = 8  # at rest, at the end: connections to vendors are kept warm

MODELS: Final = (
    "faults", "faults", "faults", "sim-slow-8x10", "sim-slow-20x15", "sim-slow-40x10", "sim-big-1",
    "sim-status-503", "sim-error", "sim-cut", "sim-reset", "sim-close", "sim-garbage", "sim-early",
    "sim-nonsense",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one process had at one moment."""

    at: float  # seconds since the start
    pid: int
    at_rest: bool
    rss: float  # MiB
    pss: float | None  # likewise; None where we may not look
    descriptors: int | None


@dataclass(kw_only=True)
class Soak:
    """Laps on one machine, and what was sampled meanwhile."""

    minutes: float
    began: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    faulty: list[str] = field(default_factory=list)
    calls: int = 0
    laps: int = 0
    revocations: int = 0

    @property
    def mib_a_minute_max(self) -> float:
        return MIB_A_MINUTE_MAX if self.minutes >= SHORT_MINUTES else SHORT_MIB_A_MINUTE_MAX

    async def run(self) -> None:
        """Run laps until the time is over."""
        chance = random.SystemRandom()
        settings = Settings(machines=1)
        async with World.running(settings=settings, chance=random.Random(0)) as world:
            [machine] = world.machines
            while self._now < 60 * self.minutes and not self.faulty:
                sampling = asyncio.ensure_future(self._sample_under_load(machine))
                try:
                    result = await Trial.run(world, LAP, chance.randrange(2**31))
                finally:
                    sampling.cancel()
                self.laps += 1
                self.calls += result.calls
                self.revocations += len(result.revocations)
                self._look(machine, at_rest=True)
                if result.failed:
                    self.faulty += [f"lap {self.laps}: {result.faulty}", *result.explained]
                    keep_log(result, machine.log)
        self.faulty += self._grown()

    @property
    def _now(self) -> float:
        return time.monotonic() - self.began

    async def _sample_under_load(self, machine: Machine) -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            self._look(machine, at_rest=False)

    def _look(self, machine: Machine, *, at_rest: bool) -> None:
        self.samples += [
            sample_of(process, at=self._now, at_rest=at_rest) for process in machine.processes()
        ]

    def _grown(self) -> Iterator[str]:
        """Say what grew, and which process did not live from the first sample to the last."""
        for pid, samples in self.warm().items():
            slopes = slopes_of(samples)
            if slopes is None:
                yield f"process {pid} was not there for long enough"
                continue
            for what, slope in slopes.items():
                if what != "descriptors" and slope > self.mib_a_minute_max:
                    yield f"process {pid} grows: {what} by {slope:.2f} MiB a minute"
            more = slopes.get("descriptors", 0.0) * self.minutes * (1 - WARM_UP_SHARE)
            if more > DESCRIPTORS_MORE_MAX:
                yield f"process {pid} has {more:.0f} descriptors more at the end"

    def warm(self) -> dict[int, list[Sample]]:
        """Return the samples after the warm-up, by process."""
        samples = sorted(self.samples, key=lambda sample: (sample.pid, sample.at))
        return {
            pid: [one for one in group if one.at >= 60 * self.minutes * WARM_UP_SHARE]
            for pid, group in itertools.groupby(samples, key=lambda sample: sample.pid)
        }

    def told(self) -> str:
        """Return the figures."""
        rate = self.calls / max(1.0, self._now)
        first = (
            f"{self._now / 60:.1f} minutes, {self.laps} laps, {self.calls} calls "
            f"({rate:.0f} a second), {self.revocations} revocations, "
            f"at most {self.mib_a_minute_max} MiB a minute"
        )
        lines = [first]
        for pid, samples in self.warm().items():
            slopes = slopes_of(samples)
            if slopes is None:
                continue
            rest = [one for one in samples if one.at_rest]
            lines.append(
                f"process {pid}: at rest RSS {rest[0].rss:.1f} to {rest[-1].rss:.1f} MiB, "
                f"{rest[0].descriptors} to {rest[-1].descriptors} descriptors; a minute: "
                + ", ".join(f"{what} {slope:+.3f}" for what, slope in slopes.items())
            )
        return "\n".join([*lines, *(f"FAILED: {why}" for why in self.faulty)])


# -------------------------------------------------------------------------------------- sampling


def sample_of(process: psutil.Process, *, at: float, at_rest: bool) -> Sample:
    """Look at a process. Only root may see all of one that keeps secrets."""
    pss: float | None
    descriptors: int | None
    try:
        pss, descriptors = process.memory_full_info().pss / MIB, process.num_fds()
    except psutil.AccessDenied:
        pss = descriptors = None
    rss = process.memory_info().rss / MIB
    return Sample(
        at=at, pid=process.pid, at_rest=at_rest, rss=rss, pss=pss, descriptors=descriptors
    )


def slopes_of(samples: Sequence[Sample]) -> dict[str, float] | None:
    """Return by how much each thing grew a minute; None: too few samples."""
    rest = [sample for sample in samples if sample.at_rest]
    if len(rest) < SAMPLES_MIN:
        return None
    load = [sample for sample in samples if not sample.at_rest]
    slopes = {
        "RSS at rest": slope([(one.at, one.rss) for one in rest]),
        "RSS under load": slope([(one.at, one.rss) for one in load]),
    }
    if all(one.pss is not None and one.descriptors is not None for one in rest):
        slopes["PSS at rest"] = slope([(one.at, one.pss or 0.0) for one in rest])
        slopes["descriptors"] = slope([(one.at, one.descriptors or 0) for one in rest])
    return slopes


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the median slope between all pairs of points, a minute; x is in seconds."""
    every = max(1, len(points) ** 2 // 2 // PAIRS_MAX)
    pairs = itertools.islice(itertools.combinations(points, 2), 0, None, every)
    slopes = [60 * (y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in pairs if x1 > x0]
    return statistics.median(slopes) if slopes else 0.0


# ------------------------------------------------------------------------------------------- laps


async def _lap(trial: Trial) -> None:
    """Beside the callers: tokens that are none, tokens that end, for a while."""
    [machine] = trial.world.machines
    refusing = asyncio.ensure_future(_refused(trial, machine))
    ending = asyncio.ensure_future(_ended(trial, machine))
    try:
        await trial.last(*LAP_SECONDS)
    finally:
        refusing.cancel()
    await ending
    await asyncio.wait([refusing])
    if not refusing.cancelled():
        refusing.result()


async def _refused(trial: Trial, machine: Machine) -> None:
    """Call with what is no token, again and again."""
    gone = await trial.world.token()
    await trial.world.revoke(gone)
    tokens = (mistyped(trial.free.text), gone.text, "x", "sk-of-another-gateway")
    for at in itertools.count():
        wire, token = FORMATS[at % len(FORMATS)], tokens[at % len(tokens)]
        request = call(wire, token=token, model="faults", stream=bool(at % 2), words=2)
        answer = await send(machine.url, request)
        trial.verdict.blame("odd", answer.status != 401, f"no token, and {answer.status}")
        await asyncio.sleep(REFUSED_SECONDS)


async def _ended(trial: Trial, machine: Machine) -> None:
    """Revoke tokens whose streams are open, now and then."""
    for _ in range(int(LAP_SECONDS[0] / REVOKED_SECONDS) - 1):
        stream = await trial.watch(machine, model=ENDLESS_MODEL)
        await asyncio.sleep(REVOKED_SECONDS)
        await trial.revoke(stream)


LAP: Final = Fault(
    name="soak", what="mixed load", make=_lap, models=MODELS, leave_share=0.15, vendor_fails=True,
    revocation_seconds_max=2.0,
)  # fmt: skip


def main() -> int:
    """Return 0 where all stayed flat and every lap's ledger was as the tally."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    soak = Soak(minutes=options.minutes)
    asyncio.run(soak.run())
    print(soak.told())
    return int(bool(soak.faulty))


if __name__ == "__main__":
    sys.exit(main())
