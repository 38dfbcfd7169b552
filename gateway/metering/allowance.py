"""Monthly limits that hold across workers and machines, without asking anyone on most calls.

A worker takes a call's units from blocks that it holds (`held_blocks.py`): `take` is a step in
memory. When a unit is missing, `refill` fetches a block from the database, which grants never more
than is left. When nothing is left there while other workers hold blocks, these are called back, and
the call waits a moment for them, so that a limit can be used up to its last unit from anywhere.

What a crash must not lose is in the worker's journal: a block's id before the database hears of it,
each unit in the open line of its call, and the block's end once the database has settled it. A unit
counts as used when it is taken; `take` and the open line belong in one step of the loop.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, Protocol

from gateway.clock import DatabaseClock
from gateway.errors import DatabaseAway, Draining, GatewayError, JournalFull, MonthlyLimitReached
from gateway.metering.allowance_store import BlockAsk, BlockGrant
from gateway.metering.held_blocks import Block, HeldBlocks, Limits, Subject

FIRST_BLOCKS: Final = (
    5  # allowances that one caller can draw on: token, parent, user, workspace, org
)
RECALL_SECONDS_MAX: Final = 0.25  # that a call waits for units which other workers hold
RECALL_PAUSES_SECONDS: Final = (0.005, 0.01, 0.02, 0.04)  # between two looks; the last one stays
REFILL_SECONDS_MAX: Final = 5.0  # that a call waits in all while others take what it fetched
SPARE_GATHER_SECONDS: Final = 0.05  # that blocks which run low wait for others
SPARES_MAX: Final = 64  # fetched by one statement
SPENT_SECONDS: Final = 1.0  # that a spent month is refused from memory
UNLIMITED_SECONDS: Final = 1.0  # that a caller may be out of date who lists a limit that is gone
SETTLE_SECONDS: Final = 1.0  # that used-up blocks gather before they are settled
SETTLE_RETRY_SECONDS: Final = 0.25  # while the database is away
SETTLE_BLOCKS_MAX: Final = 256  # in one statement
LOST_BLOCKS_MAX: Final = 1024  # not known to be granted; then the database counts as away
SWEEP_SECONDS: Final = 30.0  # a block that sees no call for this long, at most twice, goes back
SWEEP_SUBJECTS_MAX: Final = 1000  # in one step of the loop
CLOSE_SECONDS_MAX: Final = 5.0  # then blocks are left to the recovery of the journal

_UNKNOWN_SUBJECT: Final[Subject] = ("", "")


class BlockLog(Protocol):
    """Where block ids are recorded before the database hears of them; a journal."""

    def block_asked(self, block_ids: Sequence[str]) -> None:
        """These blocks may be granted from now on. Raises JournalFull."""

    def block_settled(self, block_ids: Sequence[str]) -> None:
        """These blocks are settled, or were never granted and never will be."""


class BlockStore(Protocol):
    """The database's side; see `allowance_store.AllowanceStore`."""

    async def grant(
        self, worker_id: str, asks: Sequence[BlockAsk], *, may_recall: bool
    ) -> list[BlockGrant]:
        """Ask for blocks. Raises DatabaseAway."""

    async def settle(self, block_ids: Sequence[str], used: Sequence[int | None]) -> None:
        """Hand blocks back. Raises DatabaseAway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """A month that is used up, and until when we say so without asking again."""

    until: float  # loop's seconds
    limit: int
    resets: float  # Unix seconds


class Allowances:
    """One worker's share of every monthly limit."""

    def __init__(
        self,
        *,
        store: BlockStore,
        worker_id: str,
        log: BlockLog,
        clock: DatabaseClock,
        new_id: Callable[[], str],
        now: Callable[[], float],
    ) -> None:
        """`new_id` makes block ids (UUIDv7), `now` gives the loop's seconds."""
        self._store = store
        self._worker_id = worker_id
        self._log = log
        self._clock = clock
        self._new_id = new_id
        self._now = now
        self._held = HeldBlocks(clock=clock, now=now, on_low=self._fetch_spare)
        self.take = self._held.take
        self.put_back = self._held.put_back
        self._spent: dict[Subject, Spent] = {}
        self._flights: dict[Subject, asyncio.Future[type[GatewayError] | None]] = {}
        self._lost: dict[str, Subject] = {}  # blocks that may have been granted, or may be yet
        self._prepared: dict[str, int] = {}  # by id: how many limits had changed by then
        self._limit_changes = 0
        self._outdated: set[Subject] = set()  # in flight, limit changed since it was asked for
        self._closed = False
        self._group: asyncio.TaskGroup | None = None
        self._low: dict[Subject, None] = {}  # to fetch a spare for
        self._low_soon = asyncio.Event()
        self._settle_soon = asyncio.Event()
        self._settling = asyncio.Lock()

    @property
    def unsettled(self) -> int:
        """How many blocks wait to be settled."""
        return len(self._held.returned)

    # What calls ask.

    def known_spent(self, limits: Limits) -> None:
        """Raise MonthlyLimitReached if a limit was found used up a moment ago."""
        if not self._spent:
            return
        for subject in limits:
            spent = self._spent.get(subject)
            if spent is None:
                continue
            if self._now() < spent.until and self._clock.earliest() < spent.resets:
                raise self._limit_reached(subject[0], spent)
            del self._spent[subject]

    def _limit_reached(self, kind: str, spent: Spent) -> MonthlyLimitReached:
        reset = datetime.fromtimestamp(spent.resets, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        error = MonthlyLimitReached(
            f"The limit of this {kind}, {spent.limit} calls a month, is reached. "
            f"A new month begins at {reset}.",
            headers={
                "x-kaixu-limit": str(spent.limit),
                "x-kaixu-remaining": "0",
                "x-kaixu-reset": reset,
                "retry-after": str(max(1, math.ceil(spent.resets - self._clock.earliest()))),
            },
        )
        error.limit_kind = kind
        return error

    async def refill(self, limits: Limits) -> None:
        """Fetch what `take` was missing; return when it is worth trying again.

        Another call may be faster to take it, so this belongs into a loop around `take`. Raises
        MonthlyLimitReached, DatabaseAway, JournalFull, Draining.
        """
        give_up_at = self._now() + REFILL_SECONDS_MAX
        while True:
            self.known_spent(limits)
            self._refuse_when_away()
            if not self._clock.is_known or self._now() >= give_up_at:
                raise DatabaseAway
            lacking = [subject for subject in limits if self._held.lacks(subject)]
            if not lacking:
                return
            self._fetch([subject for subject in lacking if subject not in self._flights])
            for flight in [self._flights[subject] for subject in lacking]:
                # A caller who leaves must not take the block from those who wait with it.
                error = await asyncio.shield(flight)
                if error is not None:
                    raise error

    def _refuse_when_away(self) -> None:
        """Stop asking when too many answers are missing: each must be settled one day."""
        if len(self._lost) >= LOST_BLOCKS_MAX:
            raise DatabaseAway

    # First blocks, which come with the lookup of a token.

    def prepare(self) -> list[str]:
        """Return block ids for the allowances of a caller who is being looked up.

        Each ends in `adopt` or `forget`. Raises JournalFull, DatabaseAway.
        """
        self._refuse_when_away()
        block_ids = [self._new_id() for _ in range(FIRST_BLOCKS)]
        self._log.block_asked(block_ids)
        self._prepared.update(dict.fromkeys(block_ids, self._limit_changes))
        return block_ids

    def adopt(self, rows: Iterable[Mapping[str, Any]], *, asked: Sequence[str]) -> None:
        """Hold what a lookup brought that was `asked` with these ids.

        `rows` are those of the SQL function `grant_blocks`, none where there are no limits.
        """
        grants = [BlockGrant.from_row(row) for row in rows]
        outdated: set[Subject] = set()
        if any(self._prepared.pop(block_id) != self._limit_changes for block_id in asked):
            outdated = {(grant.kind, grant.subject_id) for grant in grants}
        self._take_in(grants, asked, outdated=outdated)

    def forget(self, block_ids: Sequence[str]) -> None:
        """Settle prepared ids whose lookup failed: the database may have granted them, or may yet.

        Ids that were adopted are left alone.
        """
        lost = [
            block_id for block_id in block_ids if self._prepared.pop(block_id, None) is not None
        ]
        self._lose((block_id, _UNKNOWN_SUBJECT) for block_id in lost)

    # What the feed tells.

    def recall(self, kind: str, subject_id: str) -> None:
        """Hand back what is held of a subject; someone needs it."""
        self._held.release((kind, subject_id))
        self._settle_soon.set()

    def forget_spent(self, kind: str, subject_id: str) -> None:
        """Ask the database again: this limit has changed. Answers under way are out of date."""
        subject = (kind, subject_id)
        self._limit_changes += 1
        if subject in self._flights:
            self._outdated.add(subject)
        self._spent.pop(subject, None)

    def reset(self) -> None:
        """Hand everything back: the database is not the one that granted it.

        What that one granted and this one does not know becomes a tombstone.
        """
        self._limit_changes += 1
        self._outdated.update(self._flights)
        self._spent.clear()
        self._held.release_all()
        self._settle_soon.set()

    # Background.

    async def run(self) -> None:
        """Fetch, settle and sweep until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                try:
                    group.create_task(self._settle_loop())
                    group.create_task(self._spare_loop())
                    await self._sweep_loop()
                finally:
                    self._group = None
        finally:
            for subject in list(self._flights):
                self._land(subject, Draining)

    async def close(self) -> None:
        """Hand everything back; what the database does not confirm in time is the journal's."""
        self._closed = True
        self._held.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                if self._flights:
                    await asyncio.wait(list(self._flights.values()))
                while self._held.returned:
                    if not await self._settle_some():
                        await asyncio.sleep(SETTLE_RETRY_SECONDS)

    async def _settle_loop(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    await self._settle_soon.wait()
            self._settle_soon.clear()
            while self._held.returned:
                if not await self._settle_some():
                    await asyncio.sleep(SETTLE_RETRY_SECONDS)

    async def _settle_some(self) -> bool:
        """Settle some of what was returned; False while the database is away."""
        async with self._settling:
            batch = list(islice(self._held.returned.values(), SETTLE_BLOCKS_MAX))
            block_ids = [block.id for block in batch]
            try:
                await self._store.settle(block_ids, [block.used for block in batch])
            except DatabaseAway:
                return False
            for block in batch:
                del self._held.returned[block.id]
                self._lost.pop(block.id, None)
            self._log.block_settled(block_ids)
            return True

    async def _sweep_loop(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = self._now()
            for subject in [subject for subject, spent in self._spent.items() if spent.until < now]:
                del self._spent[subject]
            subjects = self._held.subjects()
            for at in range(0, len(subjects), SWEEP_SUBJECTS_MAX):
                if self._clock.is_known:
                    self._held.sweep(subjects[at : at + SWEEP_SUBJECTS_MAX])
                await asyncio.sleep(0)

    # Fetching blocks. A flight is one subject's fetch: all calls that need it wait for the same.

    def _fetch_spare(self, subject: Subject) -> None:
        if subject not in self._flights:
            self._low[subject] = None
            self._low_soon.set()

    async def _spare_loop(self) -> None:
        """Fetch spares, several by one statement: nobody waits for them yet."""
        while True:
            await self._low_soon.wait()
            await asyncio.sleep(SPARE_GATHER_SECONDS)
            subjects = list(islice(self._low, SPARES_MAX))
            for subject in subjects:
                del self._low[subject]
            if not self._low:
                self._low_soon.clear()
            if subjects and not self._closed:
                self._start(subjects)
                await self._fly(subjects, needed=False)

    def _fetch(self, subjects: list[Subject]) -> None:
        if not subjects:
            return
        if self._group is None or self._closed:
            raise Draining
        self._start(subjects)
        self._group.create_task(self._fly(subjects, needed=True))

    def _start(self, subjects: list[Subject]) -> None:
        loop = asyncio.get_running_loop()
        for subject in subjects:
            self._low.pop(subject, None)
            self._flights[subject] = loop.create_future()

    def _land(self, subject: Subject, error: type[GatewayError] | None = None) -> None:
        self._outdated.discard(subject)
        self._flights.pop(subject).set_result(error)

    async def _fly(self, subjects: list[Subject], *, needed: bool) -> None:
        error: type[GatewayError] = Draining
        flying = set(subjects)
        try:
            await self._fetch_until_known(flying, needed=needed)
            if not self._closed:
                error = DatabaseAway  # no month was surely now, by the database's clock
        except (DatabaseAway, JournalFull) as failure:
            error = type(failure)
        finally:
            for subject in flying:
                self._land(subject, error)

    async def _fetch_until_known(self, flying: set[Subject], *, needed: bool) -> None:
        """Land each subject that has a unit, or surely has none.

        What is left in `flying` was granted blocks again and again that may not be used now.
        """
        give_up_at = self._now() + RECALL_SECONDS_MAX
        pauses = iter(RECALL_PAUSES_SECONDS)
        pause = 0.0
        while flying and not self._closed:
            grants = await self._grant(flying, may_recall=needed)
            is_last = self._now() >= give_up_at
            for grant in grants:
                subject = (grant.kind, grant.subject_id)
                if not needed or not self._held.lacks(subject):
                    flying.discard(subject)
                    self._land(subject)
                elif (
                    grant.limit is not None
                    and not grant.granted
                    and subject not in self._outdated
                    and (is_last or not (grant.outstanding or self._may_come_back(subject)))
                ):
                    self._spent[subject] = Spent(
                        until=self._now() + SPENT_SECONDS,
                        limit=grant.limit,
                        resets=grant.reset_at.timestamp(),
                    )
                    flying.discard(subject)
                    self._land(subject)
            if not flying or is_last:
                return
            self._settle_soon.set()
            pause = next(pauses, pause)
            await asyncio.sleep(min(pause, max(0.0, give_up_at - self._now())))

    async def _grant(self, subjects: Collection[Subject], *, may_recall: bool) -> list[BlockGrant]:
        """Ask for a block for each, and hold what comes. Raises DatabaseAway, JournalFull."""
        asks = [
            BlockAsk(
                block_id=self._new_id(),
                kind=kind,
                subject_id=subject_id,
                want=self._held.want((kind, subject_id)),
            )
            for kind, subject_id in subjects
        ]
        block_ids = [ask.block_id for ask in asks]
        self._log.block_asked(block_ids)
        self._outdated.difference_update(subjects)
        grants: list[BlockGrant] | None = None
        try:
            grants = await self._store.grant(self._worker_id, asks, may_recall=may_recall)
        finally:
            if grants is None:
                self._lose((ask.block_id, (ask.kind, ask.subject_id)) for ask in asks)
        self._take_in(grants, block_ids, outdated=self._outdated)
        return grants

    def _lose(self, blocks: Iterable[tuple[str, Subject]]) -> None:
        """Settle blocks that may have been granted, or may be yet: nothing of them was used."""
        for block_id, subject in blocks:
            self._lost[block_id] = subject
            self._held.give_back(Block(block_id, subject, amount=0, begins=0.0, ends=0.0))
        self._settle_soon.set()

    def _take_in(
        self,
        grants: Iterable[BlockGrant],
        asked: Iterable[str],
        *,
        outdated: Collection[Subject],
    ) -> None:
        """Hold the blocks that were granted, unless a limit has changed since.

        The other ids are done with.
        """
        never_granted = set(asked)
        for grant in grants:
            subject = (grant.kind, grant.subject_id)
            ends = grant.reset_at.timestamp()
            begins = datetime(grant.month.year, grant.month.month, 1, tzinfo=UTC).timestamp()
            if grant.granted:
                never_granted.discard(grant.block_id)
                block = Block(
                    grant.block_id, subject, amount=grant.granted, begins=begins, ends=ends
                )
            elif grant.limit is None and self._clock.is_known:
                # The limit is gone, and the caller who lists it will be looked up again any moment.
                ends = min(ends, self._clock.latest() + UNLIMITED_SECONDS)
                amount = self._held.want(subject)
                block = Block("", subject, amount=amount, begins=begins, ends=ends)
            else:
                continue
            if subject in outdated:
                self._held.give_back(block)
            else:
                self._spent.pop(subject, None)
                self._held.add(block)
        if never_granted:
            self._log.block_settled(list(never_granted))

    def _may_come_back(self, subject: Subject) -> bool:
        """Whether units of this subject may be on their way to the database, or to here."""
        return (
            bool(self._prepared)
            or any(lost in (subject, _UNKNOWN_SUBJECT) for lost in self._lost.values())
            or any(
                block.left and block.subject == subject for block in self._held.returned.values()
            )
        )
