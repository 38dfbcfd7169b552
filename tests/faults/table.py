"""The faults: one small function each, and the table of them."""

import asyncio
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from gateway.metering.journal_lines import OPEN, make_line
from tests.faults.clocks import (
    clock_jump,
    database_clock_jump,
    freeze_machine,
    freeze_worker,
    month_edge,
    no_memory,
    syncs_fail,
)
from tests.faults.faulty_libc import no_compiler
from tests.faults.kill_loop import kill_loop
from tests.faults.machine import gone
from tests.faults.revocations import FEW, PROMISED, revocations
from tests.faults.rolling_restart import rolling_restart
from tests.faults.skew import no_history, version_skew
from tests.faults.trial import Fault, Trial
from tests.faults.world import Settings, World

MARGIN_SECONDS: Final = 0.5  # for clients' own clocks and loops, on a busy machine
VENDOR_MODELS: Final = (
    "faults", "sim-hang", "sim-reset", "sim-close", "sim-cut", "sim-early", "sim-error",
    "sim-garbage", "sim-nonsense", "sim-status-503", "sim-slow-5x200",
    "sim-slow-8x10",
)  # fmt: skip

ENDLESS_MODELS: Final = ("sim-noend", "sim-nohead", "sim-noend", "sim-big-200")
FAULTY: Final = Settings(faulty_libc=True)

# ------------------------------------------------------------------------------------------- kills


async def kill_worker(trial: Trial) -> None:
    """Kill some workers; their supervisor starts others."""
    machine = trial.victim()
    pids = await machine.worker_pids()
    await asyncio.to_thread(machine.kill, trial.chance.sample(pids, trial.chance.randint(1, 2)))


async def kill_machine(trial: Trial) -> None:
    """Kill all processes of a machine, and start it again on its journals."""
    machine = trial.victim()
    await asyncio.to_thread(machine.kill_all)
    await trial.last(0, 0.5)
    await machine.start()


async def kill_supervisor(trial: Trial) -> None:
    """Kill the supervisor alone: its workers finish, and end by themselves."""
    machine = trial.victim()
    workers = await asyncio.to_thread(machine.kill_supervisor)
    await trial.last(0, 0.5)
    await machine.start()
    ended = await asyncio.to_thread(gone, workers, trial.world.settings.drain_seconds)
    trial.verdict.blame("other", not ended, "workers outlive their supervisor and their drain")


async def kill_recovery(trial: Trial) -> None:
    """Kill a machine again and again while it finishes the journals of the kill before."""
    machine = trial.victim()
    for _ in range(3):
        await asyncio.to_thread(machine.kill_all)
        await machine.start()
        await trial.last(0, 0.4)
    pids = await machine.worker_pids()
    await asyncio.to_thread(machine.kill, pids)


async def kill_cut_off(trial: Trial) -> None:
    """Kill a machine that is cut off from the database; it starts while it still is."""
    machine = trial.victim()
    for proxy in (machine.pool, machine.feed):
        proxy.cut()
    await trial.last(0.1, 1.0)
    await asyncio.to_thread(machine.kill_all)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(machine.start())
        await trial.last(0.1, 1.0)
        for proxy in (machine.pool, machine.feed):
            proxy.heal()


async def kill_everything(trial: Trial) -> None:
    """Kill PostgreSQL and all machines, as a machine does that runs all of them and hangs."""
    await trial.world.end_postgres(signal.SIGKILL)
    async with asyncio.TaskGroup() as tasks:
        for machine in trial.world.machines:
            tasks.create_task(asyncio.to_thread(machine.kill_all))
    await trial.world.start_postgres()
    async with asyncio.TaskGroup() as tasks:
        for machine in trial.world.machines:
            tasks.create_task(machine.start())


async def torn_line(trial: Trial) -> None:
    """Kill a machine in the middle of a line: the last one of each journal is there in part."""
    machine = trial.victim()
    await asyncio.to_thread(machine.kill_all)
    for segment in machine.newest_segments():
        _tear(segment, trial.chance.random())
    await machine.start()


