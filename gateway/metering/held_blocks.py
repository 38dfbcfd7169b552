"""The blocks that a worker holds: units of monthly limits, taken in memory, without a wait.

A subject has at most two blocks here: the one that calls take from, and a spare that was fetched
before that is used up. A block leaves for `returned`, whose owner settles it with the database;
from then on nobody takes from it, so that what it used is final.

A block belongs to a month. It is used while the database's clock is surely in that month.
"""

from collections.abc import Callable, Iterable
from typing import Final

from gateway.clock import DatabaseClock, DatabaseTimeUnknown

Subject = tuple[str, str]  # kind and id of what a limit is on
Limits = tuple[Subject, ...]

WANT_MIN: Final = 8  # units: a quiet token asks the database for one call in 8
WANT_MAX: Final = 512
BUSY_SECONDS: Final = 60.0  # a block that is used up sooner makes the next one twice as large
LOW_SHARE: Final = 4  # a quarter of a block is left: time to fetch a spare

_NEVER_SWEPT: Final = -1


class Block:
    """Units of one subject's month."""

    __slots__ = (
        "amount",
        "begins",
        "ends",
        "id",
        "ids",
        "left",
        "left_at_sweep",
        "low",
        "since",
        "subject",
    )

    def __init__(
        self, block_id: str, subject: Subject, *, amount: int, begins: float, ends: float
    ) -> None:
        """`block_id` is empty for units that nobody counts; the month is in Unix seconds."""
        self.id = block_id
        self.ids = (block_id,) if block_id else ()
        self.subject = subject
        self.amount = amount
        self.begins = begins
        self.ends = ends
        self.left = amount
        self.low = amount // LOW_SHARE
        self.left_at_sweep = _NEVER_SWEPT
        self.since = 0.0

    @property
    def used(self) -> int:
        """How many units were taken."""
        return self.amount - self.left


class HeldBlocks:
    """Takes units off every limit of a call in one step, or off none."""

    def __init__(
        self,
        *,
        clock: DatabaseClock,
        now: Callable[[], float],
        on_low: Callable[[Subject], None],
    ) -> None:
        """`now` gives the loop's seconds; `on_low` hears of a subject that is nearly used up."""
        self._clock = clock
        self._now = now
        self._on_low = on_low
        self._blocks: dict[Subject, Block] = {}  # each has a unit left
        self._spares: dict[Subject, Block] = {}
        self._wants: dict[Subject, int] = {}
        self._closed = False
        self.returned: dict[str, Block] = {}

    def take(self, limits: Limits) -> tuple[str, ...] | None:
        """Take one unit off each; return the blocks they came from, None if a unit is not here."""
        if not limits:
            return ()
        blocks = self._blocks
        try:
            latest = self._clock.latest()
        except DatabaseTimeUnknown:
            return None
        if len(limits) == 1:
            block = blocks.get(limits[0])
            if block is None or latest >= block.ends:
                return None
            block.left = left = block.left - 1
            if not left or left == block.low:
                self._drawn_down(block)
            return block.ids
        chosen = []
        for subject in limits:
            block = blocks.get(subject)
            if block is None or latest >= block.ends:
                return None
            chosen.append(block)
        ids: tuple[str, ...] = ()
        for block in chosen:
            block.left = left = block.left - 1
            if not left or left == block.low:
                self._drawn_down(block)
            ids += block.ids
        return ids

    def _drawn_down(self, block: Block) -> None:
        subject = block.subject
        if block.left:
            if subject not in self._spares:
                self._on_low(subject)
            return
        spare = self._spares.pop(subject, None)
        if spare is None:
            del self._blocks[subject]
        else:
            spare.since = self._now()
            self._blocks[subject] = spare
        if self._now() - block.since < BUSY_SECONDS:
            self._wants[subject] = min(WANT_MAX, max(2 * block.amount, self.want(subject)))
        self.give_back(block)

    def put_back(self, limits: Limits, block_ids: tuple[str, ...]) -> None:
        """Undo a `take` of this very step of the loop: its call goes nowhere."""
        for subject in limits:
            block = self._blocks.get(subject)
            if block is not None and block.id in block_ids:
                block.left += 1
        for block_id in block_ids:
            block = self.returned.get(block_id)
            if block is not None:
                block.left += 1

    def lacks(self, subject: Subject) -> bool:
        """Whether no unit of this subject can be taken now."""
        block = self._blocks.get(subject)
        return block is None or self._clock.latest() >= block.ends

    def want(self, subject: Subject) -> int:
        """How many units the next block of this subject should have."""
        return self._wants.get(subject, WANT_MIN)

    def add(self, block: Block) -> None:
        """Hold a block; one too many, or of a month that it is not surely now, goes back."""
        clock, subject = self._clock, block.subject
        if (
            self._closed
            or not clock.is_known
            or clock.latest() >= block.ends
            or clock.earliest() < block.begins
        ):
            self.give_back(block)
            return
        held = self._blocks.get(subject)
        if held is not None and held.ends < block.ends:
            self.release(subject)
            held = None
        if held is None:
            block.since = self._now()
            self._blocks[subject] = block
        elif subject in self._spares:
            self.give_back(block)
        else:
            self._spares[subject] = block

    def give_back(self, block: Block) -> None:
        """Return a block that is not held here, or not any longer."""
        if block.id:
            self.returned[block.id] = block

    def release(self, subject: Subject) -> None:
        """Return what is held of a subject."""
        for held in (self._blocks, self._spares):
            block = held.pop(subject, None)
            if block is not None:
                self.give_back(block)

    def release_all(self) -> None:
        """Return everything that is held."""
        for subject in list(self._blocks):
            self.release(subject)

    def subjects(self) -> list[Subject]:
        """Return of whom anything is remembered."""
        return list(self._blocks.keys() | self._wants.keys())

    def sweep(self, subjects: Iterable[Subject]) -> None:
        """Return blocks from which nothing was taken since the last sweep, and of past months."""
        latest = self._clock.latest()
        for subject in subjects:
            block = self._blocks.get(subject)
            if block is not None and latest < block.ends and block.left != block.left_at_sweep:
                block.left_at_sweep = block.left
                continue
            self.release(subject)
            want = self.want(subject) // 2
            if want > WANT_MIN:
                self._wants[subject] = want
            else:
                self._wants.pop(subject, None)

    def close(self) -> None:
        """Return everything, now and whatever comes later."""
        self._closed = True
        self.release_all()
