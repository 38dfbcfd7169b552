"""Where permits are kept: the database never has more of them out than a limit allows."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from gateway.errors import DatabaseAway
from gateway.permit_limit import PermitKey, PermitLimit
from gateway.sql import DATABASE_FAULTS, load_queries

STATEMENT_SECONDS_MAX: Final = 2.0  # a call waits for it

_QUERIES: Final = load_queries(__package__, "permit_store.sql")
_EXCHANGE: Final = _QUERIES["exchange_permits"]
_PRUNE: Final = _QUERIES["prune_permits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitAsk:
    """What a worker says of one limit: what it holds, used since it last asked, and wants.

    `number` rises with all that it says of the limit: what arrives behind a later one is ignored.
    `spare` of the held ones can be called back: they are with no open call, or used and not told.
    `uses`: how many seconds ago, and how many.
    """

    limit: PermitLimit
    number: int
    held: int
    spare: int
    uses: Sequence[tuple[float, int]]
    want: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitGrant:
    """What the database says to it."""

    granted: int
    outstanding: bool  # nothing is free, but other workers have spare ones
    wait_seconds: float | None  # until a used one leaves the window; None: none is in it


class PermitStore:
    """The database's side of permits."""

    def __init__(
        self, pool: "asyncpg.Pool[Any]", *, seconds_max: float = STATEMENT_SECONDS_MAX
    ) -> None:
        """`seconds_max` bounds each statement, the wait for a connection included."""
        self._pool = pool
        self._seconds_max = seconds_max

    async def exchange(
        self, worker_id: str, asks: Sequence[PermitAsk], *, may_recall: bool
    ) -> dict[PermitKey, PermitGrant]:
        """Return what each ask was granted; `may_recall` calls back what others hold.

        Raises DatabaseAway: what was used may have been taken in, and is then counted twice when it
        is told again.
        """
        uses = [use for ask in asks for use in ask.uses]
        rows = await self._fetch(
            _EXCHANGE,
            worker_id,
            [ask.limit.key[0] for ask in asks],
            [ask.limit.key[1] for ask in asks],
            [ask.limit.calls for ask in asks],
            [ask.limit.window_seconds for ask in asks],
            [ask.number for ask in asks],
            [ask.held for ask in asks],
            [ask.spare for ask in asks],
            [ask.want for ask in asks],
            [len(ask.uses) for ask in asks],
            [age for age, _ in uses],
            [used for _, used in uses],
            may_recall,
        )
        return {
            (row["kind"], row["subject"]): PermitGrant(
                granted=row["granted"],
                outstanding=row["outstanding"],
                wait_seconds=row["wait_seconds"],
            )
            for row in rows
        }

    async def prune(self) -> None:
        """Delete what is in no window any more. Raises DatabaseAway."""
        await self._fetch(_PRUNE)

    async def _fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        seconds = self._seconds_max
        try:
            async with asyncio.timeout(seconds), self._pool.acquire(timeout=seconds) as connection:
                return await connection.fetch(query, *arguments)
        except DATABASE_FAULTS as error:
            raise DatabaseAway from error
