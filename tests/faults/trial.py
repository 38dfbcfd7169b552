"""One run: callers call, a fault happens and passes, everything settles, and the checker looks."""

import asyncio
import itertools
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Final

import asyncpg

from tests.faults import checker
from tests.faults.checker import Verdict
from tests.faults.load import CALLERS, CALM_MODELS, ENDLESS_MODEL, LEAVE_SHARE, Load, Watched
from tests.faults.machine import Machine
from tests.faults.results import Result
from tests.faults.world import Row, Settings, Token, World
from tests.journeys.client import FORMATS

USUAL: Final = Settings()
LEAD_SECONDS: Final = (0.2, 0.6)  # of load before the fault
TAIL_SECONDS: Final = 0.3  # of load after it
BEGIN_SECONDS_MAX: Final = 10.0  # for a stream that is to be revoked
END_SECONDS_MAX: Final = 5.0  # for one that was
RECOVERY_LOOK_SECONDS: Final = 0.05
SETTLE_SECONDS_MAX: Final = 30.0  # promised; beyond it the run has failed
SETTLE_LOOK_SECONDS: Final = 0.1
SETTLED_AFTER_SECONDS: Final = 0.3  # the last client's end, as the gateway sees it
LIMITS: Final = (1, 7, 30, 100)
SPENT_SECONDS: Final = 1.1  # "exhausted" is remembered for 1 s
TRIES_MAX: Final = 400

