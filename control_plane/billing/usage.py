"""Usage reports: a month's sums, from the hourly roll-ups, and up to when they are whole."""

from datetime import date
from typing import Any, Final

import asyncpg

from gateway.sql import load_queries

_QUERIES: Final = load_queries(__package__, "usage.sql")
_REPORTS: Final = {by: _QUERIES[f"by_{by}"] for by in ("token", "vendor", "model", "day")}
_SEALED_THROUGH = _QUERIES["sealed_through"]
_THIS_MONTH = _QUERIES["this_month"]

GROUPINGS: Final = tuple(_REPORTS)


async def report_usage(
    connection: asyncpg.Connection, *, month: date | None, by: str
) -> dict[str, Any]:
    """Return the sums of a month (its first day; None: the present one) for each of `by`.

    A sum is None where no call told the number. `usage_partial` and `usage_unknown` say of how many
    calls the sums have only a part, or nothing.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        # One snapshot: what its heartbeats say was shipped is in its sums.
        sealed_through = await connection.fetchval(_SEALED_THROUGH)
        if month is None:
            month = await connection.fetchval(_THIS_MONTH)
        rows = [dict(row) for row in await connection.fetch(_REPORTS[by], month)]
    assert month is not None
    return {
        "month": f"{month:%Y-%m}",
        "by": by,
        "sealed_through": sealed_through,
        "rows": rows,
    }
