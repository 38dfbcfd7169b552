"""Until when a worker may go on without hearing from the database.

The lease runs from the moment at which the last answered heartbeat was sent: the database counts it
from when it took that heartbeat, which is later, so a worker has stopped when others think so.
Boot-time seconds count suspension too; drift of the clock shortens the lease.
"""

from collections.abc import Callable
from typing import Final

from gateway.clock import DRIFT_MAX

NEVER: Final = float("-inf")


class Lease:
    """When admission ends, when open streams end, and whether the latter was seen to."""

    def __init__(
        self, *, seconds: float, offline_grace_seconds: float, boottime: Callable[[], float]
    ) -> None:
        """`boottime` gives seconds on a clock that never steps and counts suspension."""
        self._admission_seconds = seconds * (1 - DRIFT_MAX)
        self._streams_seconds = (seconds + offline_grace_seconds) * (1 - DRIFT_MAX)
        self._boottime = boottime
        self._admission_end = NEVER
        self._streams_end = NEVER
        self._lapse_was_told = True  # before the first heartbeat there are no streams

    def renew(self, sent: float) -> None:
        """Run on from the boot-time second at which an answered heartbeat was sent."""
        self._admission_end = sent + self._admission_seconds
        self._streams_end = sent + self._streams_seconds
        self._lapse_was_told = False

    def give_up(self) -> None:
        """Admit nothing from now on; open streams are somebody else's matter."""
        self._admission_end = NEVER

    def holds(self) -> bool:
        """Return whether calls may be admitted."""
        return self._boottime() < self._admission_end

    def streams_may_run(self) -> bool:
        """Return whether open streams may go on."""
        return self._boottime() < self._streams_end

    def streams_seconds_left(self) -> float:
        """Return for how long open streams may go on, 0 at least."""
        return max(0.0, self._streams_end - self._boottime())

    def streams_just_ended(self) -> bool:
        """Return, once an outage, that open streams may not go on any more."""
        if self._lapse_was_told or self.streams_may_run():
            return False
        self._lapse_was_told = True
        return True