LOOK_AT_WORKERS: Final = """
    SELECT count(*) FROM workers
    WHERE unshipped_since IS NOT NULL OR ended_at IS NULL AND heartbeat_at <= to_timestamp($1)
"""
READ_ROWS: Final = """
    SELECT id::text, session_id, token_id::text, corrects::text, status, reason, counted,
        http_status, vendor_request_id, input_tokens, output_tokens, month
    FROM usage_events WHERE token_id = ANY ($1::uuid[])
"""
READ_SUMS: Final = """
    SELECT coalesce(sum(calls), 0)::bigint AS calls, coalesce(sum(counted), 0)::bigint AS counted
    FROM usage_hourly WHERE token_id = ANY ($1::uuid[])
"""
READ_BLOCKS: Final = """
    SELECT month, coalesce(sum(used), 0)::bigint AS used,
        bool_and(settled_at IS NOT NULL) AS settled
    FROM blocks WHERE subject_id = $1 AND month IS NOT NULL GROUP BY month
"""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault: how it is made, and what holds while it lasts and after."""

    name: str
    what: str
    make: "Callable[[Trial], Awaitable[None]]"  # makes it, lets it last, ends it
    quick: bool = False  # lasts under 5 s
    models: Sequence[str] = CALM_MODELS
    leave_share: float = LEAVE_SHARE
    callers: int = CALLERS
    vendor_fails: bool = False  # or the gateway itself, and says so
    revocation_seconds_max: float = 1.0  # of live workers
    burns_blocks: bool = False  # nobody can say what was used of a block
    recovery_seconds_max: float = 10.0  # from the fault's end until every machine takes calls
    settings: Settings = USUAL
    spoils: bool = False  # its world: the next run needs another
    needs: "Callable[[World], str]" = lambda _: ""  # why this world can't have it, or nothing


@dataclass(kw_only=True)
class Trial:
    """What a fault may touch while it happens."""

    world: World
    fault: Fault
    seed: int
    chance: random.Random
    verdict: Verdict = field(default_factory=Verdict)
    watched: list[Watched] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    killed_at_rest: int = 0

    @classmethod
    async def run(cls, world: World, fault: Fault, seed: int) -> Result:
        """Run a fault once, on a world where all is well."""
        chance = random.Random(f"{fault.name} {seed}")
        return await cls(world=world, fault=fault, seed=seed, chance=chance)._run()

    async def _run(self) -> Result:
        fault, chance, verdict = self.fault, self.chance, self.verdict
        async with asyncio.TaskGroup() as tasks:
            for machine in self.world.machines:
                tasks.create_task(machine.wait_until_ready())
        self.free = await self.world.token()
        self.limited = await self.world.token(limit=chance.choice(LIMITS))
        self.load = Load(
            prefix=f"{fault.name}/{self.seed}/{secrets.token_hex(3)}",
            machines=self.world.machines,
            tokens=(self.free, self.free, self.limited),
            chance=chance,
            models=fault.models,
            leave_share=fault.leave_share,
            callers=fault.callers,
        )
        kills_before, killed_before = len(self.world.kills), self.world.killed
        async with asyncio.TaskGroup() as self._tasks:
            loading = self._tasks.create_task(self.load.run())
            await asyncio.sleep(chance.uniform(*LEAD_SECONDS))
            await fault.make(self)
            recovery_seconds = await self._recovered()
            for machine in self.world.machines:
                await self.watch(machine)
            await asyncio.sleep(TAIL_SECONDS)
            for watched in list(self.watched):
                await self.revoke(watched)
            self.load.stopped = True
            await loading
        settle_seconds = await self._settled()
        await self._use_up(self.limited)
        await self._settled()
        await self._check()
        self._check_revocations()
        result = Result(
            fault=fault.name,
            seed=self.seed,
            code=self.world.code,
            at=time.time(),
            calls=verdict.calls,
            whole=verdict.whole,
            tallied=verdict.tallied,
            rows=verdict.rows,
            interrupted=verdict.interrupted,
            kills=len(self.world.kills) - kills_before,
            killed=self.world.killed - killed_before,
            killed_at_rest=self.killed_at_rest,
            faulty=verdict.faulty,
            explained=verdict.explained,
            revocations=self._held(is_cut_off=False),
            cut_off=self._held(is_cut_off=True),
            receipts=self._receipts(),
            notes=self.notes,
            recovery_seconds=round(recovery_seconds, 3),
            settle_seconds=round(settle_seconds, 3),
        )
        self.world.forget(self.load.prefix)
        return result

    # --------------------------------------------------------------------- what faults may do

    async def last(self, least: float, most: float) -> None:
        """Let the fault last for a random time of so many seconds."""
        await asyncio.sleep(self.chance.uniform(least, most))

    def victim(self) -> Machine:
        """Return a random machine."""
        return self.chance.choice(self.world.machines)

    def note(self, what: str) -> None:
        """Keep a figure that is to be told with the result."""
        self.notes.append(what)

    async def watch(
        self, machine: Machine, *, token: Token | None = None, model: str = ENDLESS_MODEL
    ) -> Watched:
        """Open an endless stream on a machine, with a token that will be revoked: its own one."""
        token = token or await self.world.token()
        begun = asyncio.Event()
        task = self._tasks.create_task(
            self.load.one(
                machine=machine,
                token=token,
                model=model,
                wire=self.chance.choice(FORMATS),
                stream=True,
                begun=begun,
                seconds=600,
            )
        )
        watched = Watched(machine=machine, token=token, task=task, begun=begun)
        self.watched.append(watched)
        async with asyncio.timeout(BEGIN_SECONDS_MAX):
            await begun.wait()
        return watched

    async def revoke(self, watched: Watched) -> None:
        """Revoke the token of a stream, once; wait for the stream's end where it must come soon."""
        if watched.committed_at is not None:
            return
        receipt = await self.world.revoke(watched.token)
        watched.note(receipt, database_ahead=self.world.database_ahead)
        if not watched.is_cut_off:
            await asyncio.wait([watched.task], timeout=END_SECONDS_MAX)

    # ------------------------------------------------------------------------- what comes after

    async def _recovered(self) -> float:
        """Return how long it takes until every machine is ready and takes calls."""
        began = time.monotonic()
        limit = self.fault.recovery_seconds_max
        try:
            async with asyncio.timeout(max(limit, SETTLE_SECONDS_MAX)):
                for machine in self.world.machines:
                    while not await self._takes_calls(machine):  # noqa: ASYNC110
                        await asyncio.sleep(RECOVERY_LOOK_SECONDS)
        except TimeoutError:
            told = [await machine.readiness() for machine in self.world.machines]
            last = [(one.machine, one.status) for one in self.load.sent if one.ended][-10:]
            self.verdict.blame("unrecovered", 1, f"takes no calls: {told}, {last}")
        took = time.monotonic() - began
        self.verdict.blame("unrecovered", took > limit, f"calls are taken after {took:.1f} s")
        return took

    async def _takes_calls(self, machine: Machine) -> bool:
        sent = await self.load.one(machine=machine, token=self.free)
        return sent.is_whole and await machine.is_ready()

    async def _settled(self) -> float:
        """Wait until every row is in the ledger and every journal finished; return how long."""
        began = time.monotonic()
        since = time.time() + self.world.database_ahead + SETTLED_AFTER_SECONDS
        try:
            async with asyncio.timeout(2 * SETTLE_SECONDS_MAX), self.world.owner() as owner:
                while True:
                    behind = await owner.fetchval(LOOK_AT_WORKERS, since)
                    if not behind and await self._all_recovered():
                        break
                    await asyncio.sleep(SETTLE_LOOK_SECONDS)
        except TimeoutError:
            self.verdict.blame("unrecovered", 1, "journals are not shipped and finished")
        took = time.monotonic() - began
        self.verdict.blame("unrecovered", took > SETTLE_SECONDS_MAX, f"settled after {took:.1f} s")
        return took

    async def _all_recovered(self) -> bool:
        return all([await machine.has_recovered() for machine in self.world.machines])

    async def _use_up(self, token: Token) -> None:
        """Take what is left of a limit, from every machine in turn, until all of them refuse."""
        machines = itertools.cycle(self.world.machines)
        in_turn = len(self.world.machines)
        refusals = 0
        for _ in range(TRIES_MAX):
            sent = await self.load.one(machine=next(machines), token=token)
            if sent.status == 429:
                refusals += 1
                if refusals == 2 * in_turn:
                    return
                if refusals == in_turn:
                    await asyncio.sleep(SPENT_SECONDS)
            else:
                refusals = 0
        self.verdict.blame("odd", 1, f"a limit of {token.limit} does not end")

    async def _check(self) -> None:
        tokens = [self.free, self.limited, *(watched.token for watched in self.watched)]
        await self.world.recall(self.limited)
        async with self.world.owner() as owner:
            used = await self._used(owner, self.limited)
            ids = [token.id for token in tokens]
            rows: list[Row] = [dict(row) for row in await owner.fetch(READ_ROWS, ids)]
            sums = await owner.fetchrow(READ_SUMS, ids)
            rejected = await owner.fetchval("SELECT count(*) FROM ledger_rejected")
        assert sums is not None
        self.verdict.blame("rejected", rejected, "rows were put aside")
        tallied = self.world.tallied(self.load.prefix + "/")
        checker.check_metering(
            self.verdict,
            sent=self.load.sent,
            tallied=tallied,
            rows=rows,
            kills={machine.name: machine.kills for machine in self.world.machines},
            vendor_fails=self.fault.vendor_fails,
            revoked={
                watched.token.id: watched.committed_at
                for watched in self.watched
                if watched.committed_at is not None
            },
        )
        final = checker.settled_rows(rows)
        counted = sum(row["counted"] for row in final)
        off = abs(sums["calls"] - len(final)) + abs(sums["counted"] - counted)
        self.verdict.blame("missummed", off, f"{dict(sums)} for {len(final)} rows")
        mine = [row for row in final if row["token_id"] == self.limited.id]
        for month in sorted(used):
            counted = [row for row in mine if row["month"] == month and row["counted"]]
            sessions = {row["session_id"] for row in counted}
            checker.check_limit(
                self.verdict,
                self.limited,
                counted=len(counted),
                tallied=sum(len(tallied.get(session, ())) for session in sessions),
                used=used[month],
                is_over=month != max(used),
                burned=self.fault.burns_blocks,
            )
        outside = sum(row["counted"] for row in mine if row["month"] not in used)
        self.verdict.blame("unsettled", outside, "counted in a month of which no block is")

    async def _used(self, owner: asyncpg.Connection, token: Token) -> dict[date, int]:
        """Return the units of a token's blocks by month, once all of them are settled."""
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while True:
            months = await owner.fetch(READ_BLOCKS, token.id)
            settled = all(month["settled"] for month in months)
            if settled or time.monotonic() > deadline:
                break
            await asyncio.sleep(SETTLE_LOOK_SECONDS)
        self.verdict.blame("unrecovered", not settled, "blocks are not settled")
        self.verdict.blame("unusable", 0 if months else token.limit or 0, "no block was granted")
        return {month["month"]: int(month["used"]) for month in months}

    def _check_revocations(self) -> None:
        bound = self.fault.revocation_seconds_max
        for seconds in self._held(is_cut_off=False):
            self.verdict.blame("late", seconds > bound, f"a stream ran on for {seconds:.2f} s")
        for watched in self.watched:
            self.verdict.blame("stuck", watched.task.result().stuck, watched.machine.name)

    def _held(self, *, is_cut_off: bool) -> list[float]:
        held = [w.held_seconds for w in self.watched if w.is_cut_off is is_cut_off]
        return [round(seconds, 4) for seconds in held if seconds is not None]

    def _receipts(self) -> list[float]:
        """Return how long receipts took whose workers were all live, a token once."""
        of_token = {w.token.id: w.receipt_seconds for w in self.watched}
        cut_off = {w.token.id for w in self.watched if w.is_cut_off}
        return [round(s, 4) for token_id, s in of_token.items() if token_id not in cut_off]
