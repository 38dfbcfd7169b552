"""Who is in a workspace, and as what.

Who administers the org stands in each of its workspaces as an owner of it does. Nobody gives a role
above their own, or touches who stands above them. Whoever leaves a workspace leaves their tokens in
it behind, ended.
"""

import time
from datetime import datetime
from typing import Final

import asyncpg
from msgspec import Struct

from control_plane.errors import Forbidden, NotFound
from control_plane.identity.actor import Membership
from control_plane.tenancy.rbac import RANKS, Permission, Role, may_confer
from control_plane.tenancy.receipt_answers import ChangeReceipt, receipt_of, receipt_of_nothing
from control_plane.tenancy.workspaces import WORKSPACE, find_workspace
from control_plane.throttle import RateClass
from control_plane.web.pages import LIMIT_DEFAULT, Page, check_limit, decode_place, page_of
from control_plane.web.request import ApiRequest
from control_plane.web.route import Needs, Route, Scope
from gateway.sql import load_queries

_QUERIES: Final = load_queries(__package__, "workspaces.sql")
_LIST = _QUERIES["list_members"]
_READ = _QUERIES["read_member"]
_LOCK_USER = _QUERIES["lock_user"]
_PUT = _QUERIES["put_member"]
_REMOVE = _QUERIES["remove_member"]
_REVOKE_TOKENS = _QUERIES["revoke_tokens"]


class WorkspaceMember(Struct, frozen=True, kw_only=True):
    """A member of the org who is in a workspace."""

    user_id: str
    name: str
    email: str | None
    role: Role
    created_at: datetime


class WorkspaceMembersQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which page of those who are in a workspace."""

    limit: int = LIMIT_DEFAULT
    after: str | None = None


class WorkspaceRole(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What someone is to be in a workspace."""

    role: Role


async def list_workspace_members(request: ApiRequest) -> Page[WorkspaceMember]:
    """Return a page of those who are in a workspace."""
    asked = request.query_as(WorkspaceMembersQuery)
    limit = check_limit(asked.limit)
    after_text, after_id = decode_place(asked.after)
    org_id, workspace_id = request.id("org"), request.id("workspace")
    async with request.transaction() as connection:
        await find_workspace(connection, org_id, workspace_id)
        rows = await connection.fetch(_LIST, org_id, workspace_id, after_text, after_id, limit + 1)
    kept, following = page_of(rows, limit, key=lambda row: (row["place"], row["user_id"]))
    return Page(data=[_member(row) for row in kept], next=following)


async def put_workspace_member(request: ApiRequest) -> WorkspaceMember:
    """Make a member of the org one of the workspace, or something else there."""
    role = request.body_as(WorkspaceRole).role
    org_id, workspace_id, user_id = request.id("org"), request.id("workspace"), request.id("user")
    mine = _role_in(request.membership, request)
    async with request.transaction() as connection:
        await find_workspace(connection, org_id, workspace_id, locked=True)
        if await connection.fetchrow(_LOCK_USER, org_id, user_id) is None:
            raise _no_member()
        before = await connection.fetchrow(_READ, org_id, workspace_id, user_id)
        if not may_confer(role, by=mine):
            raise Forbidden(f"Only an {Role.OWNER} makes an {role}.", field="role")
        if before is not None:
            _check_touches(Role(before["role"]), by=mine)
        await connection.execute(_PUT, org_id, workspace_id, user_id, role)
        await request.audit(
            connection,
            "workspace_member.put",
            target_kind="workspace",
            target_id=workspace_id,
            before=None if before is None else {"user_id": user_id, "role": before["role"]},
            after={"user_id": user_id, "role": role},
        )
        row = await connection.fetchrow(_READ, org_id, workspace_id, user_id)
    assert row is not None, "it was just put there"
    return _member(row)


async def remove_workspace_member(request: ApiRequest) -> ChangeReceipt:
    """Take someone out of a workspace, end their tokens in it, and return the receipt."""
    began = time.monotonic()
    org_id, workspace_id, user_id = request.id("org"), request.id("workspace"), request.id("user")
    xact: str | None = None
    async with request.transaction() as connection:
        await find_workspace(connection, org_id, workspace_id, locked=True)
        user = await connection.fetchrow(_LOCK_USER, org_id, user_id)
        before = await connection.fetchrow(_READ, org_id, workspace_id, user_id)
        if user is None or before is None:
            raise _no_member()
        _check_touches(Role(before["role"]), by=_role_in(request.membership, request))
        await connection.execute(_REMOVE, org_id, workspace_id, user_id)
        if not _administers(Role(user["role"])):
            xact = await connection.fetchval(_REVOKE_TOKENS, org_id, workspace_id, user_id)
        await request.audit(
            connection,
            "workspace_member.remove",
            target_kind="workspace",
            target_id=workspace_id,
            before={"user_id": user_id, "role": before["role"]},
        )
    if xact is None:
        return receipt_of_nothing(request, user_id, began=began)
    return await receipt_of(request, user_id, xact, began=began)


def _administers(role: Role) -> bool:
    return RANKS[role] >= RANKS[Role.ADMIN]


def _role_in(membership: Membership, request: ApiRequest) -> Role:
    """Return as what the one who asks stands in the workspace of the path."""
    if _administers(membership.role):
        return Role.OWNER
    return membership.workspace_roles[request.id("workspace")]


def _check_touches(role: Role, *, by: Role) -> None:
    if not may_confer(role, by=by):
        raise Forbidden(f"Only an {Role.OWNER} changes who is {role}.")


def _member(row: asyncpg.Record) -> WorkspaceMember:
    return WorkspaceMember(
        user_id=row["user_id"],
        name=row["name"],
        email=row["email"],
        role=Role(row["role"]),
        created_at=row["created_at"],
    )


def _no_member() -> NotFound:
    return NotFound("There is no such member.", field="user")


_MEMBERS: Final = f"{WORKSPACE}/members"
_MEMBER: Final = f"{_MEMBERS}/{{user}}"
_WRITES: Final = Needs(permission=Permission.WORKSPACE_MEMBERS_WRITE, scope=Scope.WORKSPACE)

ROUTES: Final = (
    Route(
        method="GET",
        path=_MEMBERS,
        summary="Who is in a workspace",
        access=Needs(permission=Permission.WORKSPACES_READ, scope=Scope.WORKSPACE),
        rate_class=RateClass.READ,
        handler=list_workspace_members,
        query=WorkspaceMembersQuery,
        answer=Page[WorkspaceMember],
    ),
    Route(
        method="PUT",
        path=_MEMBER,
        summary="Take a member of the org into a workspace, or give them another role there",
        access=_WRITES,
        rate_class=RateClass.WRITE,
        handler=put_workspace_member,
        body=WorkspaceRole,
        answer=WorkspaceMember,
    ),
    Route(
        method="DELETE",
        path=_MEMBER,
        summary="Take someone out of a workspace: their tokens in it end at once",
        access=_WRITES,
        rate_class=RateClass.WRITE,
        handler=remove_workspace_member,
        answer=ChangeReceipt,
    ),
)
