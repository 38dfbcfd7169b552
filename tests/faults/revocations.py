"""Many revocations of tokens whose streams are open on every machine, some of them committed late.

How long streams ran on is by the database's clock, from the commit to the last byte that a client
got; the machines, the database and the clients share it here.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from control_plane.tenancy.receipts import change_of, wait_for_receipt
from tests.faults.load import Watched
from tests.faults.machine import Machine
from tests.faults.results import percentile
from tests.faults.trial import Trial
from tests.faults.world import WORKERS, Token

OPEN_AT_ONCE: Final = 16  # tokens that have a stream on each machine
REVOKED_AT_ONCE: Final = 2
LATE_SHARE: Final = 0.1  # of the revocations: committed long after their change was made
LATE_SECONDS: Final = (0.5, 2.0)
CUT_OFF: Final = 6  # tokens that are revoked while a machine is cut off
PROBE_SECONDS: Final = 0.05
MARGIN_SECONDS: Final = 0.5  # for clients' own loops, on a busy machine
END_SECONDS_MAX: Final = 10.0
STREAM_MODEL: Final = "sim-slow-100000x100"

REVOKE: Final = """
    UPDATE tokens SET revoked_at = clock_timestamp() WHERE id = $1
    RETURNING pg_current_xact_id()::text
"""

Receipt = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What 99 of 100 have to keep, in seconds."""

    last_byte: float
    receipt: float


PROMISED: Final = Bounds(last_byte=0.25, receipt=0.5)
FEW: Final = Bounds(last_byte=1.0, receipt=1.0)  # where the slowest of a few decides


@dataclass(kw_only=True)
class Revoked:
    """A token, the streams that it held open, and how it was revoked."""

    token: Token
    streams: list[Watched]
    receipt: Receipt = field(default_factory=dict)
    passed: int = 0  # changes that were committed between its change and its commit

    @property
    def committed_at(self) -> float:
        return _seconds(self.receipt["committed_at"])


def revocations(number: int, *, bounds: Bounds) -> Callable[[Trial], Awaitable[None]]:
    """Return the fault: so many revocations, then some with a machine cut off."""

    async def make(trial: Trial) -> None:
        revoked = await _revoke_many(trial, number)
        held = [seconds for one in revoked for seconds in [_held(one)] if seconds is not None]
        receipts = [one.receipt["took_ms"] / 1000 for one in revoked if not one.passed]
        late = [one for one in revoked if one.passed]
        for what, seconds, bound in (
            ("last byte", held, bounds.last_byte),
            ("receipt", receipts, bounds.receipt),
        ):
            told = "/".join(f"{1000 * percentile(seconds, part):.0f}" for part in (0.5, 0.99, 1))
            trial.note(f"{len(seconds)} times {what} p50/p99/max {told} ms")
            is_late = percentile(seconds, 0.99) > bound
            trial.verdict.blame("late", is_late, f"{what}: p50/p99/max {told} ms")
        passed = [one.passed for one in late]
        trial.note(f"{len(late)} commits came late, past {max(passed, default=0)} others at most")
        trial.verdict.blame("other", not late, "no commit was late")
        await _revoke_cut_off(trial)

    return make


# ------------------------------------------------------------------------------ all machines hear


async def _revoke_many(trial: Trial, number: int) -> list[Revoked]:
    turns = iter(range(number))
    turn = asyncio.Semaphore(REVOKED_AT_ONCE)
    done: list[Revoked] = []

    async def hold_and_revoke() -> None:
        for at in turns:
            one = await _hold(trial)
            await trial.last(0, 0.3)
            # The first is late for sure, so that every run has one.
            if at == 0 or trial.chance.random() < LATE_SHARE:
                await _revoke_late(trial, one)
            else:
                async with turn:
                    one.receipt = await trial.world.revoke(one.token)
            await _check(trial, one)
            done.append(one)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(OPEN_AT_ONCE, number)):
            tasks.create_task(hold_and_revoke())
    return done


async def _hold(trial: Trial) -> Revoked:
    """Make a token and open a stream with it on each machine."""
    token = await trial.world.token()
    streams = [
        await trial.watch(machine, token=token, model=STREAM_MODEL)
        for machine in trial.world.machines
    ]
    return Revoked(token=token, streams=streams)


async def _revoke_late(trial: Trial, one: Revoked) -> None:
    """Change the token, let many others change and commit, and commit then."""
    async with trial.world.owner() as owner:
        async with owner.transaction():
            xact = await owner.fetchval(REVOKE, one.token.id)
            head = await owner.fetchval("SELECT last FROM change_head")
            await trial.last(*LATE_SECONDS)
        began = time.monotonic()
        change = await change_of(owner, xact)
        one.receipt = await wait_for_receipt(owner, change, is_embedded=False, began=began)
    assert change.ordinal is not None
    one.passed = change.ordinal - head


