"""A worker that dies at any moment: journal, ledger and allowances as they are, the rest simulated.

Each step that its disk or its database takes is a moment at which it may die: before it, after it,
or in the middle of a line.
"""

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from gateway.clock import DatabaseClock
from gateway.errors import DatabaseAway, Draining, JournalFull, MonthlyLimitReached
from gateway.ids import IdMaker
from gateway.metering.allowance import Allowances
from gateway.metering.allowance_store import BlockAsk, BlockGrant
from gateway.metering.journal import Journal
from gateway.metering.journal_files import Files
from gateway.metering.journal_recovery import orphans
from gateway.metering.ledger import Ledger, LedgerAway
from tests.faults.model_database import LATE_SECONDS_MAX, NOW, Line, ModelDatabase, Subject

BOOT: Final = "boot"
CALLERS: Final = 3  # of each worker
RECOVERY_SECONDS: Final = 0.5
CALL_SECONDS_MAX: Final = 0.4
NOTED_SHARE: Final = 0.4
ROW_BYTES_MAX: Final = 7000
FULL_SHARE: Final = 0.02  # of attempts to make a file


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


class Surroundings(Protocol):
    """What a worker has around it."""

    root: Path
    chance: random.Random
    ids: IdMaker
    database: ModelDatabase
    recalls: dict[str, Callable[[str, str], None]]
    kills: int
    is_ending: bool

    def look(self, worker: "SimulatedWorker", what: str) -> None:
        """A step is taken."""


class SimulatedWorker:
    """One life of a worker."""

    def __init__(self, simulation: Surroundings, *, steps: int) -> None:
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

    async def fetchrow(
        self, query: str, text: str, _ordinal: int | None, _row_id: str | None
    ) -> dict[str, Any]:
        assert "ledger_append" in query
        inserted = await self._ask(lambda: self.simulation.database.append(text), OSError)
        return {"inserted": inserted, "follows": True, "last_ordinal": 0, "last_id": None}

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
