"""Where allowances are kept: the database grants blocks of them and settles each block once."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final, Self

import asyncpg

from gateway.errors import DatabaseAway
from gateway.sql import DATABASE_FAULTS, load_queries

STATEMENT_SECONDS_MAX: Final = 2.0  # a call waits for it; what comes later is settled as lost

_QUERIES: Final = load_queries(__package__, "allowance_store.sql")
_GRANT_BLOCKS: Final = _QUERIES["grant_blocks"]
_SETTLE_BLOCKS: Final = _QUERIES["settle_blocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockAsk:
    """A block that a worker asks for, under an id that it has journaled."""

    block_id: str
    kind: str
    subject_id: str
    want: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGrant:
    """What the database says to it."""

    block_id: str
    kind: str
    subject_id: str
    month: date  # its first day, in UTC
    granted: int  # 0: there is no such block
    limit: int | None  # None: the subject has no limit
    remaining: int | None  # for the next grant
    outstanding: bool  # nothing is left, but other workers hold blocks
    reset_at: datetime  # when the month ends

    @classmethod
    def from_row(cls, row: Mapping[str, Any] | asyncpg.Record) -> Self:
        """Read a row of the SQL function `grant_blocks`."""
        return cls(
            block_id=str(row["block_id"]),
            kind=row["kind"],
            subject_id=str(row["subject_id"]),
            month=row["month"],
            granted=row["granted"],
            limit=row["limit"],
            remaining=row["remaining"],
            outstanding=row["outstanding"],
            reset_at=row["reset_at"],
        )


class AllowanceStore:
    """The database's side of allowances."""

    def __init__(
        self, pool: "asyncpg.Pool[Any]", *, seconds_max: float = STATEMENT_SECONDS_MAX
    ) -> None:
        """`seconds_max` bounds each statement, the wait for a connection included."""
        self._pool = pool
        self._seconds_max = seconds_max

    async def grant(
        self, worker_id: str, asks: Sequence[BlockAsk], *, may_recall: bool
    ) -> list[BlockGrant]:
        """Ask for blocks; `may_recall` calls blocks of others back where nothing is left.

        Raises DatabaseAway: the blocks may have been granted, or may be yet.
        """
        rows = await self._fetch(
            _GRANT_BLOCKS,
            worker_id,
            [ask.block_id for ask in asks],
            [ask.kind for ask in asks],
            [ask.subject_id for ask in asks],
            [ask.want for ask in asks],
            may_recall,
        )
        return [BlockGrant.from_row(row) for row in rows]

    async def settle(self, block_ids: Sequence[str], used: Sequence[int | None]) -> None:
        """Hand blocks back, each once; None burns a block whole. Raises DatabaseAway: unknown."""
        await self._fetch(_SETTLE_BLOCKS, block_ids, used)

    async def _fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        seconds = self._seconds_max
        try:
            # The pool's own deadline also ends its wait for the cancelling of a late statement.
            async with asyncio.timeout(seconds), self._pool.acquire(timeout=seconds) as connection:
                return await connection.fetch(query, *arguments)
        except DATABASE_FAULTS as error:
            raise DatabaseAway from error
