"""The database's functions as the metering knows them, in memory: allowances and the ledger.

What `control_plane/schema` says in SQL is said again here, so that a simulation can ask it a
million times; `test_crash_points.py` holds the two against each other. Replies get lost, and
requests arrive late, as the seed has it.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Final

from gateway.metering.allowance_store import BlockAsk, BlockGrant

MONTH: Final = date(2026, 11, 1)
RESET: Final = datetime(2026, 12, 1, tzinfo=UTC)
NOW: Final = datetime(2026, 11, 15, tzinfo=UTC).timestamp()
LATE_SECONDS_MAX: Final = 3.0  # between a request and its late arrival
SUPPOSED: Final = frozenset({"interrupted", "unaccounted"})

Subject = tuple[str, str]


@dataclass(kw_only=True)
class Block:
    """A row of `blocks`. A tombstone belongs to nobody."""

    subject: Subject | None
    worker_id: str
    amount: int
    used: int | None = None  # None: not settled


@dataclass(kw_only=True)
class ModelDatabase:
    """One database. `on_recall(subject)` is the notification of `kaixu_recall`."""

    limits: dict[Subject, int]
    on_recall: Callable[[Subject], None] = lambda _: None
    taken: dict[Subject, int] = field(default_factory=dict)
    blocks: dict[str, Block] = field(default_factory=dict)
    events: dict[str, dict[str, Any]] = field(default_factory=dict)  # by id, as they finally are
    doubled: int = 0  # rows that were told twice with different ends, both of them true

    def grant(
        self, worker_id: str, asks: Sequence[BlockAsk], *, may_recall: bool
    ) -> list[BlockGrant]:
        """Do what `grant_blocks` does."""
        return [
            self._grant_one(worker_id, ask, may_recall=may_recall)
            for ask in sorted(asks, key=lambda ask: (ask.kind, ask.subject_id, ask.block_id))
        ]

    def _grant_one(self, worker_id: str, ask: BlockAsk, *, may_recall: bool) -> BlockGrant:
        subject = (ask.kind, ask.subject_id)
        limit = self.limits[subject]
        remaining = max(0, limit - self.taken.setdefault(subject, 0))
        granted = 0
        known = self.blocks.get(ask.block_id)
        if known is not None:
            mine = known.subject == subject and known.worker_id == worker_id
            granted = known.amount if known.used is None and mine else 0
        elif remaining > 0:
            granted = min(max(1, ask.want), max(1, remaining // 8))
            remaining -= granted
            self.blocks[ask.block_id] = Block(subject=subject, worker_id=worker_id, amount=granted)
            self.taken[subject] += granted
        outstanding = granted == 0 and any(
            block.subject == subject and block.used is None and block.worker_id != worker_id
            for block in self.blocks.values()
        )
        if outstanding and may_recall:
            self.on_recall(subject)
        return BlockGrant(
            block_id=ask.block_id,
            kind=ask.kind,
            subject_id=ask.subject_id,
            month=MONTH,
            granted=granted,
            limit=limit,
            remaining=remaining,
            outstanding=outstanding,
            reset_at=RESET,
        )

    def settle(self, block_ids: Sequence[str], used: Sequence[int | None]) -> None:
        """Do what `settle_blocks` does."""
        for block_id, units in zip(block_ids, used, strict=True):
            block = self.blocks.get(block_id)
            if block is None:
                self.blocks[block_id] = Block(subject=None, worker_id="", amount=0, used=0)
            elif block.used is None:
                block.used = max(0, min(block.amount, block.amount if units is None else units))
                assert block.subject is not None
                self.taken[block.subject] -= block.amount - block.used

    def append(self, text: str) -> int:
        """Do what `ledger_append` does, as far as each call's final row goes."""
        new = 0
        for row in sorted(json.loads(text), key=lambda row: row["status"] in SUPPOSED):
            known = self.events.get(row["id"])
            if known is None or (known["status"] in SUPPOSED and row["status"] not in SUPPOSED):
                self.events[row["id"]] = row
                new += 1
            elif row["status"] not in SUPPOSED and row != known:
                self.doubled += 1
        return new


@dataclass(kw_only=True)
class Line:
    """The way to a database: how often what goes wrong, as shares of all requests."""

    chance: random.Random
    away: float = 0.02  # it does not get there
    lost: float = 0.03  # it is done, and nobody hears of it
    late: float = 0.03  # it is given up, and done a while after

    def fate(self) -> str:
        """Return what becomes of one request."""
        drawn = self.chance.random()
        for name in ("away", "lost", "late"):
            drawn -= getattr(self, name)
            if drawn < 0:
                return name
        return "done"
