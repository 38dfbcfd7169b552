"""Gateway tokens: creating, listing, keeping alive, and revoking with a receipt."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import asyncpg

from control_plane.errors import BadArgument, NotFound, Refused
from control_plane.settings import TOKEN_LIFE_MAX
from control_plane.tenancy.limits import LIMIT_MAX, LimitChange, Rate, change_limits
from control_plane.tenancy.receipts import (
    CONFIRMATION_SECONDS_MAX,
    Change,
    change_of,
    wait_for_receipt,
)
from gateway.auth.token import digest, hint, is_well_formed
from gateway.ids import IdMaker
from gateway.sql import load_queries

SCOPES: Final = ("batches", "calls", "usage:read")
NAME_CHARS_MAX: Final = 200
MODELS_MAX: Final = 100
MODEL_CHARS_MAX: Final = 256

_QUERIES: Final = load_queries(__package__, "tokens.sql")
_CREATE = _QUERIES["create"]
_RENEW = _QUERIES["renew"]
_ANY_EXISTS = _QUERIES["any_exists"]
_LIST = _QUERIES["list"]
_REVOKE = _QUERIES["revoke"]
_EARLIER_CHANGE = _QUERIES["earlier_change"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """What a token is to be."""

    text: str = field(repr=False)
    life: timedelta
    name: str = ""
    limit: int | None = None  # calls a month; None: as many as it likes
    rate: Rate | None = None  # calls that may begin within a window
    concurrency: int | None = None  # calls that may be open at once
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
        changes = [
            LimitChange(name=name, value=value)
            for name, value in (
                ("calls_a_month", token.limit),
                ("rate", token.rate),
                ("concurrency", token.concurrency),
            )
            if value is not None
        ]
        if changes:
            await change_limits(connection, f"token:{row['id']}", changes)
    created = {name: row[name] for name in ("name", "scopes", "models", "created_at", "expires_at")}
    limits = {
        "limit": token.limit,
        "rate": None if token.rate is None else str(token.rate),
        "concurrency": token.concurrency,
    }
    return {"id": row["id"], "token": token.text, **created, **limits}


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
        earlier = await connection.fetchrow(_EARLIER_CHANGE, subject)
        if earlier is None:
            raise NotFound("There is no token with this id: `kaixu token list` has them.")
        change = Change(ordinal=earlier["ordinal"], committed_at=earlier["at"])
    else:
        change = await change_of(connection, row["xact"])
    receipt = await wait_for_receipt(
        connection, change, is_embedded=is_embedded, began=began, wait_seconds=wait_seconds
    )
    if row is None:  # what was cut, was cut by the revocation before
        receipt["streams_cut"] = 0
        for worker in receipt["workers"]:
            worker["streams_cut"] = 0
    return {"token_id": str(subject), **receipt}


def _parse_id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise NotFound("There is no token with this id: `kaixu token list` has them.") from None
