"""Rotation: a token gets another secret, and the old one is taken too for a while.

The token stays the same row: what it used, its limits, its children and its history go on. An old
secret ends by itself, at the second; or with the token, when that is revoked.
"""

import re
import time
import uuid
from datetime import datetime, timedelta
from typing import Final

import asyncpg
import msgspec
from msgspec import UNSET

from control_plane.errors import BadArgument, Forbidden, Refused
from control_plane.settings import parse_duration
from control_plane.tenancy.rbac import Permission
from control_plane.tenancy.receipts import receipt_of
from control_plane.tenancy.token_bodies import RotatedToken, Rotation
from control_plane.tenancy.token_rights import check_scopes
from control_plane.tenancy.token_routes import check_changeable
from control_plane.tenancy.token_views import GatewayToken, find_token
from control_plane.tenancy.tokens import check_life, life_max
from control_plane.throttle import RateClass
from control_plane.web.request import ApiRequest
from control_plane.web.route import Needs, Route, Scope
from gateway.auth.token import digest, generate, hint
from gateway.sql import load_queries

GRACE_MAX: Final = timedelta(hours=72)
OLD_SECRETS_MAX: Final = 10  # of one token, taken at once; the next one is a mistake in a script

_AT_ONCE: Final = re.compile(r"0[smhd]")
_QUERIES: Final = load_queries(__package__, "token_rotation.sql")
_FORGET = _QUERIES["forget"]
_END_OLD = _QUERIES["end_old"]
_SHORTEN_OLD = _QUERIES["shorten_old"]
_RETIRE = _QUERIES["retire"]
_RENEW = _QUERIES["renew"]
_NOW: Final = load_queries(__package__, "token_routes.sql")["now"]


async def rotate(request: ApiRequest) -> RotatedToken:
    """Give a token another secret and tell it, this once."""
    began = time.monotonic()
    body, org_id, token_id = (
        request.body_as(Rotation),
        request.membership.org_id,
        request.id("token"),
    )
    grace = parse_grace(body.grace)
    async with request.transaction() as connection:
        cap = await life_max(connection, org_id)
        before = await find_token(connection, org_id, token_id, lock=True)
        request.authorize(workspace_id=before.workspace, user_id=before.user)
        check_changeable(before)
        if before.user != request.membership.user_id:
            # The asker is told a secret that is somebody else's: it opens nothing that they could
            # not have given themselves.
            check_scopes(request.membership, before.scopes)
        ends_at = await _end(request, connection, before, body, cap=cap)
        secret = generate()
        xact = await replace_secret(connection, token_id, secret, grace=grace, ends_at=ends_at)
        after = await find_token(connection, org_id, token_id)
        await request.audit(
            connection,
            "token.rotate",
            target_kind="token",
            target_id=token_id,
            before={"hint": before.hint, "expires_at": before.expires_at},
            after={
                "hint": after.hint,
                "expires_at": after.expires_at,
                "old_secret_until": after.old_secret_until,
            },
        )
    receipt = await receipt_of(
        request.services.database,
        xact,
        is_embedded=request.services.settings.database_is_embedded,
        began=began,
    )
    return RotatedToken(**msgspec.structs.asdict(after), token=secret, receipt=receipt)


def parse_grace(text: str) -> timedelta:
    """Return for how long an old secret is taken; 0 of anything: not at all. Raises BadArgument."""
    if _AT_ONCE.fullmatch(text):
        return timedelta(0)
    grace = parse_duration(text, field="grace")
    if grace > GRACE_MAX:
        raise BadArgument("An old secret is taken for 72h at most.", field="grace")
    return grace


async def replace_secret(
    connection: asyncpg.Connection,
    token_id: uuid.UUID,
    secret: str,
    *,
    grace: timedelta,
    ends_at: datetime,
) -> str:
    """Give a token another secret, in the caller's transaction; return what finds the change.

    Raises Refused where too many old ones are taken still.
    """
    await connection.execute(_FORGET, token_id)
    if grace:
        if await connection.fetchval(_SHORTEN_OLD, token_id, grace) >= OLD_SECRETS_MAX:
            raise Refused(
                f"{OLD_SECRETS_MAX} old secrets of this token are taken still: rotate it with a "
                "grace of 0s, which ends them.",
                field="grace",
            )
        await connection.execute(_RETIRE, token_id, grace)
    else:
        await connection.execute(_END_OLD, token_id)
    xact: str = await connection.fetchval(_RENEW, token_id, digest(secret), hint(secret), ends_at)
    return xact


async def _end(
    request: ApiRequest,
    connection: asyncpg.Connection,
    token: GatewayToken,
    body: Rotation,
    *,
    cap: timedelta,
) -> datetime:
    """Return when the new secret ends: who may make no tokens there does not prolong one.

    Raises BadArgument, Forbidden, Refused.
    """
    now: datetime = await connection.fetchval(_NOW)
    if body.expires is not UNSET:
        life = parse_duration(body.expires, field="expires")
        await check_life(connection, life, org_id=request.membership.org_id)
    else:
        life = min(token.expires_at - token.issued_at, cap)
    ends_at = now + life
    if request.membership.holds(Permission.TOKENS_CREATE, workspace_id=token.workspace):
        return ends_at
    if token.state == "expired":
        raise Refused("This token has expired.", code="token_expired")
    if ends_at > token.expires_at and body.expires is not UNSET:
        raise Forbidden("You may shorten this token, and not prolong it.", field="expires")
    return min(ends_at, token.expires_at)


ROUTES: Final = (
    Route(
        method="POST",
        path="/api/v1/tokens/{token}/rotate",
        summary="Give a token another secret, told this once; the old one is taken for a while",
        access=Needs(permission=Permission.TOKENS_WRITE, scope=Scope.EACH),
        rate_class=RateClass.WRITE,
        handler=rotate,
        body=Rotation,
        body_is_optional=True,
        answer=RotatedToken,
        tells_once=frozenset({"token"}),
    ),
)
