"""Clocks that are set, months that end, processes that stand still."""

import asyncio
import time
from typing import Final

from tests.faults.trial import END_SECONDS_MAX, Trial
from tests.faults.world import seconds_to_next_month

HOUR_SECONDS: Final = 3600.0
MARGIN_SECONDS: Final = 0.5  # for clients' own clocks and loops, on a busy machine
DEMANDS: Final = 6  # at once
QUESTION_CHARACTERS: Final = (100_000, 1_000_000, 6_000_000)
EDGE_SECONDS: Final = 1.5  # before the month's end the clock is set to


async def clock_jump(trial: Trial) -> None:
    """Set a machine's wall clock an hour forward or back, and then right again."""
    machine = trial.victim()
    assert machine.libc is not None
    machine.libc.ahead_seconds = trial.chance.choice((-HOUR_SECONDS, HOUR_SECONDS))
    await trial.last(0.3, 1.5)
    if trial.chance.random() < 0.5:
        await asyncio.to_thread(machine.kill, (await machine.worker_pids())[:1])
        await machine.wait_until_ready()
    machine.libc.ahead_seconds = 0.0
    await trial.last(0.3, 1.0)


async def database_clock_jump(trial: Trial) -> None:
    """Set the database's clock an hour forward or back, and leave it there."""
    assert trial.world.database_libc is not None
    trial.world.database_libc.ahead_seconds = trial.chance.choice((-HOUR_SECONDS, HOUR_SECONDS))
    await trial.last(1.0, 3.0)


async def month_edge(trial: Trial) -> None:
    """Have the month end by the database's clock, under load."""
    libc = trial.world.database_libc
    assert libc is not None
    libc.ahead_seconds = seconds_to_next_month() - EDGE_SECONDS
    await asyncio.sleep(EDGE_SECONDS)
    await trial.last(0.5, 2.0)


async def freeze_machine(trial: Trial) -> None:
    """Have a machine stand still for longer than its lease, while a token of its is revoked."""
    machine = trial.victim()
    stream = await trial.watch(machine)
    stream.is_cut_off = True
    async with machine.frozen([process.pid for process in machine.processes()]):
        await trial.revoke(stream)
        await asyncio.sleep(trial.world.settings.lease_seconds)
        await trial.last(0, 1)
        late = asyncio.create_task(trial.load.one(machine=machine, token=stream.token))
        await asyncio.sleep(MARGIN_SECONDS)  # its request waits in the machine's socket
    thawed_at = time.time()
    sent = await late
    trial.verdict.blame("late", sent.status == 200, f"admitted after it stood still: {sent}")
    await asyncio.wait([stream.task], timeout=END_SECONDS_MAX)
    ran_on = stream.task.done() and stream.task.result().ended - thawed_at
    most = trial.world.settings.grace_seconds + MARGIN_SECONDS
    trial.verdict.blame("late", not ran_on or ran_on > most, f"a stream ran on for {ran_on} s")


async def freeze_worker(trial: Trial) -> None:
    """Have a worker stand still for some seconds; the others go on."""
    machine = trial.victim()
    pids = await machine.worker_pids()
    async with machine.frozen(pids[:1]):
        await trial.last(0.5, 4.0)


async def syncs_fail(trial: Trial) -> None:
    """Have every sync of a machine's journals fail for a while."""
    machine = trial.victim()
    assert machine.libc is not None
    machine.libc.syncs_fail = True
    await trial.last(0.3, 2.0)
    machine.libc.syncs_fail = False


async def no_memory(trial: Trial) -> None:
    """Let the workers of a machine have no more memory than they have, while they need more."""
    machine = trial.victim()
    until = time.monotonic() + trial.chance.uniform(0.5, 3.0)

    async def demand(characters: int) -> None:
        while time.monotonic() < until:
            await trial.load.one(machine=machine, token=trial.free, question="a" * characters)

    async with machine.without_memory(await machine.worker_pids()), asyncio.TaskGroup() as tasks:
        for _ in range(DEMANDS):
            tasks.create_task(demand(trial.chance.choice(QUESTION_CHARACTERS)))
