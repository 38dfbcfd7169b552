"""Gateway tokens: creating, listing, keeping alive, and revoking with a receipt."""

import ipaddress
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import asyncpg

from control_plane.audit_log import COMMAND, Origin, record
from control_plane.errors import BadArgument, NotFound, Refused
from control_plane.settings import TOKEN_LIFE_MAX, told_duration
from control_plane.tenancy.limits import LIMIT_MAX, LimitChange, LimitSetter, Rate, write_limits
from control_plane.tenancy.receipts import (
    CONFIRMATION_SECONDS_MAX,
    Change,
    Database,
    change_of,
    wait_for_receipt,
)
from gateway.auth.token import digest, hint, is_well_formed
from gateway.ids import IdMaker
from gateway.sql import load_queries
from gateway.vendors.registry import InvalidVendorName, check_vendor_name

SCOPES: Final = ("batches", "calls", "usage:read")
NAME_CHARS_MAX: Final = 200
MODELS_MAX: Final = 100
MODEL_CHARS_MAX: Final = 256
VENDORS_MAX: Final = 100
NETWORKS_MAX: Final = 100
MAPPED_PREFIX: Final = 96  # of IPv4 addresses inside IPv6 ones

_TOLD: Final = ("name", "scopes", "models", "created_at", "expires_at")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_QUERIES: Final = load_queries(__package__, "tokens.sql")
_DEFAULT_HOLDER = _QUERIES["default_holder"]
_LIFE_MAX = _QUERIES["life_max"]
_CREATE = _QUERIES["create"]
_RENEW = _QUERIES["renew"]
_ANY_EXISTS = _QUERIES["any_exists"]
_LIST = _QUERIES["list"]
_REVOKE = _QUERIES["revoke"]
_EARLIER_CHANGE = _QUERIES["earlier_change"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Whose a token is. `created_by` is the member who made it, None: a command did."""

    org_id: uuid.UUID
    workspace_id: uuid.UUID
    user_id: uuid.UUID
    created_by: uuid.UUID | None = None
    parent_id: uuid.UUID | None = None  # of a child token


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
    vendors: Sequence[str] | None = None  # names; None: any vendor
    addresses: Sequence[Network] | None = None  # that calls come from; None: any
    scopes: Sequence[str] = ("calls",)


def check_new_token(token: NewToken) -> None:
    """Raise BadArgument for what no token can be."""
    if not timedelta(0) < token.life <= TOKEN_LIFE_MAX:
        raise BadArgument(f"A token lives at most {TOKEN_LIFE_MAX.days} days.", field="expires")
    check_name(token.name)
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
    if token.vendors is not None:
        check_vendor_names(token.vendors)
    if token.addresses is not None and len(token.addresses) > NETWORKS_MAX:
        raise BadArgument(f"There are at most {NETWORKS_MAX} networks.", field="addresses")


def check_name(name: str) -> None:
    """Raise BadArgument for what no token can be called."""
    if len(name) > NAME_CHARS_MAX or not name.isprintable():
        raise BadArgument(
            f"A name has at most {NAME_CHARS_MAX} printable characters.", field="name"
        )


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


def check_vendor_names(names: Sequence[str]) -> None:
    """Raise BadArgument for what no vendor is called; one that is not there yet may be."""
    if len(names) > VENDORS_MAX:
        raise BadArgument(f"There are at most {VENDORS_MAX} vendors.", field="vendors")
    for name in names:
        try:
            check_vendor_name(name)
        except InvalidVendorName as error:
            raise BadArgument(str(error), field="vendors") from error


def parse_networks(texts: Sequence[str], *, field: str) -> list[Network]:
    """Return networks, as written `203.0.113.0/24` or `2001:db8::1`. Raises BadArgument.

    An IPv4 network that is mapped into IPv6 is that IPv4 network.
    """
    networks = []
    for text in texts:
        try:
            network = ipaddress.ip_network(text)
            if "%" in text:
                raise ValueError("a zone is this machine's own")  # noqa: TRY301 - told below
        except ValueError:
            raise BadArgument(
                f"'{text[:50]}' is no network: write 203.0.113.7 or 203.0.113.0/24, without bits "
                "after the mask.",
                field=field,
            ) from None
        mapped = getattr(network.network_address, "ipv4_mapped", None)
        if mapped is not None and network.prefixlen >= MAPPED_PREFIX:
            network = ipaddress.ip_network((mapped, network.prefixlen - MAPPED_PREFIX))
        networks.append(network)
    return networks


async def life_max(connection: asyncpg.Connection, org_id: uuid.UUID) -> timedelta:
    """Return how long an org lets a token live."""
    cap: timedelta | None = await connection.fetchval(_LIFE_MAX, org_id)
    if cap is None:
        raise NotFound("There is no such org.", field="org")
    return min(cap, TOKEN_LIFE_MAX)


async def check_life(connection: asyncpg.Connection, life: timedelta, *, org_id: uuid.UUID) -> None:
    """Raise BadArgument for a life longer than an org allows."""
    cap = await life_max(connection, org_id)
    if not timedelta(0) < life <= cap:
        raise BadArgument(f"Tokens of this org live at most {told_duration(cap)}.", field="expires")


async def default_holder(connection: asyncpg.Connection) -> Holder:
    """Return whose a token is that a command makes. Raises Refused."""
    row = await connection.fetchrow(_DEFAULT_HOLDER)
    if row is None:
        raise Refused("This database has no org to create a token in.")
    return Holder(**dict(row))


async def create_token(
    connection: asyncpg.Connection,
    token: NewToken,
    *,
    ids: IdMaker,
    holder: Holder | None = None,
    origin: Origin = COMMAND,
) -> dict[str, Any]:
    """Insert a token and return it, with its text: the only time that anyone is told.

    `holder` None: the default org's; `origin` is for the audit log. Raises BadArgument, also for a
    life beyond what the org allows.
    """
    check_new_token(token)
    async with connection.transaction():
        holder = holder or await default_holder(connection)
        await check_life(connection, token.life, org_id=holder.org_id)
        row = await connection.fetchrow(
            _CREATE,
            ids.new(),
            digest(token.text),
            hint(token.text),
            token.name,
            holder.org_id,
            holder.workspace_id,
            holder.user_id,
            holder.parent_id,
            holder.created_by,
            list(token.scopes),
            None if token.models is None else list(token.models),
            None if token.vendors is None else list(token.vendors),
            token.addresses,
            token.life,
        )
        assert row is not None, "an insert returns its row"
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
            await write_limits(
                connection,
                "token",
                row["id"],
                str(holder.org_id),
                changes,
                setter=LimitSetter.ORG,
            )
        created = {name: row[name] for name in _TOLD}
        lists = {
            "vendors": None if token.vendors is None else list(token.vendors),
            "addresses": None if token.addresses is None else [*map(str, token.addresses)],
        }
        limits = {
            "limit": token.limit,
            "rate": None if token.rate is None else str(token.rate),
            "concurrency": token.concurrency,
        }
        await record(
            connection,
            origin,
            "token.create",
            org_id=holder.org_id,
            target_kind="token",
            target_id=row["id"],
            after={
                **created,
                **lists,
                **limits,
                "workspace_id": holder.workspace_id,
                "user_id": holder.user_id,
                "parent_id": holder.parent_id,
            },
        )
    return {"id": row["id"], "token": token.text, **created, **lists, **limits}


async def keep_service_token(connection: asyncpg.Connection, text: str, *, ids: IdMaker) -> bool:
    """Register a token that the operator chose, or renew its expiry.

    Return False where it was revoked: it stays so. Raises BadArgument for a malformed one.
    """
    if not text.startswith("kxg_") or not is_well_formed(text.encode()):
        raise BadArgument(
            "This is not a gateway token: `kaixu token generate` makes one.",
            field="KAIXU_GATE_TOKEN",
        )
    holder = await default_holder(connection)
    life = await life_max(connection, holder.org_id)
    token = NewToken(text=text, life=life, name="KAIXU_GATE_TOKEN")
    row = await connection.fetchrow(_RENEW, digest(text), token.life)
    if row is None:
        try:
            await create_token(connection, token, ids=ids, holder=holder)
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
    async with connection.transaction():
        ended = await end_token(connection, _parse_id(token_id), origin=COMMAND)
    return await revocation_receipt(
        connection, ended, is_embedded=is_embedded, began=began, wait_seconds=wait_seconds
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedToken:
    """A token that has ended: in the transaction `xact`, or (None) by an `earlier` change."""

    token_id: uuid.UUID
    xact: str | None
    earlier: Change | None


async def end_token(
    connection: asyncpg.Connection, token_id: uuid.UUID, *, origin: Origin
) -> EndedToken:
    """End a token within the caller's transaction. Raises NotFound."""
    row = await connection.fetchrow(_REVOKE, token_id)
    if row is None:
        earlier = await connection.fetchrow(_EARLIER_CHANGE, token_id)
        if earlier is None:
            raise NotFound("There is no token with this id: `kaixu token list` has them.")
        change = Change(ordinal=earlier["ordinal"], committed_at=earlier["at"])
        return EndedToken(token_id=token_id, xact=None, earlier=change)
    await record(
        connection,
        origin,
        "token.revoke",
        org_id=row["org_id"],
        target_kind="token",
        target_id=token_id,
    )
    return EndedToken(token_id=token_id, xact=row["xact"], earlier=None)


async def revocation_receipt(
    database: Database,
    ended: EndedToken,
    *,
    is_embedded: bool,
    began: float,
    wait_seconds: float = CONFIRMATION_SECONDS_MAX,
) -> dict[str, Any]:
    """Return the receipt of what `end_token` did, once that has committed."""
    change = ended.earlier
    if change is None:
        assert ended.xact is not None, "it ended now or earlier"
        change = await change_of(database, ended.xact)
    receipt = await wait_for_receipt(
        database, change, is_embedded=is_embedded, began=began, wait_seconds=wait_seconds
    )
    if ended.xact is None:  # what was cut, was cut by the revocation before
        receipt["streams_cut"] = 0
        for worker in receipt["workers"]:
            worker["streams_cut"] = 0
    return {"token_id": str(ended.token_id), **receipt}


def _parse_id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise NotFound("There is no token with this id: `kaixu token list` has them.") from None
