"""Gateway tokens: creating, listing, keeping alive, and revoking with a receipt.

A revocation is one transaction. Its commit wakes every worker; each cuts the token's streams and
confirms. The receipt says which workers have confirmed within a bounded wait, and of the others
when they stop by themselves.
"""

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg

from control_plane.errors import BadArgument, NotFound, Refused
from control_plane.settings import TOKEN_LIFE_MAX
from gateway.auth.token import digest, hint, is_well_formed
from gateway.ids import IdMaker
from gateway.sql import load_queries

SCOPES: Final = ("batches", "calls", "usage:read")
LIMIT_MAX: Final = 2**53 - 1  # exact in every JSON reader
NAME_CHARS_MAX: Final = 200
MODELS_MAX: Final = 100
MODEL_CHARS_MAX: Final = 256

CONFIRMATION_SECONDS_MAX: Final = 2.0  # that a revocation waits for its workers
POLL_SECONDS: Final = 0.005
POLL_SECONDS_MAX: Final = 0.05
LEASE_DEFAULT: Final = timedelta(seconds=15)  # of workers that the database may not know

_QUERIES: Final = load_queries(__package__, "tokens.sql")
_CREATE = _QUERIES["create"]
_SET_LIMIT = _QUERIES["set_limit"]
_RENEW = _QUERIES["renew"]
_ANY_EXISTS = _QUERIES["any_exists"]
_LIST = _QUERIES["list"]
_REVOKE = _QUERIES["revoke"]
_CHANGE_OF = _QUERIES["change_of"]
_EARLIER_CHANGE = _QUERIES["earlier_change"]
_WORKERS = _QUERIES["workers"]
_STARTED_WITHIN_A_LEASE = _QUERIES["started_within_a_lease"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """What a token is to be."""

    text: str = field(repr=False)
    life: timedelta
    name: str = ""
    limit: int | None = None  # calls a month; None: as many as it likes
    models: Sequence[str] | None = None  # globs; None: any model
    scopes: Sequence[str] = ("calls",)


def check_new_token(token: NewToken) -> None:
    """Raise BadArgument for what no token can be."""
    if not timedelta(0) < token.life <= TOKEN_LIFE_MAX:
        raise BadArgument(f"A token lives at most {TOKEN_LIFE_MAX.days} days.", field="expires")
    if len(token.name) > NAME_CHARS_MAX or not token.name.isprintable():
        raise BadArgument(
            f"A name has at most {NAME_CHARS_MAX} printable characters.", field="name"
        )
    if token.limit is not None and not 0 <= token.limit <= LIMIT_MAX:
        raise BadArgument(f"A limit is a number from 0 to {LIMIT_MAX}.", field="limit")
    if unknown := set(token.scopes) - set(SCOPES):
        raise BadArgument(
            f"There is no scope '{min(unknown)}'; there are {', '.join(SCOPES)}.", field="scope"
        )
    if not token.scopes:
        raise BadArgument("A token has at least one scope.", field="scope")
    if token.models is not None:
        check_model_patterns(token.models)


def check_model_patterns(patterns: Sequence[str]) -> None:
    """Raise BadArgument for globs that no model's name can match."""
    if len(patterns) > MODELS_MAX:
        raise BadArgument(f"There are at most {MODELS_MAX} model patterns.", field="models")
    for pattern in patterns:
        is_name = pattern.isascii() and pattern.isprintable() and " " not in pattern
        if not is_name or not 0 < len(pattern) <= MODEL_CHARS_MAX:
            raise BadArgument(
                "A model pattern is ASCII without spaces, as in gpt-5* or claude-*.",
                field="models",
            )


async def create_token(
    connection: asyncpg.Connection, token: NewToken, *, ids: IdMaker
) -> dict[str, Any]:
    """Insert a token and return it, with its text: the only time that anyone is told."""
    check_new_token(token)
    async with connection.transaction():
        row = await connection.fetchrow(
            _CREATE,
            ids.new(),
            digest(token.text),
            hint(token.text),
            token.name,
            list(token.scopes),
            None if token.models is None else list(token.models),
            token.life,
        )
        if row is None:
            raise Refused("This database has no org to create a token in.")
        if token.limit is not None:
            await connection.execute(_SET_LIMIT, row["id"], row["org_id"], token.limit)
    created = {name: row[name] for name in ("name", "scopes", "models", "created_at", "expires_at")}
    return {"id": row["id"], "token": token.text, **created, "limit": token.limit}


async def keep_service_token(connection: asyncpg.Connection, text: str, *, ids: IdMaker) -> bool:
    """Register a token that the operator chose, or renew its expiry.

    Return False where it was revoked: it stays so. Raises BadArgument for a malformed one.
    """
    if not text.startswith("kxg_") or not is_well_formed(text.encode()):
        raise BadArgument(
            "This is not a gateway token: `kaixu token generate` makes one.",
            field="KAIXU_GATE_TOKEN",
        )
    token = NewToken(text=text, life=TOKEN_LIFE_MAX, name="KAIXU_GATE_TOKEN")
    row = await connection.fetchrow(_RENEW, digest(text), token.life)
    if row is None:
        try:
            await create_token(connection, token, ids=ids)
        except asyncpg.UniqueViolationError:  # another machine has just registered it
            row = await connection.fetchrow(_RENEW, digest(text), token.life)
    return row is None or row["revoked_at"] is None


async def any_token_exists(connection: asyncpg.Connection) -> bool:
    """Return whether anyone has ever had a token."""
    return bool(await connection.fetchval(_ANY_EXISTS))


async def list_tokens(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    """Return every token, newest first; none of them with its text or digest."""
    return [dict(row) for row in await connection.fetch(_LIST)]


async def revoke_token(
    connection: asyncpg.Connection,
    token_id: str,
    *,
    is_embedded: bool,
    wait_seconds: float = CONFIRMATION_SECONDS_MAX,
) -> dict[str, Any]:
    """Revoke a token and return the receipt.

    `is_embedded`: the database is this machine's own, so that it knows every worker there is.
    Raises NotFound.
    """
    began = time.monotonic()
    subject = _parse_id(token_id)
    row = await connection.fetchrow(_REVOKE, subject)
    if row is None:
        change = await connection.fetchrow(_EARLIER_CHANGE, subject)
        if change is None:
            raise NotFound("There is no token with this id: `kaixu token list` has them.")
    else:
        change = await connection.fetchrow(_CHANGE_OF, subject, row["xact"])
        assert change is not None, "a revocation logs its change"
    ordinal, committed_at = change["ordinal"], change["at"]

    workers = await _wait_for_workers(
        connection, ordinal, committed_at, deadline=began + wait_seconds
    )
    if row is None:  # what was cut, was cut by the revocation before
        for worker in workers:
            worker["streams_cut"] = 0
    complete = all(worker["state"] == "confirmed" for worker in workers)
    if complete and not is_embedded:
        complete = not await connection.fetchval(_STARTED_WITHIN_A_LEASE, LEASE_DEFAULT)
    return {
        "token_id": str(subject),
        "ordinal": ordinal,
        "committed_at": committed_at,
        "complete": complete,
        "took_ms": round((time.monotonic() - began) * 1000, 1),
        "streams_cut": sum(worker["streams_cut"] or 0 for worker in workers),
        "workers": workers,
    }


async def _wait_for_workers(
    connection: asyncpg.Connection,
    ordinal: int | None,
    committed_at: datetime,
    *,
    deadline: float,
) -> list[dict[str, Any]]:
    """Return every worker's part of the receipt, once all live ones confirmed or at the deadline.

    A change that the log has no more was applied by everyone long ago.
    """
    pause = POLL_SECONDS
    while True:
        rows = await connection.fetch(_WORKERS, ordinal or 0, committed_at)
        is_late = time.monotonic() + pause > deadline
        workers = [_worker(row, trust_applied=is_late or ordinal is None) for row in rows]
        if is_late or not any(worker["state"] == "pending" for worker in workers):
            return workers
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, POLL_SECONDS_MAX)


def _worker(row: asyncpg.Record, *, trust_applied: bool) -> dict[str, Any]:
    """Return a worker's part of the receipt.

    A worker confirms every change that it hears of. One that began later, or had to start over,
    holds the change without having heard of it: its heartbeats say up to where it has read.
    """
    confirmed_at = row["confirmed_at"]
    if confirmed_at is None and row["has_applied"] and (row["began_later"] or trust_applied):
        confirmed_at = row["heartbeat_at"]
    is_confirmed = confirmed_at is not None
    return {
        "worker_id": row["worker_id"],
        "machine": row["machine"],
        "state": "confirmed" if is_confirmed else "pending" if row["is_live"] else "unknown",
        "confirmed_at": confirmed_at,
        "streams_cut": (row["streams_cut"] or 0) if is_confirmed else None,
        "admission_stops_at": None if is_confirmed else row["admission_stops_at"],
        "streams_stop_at": None if is_confirmed else row["streams_stop_at"],
    }


def _parse_id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise NotFound("There is no token with this id: `kaixu token list` has them.") from None