def _tear(segment: Path, share: float) -> None:
    """Write the first part of a line where the next one would have gone."""
    line = make_line(OPEN, b'{"blocks":[],"row":{"id":"0190a000-0000-7000-8000-000000000000"}}')
    end = len(segment.read_bytes().rstrip(b"\0"))
    with segment.open("r+b") as file:
        file.seek(end)
        file.write(line[: int(share * len(line))])


# ---------------------------------------------------------------------------------------- database


async def postgres_immediate(trial: Trial) -> None:
    """Stop PostgreSQL as `-m immediate` does, and start it again."""
    await trial.world.end_postgres(signal.SIGQUIT)
    await trial.last(0.2, 2.0)
    await trial.world.start_postgres()


async def postgres_restart(trial: Trial) -> None:
    """Restart PostgreSQL as `-m fast` does."""
    await trial.world.end_postgres(signal.SIGINT)
    await trial.world.start_postgres()


async def postgres_killed(trial: Trial) -> None:
    """Kill the postmaster, and start PostgreSQL again."""
    await trial.world.end_postgres(signal.SIGKILL)
    await trial.last(0, 0.5)
    await trial.world.start_postgres()


async def postgres_failover(trial: Trial) -> None:
    """Kill the primary; its synchronous standby takes over."""
    await trial.world.end_postgres(signal.SIGQUIT)
    await trial.last(0.1, 1.0)
    await trial.world.fail_over()


async def postgres_sessions(trial: Trial) -> None:
    """End all sessions of the gateways, a few times."""
    for _ in range(3):
        await trial.world.end_sessions()
        await trial.last(0, 0.4)


async def postgres_slow(trial: Trial) -> None:
    """Slow one machine's ways to the database down; some pieces stall."""
    machine = trial.victim()
    for proxy in (machine.pool, machine.feed):
        proxy.slow(
            delay_seconds=trial.chance.uniform(0.005, 0.05), stall_share=0.05, stall_seconds=1.0
        )
    await trial.last(1.0, 3.0)
    for proxy in (machine.pool, machine.feed):
        proxy.heal()


async def postgres_stalls(trial: Trial) -> None:
    """Let nothing move between a machine and the database for a while; nothing is lost."""
    machine = trial.victim()
    proxies = trial.chance.choice([[machine.pool], [machine.feed], [machine.pool, machine.feed]])
    for proxy in proxies:
        proxy.stall()
    await trial.last(0.5, 3.0)
    for proxy in proxies:
        proxy.heal()


async def postgres_cut(trial: Trial) -> None:
    """Reset all connections between a machine and the database, and refuse new ones."""
    machine = trial.victim()
    for proxy in (machine.pool, machine.feed):
        proxy.cut()
    await trial.last(0.1, 2.0)
    for proxy in (machine.pool, machine.feed):
        proxy.heal()


async def postgres_outage(trial: Trial) -> None:
    """Stop PostgreSQL for longer than lease and grace: calls are refused, then streams end."""
    settings = trial.world.settings
    streams = [await trial.watch(machine) for machine in trial.world.machines]
    for stream in streams:
        stream.is_cut_off = True
    await trial.world.end_postgres(signal.SIGQUIT)
    away_at = time.time()
    await asyncio.sleep(settings.lease_seconds + MARGIN_SECONDS)
    for machine in trial.world.machines:
        sent = await trial.load.one(machine=machine, token=trial.free)
        reason = None if sent.answer is None else sent.answer.reason
        told = (
            sent.status == 503 and sent.answer is not None and "retry-after" in sent.answer.headers
        )
        trial.verdict.blame("other", not told, f"after the lease: {sent.status} {reason}")
    await asyncio.sleep(settings.grace_seconds + MARGIN_SECONDS)
    for stream in streams:
        ran_on = stream.task.done() and stream.task.result().ended - away_at
        most = settings.lease_seconds + settings.grace_seconds + MARGIN_SECONDS
        trial.verdict.blame("other", not ran_on or ran_on > most, f"a stream ran for {ran_on} s")
    await trial.world.start_postgres()


