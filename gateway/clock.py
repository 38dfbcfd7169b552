"""Database time, known as an interval: what a worker may believe about the database's clock.

A machine's own clock can be wrong, step, or stand still in a suspended machine. So months, leases
and expiry follow the database. Each heartbeat tells (sent, database time, received) on the
boot-time clock, which counts suspension too; database time now then lies between
`database + (now - received)` and `database + (now - sent)`, widened for drift.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Final

DRIFT_MAX: Final = 500e-6  # seconds a second that two clocks may drift apart; quartz keeps 100e-6


# Gives seconds since boot, suspension included; never steps.
boottime: Final[Callable[[], float]] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)


class DatabaseTimeUnknown(Exception):
    """No heartbeat has been answered yet."""


class DatabaseClock:
    """The interval in which database time now lies, from the last heartbeats."""

    def __init__(self, boottime: Callable[[], float] = boottime) -> None:
        """`boottime` gives seconds on a clock that never steps; tests hand in their own."""
        self.boottime = boottime
        self._sent = 0.0
        self._received = 0.0
        self._database = 0.0
        self._known = False

    @property
    def is_known(self) -> bool:
        """Whether `observe` was called at least once."""
        return self._known

    def observe(self, *, sent: float, received: float, database_time: float) -> None:
        """Take in one round trip: boot-time seconds at both ends, Unix seconds in between."""
        self._sent, self._received, self._database = sent, received, database_time
        self._known = True

    def earliest(self) -> float:
        """Unix seconds that the database's clock shows at least. Raises DatabaseTimeUnknown."""
        if not self._known:
            raise DatabaseTimeUnknown
        elapsed = self.boottime() - self._received
        return self._database + elapsed * (1 - DRIFT_MAX)

    def latest(self) -> float:
        """Unix seconds that the database's clock shows at most. Raises DatabaseTimeUnknown."""
        if not self._known:
            raise DatabaseTimeUnknown
        elapsed = self.boottime() - self._sent
        return self._database + elapsed * (1 + DRIFT_MAX)
