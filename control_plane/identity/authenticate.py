"""Who asks: the session that a bearer token stands for, looked up each time that it is shown."""

import uuid
from datetime import timedelta
from typing import Final

import asyncpg

from control_plane.errors import BadArgument, Forbidden, NotFound
from control_plane.identity.actor import Actor, Membership
from control_plane.identity.session_keys import SessionClaims, refusal
from control_plane.tenancy.rbac import Role
from gateway.sql import load_queries

IDLE_MAX: Final = timedelta(hours=24)  # without a request; then a session is over
IDLE_PRIVILEGED_MAX: Final = timedelta(hours=8)  # of operators, and of owners and admins of an org

_QUERIES: Final = load_queries(__package__, "sessions.sql")
_FIND_ACTOR = _QUERIES["find_actor"]
_IS_OPEN = _QUERIES["is_open"]
_TOUCH = _QUERIES["touch"]
_ONLY_ORG = _QUERIES["only_org"]


async def find_actor(
    connection: asyncpg.Connection,
    claims: SessionClaims,
    *,
    org_id: uuid.UUID | None,
    touches: bool = True,
) -> Actor:
    """Return who stands behind a session, and what it is in an org (None: it is about none).

    The transaction belongs to the account that the token names. `touches`: the session is noted to
    be in use, which locks its row to the transaction's end. Raises Unauthenticated for a
    session that is over, NotFound for an org that the account is not in, Forbidden where the org
    asks for a second factor that the account does not have.
    """
    row = await connection.fetchrow(
        _FIND_ACTOR,
        claims.session_id,
        claims.account_id,
        org_id,
        IDLE_MAX,
        IDLE_PRIVILEGED_MAX,
    )
    if row is None:
        raise refusal()
    if row["is_stale"] and touches:
        await connection.execute(_TOUCH, claims.session_id)
    membership = None
    if org_id is not None:
        if row["user_id"] is None:
            raise NotFound("There is no such org.", field="org")
        if row["requires_totp"] and not row["has_totp"]:
            raise Forbidden(
                "This org asks its members for a second factor: enable TOTP in your account first.",
                code="totp_required",
            )
        roles = zip(row["workspace_ids"], row["workspace_roles"], strict=True)
        membership = Membership(
            org_id=org_id,
            user_id=row["user_id"],
            role=Role(row["role"]),
            workspace_roles={workspace: Role(role) for workspace, role in roles},
        )
    return Actor(
        account_id=row["account_id"],
        session_id=claims.session_id,
        email=row["email"],
        is_operator=row["is_operator"],
        has_totp=row["has_totp"],
        authenticated_at=row["authenticated_at"],
        methods=frozenset(row["methods"]),
        membership=membership,
    )


async def is_open(connection: asyncpg.Connection, claims: SessionClaims) -> bool:
    """Return whether a session can be open still; `find_actor` decides whether it is."""
    return bool(await connection.fetchval(_IS_OPEN, claims.session_id, claims.account_id, IDLE_MAX))


async def only_org(connection: asyncpg.Connection, account_id: uuid.UUID) -> uuid.UUID:
    """Return the org of an account that is in one only. Raises BadArgument, NotFound."""
    rows = await connection.fetch(_ONLY_ORG, account_id)
    if not rows:
        raise NotFound("You are in no org.", field="org")
    if len(rows) > 1:
        raise BadArgument("You are in several orgs: say which, as in ?org=<id>.", field="org")
    org_id: uuid.UUID = rows[0]["org_id"]
    return org_id