async def feed_silent(trial: Trial) -> None:
    """Let the feed's connection of a machine fall silent, as a firewall does; new ones pass."""
    machine = trial.victim()
    stream = await trial.watch(machine)
    machine.feed.silence()
    await trial.revoke(stream)
    machine.feed.heal()


async def partition(trial: Trial) -> None:
    """Cut one machine off from the database, in silence, for longer than lease and grace."""
    settings = trial.world.settings
    machine = trial.victim()
    probe = await trial.watch(machine)
    streams = [await trial.watch(one) for one in trial.world.machines]
    for stream in (probe, *streams):
        stream.is_cut_off = stream.machine is machine
    machine.pool.die_half()
    machine.feed.die_half()
    cut_at = time.time()
    async with asyncio.TaskGroup() as tasks:
        for stream in streams:
            tasks.create_task(trial.revoke(stream))
        last_admitted = 0.0
        [revoked] = [stream for stream in streams if stream.machine is machine]
        until = settings.lease_seconds + settings.grace_seconds + 2 * MARGIN_SECONDS
        while time.time() < cut_at + until:
            began = time.time()
            sent = await trial.load.one(machine=machine, token=revoked.token)
            if sent.status == 200:
                last_admitted = began - cut_at
            await asyncio.sleep(0.1)
    late = last_admitted - settings.lease_seconds
    trial.verdict.blame("late", late > MARGIN_SECONDS, f"admitted {late:.2f} s after the lease")
    for stream in (probe, revoked):
        ran_on = stream.task.done() and stream.task.result().ended - cut_at
        trial.verdict.blame("late", not ran_on or ran_on > until, f"a stream ran for {ran_on} s")
    machine.pool.heal()
    machine.feed.heal()


# -------------------------------------------------------------------------------------------- disk


async def disk_full(trial: Trial) -> None:
    """Fill the disk of a machine's journal: it refuses what it can't record."""
    machine = trial.victim()
    ballast = await asyncio.to_thread(machine.fill_disk)
    await trial.last(0.5, 2.5)
    ballast.unlink()


async def disk_full_kill(trial: Trial) -> None:
    """Fill the disk, and kill the machine while it is full."""
    machine = trial.victim()
    ballast = await asyncio.to_thread(machine.fill_disk)
    await trial.last(0.5, 1.5)
    await asyncio.to_thread(machine.kill_all)
    ballast.unlink()
    await machine.start()


def _small_disk(world: World) -> str:
    has = all(machine.disk_is_small for machine in world.machines)
    return "" if has else "it takes the right to mount a small disk"


def _no_compiler(world: World) -> str:
    del world
    return no_compiler()


# -------------------------------------------------------------------------------- vendor, client


async def vendor_fails(trial: Trial) -> None:
    """Let the vendor hang, reset, drip, talk nonsense and never end, until its client leaves."""
    async with asyncio.TaskGroup() as tasks:
        for model in ENDLESS_MODELS:
            tasks.create_task(
                trial.load.one(
                    machine=trial.victim(),
                    token=trial.free,
                    model=model,
                    stream=True,
                    leave_after=trial.chance.uniform(0.5, 1.5),
                )
            )
    await trial.last(0.5, 1.0)


async def clients_leave(trial: Trial) -> None:
    """Let nearly every client leave at some moment."""
    await trial.last(1.0, 2.0)


