"""What is said about a token in requests, and the checks that need nobody's rights."""

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from control_plane.errors import BadArgument
from control_plane.settings import TOKEN_LIFE_DEFAULT, parse_duration
from control_plane.tenancy.limits import (
    FIELDS,
    LIMIT_MAX,
    NONE,
    PERMITS_MAX,
    LimitChange,
    parse_rate,
)
from control_plane.tenancy.receipts import Receipt
from control_plane.tenancy.token_views import GatewayToken
from control_plane.tenancy.tokens import MODELS_MAX, NAME_CHARS_MAX, NETWORKS_MAX, VENDORS_MAX

Name = Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX)]
Duration = Annotated[str, msgspec.Meta(max_length=10, examples=["30d", "12h"])]
Calls = Annotated[int, msgspec.Meta(ge=1, le=LIMIT_MAX)]
OpenCalls = Annotated[int, msgspec.Meta(ge=1, le=PERMITS_MAX)]
RateText = Annotated[str, msgspec.Meta(max_length=30, examples=["60/1m"])]
Models = Annotated[list[str], msgspec.Meta(min_length=1, max_length=MODELS_MAX)]
Vendors = Annotated[list[str], msgspec.Meta(min_length=1, max_length=VENDORS_MAX)]
Networks = Annotated[
    list[str],
    msgspec.Meta(min_length=1, max_length=NETWORKS_MAX, examples=[["203.0.113.0/24"]]),
]
Scopes = Annotated[list[str], msgspec.Meta(min_length=1, max_length=10)]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]
NoLimit = Literal["none"]  # as the commands say it: null is too easily sent by mistake

CHILD_LIFE_MAX: Final = timedelta(hours=1)


class TokenCreation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a token is to be; what is not said has no limit of its own.

    It lives for `expires` or until `expires_at`, else for 30 days or as long as the org allows.
    """

    name: Name = ""
    workspace_id: uuid.UUID | None = None
    user_id: uuid.UUID | None = None
    expires: Duration | UnsetType = UNSET
    expires_at: Instant | UnsetType = UNSET
    limit: Calls | UnsetType = UNSET
    rate: RateText | UnsetType = UNSET
    concurrency: OpenCalls | UnsetType = UNSET
    models: Models | None = None
    vendors: Vendors | None = None
    addresses: Networks | None = None
    scopes: Scopes = msgspec.field(default_factory=lambda: ["calls"])


class ChildCreation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a child token is to be, beside all that holds for its parent.

    `scopes` not said: to call, or what else the parent may.
    """

    name: Name = ""
    expires: Duration = "1h"
    limit: Calls | UnsetType = UNSET
    rate: RateText | UnsetType = UNSET
    concurrency: OpenCalls | UnsetType = UNSET
    models: Models | None = None
    vendors: Vendors | None = None
    addresses: Networks | None = None
    scopes: Scopes | UnsetType = UNSET


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a secret is replaced: `grace` is for how long the old one is taken too, at most 72h.

    `expires` is for how long the new one lives; not said: as long as the old one was made for.
    """

    grace: Duration = "24h"
    expires: Duration | UnsetType = UNSET


class TokenPatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What changes of a token. "none" takes a limit away, null a list: then any will do."""

    name: Name | UnsetType = UNSET
    expires: Duration | UnsetType = UNSET
    expires_at: Instant | UnsetType = UNSET
    limit: Calls | NoLimit | UnsetType = UNSET
    rate: RateText | UnsetType = UNSET
    concurrency: OpenCalls | NoLimit | UnsetType = UNSET
    models: Models | UnsetType | None = UNSET
    vendors: Vendors | UnsetType | None = UNSET
    addresses: Networks | UnsetType | None = UNSET
    scopes: Scopes | UnsetType = UNSET


class CreatedToken(GatewayToken, frozen=True, kw_only=True):
    """A token with its secret: null where the request is answered again."""

    token: str | None


class RotatedToken(CreatedToken, frozen=True, kw_only=True):
    """A token with its new secret; `receipt` says which workers know of it."""

    receipt: Receipt | None


class ChangedToken(GatewayToken, frozen=True, kw_only=True):
    """A token after a change; `receipt` null: nothing that a gateway would hear of has changed."""

    receipt: Receipt | None


class TokenRevocation(Receipt, frozen=True, kw_only=True):
    """Which workers hold the revocation of a token."""

    token_id: str


def life_of(body: TokenCreation | TokenPatch, *, now: datetime, cap: timedelta) -> timedelta | None:
    """Return for how long from now; None where nothing is said. Raises BadArgument.

    `cap` is not checked here: it is what a new token lives for where that is less than usual.
    """
    if body.expires is not UNSET and body.expires_at is not UNSET:
        raise BadArgument("Say expires or expires_at, not both.", field="expires_at")
    if body.expires is not UNSET:
        return parse_duration(body.expires, field="expires")
    if body.expires_at is not UNSET:
        life = body.expires_at - now
        if life <= timedelta(0):
            raise BadArgument("This is in the past.", field="expires_at")
        return life
    return min(TOKEN_LIFE_DEFAULT, cap) if isinstance(body, TokenCreation) else None


def limit_changes(body: TokenCreation | ChildCreation | TokenPatch) -> list[LimitChange]:
    """Return the limits that are said. Raises BadArgument."""
    changes: list[LimitChange] = []
    if body.limit is not UNSET:
        value = None if isinstance(body.limit, str) else body.limit
        changes.append(LimitChange(name="calls_a_month", value=value))
    if body.rate is not UNSET:
        takes_away = isinstance(body, TokenPatch) and body.rate == NONE
        window = None if takes_away else parse_rate(body.rate, field="rate")
        changes.append(LimitChange(name="rate", value=window))
    if body.concurrency is not UNSET:
        value = None if isinstance(body.concurrency, str) else body.concurrency
        changes.append(LimitChange(name="concurrency", value=value))
    return changes


def said_limits(changes: Sequence[LimitChange]) -> dict[str, Any]:
    """Return limits by the names that a new token has them under."""
    return {FIELDS[change.name]: change.value for change in changes}


def widened(token: GatewayToken, patch: TokenPatch, *, ends_at: datetime | None) -> str | None:
    """Return a field by which a patch lets a token do more than it may now; None: there is none.

    `ends_at` is its new end. Lists count by what is written in them: a narrower pattern is new.
    """
    if ends_at is not None and ends_at > token.expires_at:
        return "expires"
    for field, old, new in (
        ("limit", token.limit, patch.limit),
        ("concurrency", token.concurrency, patch.concurrency),
    ):
        if new is not UNSET and old is not None and (isinstance(new, str) or new > old):
            return field
    if patch.rate is not UNSET and token.rate is not None and _is_faster(patch.rate, token.rate):
        return "rate"
    for field, held, asked in (
        ("models", token.models, patch.models),
        ("vendors", token.vendors, patch.vendors),
        ("addresses", token.addresses, patch.addresses),
    ):
        if asked is not UNSET and held is not None and not _is_within(asked, held):
            return field
    return None


def _is_faster(new: str, old: str) -> bool:
    if new == NONE:
        return True
    after, before = parse_rate(new, field="rate"), parse_rate(old, field="rate")
    is_faster = after.calls * before.window_seconds > before.calls * after.window_seconds
    return is_faster or after.calls > before.calls


def _is_within(asked: Sequence[str] | None, held: Sequence[str]) -> bool:
    return asked is not None and set(asked) <= set(held)
