"""The permits of one limit that a worker holds: spare ones, ones that calls hold, and used ones.

A used permit is kept until its call has left the window, or until the database was told of it, and
when it was used; never both. While it is unknown whether the database has heard, it is not used
again.
"""

import asyncio
import math
from typing import Final

from gateway.errors import GatewayError
from gateway.metering.permit_store import PermitAsk
from gateway.permit_limit import PermitLimit

SPARE_MIN: Final = 16  # permits in a quiet purse
SPARE_QUIET_SHARE: Final = 64  # or this share of a large limit
SPARE_QUIET_MAX: Final = 128  # but no more
SPARE_SHARE: Final = 4  # of a limit: no purse has more than a quarter of it
PACE_SECONDS_MIN: Final = 0.05  # a pace is not taken over less
USES_KEPT_MAX: Final = 32  # told by then, even if nobody needs to know: they take memory
SLOTS: Final = 240  # of a window: calls that begin in the same one leave it together
CLOCK_SLACK_SECONDS: Final = 0.05  # a loop's time is that of when it woke up

Use = tuple[float, int]  # when, in the loop's seconds, and how many


class Purse:
    """The permits of one limit that this worker has."""

    __slots__ = (
        "asked",
        "asked_at",
        "busy",
        "earlier",
        "flight",
        "frees_at",
        "limit",
        "low",
        "recalled",
        "refused_until",
        "slot_until",
        "slot_used",
        "spare",
        "taken",
        "touched",
        "untold",
    )

    def __init__(self, limit: PermitLimit, now: float) -> None:
        self.limit = limit
        self.spare = 0
        self.low = 0  # so few spare ones, and it is time for more
        self.busy = 0  # held by open calls
        # Used within a window and not told yet: in this slot, and when and how many before it.
        self.slot_used = 0
        self.slot_until = -math.inf
        self.earlier: list[Use] = []
        self.taken = 0  # in a window, since it last asked
        self.asked: int | None = None  # number of the ask whose answer holds
        self.asked_at = now
        self.touched = now
        self.recalled = False
        self.untold = False  # the database may have another view of what this holds
        self.refused_until = 0.0
        self.frees_at: float | None = None
        self.flight: asyncio.Future[type[GatewayError] | None] | None = None

    @property
    def used(self) -> int:
        """How many were used that nobody was told of."""
        return self.slot_used + sum(used for _, used in self.earlier)

    def begin_slot(self, now: float) -> None:
        """Gather what is used from now on in a slot of its own."""
        window_seconds = self.limit.window_seconds
        assert window_seconds is not None, "of open calls nothing is used up"
        if self.slot_used:
            self.earlier.append((self.touched, self.slot_used))
            self.slot_used = 0
        self.slot_until = now + window_seconds / SLOTS

    def renew(self, now: float) -> None:
        """Take back what has left the window."""
        window_seconds = self.limit.window_seconds
        if window_seconds is None:
            return
        if self.slot_used and now >= self.slot_until:
            self.begin_slot(now)
        until = now - window_seconds - CLOCK_SLACK_SECONDS
        gone = 0
        for at, used in self.earlier:
            if at > until:
                break
            gone += 1
            if not self.untold:  # else the database may count it as used, and not as held
                self.spare += used
        del self.earlier[:gone]

    def undo(self) -> None:
        """Take back what was used last, unless it was told."""
        if self.slot_used:
            self.slot_used -= 1
        elif self.earlier:
            at, used = self.earlier.pop()
            if used > 1:
                self.earlier.append((at, used - 1))
        else:
            return
        self.spare += 1

    def ask(self, *, number: int, needed: bool, idle: bool, now: float) -> PermitAsk:
        """Return what to say of it. What goes back, and what is told, is gone from here already."""
        if self.limit.window_seconds is None:
            pace = 2 * self.busy
        else:
            pace = math.ceil(self.taken / max(PACE_SECONDS_MIN, now - self.asked_at))
        self.taken = 0
        self.asked = number
        self.asked_at = now
        most = max(1, self.limit.calls // SPARE_SHARE)
        quiet = min(SPARE_QUIET_MAX, self.limit.calls // SPARE_QUIET_SHARE)
        target = min(most, max(SPARE_MIN, quiet, pace))
        self.low = target // 4
        goes_back = idle or (self.recalled and not needed)
        uses: list[Use] = []
        if goes_back or needed or self.recalled or len(self.earlier) >= USES_KEPT_MAX:
            if self.slot_used:
                self.begin_slot(now)
            uses, self.earlier = self.earlier, uses
        if goes_back:
            self.spare = 0
        kept = self.spare + self.used
        self.recalled = False
        self.untold = True
        return PermitAsk(
            limit=self.limit,
            number=number,
            held=kept + self.busy,
            spare=kept,
            uses=[(max(0.0, now - at - CLOCK_SLACK_SECONDS), used) for at, used in uses],
            want=0 if goes_back else max(0, target - self.spare),
        )

    def answer(self, ask: PermitAsk, granted: int) -> None:
        """Take what the database granted: it knows all that this holds.

        Unless what was held is forgotten since: then the database is told so, and grants anew.
        """
        if ask.number == self.asked:
            self.untold = False
            self.spare += granted

    def unsay(self, ask: PermitAsk, now: float) -> None:
        """Keep what was not told, or perhaps was, to tell it again."""
        self.earlier[:0] = [(now - age, used) for age, used in ask.uses]

    def change(self, limit: PermitLimit) -> None:
        """Go by another limit: what was granted by the one before is not used."""
        self.limit = limit
        self.slot_until = -math.inf
        self.refused_until = 0.0
        self.forget()

    def forget(self) -> None:
        """Use nothing of what is spare, nor of what is being granted."""
        self.spare = 0
        self.asked = None
        self.untold = True