FAULTS: Final = MappingProxyType(
    {
        fault.name: fault
        for fault in (
            Fault(name="kill-worker", what="kill -9 of workers", make=kill_worker, quick=True),
            Fault(name="kill-machine", what="kill -9 of a machine", make=kill_machine, quick=True),
            Fault(
                name="kill-supervisor", what="kill -9 of the supervisor", make=kill_supervisor,
                quick=True,
            ),
            Fault(
                name="kill-recovery", what="kill -9 between commit and trim", make=kill_recovery,
                quick=True,
            ),
            Fault(
                name="kill-cut-off", what="kill -9 of a machine that is cut off",
                make=kill_cut_off, quick=True,
            ),
            Fault(
                name="kill-loop", what="kill -9 again and again, half of it at rest",
                make=kill_loop,
            ),
            Fault(name="kill-everything", what="kill -9 of all there is", make=kill_everything),
            Fault(name="torn-line", what="torn last line", make=torn_line, quick=True),
            Fault(
                name="postgres-immediate", what="PostgreSQL stopped at once",
                make=postgres_immediate,
            ),
            Fault(name="postgres-restart", what="PostgreSQL restarted", make=postgres_restart),
            Fault(name="postgres-killed", what="kill -9 of PostgreSQL", make=postgres_killed),
            Fault(
                name="postgres-failover", what="a standby takes over", make=postgres_failover,
                settings=Settings(standby=True), spoils=True,
            ),
            Fault(
                name="postgres-sessions", what="all sessions ended", make=postgres_sessions,
                quick=True,
            ),
            Fault(name="postgres-slow", what="slow database", make=postgres_slow, quick=True),
            Fault(
                name="postgres-stalls", what="nothing moves to and fro", make=postgres_stalls,
                quick=True,
            ),
            Fault(name="postgres-cut", what="connections reset", make=postgres_cut, quick=True),
            Fault(
                name="postgres-outage", what="away for longer than lease and grace",
                make=postgres_outage,
            ),
            Fault(
                name="feed-silent", what="the feed's connection falls silent", make=feed_silent,
                quick=True, revocation_seconds_max=3.0,
            ),
            Fault(name="partition", what="one machine cut off", make=partition),
            Fault(
                name="disk-full", what="the journal's disk is full", make=disk_full, quick=True,
                needs=_small_disk,
            ),
            Fault(
                name="disk-full-kill", what="the same, and kill -9", make=disk_full_kill,
                quick=True, needs=_small_disk,
            ),
            Fault(
                name="vendor-fails", what="hang, reset, drip, nonsense", make=vendor_fails,
                models=VENDOR_MODELS, vendor_fails=True, quick=True,
            ),
            Fault(
                name="clients-leave", what="clients hang up", make=clients_leave,
                leave_share=0.8, models=("sim-slow-8x10", "sim-slow-20x15"), quick=True,
            ),
            Fault(
                name="clock-jump", what="a machine's clock set by an hour", make=clock_jump,
                quick=True, settings=FAULTY, needs=_no_compiler,
            ),
            Fault(
                name="clock-database", what="the database's clock set by an hour",
                make=database_clock_jump, settings=FAULTY, spoils=True, needs=_no_compiler,
            ),
            Fault(
                name="month-edge", what="the month ends", make=month_edge,
                settings=replace(FAULTY, month_ends_soon=True), spoils=True, needs=_no_compiler,
            ),
            Fault(
                # It spoils: blocks of these workers are not trusted at any later kill.
                name="sync-fails", what="the journal's disk fails to sync", make=syncs_fail,
                quick=True, settings=FAULTY, spoils=True, burns_blocks=True, needs=_no_compiler,
            ),
            Fault(
                name="freeze-machine", what="a machine stands still beyond its lease",
                make=freeze_machine,
                settings=Settings(first_byte_seconds=15.0, idle_seconds=15.0),
            ),
            Fault(
                name="freeze-worker", what="a worker stands still", make=freeze_worker, quick=True
            ),
            Fault(
                name="no-memory", what="no memory for workers", make=no_memory, quick=True,
                vendor_fails=True,
            ),
            Fault(
                name="revocations", what="60 tokens with streams revoked, then one machine cut off",
                make=revocations(60, bounds=FEW), callers=4, revocation_seconds_max=2.0,
            ),
            Fault(
                name="revocations-1000", what="the same of 1,000",
                make=revocations(1_000, bounds=PROMISED), callers=4, revocation_seconds_max=2.0,
            ),
            Fault(name="rolling-restart", what="SIGTERM, one by one", make=rolling_restart),
            Fault(
                name="version-skew", what="the release before, beside this one and back",
                make=version_skew, needs=no_history,
            ),
            Fault(
                name="outage-5m", what="PostgreSQL away for five minutes", make=postgres_outage,
                settings=Settings(lease_seconds=15.0, grace_seconds=284.0),
            ),
        )
    }
)  # fmt: skip
