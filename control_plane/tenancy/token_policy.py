"""How long tokens of an org may live: for new ones, rotated ones and changed ones.

Lowering it shortens those that there are: from then on none lives longer than the new cap, counted
from that moment, so that nobody's call fails because somebody moved a setting. The database does it
(schema/0016), whoever writes the setting. Raising it prolongs nothing.
"""

import time
from datetime import timedelta
from typing import Final

import msgspec

from control_plane.errors import BadArgument
from control_plane.settings import TOKEN_LIFE_MAX, parse_duration, told_duration
from control_plane.tenancy.rbac import Permission
from control_plane.tenancy.receipts import Receipt, receipt_of
from control_plane.tenancy.revocation import BULK_MILLISECONDS_MAX
from control_plane.tenancy.token_bodies import Duration
from control_plane.throttle import RateClass
from control_plane.web.request import ApiRequest
from control_plane.web.route import Needs, Route
from gateway.sql import load_queries

LIFE_MIN: Final = timedelta(minutes=5)  # less locks everybody out before they notice

_QUERIES: Final = load_queries(__package__, "token_policy.sql")
_FIND = _QUERIES["find"]
_LOCK = _QUERIES["lock"]
_UPDATE = _QUERIES["update"]
_ALLOW_TIME = _QUERIES["allow_time"]
_CHANGING = _QUERIES["changing_transaction"]


class TokenPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What an org asks of its tokens."""

    expires_max: str


class ChangedTokenPolicy(TokenPolicy, frozen=True, kw_only=True):
    """What holds now; `receipt` null: no token was shortened."""

    receipt: Receipt | None


class TokenPolicyBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an org is to ask of its tokens: 5m to 90d."""

    expires_max: Duration


async def read(request: ApiRequest) -> TokenPolicy:
    """Return what holds."""
    async with request.transaction() as connection:
        cap = await connection.fetchval(_FIND, request.org_id)
    return TokenPolicy(expires_max=told_duration(cap))


async def replace(request: ApiRequest) -> ChangedTokenPolicy:
    """Say what is to hold; tokens that would live longer are shortened."""
    began = time.monotonic()
    cap = parse_duration(request.body_as(TokenPolicyBody).expires_max, field="expires_max")
    if not LIFE_MIN <= cap <= TOKEN_LIFE_MAX:
        raise BadArgument(
            f"Tokens may live {told_duration(LIFE_MIN)} to {told_duration(TOKEN_LIFE_MAX)}.",
            field="expires_max",
        )
    async with request.transaction() as connection:
        before = await connection.fetchval(_LOCK, request.org_id)
        request.check_match(TokenPolicy(expires_max=told_duration(before)))
        if before != cap:
            await connection.execute(_ALLOW_TIME, str(BULK_MILLISECONDS_MAX))
            await connection.execute(_UPDATE, request.org_id, cap)
            await request.audit(
                connection,
                "token_policy.update",
                target_kind="org",
                target_id=request.membership.org_id,
                before={"expires_max": told_duration(before)},
                after={"expires_max": told_duration(cap)},
            )
        xact = await connection.fetchval(_CHANGING)
    receipt = await receipt_of(
        request.services.database,
        xact,
        is_embedded=request.services.settings.database_is_embedded,
        began=began,
    )
    return ChangedTokenPolicy(expires_max=told_duration(cap), receipt=receipt)


ROUTES: Final = (
    Route(
        method="GET",
        path="/api/v1/token-policy",
        summary="How long gateway tokens of the org may live",
        access=Needs(permission=Permission.ORG_READ),
        rate_class=RateClass.READ,
        handler=read,
        answer=TokenPolicy,
    ),
    Route(
        method="PUT",
        path="/api/v1/token-policy",
        summary="Say how long gateway tokens of the org may live; those that there are obey",
        access=Needs(permission=Permission.ORG_WRITE),
        rate_class=RateClass.WRITE,
        handler=replace,
        body=TokenPolicyBody,
        answer=ChangedTokenPolicy,
        errors=(412,),
    ),
)