async def _check(trial: Trial, one: Revoked) -> None:
    """Check what a revocation says, and that it is so."""
    for stream in one.streams:
        stream.note(one.receipt)
    await asyncio.wait([stream.task for stream in one.streams], timeout=END_SECONDS_MAX)
    workers = one.receipt["workers"]
    states = [worker["state"] for worker in workers]
    expected = ["confirmed"] * WORKERS * len(trial.world.machines)
    trial.verdict.blame("other", states != expected, f"a receipt of {states}")
    cut = one.receipt["streams_cut"]
    trial.verdict.blame("other", cut != len(one.streams), f"a receipt of {cut} streams cut")
    for machine in trial.world.machines:
        sent = await trial.load.one(machine=machine, token=one.token)
        reason = None if sent.answer is None else sent.answer.reason
        refused = (sent.status, reason) == (401, "token_revoked")
        trial.verdict.blame("other", not refused, f"after the receipt: {sent.status} {reason}")


def _held(one: Revoked) -> float | None:
    """From the commit to the last byte of the token's streams; None where all ended before."""
    return max((s for s in (stream.held_seconds for stream in one.streams) if s is not None),
               default=None)  # fmt: skip


# -------------------------------------------------------------------------------- one is cut off


async def _revoke_cut_off(trial: Trial) -> None:
    """Cut a machine off from the database; its receipts say until when it goes on, and it stops."""
    victim = trial.victim()
    tokens = [await _hold(trial) for _ in range(CUT_OFF)]
    for one in tokens:
        for stream in one.streams:
            stream.is_cut_off = stream.machine is victim
    victim.pool.die_half()
    victim.feed.die_half()
    admitted: list[float] = []

    async def probe(token: Token) -> None:
        began = time.time()
        sent = await trial.load.one(machine=victim, token=token)
        if sent.status == 200:
            admitted.append(began)

    until = time.time() + trial.world.settings.lease_seconds + 2 * MARGIN_SECONDS
    async with asyncio.TaskGroup() as tasks:
        for one in tokens:
            tasks.create_task(_revoke_one_cut_off(trial, one))
        for one in itertools.cycle(tokens):
            if time.time() > until:
                break
            # Side by side: a worker that does not know the token yet waits for the database.
            tasks.create_task(probe(one.token))
            await asyncio.sleep(PROBE_SECONDS)
    trial.verdict.blame("other", not admitted, "nothing was admitted within the lease")
    stops = [_stops(trial, one, victim) for one in tokens]
    admission_stops_at, streams_stop_at = max(at for at, _ in stops), max(at for _, at in stops)
    late = max(admitted, default=0.0) - admission_stops_at
    trial.verdict.blame("late", late > 0, f"admitted {late:.3f} s after the receipts' time")
    trial.note(f"cut off: last admitted {-late:.2f} s before the receipts' time")

    cut_off = [stream for one in tokens for stream in one.streams if stream.is_cut_off]
    left = max(0.0, streams_stop_at - time.time()) + END_SECONDS_MAX
    await asyncio.wait([stream.task for stream in cut_off], timeout=left)
    for stream in cut_off:
        answer = stream.task.result().answer if stream.task.done() else None
        after = None if answer is None else answer.last_byte_at - streams_stop_at
        held = after is not None and after <= MARGIN_SECONDS
        trial.verdict.blame("late", not held, f"a stream ran on {after} s past the receipts' time")
        early = answer is not None and answer.ended_at < min(at for at, _ in stops) - MARGIN_SECONDS
        trial.verdict.blame("other", early, "a stream was cut before the lease's end")
    victim.pool.heal()
    victim.feed.heal()


async def _revoke_one_cut_off(trial: Trial, one: Revoked) -> None:
    one.receipt = await trial.world.revoke(one.token)
    for stream in one.streams:
        stream.note(one.receipt)


def _stops(trial: Trial, one: Revoked, victim: Machine) -> tuple[float, float]:
    """Return when the victim admits no more and when its streams end, as a receipt says."""
    workers = one.receipt["workers"]
    pending = [worker for worker in workers if worker["state"] != "confirmed"]
    named = {worker["machine"] for worker in pending}
    told = f"pending: {[worker['machine'] for worker in pending]}, {victim.name} is cut off"
    wrong = named != {victim.name} or len(pending) != WORKERS or one.receipt["complete"]
    trial.verdict.blame("other", wrong, told)
    return (
        max(_seconds(worker["admission_stops_at"]) for worker in pending),
        max(_seconds(worker["streams_stop_at"]) for worker in pending),
    )


def _seconds(moment: datetime) -> float:
    return moment.timestamp()
