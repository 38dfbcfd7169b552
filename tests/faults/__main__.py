"""make faults: run faults, keep what they told, print the table.

make faults                                  each of the faults that don't take minutes, 3 times
make faults ARGS="--quick --runs 20"         20 of each that lasts under 5 s
make faults ARGS="--kills 200"               kill -9 for so many times, half of them at rest
make faults ARGS="--seed 7 --fault NAME"     one again
make faults ARGS="--check 5"                 5 random recorded ones again
make faults ARGS="--table"                   what is recorded of this state of the code
"""

import argparse
import asyncio
import itertools
import random
import signal
import sys
import time
from collections.abc import Iterable
from typing import Final

from tests.faults.results import Result, digest_of_code, keep, keep_log, kept, table
from tests.faults.table import FAULTS
from tests.faults.trial import Fault, Trial
from tests.faults.world import Settings, World

LONG: Final = ("outage-5m", "revocations-1000")  # run only when they are named
KILLS: Final = "kill-loop"
RUNS: Final = 3
SEEDS: Final = 2**31

Run = tuple[Fault, int]


async def run_all(runs: Iterable[Run], *, kills: int | None = None) -> list[Result]:
    """Run faults, those with the same settings on one world; say what each told.

    `kills`: after so many moments at which processes were killed, it is enough.
    """
    results: list[Result] = []
    for (settings, _), group in itertools.groupby(runs, key=world_of):
        async with World.running(settings=settings, chance=random.Random(0)) as world:
            for fault, seed in group:
                if why := fault.needs(world):
                    print(f"{fault.name}: left out: {why}", flush=True)
                    continue
                result = await Trial.run(world, fault, seed)
                keep(result)
                results.append(result)
                if result.failed:
                    for machine in world.machines:
                        keep_log(result, machine.log)
                print(told(result), flush=True)
                if kills is not None and sum(result.kills for result in results) >= kills:
                    return results
    return results


def world_of(run: Run) -> tuple[Settings, Run | None]:
    """Return what runs on one world have in common."""
    fault, _ = run
    return fault.settings, run if fault.spoils else None


def told(result: Result) -> str:
    """Return a line about a run, and how to run it again where it failed."""
    line = (
        f"{result.fault} {result.seed}: {result.calls} calls, {result.tallied} at the vendor, "
        f"{result.rows} rows, {result.interrupted} interrupted, recovered in "
        f"{result.recovery_seconds:.1f} s"
    )
    line = "\n".join([line, *(f"  {note}" for note in result.notes)])
    if not result.failed:
        return line
    return "\n".join([line, f"  FAILED: {result.faulty}", *map(str, result.explained),
                      f"  again: {result.replay}"])  # fmt: skip


def chosen(options: argparse.Namespace) -> list[Run]:
    """Return the runs that were asked for; of kills, more than enough."""
    chance = random.SystemRandom()
    if options.check:
        past = kept()
        if not past:
            raise SystemExit("Nothing is recorded yet: `make faults` records it.")
        picked = random.sample(past, min(options.check, len(past)))
        return [(FAULTS[result.fault], result.seed) for result in picked]
    if options.kills is not None:
        return [(FAULTS[KILLS], chance.randrange(SEEDS)) for _ in range(options.kills)]
    if options.fault:
        faults = [FAULTS[name] for name in options.fault]
    else:
        faults = [
            fault
            for name, fault in FAULTS.items()
            if name not in LONG and (fault.quick or not options.quick)
        ]
    if options.seed is not None:
        return [(fault, options.seed) for fault in faults]
    return [(fault, chance.randrange(SEEDS)) for _ in range(options.runs) for fault in faults]


def main() -> int:
    """Return 0 where everything held."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--fault", action="append", choices=FAULTS)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", type=int, default=0)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table(kept(code=digest_of_code()), order=list(FAULTS)))
        return 0
    runs = sorted(chosen(options), key=lambda run: str(run[0].settings))
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    results = asyncio.run(run_all(runs, kills=options.kills))
    print(f"\n{len(results)} runs in {time.monotonic() - began:.0f} s")
    print(table(results, order=list(FAULTS)))
    return int(any(result.failed for result in results))


if __name__ == "__main__":
    sys.exit(main())
