"""Sliding windows and caps on open calls that hold across workers and machines.

A worker takes permits from purses in its memory: `take` is a step without a wait. What it used it
tells the database a moment later and fetches more, in one statement for all purses; only a call
that finds its purse empty waits for that. What workers hold and what was used within the window
never exceed the limit together (`control_plane/schema/0010_permits.sql`), so that no window has
more calls in it than it may, wherever they began.

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
from gateway.permit_limit import PermitKey, PermitLimit

EXCHANGE_SECONDS: Final = 0.25  # that what was used gathers before it is told
EXCHANGE_PURSES_MAX: Final = 256  # in one statement
RETRY_SECONDS: Final = 0.25  # while the database is away
RECALL_SECONDS_MAX: Final = 0.25  # that a call waits for permits which other workers hold
RECALL_PAUSES_SECONDS: Final = (0.005, 0.01, 0.02, 0.04)  # between two looks; the last one stays
REFILL_SECONDS_MAX: Final = 5.0  # that a call waits in all while others take what it fetched
REFUSED_SECONDS_MAX: Final = 1.0  # that a spent window is refused from memory
FULL_SECONDS: Final = 0.1  # that a full house elsewhere is; a call that ends here is seen at once
IDLE_SECONDS: Final = 2.0  # a purse that nobody uses goes back
SPARE_MIN: Final = 4  # permits in a quiet purse
SPARE_SHARE: Final = 4  # of a limit: no purse has more than a quarter of it
CLOSE_SECONDS_MAX: Final = 2.0  # then what is held counts as used

Limits = Sequence[PermitLimit]


class Exchange(Protocol):
    """The database's side; see `permit_store.PermitStore`."""

    async def exchange(
        self, worker_id: str, asks: Sequence[PermitAsk], *, may_recall: bool
    ) -> dict[PermitKey, PermitGrant]:
        """Tell and ask. Raises DatabaseAway."""


