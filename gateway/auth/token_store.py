"""Looks tokens up in the database: by digest for a call, by id after the feed lost its place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

from gateway.auth.caller import Caller, Subject
from gateway.errors import DatabaseAway
from gateway.permit_limit import PermitLimit
from gateway.sql import DATABASE_FAULTS, load_queries

QUERY_SECONDS_MAX: Final = 5.0  # for a connection, and for the query
FIRST_BLOCK_UNITS: Final = 16  # of each allowance; a token that proves busy asks for more

UNKNOWN: Final = "unknown"

_LISTS: Final = (  # null: anything goes
    "models", "parent_models", "vendors", "parent_vendors", "addresses", "parent_addresses",
)  # fmt: skip

_QUERIES: Final = load_queries(__package__, "token_store.sql")
_FIND_CALLER: Final = _QUERIES["find_caller"]
_FIND_ENDED: Final = _QUERIES["find_ended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The answer to a lookup: a caller, or why there is none.

    `why` is None with a caller, else one of: unknown, revoked, parent_revoked, user_disabled,
    workspace_archived, org_suspended, nested, expired. `subjects` are what a change would have to
    touch to change the answer; an unknown token has none. `head` is the last change that the answer
    has seen. `grants` are the first blocks, as rows of the SQL function `grant_blocks`.
    """

    caller: Caller | None
    why: str | None
    subjects: tuple[Subject, ...] = ()
    head: int
    grants: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)


class TokenStore:
    """Tokens in PostgreSQL, as the gateway's role may read them."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def find(self, digest: bytes, *, worker_id: str, block_ids: Sequence[str]) -> Found:
        """Return the caller with this token digest, and first blocks of its allowances.

        One round trip. A block takes an id of `block_ids`, from the first on; where they are fewer
        than the allowances, nothing is granted. Raises DatabaseAway; blocks may have been granted
        then.
        """
        rows = await self._fetch(
            _FIND_CALLER, digest, worker_id, list(block_ids), FIRST_BLOCK_UNITS
        )
        row = rows[0]
        if row["token_id"] is None:
            return Found(caller=None, why=UNKNOWN, head=row["head"])
        caller = _caller(row)
        if row["why"] is not None:
            return Found(caller=None, why=row["why"], subjects=caller.subjects, head=row["head"])
        return Found(
            caller=caller,
            why=None,
            subjects=caller.subjects,
            head=row["head"],
            grants=tuple(dict(row) for row in rows if row["block_id"] is not None),
        )

    async def find_ended(self, token_ids: Sequence[str]) -> frozenset[str]:
        """Return which of these tokens may not go on, not even with a call that is open.

        A token that has expired since may: expiry refuses admission only. One that the database
        does not know may not. Raises DatabaseAway.
        """
        rows = await self._fetch(_FIND_ENDED, list(token_ids))
        return frozenset(row["token_id"] for row in rows)

    async def _fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        try:
            async with self._pool.acquire(timeout=QUERY_SECONDS_MAX) as connection:
                return await connection.fetch(query, *arguments, timeout=QUERY_SECONDS_MAX)
        except DATABASE_FAULTS as error:
            raise DatabaseAway from error


def _caller(row: asyncpg.Record) -> Caller:
    return Caller(
        token_id=row["token_id"],
        parent_id=row["parent_id"],
        org_id=row["org_id"],
        workspace_id=row["workspace_id"],
        user_id=row["user_id"],
        scopes=frozenset(row["scopes"]),
        **{name: None if row[name] is None else tuple(row[name]) for name in _LISTS},
        expires_at=row["expires_at"],
        limits=tuple(zip(row["limit_kinds"], row["limit_ids"], strict=True)),
        permits=tuple(
            PermitLimit(subject_kind=kind, subject=subject, calls=calls, window_seconds=window)
            for kind, subject, calls, window in zip(
                row["permit_kinds"],
                row["permit_ids"],
                row["permit_calls"],
                row["permit_windows"],
                strict=True,
            )
        ),
    )
