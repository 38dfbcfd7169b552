"""Usage reports: a month's sums, from the hourly roll-ups, and up to when they are whole."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime
from types import MappingProxyType
from typing import Any, Final

import asyncpg

from gateway.sql import load_queries

_QUERIES: Final = load_queries(__package__, "usage.sql")
_REPORT = _QUERIES["report"]
_SEALED_THROUGH = _QUERIES["sealed_through"]
_THIS_MONTH = _QUERIES["this_month"]

# By what a report may be, and the name of that in its rows.
GROUPINGS: Final = MappingProxyType(
    {
        "token": "token_id", "user": "user_id", "workspace": "workspace_id", "vendor": "vendor",
        "model": "model", "day": "day", "hour": "hour",
    }
)  # fmt: skip
NAMED: Final = frozenset({"token", "user", "workspace"})  # their rows have a name


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What of the ledger someone may see: of an org, what is in `workspaces` or is the user's.

    `workspaces` None: all of the org.
    """

    org_id: uuid.UUID
    workspaces: Collection[uuid.UUID] | None = None
    user_id: uuid.UUID | None = None

    def arguments(self) -> tuple[uuid.UUID, list[uuid.UUID] | None, uuid.UUID | None]:
        """Return what queries take for it."""
        workspaces = None if self.workspaces is None else list(self.workspaces)
        return self.org_id, workspaces, self.user_id


async def report_usage(
    connection: asyncpg.Connection,
    *,
    month: date | None,
    by: str,
    seen: Seen | None = None,
    rows_max: int | None = None,
) -> dict[str, Any]:
    """Return the sums of a month (its first day; None: the present one) for each of `by`.

    `seen` None: of all orgs. A sum is None where no call told the number. `usage_partial` and
    `usage_unknown` say of how many calls the sums have only a part, or nothing.
    """
    # In this order: what its heartbeats say was shipped by then is in the sums that are read later.
    sealed_through = await read_sealed_through(connection)
    if month is None:
        month = await connection.fetchval(_THIS_MONTH)
    of_whom = (None, None, None) if seen is None else seen.arguments()
    rows = await connection.fetch(_REPORT, month, *of_whom, by, rows_max)
    assert month is not None
    return {
        "month": f"{month:%Y-%m}",
        "by": by,
        "sealed_through": sealed_through,
        "rows": [_row(row, by) for row in rows],
    }


async def read_sealed_through(connection: asyncpg.Connection) -> datetime:
    """Return up to when every call that was admitted has its row."""
    through: datetime = await connection.fetchval(_SEALED_THROUGH)
    return through


def _row(row: asyncpg.Record, by: str) -> dict[str, Any]:
    values = dict(row)
    key, name = values.pop("key"), values.pop("name")
    return {GROUPINGS[by]: key, **({"name": name} if by in NAMED else {}), **values}
