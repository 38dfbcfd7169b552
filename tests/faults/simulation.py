"""Workers that die at any moment, in one process: journal, ledger and allowances as they are.

Time, disk and database are simulated. Each step that a worker's disk or database takes is a moment
at which it may die: before it, after it, or in the middle of a line. At each of them a copy of its
journal is read as recovery would read it and held against what the worker has done; and now and
then it does die, and the next worker finishes what it left, and may die over that too.
"""

import asyncio
import contextlib
import itertools
import os
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from gateway.clock import DatabaseClock
from gateway.errors import DatabaseAway, Draining, JournalFull, MonthlyLimitReached
from gateway.ids import IdMaker
from gateway.metering.allowance import Allowances
from gateway.metering.allowance_store import BlockAsk, BlockGrant
from gateway.metering.journal import Journal
from gateway.metering.journal_files import LOCK_NAME, SEGMENT_SUFFIX, Files
from gateway.metering.journal_recovery import orphans
from gateway.metering.ledger import Ledger, LedgerAway
from tests.faults.model_database import NOW, Line, ModelDatabase, Subject

BOOT: Final = "boot"
CALLERS: Final = 3  # of each worker
RECOVERY_SECONDS: Final = 0.5
LATE_SECONDS_MAX: Final = 3.0
CALL_SECONDS_MAX: Final = 0.4
NOTED_SHARE: Final = 0.4
ROW_BYTES_MAX: Final = 7000
STEPS_OF_LIFE: Final = 90  # of disk and database, on average
STEPS_OF_THE_LAST: Final = 10**9
LAST_SECONDS: Final = 15.0  # for the last worker to finish all journals that are left
FULL_SHARE: Final = 0.02  # of attempts to make a file


# What recovery may make of a call, by how far its record is.
MAY_BE: Final[dict[str, set[str | None]]] = {
    "opening": {None, "interrupted"},
    "open": {"interrupted"},
    "noting": {"interrupted", "complete"},
    "noted": {"complete", "interrupted"},  # a note is written only where there is room
    "closing": {"interrupted", "complete"},
    "closed": {"complete"},
}


class Killed(BaseException):
    """The process is gone. Not an Exception: nothing in it handles that."""


@dataclass(kw_only=True)
class Call:
    """What the simulated vendor knows of a call, and how far its record is."""

    id: str
    blocks: tuple[str, ...]
    state: str = "opening"  # opening, open, noting, noted, closing, closed
    counted: bool = True


class Disk(Files):
    """A worker's disk: real files, and a step before and after each thing that it does."""

    def __init__(self, step: Callable[[str], None], chance: random.Random) -> None:
        self._step = step
        self._chance = chance

    def create(self, path: Path, size: int) -> int:
        self._step("create")
        if self._chance.random() < FULL_SHARE:
            raise OSError(28, "no room")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, size)
        self._step("created")
        return fd

    def free_bytes(self, folder: Path) -> int:
        return 0  # so that segments are small

    def write(self, fd: int, data: bytes, offset: int) -> int:
        self._step("write")
        part = self._chance.randrange(len(data))
        super().write(fd, data[:part], offset)
        self._step("written in part")
        written = super().write(fd, data, offset)
        self._step("written")
        return written

    def sync(self, fd: int) -> None:
        self._step("sync")


@dataclass(kw_only=True)
class Problem(AssertionError):
    """What did not hold, and at which step."""

    what: str
    about: Any = None

    def __str__(self) -> str:
        return f"{self.what}: {self.about}"


