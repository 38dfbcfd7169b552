"""kill -9 of real processes, again and again: half of it under load, half of it at rest."""

import asyncio
from typing import Final

from tests.faults.machine import Machine, gone
from tests.faults.trial import Trial

KILLS_A_RUN: Final = 24
LOAD_SECONDS: Final = (0.1, 0.6)  # of load before a kill
MACHINE_SHARE: Final = 0.15  # of the kills: all processes of a machine
SUPERVISOR_SHARE: Final = 0.1  # of the kills: that one alone
RECOVERED_SHARE: Final = 0.7  # of the kills: on a machine that is all there again


async def kill_loop(trial: Trial) -> None:
    """Kill workers, supervisors and machines, many of them while they still start or recover."""
    for number in range(KILLS_A_RUN):
        machine = trial.world.machines[number % len(trial.world.machines)]
        if trial.chance.random() < RECOVERED_SHARE:
            await machine.wait_until_ready()
        at_rest = number * 2 >= KILLS_A_RUN
        if at_rest:
            await trial.load.pause()
            killed = trial.world.killed
            await _kill(trial, machine)
            trial.killed_at_rest += trial.world.killed - killed
            trial.load.resume()
        else:
            await trial.last(*LOAD_SECONDS)
            await _kill(trial, machine)


async def _kill(trial: Trial, machine: Machine) -> None:
    what = trial.chance.random()
    pids = await machine.worker_pids()
    if what < SUPERVISOR_SHARE:
        workers = await asyncio.to_thread(machine.kill_supervisor)
        await machine.start()
        ended = await asyncio.to_thread(gone, workers, trial.world.settings.drain_seconds)
        trial.verdict.blame("other", not ended, "workers outlive their supervisor and their drain")
    elif what < SUPERVISOR_SHARE + MACHINE_SHARE or not pids:
        await asyncio.to_thread(machine.kill_all)
        await machine.start()
    else:
        some = trial.chance.sample(pids, trial.chance.randint(1, len(pids)))
        await asyncio.to_thread(machine.kill, some)