class _Purse:
    """The permits of one limit that this worker has."""

    __slots__ = (
        "busy",
        "flight",
        "frees_at",
        "limit",
        "pace",
        "recalled",
        "refused_until",
        "spare",
        "touched",
        "used",
    )

    def __init__(self, limit: PermitLimit, now: float) -> None:
        self.limit = limit
        self.spare = 0
        self.busy = 0  # held by open calls
        self.used = 0  # within a window, not told yet
        self.pace = 0  # taken between the last two exchanges
        self.touched = now
        self.recalled = False
        self.refused_until = 0.0
        self.frees_at: float | None = None
        self.flight: asyncio.Future[type[GatewayError] | None] | None = None

    @property
    def target(self) -> int:
        """How many spare ones it should have."""
        most = max(1, self.limit.calls // SPARE_SHARE)
        return min(most, max(SPARE_MIN, 2 * self.pace))

    @property
    def is_low(self) -> bool:
        return self.spare <= self.target // 4

    def ask(self, *, number: int, needed: bool, idle: bool) -> PermitAsk:
        """Return what to say of it. What goes back is gone from here already."""
        self.pace = self.used if self.limit.window_seconds is not None else self.busy
        if idle or (self.recalled and not needed):
            self.spare = 0
            want = 0
        else:
            want = max(0, self.target - self.spare)
        self.recalled = False
        return PermitAsk(
            limit=self.limit,
            number=number,
            held=self.spare + self.busy,
            spare=self.spare,
            used=self.used,
            want=want,
        )

    def change(self, limit: PermitLimit) -> None:
        """Go by another limit: what was granted by the one before is not used."""
        self.limit = limit
        self.spare = 0
        self.refused_until = 0.0


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
        self._purses: dict[PermitKey, _Purse] = {}
        self._wake = asyncio.Event()
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
            purse.spare -= 1
            purse.touched = now
            if purse.limit.window_seconds is None:
                purse.busy += 1
            else:
                purse.used += 1
            if purse.flight is None and purse.is_low:
                self._wake.set()
        return True

    def put_back(self, limits: Limits) -> None:
        """Undo a `take`: its call went nowhere."""
        for limit in limits:
            if limit.window_seconds is None:
                self._end(limit)
            elif (purse := self._purses.get(limit.key)) is not None and purse.used:
                purse.used -= 1
                purse.spare += 1

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
            self._wake.set()

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
            lacking = [purse for purse in map(self._purse, limits) if not purse.spare]
            if not lacking:
                return
            if self._now() >= give_up_at:
                raise DatabaseAway
            for flight in [purse.flight or self._start(purse) for purse in lacking]:
                # A caller who leaves must not take the answer from those who wait with it.
                error = await asyncio.shield(flight)
                if error is not None:
                    raise error

    def _purse(self, limit: PermitLimit) -> _Purse:
        purse = self._purses.get(limit.key)
        if purse is None:
            purse = self._purses[limit.key] = _Purse(limit, self._now())
        elif purse.limit != limit:
            purse.change(limit)
        return purse

    def _refusal(self, purse: _Purse, now: float) -> GatewayError:
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
            self._wake.set()

    def limit_changed(self, subject_kind: str, subject: str) -> None:
        """Ask anew: a limit of this subject has changed."""
        for what in ("rate", "open"):
            purse = self._purses.get((f"{what}-{subject_kind}", subject))
            if purse is not None:
                purse.refused_until = 0.0
                purse.recalled = True
                self._wake.set()

    # background

    async def run(self) -> None:
        """Tell and fetch until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                try:
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
                        del self._purses[purse.limit.key]

    async def _exchange_loop(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXCHANGE_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            due = [purse for purse in self._purses.values() if self._is_due(purse)]
            try:
                for at in range(0, len(due), EXCHANGE_PURSES_MAX):
                    await self._exchange_unasked(due[at : at + EXCHANGE_PURSES_MAX])
            except DatabaseAway:
                await asyncio.sleep(RETRY_SECONDS)

    def _is_due(self, purse: _Purse) -> bool:
        if purse.flight is not None:
            return False
        if purse.used:
            return True
        if self._is_idle(purse):
            return purse.spare > 0 or not purse.busy
        if purse.recalled:
            return purse.spare > 0
        return purse.is_low and self._now() >= purse.refused_until

    def _is_idle(self, purse: _Purse) -> bool:
        return self._closed or self._now() - purse.touched > IDLE_SECONDS

    async def _exchange_unasked(self, purses: Sequence[_Purse]) -> None:
        """Exchange for those that no call began to wait for meanwhile; drop what is empty."""
        purses = [purse for purse in purses if purse.flight is None]
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
        for purse in purses:
            if self._is_idle(purse) and not (purse.spare or purse.busy or purse.used):
                del self._purses[purse.limit.key]

    def _start(self, purse: _Purse) -> "asyncio.Future[type[GatewayError] | None]":
        """Fetch for a call that waits."""
        if self._group is None or self._closed:
            raise Draining
        flight: asyncio.Future[type[GatewayError] | None]
        flight = purse.flight = asyncio.get_running_loop().create_future()
        purse.touched = self._now()
        self._group.create_task(self._fly(purse))
        return flight

    async def _fly(self, purse: _Purse) -> None:
        error: type[GatewayError] | None = Draining
        try:
            await self._fetch(purse)
            error = None
        except DatabaseAway:
            error = DatabaseAway
        finally:
            self._land(purse, error)

    async def _fetch(self, purse: _Purse) -> None:
        """Return when there is a permit, or surely none."""
        give_up_at = self._now() + RECALL_SECONDS_MAX
        pauses = iter(RECALL_PAUSES_SECONDS)
        pause = 0.0
        may_recall = True  # once: it is heard, or nobody hears
        while True:
            grants = await self._exchange([purse], needed=True, may_recall=may_recall)
            may_recall = False
            if purse.spare:
                return
            grant, now = grants[purse.limit.key], self._now()
            if now >= give_up_at or not grant.outstanding:
                self._refuse(purse, grant, now)
                return
            pause = next(pauses, pause)
            await asyncio.sleep(min(pause, give_up_at - now))

    def _refuse(self, purse: _Purse, grant: PermitGrant, now: float) -> None:
        if purse.limit.window_seconds is None:
            purse.refused_until = now + FULL_SECONDS
            return
        wait = grant.wait_seconds
        purse.frees_at = None if wait is None else now + wait
        purse.refused_until = now + min(REFUSED_SECONDS_MAX, FULL_SECONDS if wait is None else wait)

    async def _exchange(
        self, purses: Collection[_Purse], *, needed: bool, may_recall: bool = False
    ) -> dict[PermitKey, PermitGrant]:
        """Tell and ask for these. Raises DatabaseAway; then all of it is told again."""
        self._number += 1
        asks = [
            purse.ask(number=self._number, needed=needed, idle=self._is_idle(purse))
            for purse in purses
        ]
        if not asks:
            return {}
        grants = await self._store.exchange(self._worker_id, asks, may_recall=may_recall)
        for purse, ask in zip(purses, asks, strict=True):
            purse.used -= ask.used
            purse.spare += grants[ask.limit.key].granted
        return grants

    def _land(self, purse: _Purse, error: type[GatewayError] | None) -> None:
        flight, purse.flight = purse.flight, None
        if flight is not None and not flight.done():
            flight.set_result(error)