class SimulatedWorker:
    """One life of a worker."""

    def __init__(self, simulation: "Simulation", *, steps: int) -> None:
        self.simulation = simulation
        self.id = simulation.ids.new()
        self.is_dead = False
        self.calls: dict[str, Call] = {}
        self.units: Counter[str] = Counter()  # by block
        self.asked: dict[str, bool] = {}  # block ids; whether a grant may be yet to come
        self._steps_left = steps
        loop = asyncio.get_running_loop()
        clock = DatabaseClock(boottime=loop.time)
        clock.observe(sent=loop.time(), received=loop.time(), database_time=NOW)
        self.chance = random.Random(simulation.chance.random())
        self.line = Line(chance=self.chance)
        self.journal = Journal.create(
            simulation.root,
            worker_id=self.id,
            boot_id=BOOT,
            files=Disk(self.step, self.chance),
            now=lambda: NOW + loop.time(),
            monotonic=loop.time,
            keep_bytes=0,
        )
        self.allowances = Allowances(
            store=self,
            worker_id=self.id,
            log=self.journal,
            clock=clock,
            new_id=simulation.ids.new,
            now=loop.time,
        )
        self.ledger = Ledger(self, jitter=self.chance.random)  # type: ignore[arg-type]

    # ------------------------------------------------------------------------------- its steps

    def step(self, what: str) -> None:
        """Look at what recovery would find now; die, where it is time. Raises Killed."""
        if self.is_dead:
            raise Killed
        self.simulation.look(self, what)
        self._steps_left -= 1
        if self._steps_left <= 0:
            self.is_dead = True
            raise Killed

    async def live(self) -> None:
        """Run until it dies, or is cancelled."""
        self.simulation.recalls[self.id] = self.allowances.recall
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.journal.run())
                tasks.create_task(self.ledger.run(self.journal))
                tasks.create_task(self.allowances.run())
                tasks.create_task(self._recover())
                for _ in range(CALLERS):
                    tasks.create_task(self._call_again_and_again())
        except* Killed:
            self.simulation.kills += 1
        finally:
            self.is_dead = True
            del self.simulation.recalls[self.id]
            self._let_go()

    def _let_go(self) -> None:
        """Do what the kernel does for a process that is gone."""
        for segment in self.journal._segments.live.values():
            segment.close()
        for _, fd, _ in self.journal._segments._spares:
            os.close(fd)
        os.close(self.journal._lock)

    # ------------------------------------------------------------------------------- its calls

    async def _call_again_and_again(self) -> None:
        simulation = self.simulation
        subjects = list(simulation.database.limits)
        while not simulation.is_ending:
            await asyncio.sleep(self.chance.uniform(0, 0.05))
            number = 1 if self.chance.random() < 0.7 else len(subjects)
            with contextlib.suppress(DatabaseAway, Draining, JournalFull, MonthlyLimitReached):
                await self._call(tuple(self.chance.sample(subjects, number)))

    async def _call(self, limits: tuple[Subject, ...]) -> None:
        while (blocks := self.allowances.take(limits)) is None:
            await self.allowances.refill(limits)
        call = Call(id=self.simulation.ids.new(), blocks=blocks)
        self.calls[call.id] = call
        try:
            self.journal.open_call(call.id, self._row(call), admitted=NOW, block_ids=blocks)
        except JournalFull:
            self.allowances.put_back(limits, blocks)
            del self.calls[call.id]
            raise
        call.state = "open"
        for block_id in blocks:
            self.units[block_id] += 1
        await asyncio.sleep(self.chance.uniform(0, CALL_SECONDS_MAX))
        if self.chance.random() < NOTED_SHARE:
            call.state = "noting"
            self.journal.note_end(call.id, self._row(call, status="complete", note=True))
            call.state = "noted"
            await asyncio.sleep(self.chance.uniform(0, 0.05))
        call.state = "closing"
        self.journal.close_call(call.id, self._row(call, status="complete"))
        call.state = "closed"

    def _row(self, call: Call, **more: Any) -> bytes:
        pad = "p" * self.chance.randrange(ROW_BYTES_MAX)
        return orjson.dumps({"id": call.id, "blocks": call.blocks, **more, "pad": pad})

    # ----------------------------------------------------------- the database, as the parts see it

    async def grant(
        self, worker_id: str, asks: Sequence[BlockAsk], *, may_recall: bool
    ) -> list[BlockGrant]:
        ids = [ask.block_id for ask in asks]
        self.asked.update(dict.fromkeys(ids, True))

        def grant() -> list[BlockGrant]:
            self.asked.update(dict.fromkeys(ids, False))
            return self.simulation.database.grant(worker_id, asks, may_recall=may_recall)

        granted: list[BlockGrant] = await self._ask(grant, DatabaseAway)
        return granted

    async def settle(self, block_ids: Sequence[str], used: Sequence[int | None]) -> None:
        await self._ask(lambda: self.simulation.database.settle(block_ids, used), DatabaseAway)

    @contextlib.asynccontextmanager
    async def acquire(self, *, timeout: float) -> AsyncIterator["SimulatedWorker"]:  # noqa: ASYNC109
        yield self

    async def fetchrow(self, query: str, text: str) -> dict[str, int]:
        assert "ledger_append" in query
        inserted = await self._ask(lambda: self.simulation.database.append(text), OSError)
        return {"inserted": inserted}

    async def _ask(self, act: Callable[[], Any], away: type[Exception]) -> Any:
        await asyncio.sleep(self.chance.uniform(0, 0.01))
        self.step("ask")
        match self.line.fate():
            case "away":
                raise away
            case "lost":
                act()
                self.step("done, unheard")
                raise away
            case "late":
                seconds = self.chance.uniform(0, LATE_SECONDS_MAX)
                asyncio.get_running_loop().call_later(seconds, act)
                raise away
        done = act()
        self.step("done")
        await asyncio.sleep(self.chance.uniform(0, 0.01))
        self.step("heard")
        return done

    # ------------------------------------------------------------------------------ its recoveries

    async def _recover(self) -> None:
        while True:
            with contextlib.suppress(LedgerAway, DatabaseAway):
                await self.ledger.recover(
                    orphans(self.simulation.root, boot_id=BOOT),
                    settle=self.settle,
                    end_worker=self._end_worker,
                    keep_in=self.journal,
                )
            await asyncio.sleep(RECOVERY_SECONDS)

    async def _end_worker(self, worker_id: str) -> None:
        self.step("end worker")


