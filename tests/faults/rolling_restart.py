"""A rolling restart: one machine after the other by SIGTERM, behind a balancer, under load."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from tests.faults.balancer import Balancer
from tests.faults.haproxy import balanced, haproxy
from tests.faults.load import Sent
from tests.faults.machine import Machine
from tests.faults.results import percentile
from tests.faults.trial import Trial

STREAMS: Final = 200  # that are open when a machine is told to stop
STREAM_MODEL: Final = "sim-slow-12x500"  # 6 s: they end within the drain
STREAM_SECONDS_MAX: Final = 30.0
BEGIN_SECONDS_MAX: Final = 10.0
MARGIN_SECONDS: Final = 5.0  # for processes to end, on a busy machine

LEFT_BEHIND: Final = """
    SELECT count(*) FROM workers
    WHERE machine = $1 AND (ended_at IS NULL OR unshipped_since IS NOT NULL)
"""


async def rolling_restart(trial: Trial) -> None:
    """Restart all machines so: no call fails, streams end whole, journals are shipped."""
    for machine in trial.world.machines:
        machine.keep_ports()
    async with _front(trial.world.machines) as url:
        trial.load.url = lambda: url
        await trial.last(0.2, 0.5)
        began = time.time()
        for machine in trial.world.machines:
            await _restart(trial, machine)
            await trial.last(0.3, 0.6)
        ended = time.time()
        trial.load.url = None
        through = [one for one in trial.load.sent if began <= one.began <= ended]
        while not all(one.ended for one in through):  # noqa: ASYNC110 - clients set it
            await asyncio.sleep(0.05)
    for one in through:
        trial.verdict.blame("other", _failed(one), f"failed in a rolling restart: {one}")
    took = percentile((one.ended - one.began for one in through if not one.stream), 0.99)
    trial.note(f"{len(through)} calls in {ended - began:.1f} s; unary p99 {1000 * took:.0f} ms")


@contextlib.asynccontextmanager
async def _front(machines: Sequence[Machine]) -> AsyncIterator[str]:
    """Give the URL of a balancer that follows /readyz: HAProxy, or ours where it is missing."""
    if haproxy():
        async with balanced(machines) as url:
            yield url
    else:
        async with Balancer(machines).listening() as balancer:
            yield balancer.url


async def _restart(trial: Trial, machine: Machine) -> None:
    begun = [asyncio.Event() for _ in range(STREAMS)]
    async with asyncio.TaskGroup() as tasks:
        streams = [
            tasks.create_task(
                trial.load.one(
                    machine=machine,
                    token=trial.free,
                    model=STREAM_MODEL,
                    stream=True,
                    words=None,
                    begun=event,
                    seconds=STREAM_SECONDS_MAX,
                )
            )
            for event in begun
        ]
        async with asyncio.timeout(BEGIN_SECONDS_MAX):
            await asyncio.gather(*(event.wait() for event in begun))
        told = time.monotonic()
        code = await machine.terminate()
        took = time.monotonic() - told
        async with trial.world.owner() as owner:
            left = await owner.fetchval(LEFT_BEHIND, machine.name)
        await machine.start()
    trial.note(
        f"{machine.name} drained in {took:.1f} s with {STREAMS} streams open at the balancer"
    )
    most = trial.world.settings.drain_seconds + MARGIN_SECONDS
    trial.verdict.blame("other", code != 0, f"SIGTERM: exit code {code}")
    trial.verdict.blame("late", took > most, f"drained in {took:.1f} s")
    trial.verdict.blame("other", left, f"{left} workers of {machine.name} left something behind")
    for stream in streams:
        one = stream.result()
        trial.verdict.blame("other", not one.is_whole, f"a stream did not end whole: {one}")


def _failed(one: Sent) -> bool:
    return one.answer is not None and not one.is_whole and one.status != 429
