"""Sliding windows and caps on open calls that hold across workers and machines.

A worker takes permits from purses in its memory: `take` is a step without a wait. A used one is
good again when its call has left the window, which needs nobody else; so a token that calls now and
then costs the database nothing. A purse that runs low fetches more, in one statement with others;
only a call that finds its purse empty waits for that. When it used what is told where a call waits,
where others need some, where the purse goes back, and where it is too much to keep. What workers
hold and what they told to be used within the window never exceed the limit together
(`control_plane/schema/0010_permits.sql` and 0025), so that no window has more calls in it than it
may, wherever they began. Who needs permits that others hold calls them back.

Nothing of this has to outlive the process: what a worker held counts as used once it is gone.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Final, Protocol

from gateway.clock import DatabaseClock
from gateway.errors import (
    ConcurrencyReached,
    DatabaseAway,
    Draining,
    GatewayError,
    RateWindowReached,
)
from gateway.metering.permit_store import PermitAsk, PermitGrant
from gateway.metering.purse import Purse
from gateway.permit_limit import PermitKey, PermitLimit

GATHER_SECONDS: Final = 0.05  # that purses which run low wait for others, for one statement
EXCHANGE_PURSES_MAX: Final = 256  # in one statement
RETRY_SECONDS: Final = 0.25  # while the database is away
RECALL_SECONDS_MAX: Final = 0.25  # that a call waits for permits which other workers hold
RECALL_PAUSES_SECONDS: Final = (0.005, 0.01, 0.02, 0.04)  # between two looks; the last one stays
REFILL_SECONDS_MAX: Final = 5.0  # that a call waits in all while others take what it fetched
REFUSED_SECONDS_MAX: Final = 1.0  # that a spent window is refused from memory
FULL_SECONDS: Final = 0.1  # that a full house elsewhere is; a call that ends here is seen at once
IDLE_SECONDS: Final = 60.0  # a purse that nobody uses goes back
IDLE_SECONDS_CROWDED: Final = 2.0  # where there are more than
PURSES_MANY: Final = 65_536
SWEEP_SECONDS: Final = 5.0  # between two looks for idle purses
SWEEP_PURSES_MAX: Final = 1000  # in one step of the loop
CLOSE_SECONDS_MAX: Final = 2.0  # then what is held counts as used

Limits = Sequence[PermitLimit]


class Exchange(Protocol):
    """The database's side; see `permit_store.PermitStore`."""

    async def exchange(
        self, worker_id: str, asks: Sequence[PermitAsk], *, may_recall: bool
    ) -> dict[PermitKey, PermitGrant]:
        """Tell and ask. Raises DatabaseAway."""