@dataclass(kw_only=True)
class Simulation:
    """Some workers on one disk and one database, from a seed."""

    root: Path
    seed: int
    looks_max: int
    workers: int = 2
    looks: int = 0
    kills: int = 0
    is_ending: bool = False
    lives: list[SimulatedWorker] = field(default_factory=list)
    recalls: dict[str, Callable[[str, str], None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.ids = IdMaker(lambda: NOW)
        self._living: list[asyncio.Task[None]] = []
        self.database = ModelDatabase(
            limits={
                ("token", "a"): self.chance.choice((1, 7, 40, 200, 10**6)),
                ("org", "b"): self.chance.choice((30, 150, 10**6)),
            },
            on_recall=self._recall,
        )

    async def run(self) -> None:
        """Run until it has looked often enough; then let all settle, and check what is left."""
        async with asyncio.TaskGroup() as self._tasks:
            for _ in range(self.workers):
                self._tasks.create_task(self._keep_a_worker())
        await asyncio.sleep(2 * LATE_SECONDS_MAX)  # what is late has arrived
        async with asyncio.TaskGroup() as self._tasks:
            last = SimulatedWorker(self, steps=STEPS_OF_THE_LAST)
            self.lives.append(last)
            living = self._tasks.create_task(last.live())
            await asyncio.sleep(LAST_SECONDS)
            living.cancel()
        finish(last)
        check_end(self)

    async def _keep_a_worker(self) -> None:
        while not self.is_ending:
            steps = 1 + int(self.chance.expovariate(1 / STEPS_OF_LIFE))
            worker = SimulatedWorker(self, steps=steps)
            self.lives.append(worker)
            living = self._tasks.create_task(worker.live())
            self._living.append(living)
            await asyncio.wait([living])

    def end(self) -> None:
        """Kill every worker."""
        self.is_ending = True
        for living in self._living:
            living.cancel()

    def _recall(self, subject: Subject) -> None:
        loop = asyncio.get_running_loop()
        for recall in list(self.recalls.values()):
            loop.call_later(self.chance.uniform(0, 0.05), recall, *subject)

    def look(self, worker: SimulatedWorker, what: str) -> None:
        """Read a copy of a worker's journal as if it had just died."""
        self.looks += 1
        if self.looks == self.looks_max:
            self.end()
        copies = self.root / ".copies"
        folder = copies / worker.id
        folder.mkdir(parents=True)
        (folder / LOCK_NAME).touch()
        for path in worker.journal.folder.glob(f"*{SEGMENT_SUFFIX}"):
            lines, _, _ = path.read_bytes().partition(b"\0")
            (folder / path.name).write_bytes(lines + b"\0")
        try:
            check_moment(self, worker, copies, what)
        finally:
            shutil.rmtree(copies)


def finish(worker: SimulatedWorker) -> None:
    """The last worker was cancelled, not killed: its journal is read like a dead one's."""
    simulation = worker.simulation
    for orphan in orphans(simulation.root, boot_id=BOOT):
        findings = orphan.read()
        rows = [*itertools.chain(*orphan.batches(rows_max=500, bytes_max=10**6))]
        rows += findings.interrupted
        simulation.database.append((b"[" + b",".join(rows) + b"]").decode())
        simulation.database.settle(list(findings.used), list(findings.used.values()))
        orphan.discard()


def check_moment(simulation: Simulation, worker: SimulatedWorker, root: Path, what: str) -> None:
    """Hold what recovery finds now against what the worker has done. Raises Problem."""
    [orphan] = orphans(root, boot_id=BOOT)
    findings = orphan.read()
    told = [orjson.loads(row) for batch in _batches(orphan) for row in batch]
    orphan.release()
    closed = {row["id"]: row for row in told}
    supposed = {row["id"]: row for row in map(orjson.loads, findings.interrupted)}
    problem = _problem(simulation, worker, what)
    problem("damage", findings.damaged)
    problem("closed and open", set(closed) & set(supposed))
    for call in worker.calls.values():
        row = (
            closed.get(call.id) or supposed.get(call.id) or simulation.database.events.get(call.id)
        )
        status = None if row is None else row["status"]
        allowed = MAY_BE[call.state]
        problem("row", None if status in allowed else (call.id, call.state, status))
    strangers = (set(closed) | set(supposed)) - set(worker.calls)
    problem("rows of nobody", strangers)
    opening = Counter(
        block_id
        for call in worker.calls.values()
        if call.state == "opening" and call.id in supposed
        for block_id in call.blocks
    )
    for block_id, may_come in worker.asked.items():
        block = simulation.database.blocks.get(block_id)
        if not may_come if block is None else block.used is not None:
            continue
        used = findings.used.get(block_id)
        due = worker.units[block_id] + opening[block_id]
        problem("units", None if used == due else (block_id, used, due, block))


def check_end(simulation: Simulation) -> None:
    """Hold ledger, blocks and limits against all calls that there were. Raises Problem."""
    database = simulation.database
    problem = _problem(simulation, None, "end")
    problem("rows that differ", database.doubled)
    calls = {call.id: call for life in simulation.lives for call in life.calls.values()}
    problem("rows of nobody", set(database.events) - set(calls))
    used: Counter[str] = Counter()
    for call in calls.values():
        row = database.events.get(call.id)
        if row is None:
            problem("lost", None if call.state == "opening" else call)
            continue
        complete = row["status"] == "complete"
        problem("judged", None if complete or call.state != "closed" else (call, row["status"]))
        used.update(call.blocks)
    for block_id, block in database.blocks.items():
        due = used.get(block_id, 0)
        problem("settled", None if block.used == due else (block_id, block, due))
    for subject, limit in database.limits.items():
        taken = database.taken.get(subject, 0)
        due = sum(block.used or 0 for block in database.blocks.values() if block.subject == subject)
        problem("taken", None if taken == due else (subject, taken, due))
        problem("over limit", None if taken <= limit else (subject, taken, limit))


def _batches(orphan: Any) -> Iterator[list[bytes]]:
    batches: Iterator[list[bytes]] = orphan.batches(rows_max=500, bytes_max=10**6)
    return batches


def _problem(
    simulation: Simulation, worker: SimulatedWorker | None, what: str
) -> Callable[[str, Any], None]:
    def problem(name: str, about: Any) -> None:
        if about:
            where = f"seed {simulation.seed}, look {simulation.looks}, {what}"
            raise Problem(what=f"{where}: {name}", about=about)

    del worker
    return problem
