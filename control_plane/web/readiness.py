"""Whether this control plane can do its work: what /readyz says, and why not."""

import asyncio
import time
from typing import Final

import asyncpg
import msgspec

from control_plane.errors import DatabaseUnreachable
from control_plane.migrate import load_migrations
from control_plane.services import Services
from gateway.sql import load_queries

LOOK_SECONDS: Final = 1.0  # anyone may ask: the database is asked no more often
CLOCK_SECONDS_MAX: Final = 20.0  # sessions' tokens are taken with a leeway of 30 s

_OLD: Final = "schema: it is older than this release, `kaixu migrate` brings it up"
_LOOK: Final = load_queries(__package__, "readiness.sql")["look"]


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """What /readyz answers."""

    ready: bool
    not_ready: list[str]


class Readiness:
    """Looks at the database, now and then."""

    def __init__(self, services: Services) -> None:
        """`services.now` is the clock that is held against the database's."""
        self._services = services
        self._needed = max(migration.number for migration in load_migrations())
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")
        self._reasons: list[str] = []

    async def told(self) -> Ready:
        """Return whether it is ready by what was found at most LOOK_SECONDS ago."""
        async with self._looking:
            if time.monotonic() - self._looked_at > LOOK_SECONDS:
                reasons = await self._look()
                if reasons != self._reasons:
                    self._services.log.info("readiness changed", not_ready=reasons)
                self._reasons, self._looked_at = reasons, time.monotonic()
        return Ready(ready=not self._reasons, not_ready=self._reasons)

    async def _look(self) -> list[str]:
        try:
            async with self._services.database.connection() as connection:
                asked = self._services.now()
                row = await connection.fetchrow(_LOOK)
                answered = self._services.now()
        except asyncpg.UndefinedTableError:
            return [_OLD]
        except DatabaseUnreachable as error:
            # A schema that is older than the right to look at it.
            may_not_look = isinstance(error.__cause__, asyncpg.InsufficientPrivilegeError)
            return [_OLD if may_not_look else "database"]
        assert row is not None, "it has no table to read"
        reasons = []
        if row["newest"] < self._needed:  # a newer one will do: schema files only add
            reasons.append(_OLD)
        early, late = asked - row["now"], answered - row["now"]
        if early > CLOCK_SECONDS_MAX or late < -CLOCK_SECONDS_MAX:
            reasons.append("clock: this machine's is not the database's")
        return reasons