class Permits:
    """One worker's permits."""

    def __init__(
        self,
        *,
        store: Exchange,
        worker_id: str,
        clock: DatabaseClock,
        now: Callable[[], float],
    ) -> None:
        """`now` gives the loop's seconds."""
        self._store = store
        self._worker_id = worker_id
        self._clock = clock
        self._now = now
        self._purses: dict[PermitKey, Purse] = {}
        # By their keys, in order: a purse that goes away meanwhile is not looked at any more.
        self._due: dict[PermitKey, None] = {}  # to look at: they run low, or owe an answer
        self._idle: dict[PermitKey, None] = {}  # the same, but nobody waits for them
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()  # somebody waits for what is due
        self._group: asyncio.TaskGroup | None = None
        self._number = 0
        self._closed = False

    # what calls ask

    def take(self, limits: Limits) -> bool:
        """Take one permit of each, or none and return False."""
        purses = []
        for limit in limits:
            purse = self._purses.get(limit.key)
            if purse is None or not purse.spare:
                return False
            if purse.limit is not limit and purse.limit != limit:
                purse.change(limit)
                return False
            purses.append(purse)
        now = self._now()
        for purse in purses:
            purse.spare = spare = purse.spare - 1
            if purse.limit.window_seconds is None:
                purse.busy += 1
            else:
                if now >= purse.slot_until:
                    purse.begin_slot(now)
                purse.slot_used += 1
                purse.taken += 1
            purse.touched = now
            if spare <= purse.low and purse.flight is None:
                self._look_at(purse)
        return True

    def _look_at(self, purse: Purse, *, urgent: bool = False) -> None:
        self._due[purse.limit.key] = None
        self._wake.set()
        if urgent:
            self._urgent.set()

    def put_back(self, limits: Limits) -> None:
        """Undo a `take`: its call went nowhere."""
        for limit in limits:
            if limit.window_seconds is None:
                self._end(limit)
            elif (purse := self._purses.get(limit.key)) is not None:
                purse.undo()

    def release(self, limits: Limits) -> None:
        """A call that took these has ended: it is open no more, and stays in its windows."""
        for limit in limits:
            if limit.window_seconds is None:
                self._end(limit)

    def _end(self, limit: PermitLimit) -> None:
        purse = self._purses.get(limit.key)
        if purse is None:  # closed: what was held is handed back
            return
        purse.busy -= 1
        purse.spare += 1
        purse.touched = self._now()
        if purse.recalled:
            self._look_at(purse, urgent=True)

    def known_refused(self, limits: Limits) -> None:
        """Raise RateWindowReached, ConcurrencyReached where nothing was left a moment ago."""
        now = self._now()
        for limit in limits:
            purse = self._purses.get(limit.key)
            if purse is not None and not purse.spare and now < purse.refused_until:
                raise self._refusal(purse, now)

    async def refill(self, limits: Limits) -> None:
        """Fetch what `take` was missing; return when it is worth trying again.

        Another call may be faster to take it, so this belongs into a loop around `take`. Raises
        RateWindowReached, ConcurrencyReached, DatabaseAway, Draining.
        """
        give_up_at = self._now() + REFILL_SECONDS_MAX
        while True:
            self.known_refused(limits)
            now = self._now()
            purses = [self._purse(limit) for limit in limits]
            for purse in purses:
                if not purse.spare and purse.flight is None:
                    purse.renew(now)
            lacking = [purse for purse in purses if not purse.spare]
            if not lacking:
                return
            if now >= give_up_at:
                raise DatabaseAway
            self._start([purse for purse in lacking if purse.flight is None])
            for flight in [purse.flight for purse in lacking if purse.flight is not None]:
                # A caller who leaves must not take the answer from those who wait with it.
                error = await asyncio.shield(flight)
                if error is not None:
                    raise error

    def _purse(self, limit: PermitLimit) -> Purse:
        purse = self._purses.get(limit.key)
        if purse is None:
            purse = self._purses[limit.key] = Purse(limit, self._now())
        elif purse.limit != limit:
            purse.change(limit)
        return purse

    def _refusal(self, purse: Purse, now: float) -> GatewayError:
        limit = purse.limit
        headers = {"x-kaixu-limit": str(limit.calls), "x-kaixu-remaining": "0"}
        if limit.window_seconds is None:
            headers["retry-after"] = "1"
            error: GatewayError = ConcurrencyReached(
                f"This {limit.subject_kind} may have {limit.calls} calls open at once, and has.",
                headers=headers,
            )
        else:
            wait = 0.0 if purse.frees_at is None else max(0.0, purse.frees_at - now)
            headers["retry-after"] = str(max(1, math.ceil(wait)))
            if self._clock.is_known:
                at = datetime.fromtimestamp(self._clock.latest() + wait, UTC)
                headers["x-kaixu-reset"] = at.strftime("%Y-%m-%dT%H:%M:%SZ")
            error = RateWindowReached(
                f"This {limit.subject_kind} may begin {limit.calls} calls "
                f"in {limit.window_seconds} s, and has.",
                headers=headers,
            )
        error.limit_kind = limit.subject_kind
        return error

    # what the feed tells

    def recall(self, kind: str, subject: str) -> None:
        """Hand back what is spare: another worker needs it."""
        purse = self._purses.get((kind, subject))
        if purse is not None:
            purse.recalled = True
            self._look_at(purse, urgent=True)

    def reset(self) -> None:
        """Forget what is spare: the database may have taken this worker for a dead one's."""
        for purse in self._purses.values():
            purse.forget()
        self._due.update(dict.fromkeys(self._purses))
        self._wake.set()

    def limit_changed(self, subject_kind: str, subject: str) -> None:
        """Ask anew: a limit of this subject has changed."""
        for what in ("rate", "open"):
            purse = self._purses.get((f"{what}-{subject_kind}", subject))
            if purse is not None:
                purse.refused_until = 0.0
                purse.recalled = True
                self._look_at(purse, urgent=True)

    # background

    async def run(self) -> None:
        """Tell and fetch until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                try:
                    group.create_task(self._sweep_loop())
                    await self._exchange_loop()
                finally:
                    self._group = None
        finally:
            for purse in self._purses.values():
                self._land(purse, Draining)

    async def close(self) -> None:
        """Hand everything back that no open call holds."""
        self._closed = True
        with contextlib.suppress(TimeoutError, DatabaseAway):
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                while self._purses:
                    purses = list(islice(self._purses.values(), EXCHANGE_PURSES_MAX))
                    await self._exchange(purses, needed=False)
                    for purse in purses:
                        self._purses.pop(purse.limit.key, None)

    async def _exchange_loop(self) -> None:
        while True:
            await self._wake.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GATHER_SECONDS):
                    await self._urgent.wait()
            self._wake.clear()
            self._urgent.clear()
            looked_at, self._due = self._due, {}
            for key in list(islice(self._idle, EXCHANGE_PURSES_MAX)):
                del self._idle[key]
                looked_at[key] = None
            if self._idle:
                self._wake.set()
            now = self._now()
            due = [key for key in looked_at if self._is_due(self._purses.get(key), now)]
            try:
                for at in range(0, len(due), EXCHANGE_PURSES_MAX):
                    await self._exchange_unasked(due[at : at + EXCHANGE_PURSES_MAX])
            except DatabaseAway:
                self._due.update(dict.fromkeys(due))
                self._wake.set()
                await asyncio.sleep(RETRY_SECONDS)

    def _is_due(self, purse: Purse | None, now: float) -> bool:
        if purse is None or purse.flight is not None:
            return False
        purse.renew(now)
        if purse.untold:
            return True
        if self._is_idle(purse, now):
            return purse.spare > 0 or purse.used > 0 or not purse.busy
        if purse.recalled:
            return purse.spare > 0 or purse.used > 0
        return purse.spare <= purse.low and now >= purse.refused_until

    def _is_idle(self, purse: Purse, now: float) -> bool:
        crowded = len(self._purses) > PURSES_MANY
        seconds = IDLE_SECONDS_CROWDED if crowded else IDLE_SECONDS
        return self._closed or now - purse.touched > seconds

    async def _sweep_loop(self) -> None:
        """Find idle purses."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            purses = list(self._purses.values())
            for at in range(0, len(purses), SWEEP_PURSES_MAX):
                now = self._now()
                for purse in purses[at : at + SWEEP_PURSES_MAX]:
                    if self._is_idle(purse, now) and self._is_due(purse, now):
                        self._idle[purse.limit.key] = None
                await asyncio.sleep(0)
            if self._idle:
                self._wake.set()

    async def _exchange_unasked(self, keys: Sequence[PermitKey]) -> None:
        """Exchange for those that no call began to wait for meanwhile; drop what is empty."""
        held = [purse for key in keys if (purse := self._purses.get(key)) is not None]
        purses = [purse for purse in held if purse.flight is None]
        loop = asyncio.get_running_loop()
        for purse in purses:
            purse.flight = loop.create_future()  # calls wait for this exchange, and then ask
        error: type[GatewayError] | None = DatabaseAway
        try:
            await self._exchange(purses, needed=False)
            error = None
        finally:
            for purse in purses:
                self._land(purse, error)
        now = self._now()
        for purse in purses:
            key, is_empty = purse.limit.key, not (purse.spare or purse.busy or purse.used)
            if is_empty and self._is_idle(purse, now) and self._purses.get(key) is purse:
                del self._purses[key]

    def _start(self, purses: Sequence[Purse]) -> None:
        """Fetch for a call that waits."""
        if not purses:
            return
        if self._group is None or self._closed:
            raise Draining
        loop, now = asyncio.get_running_loop(), self._now()
        for purse in purses:
            purse.flight = loop.create_future()
            purse.touched = now
        self._group.create_task(self._fly(purses))

    async def _fly(self, purses: Sequence[Purse]) -> None:
        flying = list(purses)
        error: type[GatewayError] | None = Draining
        try:
            await self._fetch(flying)
        except DatabaseAway:
            error = DatabaseAway
        finally:
            for purse in flying:
                self._land(purse, error)

    async def _fetch(self, flying: list[Purse]) -> None:
        """Land each that has a permit, or surely none."""
        give_up_at = self._now() + RECALL_SECONDS_MAX
        pauses = iter(RECALL_PAUSES_SECONDS)
        pause = 0.0
        may_recall = True  # once: it is heard, or nobody hears
        while True:
            grants = await self._exchange(flying, needed=True, may_recall=may_recall)
            may_recall = False
            now = self._now()
            for purse in list(flying):
                if not purse.spare:
                    grant = grants[purse.limit.key]
                    # What was granted by another limit than it has by now is of no use.
                    if purse.untold or (now < give_up_at and grant.outstanding):
                        continue
                    self._refuse(purse, grant, now)
                flying.remove(purse)
                self._land(purse, None)
            if not flying:
                return
            pause = next(pauses, pause)
            await asyncio.sleep(min(pause, give_up_at - now))

    def _refuse(self, purse: Purse, grant: PermitGrant, now: float) -> None:
        if purse.limit.window_seconds is None:
            purse.refused_until = now + FULL_SECONDS
            return
        wait = grant.wait_seconds
        purse.frees_at = None if wait is None else now + wait
        purse.refused_until = now + min(REFUSED_SECONDS_MAX, FULL_SECONDS if wait is None else wait)

    async def _exchange(
        self, purses: Collection[Purse], *, needed: bool, may_recall: bool = False
    ) -> dict[PermitKey, PermitGrant]:
        """Tell and ask for these. Raises DatabaseAway; then all of it is told again."""
        self._number += 1
        now = self._now()
        asks = [
            purse.ask(number=self._number, needed=needed, idle=self._is_idle(purse, now), now=now)
            for purse in purses
        ]
        if not asks:
            return {}
        asked = list(zip(purses, asks, strict=True))
        grants: dict[PermitKey, PermitGrant] | None = None
        try:
            grants = await self._store.exchange(self._worker_id, asks, may_recall=may_recall)
        finally:
            if grants is None:
                for purse, ask in asked:
                    purse.unsay(ask, now)
        for purse, ask in asked:
            purse.answer(ask, grants[ask.limit.key].granted)
        return grants

    def _land(self, purse: Purse, error: type[GatewayError] | None) -> None:
        flight, purse.flight = purse.flight, None
        if flight is not None and not flight.done():
            flight.set_result(error)
        if purse.recalled or purse.untold:
            self._look_at(purse, urgent=purse.recalled)
