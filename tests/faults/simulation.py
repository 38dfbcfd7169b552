"""Workers that die at any moment, in one process, and those who finish what they left.

At each step of a worker's disk and database its journal is read as recovery would read it, and held
against what the worker has done; and now and then it does die, and the next worker finishes what it
left, and may die over that too.
"""

import asyncio
import itertools
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from gateway.ids import IdMaker
from gateway.metering.journal_recovery import Orphan, orphans
from tests.faults.model_database import LATE_SECONDS_MAX, NOW, ModelDatabase, Subject
from tests.faults.simulated_worker import BOOT, SimulatedWorker

STEPS_OF_LIFE: Final = (30, 100, 800)  # of disk and database, on average, in turn
STEPS_OF_THE_LAST: Final = 10**9
LAST_SECONDS: Final = 15.0  # for the last worker to finish all journals that are left

# What recovery may make of a call, by how far its record is.
MAY_BE: Final[dict[str, set[str | None]]] = {
    "opening": {None, "interrupted"},
    "open": {"interrupted"},
    "noting": {"interrupted", "complete"},
    "noted": {"complete", "interrupted"},  # a note is written only where there is room
    "closing": {"interrupted", "complete"},
    "closed": {"complete"},
}


@dataclass(kw_only=True)
class Problem(AssertionError):
    """What did not hold, and at which step."""

    what: str
    about: Any = None

    def __str__(self) -> str:
        return f"{self.what}: {self.about}"


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
        finish(self)
        check_end(self)

    async def _keep_a_worker(self) -> None:
        while not self.is_ending:
            average = self.chance.choice(STEPS_OF_LIFE)
            steps = 1 + int(self.chance.expovariate(1 / average))
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
        """Read a worker's journal as if it had just died."""
        self.looks += 1
        if self.looks == self.looks_max:
            self.end()
        # The lock is the worker's, and stays so: this is another descriptor of it.
        lock = os.dup(worker.journal._lock)
        orphan = Orphan(worker.journal.folder, lock=lock, boot_id=BOOT)
        try:
            check_moment(self, worker, orphan, what)
        finally:
            orphan.release()


def finish(simulation: Simulation) -> None:
    """The last worker was cancelled, not killed: its journal is read like a dead one's."""
    for orphan in orphans(simulation.root, boot_id=BOOT):
        findings = orphan.read()
        rows = [*itertools.chain(*orphan.batches(rows_max=500, bytes_max=10**6))]
        rows += findings.interrupted
        simulation.database.append((b"[" + b",".join(rows) + b"]").decode())
        simulation.database.settle(list(findings.used), list(findings.used.values()))
        orphan.discard()


def check_moment(
    simulation: Simulation, worker: SimulatedWorker, orphan: Orphan, what: str
) -> None:
    """Hold what recovery finds now against what the worker has done. Raises Problem."""
    findings = orphan.read()
    told = [orjson.loads(row) for batch in _batches(orphan) for row in batch]
    closed = {row["id"]: row for row in told}
    supposed = {row["id"]: row for row in map(orjson.loads, findings.interrupted)}
    problem = _problem(simulation, what)
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
    problem = _problem(simulation, "end")
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


def _batches(orphan: Orphan) -> Iterator[list[bytes]]:
    return orphan.batches(rows_max=500, bytes_max=10**6)


def _problem(simulation: Simulation, what: str) -> Callable[[str, Any], None]:
    def problem(name: str, about: Any) -> None:
        if about:
            where = f"seed {simulation.seed}, look {simulation.looks}, {what}"
            raise Problem(what=f"{where}: {name}", about=about)

    return problem
