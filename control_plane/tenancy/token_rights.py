"""What a member may give a token: never more than it holds itself, in scopes, places and limits.

The gateway holds every limit that applies, whatever a token says. These rules refuse what would
only look like a right, and what would be one: a scope.
"""

import uuid
from collections.abc import Sequence
from typing import Any, Final

import asyncpg

from control_plane.errors import BadArgument, Forbidden, NotFound, Refused
from control_plane.identity.actor import Membership
from control_plane.tenancy.limits import FIELDS, LimitChange, Rate
from control_plane.tenancy.rbac import Permission
from control_plane.tenancy.tokens import SCOPES
from gateway.sql import load_queries

_QUERIES: Final = load_queries(__package__, "token_rights.sql")
_WORKSPACES = _QUERIES["workspaces"]
_HOLD_MEMBER = _QUERIES["hold_member"]
_MAY_BE_HOLDER = _QUERIES["may_be_holder"]
_CEILINGS = _QUERIES["ceilings"]


def conferrable_scopes(membership: Membership) -> frozenset[str]:
    """Return the scopes that a member may give a token.

    `batches` escapes every limit that applies, so that it is for who sets all of them: who runs a
    workspace sets neither its own nor its members'. `usage:read` reads what all of the org used, so
    that it is for who may read that.
    """
    scopes = {"calls"}
    if membership.holds(Permission.LIMITS_WRITE):
        scopes.add("batches")
    if membership.holds(Permission.USAGE_READ):
        scopes.add("usage:read")
    return frozenset(scopes)


def check_scopes(membership: Membership, scopes: Sequence[str]) -> list[str]:
    """Return scopes, each once. Raises Forbidden for one that the member may not give.

    Raises BadArgument for one that there is not, to who may give all that there are.
    """
    given = conferrable_scopes(membership)
    for scope in scopes:
        if scope in given:
            continue
        if given.issuperset(SCOPES):
            raise BadArgument(
                f"There is no scope '{scope[:50]}'; there are {', '.join(SCOPES)}.", field="scopes"
            )
        raise Forbidden(
            f"You may not give a token this scope; you may give {', '.join(sorted(given))}.",
            field="scopes",
        )
    if not scopes:
        raise BadArgument("A token has at least one scope.", field="scopes")
    return sorted(set(scopes))


async def workspace_for(
    connection: asyncpg.Connection, membership: Membership, asked: uuid.UUID | None
) -> uuid.UUID:
    """Return the workspace that a member's new token is to be in; None: the only one it could be.

    Raises NotFound, Forbidden, BadArgument.
    """
    if asked is None:
        allowed = membership.workspaces(Permission.TOKENS_CREATE)
        rows = await connection.fetch(
            _WORKSPACES, membership.org_id, None if allowed is None else list(allowed)
        )
        if not rows:
            raise Forbidden(
                "You may make tokens in no workspace of this org.", field="workspace_id"
            )
        if len(rows) > 1:
            raise BadArgument("There are several workspaces: say which.", field="workspace_id")
        found: uuid.UUID = rows[0]["id"]
        return found
    if not await connection.fetch(_WORKSPACES, membership.org_id, [asked]):
        raise NotFound("There is no such workspace.", field="workspace_id")
    if not membership.holds(Permission.TOKENS_CREATE, workspace_id=asked):
        raise Forbidden("You may make no tokens in this workspace.", field="workspace_id")
    return asked


async def holder_for(
    connection: asyncpg.Connection,
    membership: Membership,
    asked: uuid.UUID | None,
    *,
    workspace_id: uuid.UUID,
) -> uuid.UUID:
    """Return the member whose a new token is to be; None: the asker.

    Others get one from who may change tokens there, and only in a workspace that they are in. Until
    the transaction ends they stay there: who takes them away ends this token too. Raises NotFound,
    Forbidden, Refused.
    """
    holder = asked or membership.user_id
    if holder != membership.user_id and not membership.holds(
        Permission.TOKENS_WRITE, workspace_id=workspace_id
    ):
        raise Forbidden("You may make tokens for yourself only.", field="user_id")
    if not await connection.fetchval(_HOLD_MEMBER, membership.org_id, holder):
        raise NotFound("There is no such member.", field="user_id")
    if not await connection.fetchval(_MAY_BE_HOLDER, membership.org_id, holder, workspace_id):
        raise Refused("This member is not in that workspace: add it first.", field="user_id")
    return holder


async def check_limits(
    connection: asyncpg.Connection,
    membership: Membership,
    *,
    workspace_id: uuid.UUID,
    user_id: uuid.UUID,
    changes: Sequence[LimitChange],
) -> None:
    """Raise Forbidden for a limit above those that hold for the member anyway.

    Who sets the limits there may write any.
    """
    if not changes or membership.holds(Permission.LIMITS_WRITE, workspace_id=workspace_id):
        return
    row = await connection.fetchrow(_CEILINGS, membership.org_id, workspace_id, user_id)
    assert row is not None, "the query has one row"
    for change in changes:
        value = change.value
        if isinstance(value, Rate):
            if row["rate_calls"] is not None:
                ceiling = Rate(calls=row["rate_calls"], window_seconds=row["rate_window_seconds"])
                if value.calls * ceiling.window_seconds > ceiling.calls * value.window_seconds:
                    raise _above("rate", ceiling)
        elif value is not None:
            most = row[change.name]
            if most is not None and value > most:
                raise _above(FIELDS[change.name], most)


def _above(field: str, ceiling: Any) -> Forbidden:  # noqa: ANN401 - it is only shown
    return Forbidden(f"This is above what you may call yourself: {ceiling}.", field=field)
