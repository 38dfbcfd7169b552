"""Workspaces: what divides an org's people, tokens and usage. Who is in them: workspace_members.py.

A workspace that is deleted ends its tokens; its row stays, because the ledger names it.
"""

import time
import uuid
from datetime import datetime
from typing import Annotated, Final

import asyncpg
from msgspec import Meta, Struct

from control_plane.errors import NotFound, Refused
from control_plane.tenancy.names import NAME_CHARS_MAX, check_name
from control_plane.tenancy.rbac import Permission
from control_plane.tenancy.receipt_answers import ChangeReceipt, receipt_of
from control_plane.throttle import RateClass
from control_plane.web.pages import LIMIT_DEFAULT, Page, check_limit, decode_place, page_of
from control_plane.web.request import ApiRequest
from control_plane.web.route import Needs, Route, Scope
from gateway.sql import load_queries

WORKSPACES_MAX: Final = 1_000  # of an org

_QUERIES: Final = load_queries(__package__, "workspaces.sql")
_LIST = _QUERIES["list"]
_READ = _QUERIES["read"]
_READ_LOCKED = _QUERIES["read_locked"]
_COUNT = _QUERIES["count"]
_CREATE = _QUERIES["create"]
_RENAME = _QUERIES["rename"]
_DELETE = _QUERIES["delete"]

WorkspaceName = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]


class Workspace(Struct, frozen=True, kw_only=True):
    """A workspace."""

    id: str
    name: str
    created_at: datetime


class NewWorkspace(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A workspace that is to be."""

    name: WorkspaceName


class WorkspaceChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be changed of a workspace."""

    name: WorkspaceName


class WorkspacesQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which page of the workspaces."""

    limit: int = LIMIT_DEFAULT
    after: str | None = None


async def list_workspaces(request: ApiRequest) -> Page[Workspace]:
    """Return a page of the workspaces that the one who asks may read."""
    asked = request.query_as(WorkspacesQuery)
    limit = check_limit(asked.limit)
    after_text, after_id = decode_place(asked.after)
    readable = request.workspaces()
    async with request.transaction() as connection:
        rows = await connection.fetch(
            _LIST,
            request.id("org"),
            None if readable is None else list(readable),
            after_text,
            after_id,
            limit + 1,
        )
    kept, following = page_of(rows, limit, key=lambda row: (row["name"], row["id"]))
    return Page(data=[Workspace(**dict(row)) for row in kept], next=following)


async def create_workspace(request: ApiRequest) -> Workspace:
    """Make a workspace."""
    org_id, wanted = request.id("org"), request.body_as(NewWorkspace)
    check_name(wanted.name)
    async with request.transaction() as connection:
        if await connection.fetchval(_COUNT, org_id) >= WORKSPACES_MAX:
            raise Refused(f"An org has at most {WORKSPACES_MAX} workspaces.")
        row = await connection.fetchrow(_CREATE, org_id, wanted.name)
        if row is None:
            raise _name_taken()
        await request.audit(
            connection,
            "workspace.create",
            target_kind="workspace",
            target_id=row["id"],
            after={"name": wanted.name},
        )
    return Workspace(**dict(row))


async def read_workspace(request: ApiRequest) -> Workspace:
    """Return a workspace."""
    async with request.transaction() as connection:
        return await find_workspace(connection, request.id("org"), request.id("workspace"))


async def change_workspace(request: ApiRequest) -> Workspace:
    """Give a workspace another name."""
    org_id, workspace_id = request.id("org"), request.id("workspace")
    wanted = request.body_as(WorkspaceChange)
    check_name(wanted.name)
    async with request.transaction() as connection:
        before = await find_workspace(connection, org_id, workspace_id, locked=True)
        request.check_match(before)
        if wanted.name != before.name:
            try:
                async with connection.transaction():
                    await connection.execute(_RENAME, org_id, workspace_id, wanted.name)
            except asyncpg.UniqueViolationError as error:
                raise _name_taken() from error
            await request.audit(
                connection,
                "workspace.change",
                target_kind="workspace",
                target_id=workspace_id,
                before={"name": before.name},
                after={"name": wanted.name},
            )
        return await find_workspace(connection, org_id, workspace_id)


async def delete_workspace(request: ApiRequest) -> ChangeReceipt:
    """End a workspace and what its tokens have open, and return the receipt."""
    began, org_id, workspace_id = time.monotonic(), request.id("org"), request.id("workspace")
    async with request.transaction() as connection:
        before = await find_workspace(connection, org_id, workspace_id, locked=True)
        request.check_match(before)
        xact: str = await connection.fetchval(_DELETE, org_id, workspace_id)
        await request.audit(
            connection,
            "workspace.delete",
            target_kind="workspace",
            target_id=workspace_id,
            before={"name": before.name},
        )
    return await receipt_of(request, workspace_id, xact, began=began)


async def find_workspace(
    connection: asyncpg.Connection,
    org_id: uuid.UUID,
    workspace_id: uuid.UUID,
    *,
    locked: bool = False,
) -> Workspace:
    """Return a workspace of an org that lives. Raises NotFound."""
    row = await connection.fetchrow(_READ_LOCKED if locked else _READ, org_id, workspace_id)
    if row is None:
        raise NotFound("There is no such workspace.", field="workspace")
    return Workspace(**dict(row))


def _name_taken() -> Refused:
    return Refused("Another workspace has this name.", field="name", code="name_taken")


WORKSPACES: Final = "/api/v1/orgs/{org}/workspaces"
WORKSPACE: Final = f"{WORKSPACES}/{{workspace}}"

ROUTES: Final = (
    Route(
        method="GET",
        path=WORKSPACES,
        summary="The workspaces that you may read",
        access=Needs(permission=Permission.WORKSPACES_READ, scope=Scope.EACH),
        rate_class=RateClass.READ,
        handler=list_workspaces,
        query=WorkspacesQuery,
        answer=Page[Workspace],
    ),
    Route(
        method="POST",
        path=WORKSPACES,
        summary="Make a workspace",
        access=Needs(permission=Permission.WORKSPACES_CREATE),
        rate_class=RateClass.WRITE,
        handler=create_workspace,
        body=NewWorkspace,
        answer=Workspace,
        status=201,
        errors=(409,),
    ),
    Route(
        method="GET",
        path=WORKSPACE,
        summary="A workspace",
        access=Needs(permission=Permission.WORKSPACES_READ, scope=Scope.WORKSPACE),
        rate_class=RateClass.READ,
        handler=read_workspace,
        answer=Workspace,
    ),
    Route(
        method="PATCH",
        path=WORKSPACE,
        summary="Give a workspace another name",
        access=Needs(permission=Permission.WORKSPACES_WRITE, scope=Scope.WORKSPACE),
        rate_class=RateClass.WRITE,
        handler=change_workspace,
        body=WorkspaceChange,
        answer=Workspace,
        errors=(409, 412),
    ),
    Route(
        method="DELETE",
        path=WORKSPACE,
        summary="End a workspace: its tokens are refused and its streams cut at once",
        access=Needs(permission=Permission.WORKSPACES_DELETE, scope=Scope.WORKSPACE),
        rate_class=RateClass.WRITE,
        handler=delete_workspace,
        answer=ChangeReceipt,
        errors=(412,),
    ),
)
