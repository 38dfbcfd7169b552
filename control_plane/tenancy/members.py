"""The members of an org: who they are, what they may do, and how they leave.

Nobody gives a role above their own, or touches who stands above them; an org always has an owner.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final

import asyncpg
from msgspec import Meta, Struct

from control_plane.errors import Forbidden, NotFound, Refused
from control_plane.tenancy.names import NAME_CHARS_MAX
from control_plane.tenancy.rbac import Permission, Role, may_confer
from control_plane.tenancy.receipt_answers import ChangeReceipt, receipt_again, receipt_of
from control_plane.throttle import RateClass
from control_plane.web.pages import LIMIT_DEFAULT, Page, check_limit, decode_place, page_of
from control_plane.web.request import ApiRequest
from control_plane.web.route import Needs, Route
from gateway.sql import load_queries

_QUERIES: Final = load_queries(__package__, "members.sql")
_LIST = _QUERIES["list"]
_READ = _QUERIES["read"]
_LOCK = _QUERIES["lock"]
_SET_ROLE = _QUERIES["set_role"]
_DISABLE = _QUERIES["disable"]
_ENABLE = _QUERIES["enable"]
_REMOVE = _QUERIES["remove"]
_REMOVE_FROM_WORKSPACES = _QUERIES["remove_from_workspaces"]
_STAND_FOR_TOKENS = _QUERIES["stand_for_tokens"]
_REVOKE_TOKENS = _QUERIES["revoke_tokens"]


class Member(Struct, frozen=True, kw_only=True):
    """A member of an org; one who `is_person` false stands for a machine."""

    id: str
    name: str
    email: str | None
    role: Role
    is_person: bool
    disabled_at: datetime | None
    created_at: datetime


class MembersQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which members; `search` is a part of the address or the name."""

    limit: int = LIMIT_DEFAULT
    after: str | None = None
    search: Annotated[str, Meta(max_length=NAME_CHARS_MAX)] | None = None


class MemberChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be changed of a member."""

    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedMember:
    """A member whom nobody else changes until the transaction ends."""

    user_id: uuid.UUID
    role: Role
    disabled_at: datetime | None
    is_last_owner: bool


async def list_members(request: ApiRequest) -> Page[Member]:
    """Return a page of the members."""
    asked = request.query_as(MembersQuery)
    limit = check_limit(asked.limit)
    after_text, after_id = decode_place(asked.after)
    async with request.transaction() as connection:
        rows = await connection.fetch(
            _LIST, request.id("org"), asked.search, after_text, after_id, limit + 1
        )
    kept, following = page_of(rows, limit, key=lambda row: (row["place"], row["id"]))
    return Page(data=[_member(row) for row in kept], next=following)


async def read_member(request: ApiRequest) -> Member:
    """Return a member."""
    async with request.transaction() as connection:
        return await _read(connection, request.id("org"), request.id("user"))


async def change_member(request: ApiRequest) -> Member:
    """Give a member another role."""
    org_id, user_id, role = (
        request.id("org"),
        request.id("user"),
        request.body_as(MemberChange).role,
    )
    async with request.transaction() as connection:
        locked = await lock_member(connection, org_id, user_id)
        request.check_match(await _read(connection, org_id, user_id))
        check_touches(locked.role, by=request.membership.role)
        if not may_confer(role, by=request.membership.role):
            raise Forbidden(f"Only an {Role.OWNER} makes an {role}.", field="role")
        if locked.is_last_owner and role is not Role.OWNER:
            raise _last_owner()
        if role is not locked.role:
            await connection.execute(_SET_ROLE, org_id, user_id, role)
            await request.audit(
                connection, "member.change", target_kind="user", target_id=user_id,
                before={"role": locked.role}, after={"role": role},
            )  # fmt: skip
        return await _read(connection, org_id, user_id)


async def disable_member(request: ApiRequest) -> ChangeReceipt:
    """Disable a member: the tokens are refused and the streams end, until enabled again."""
    began, org_id, user_id = time.monotonic(), request.id("org"), request.id("user")
    async with request.transaction() as connection:
        locked = await lock_member(connection, org_id, user_id)
        check_touches(locked.role, by=request.membership.role)
        if locked.is_last_owner:
            raise _last_owner()
        xact = await connection.fetchval(_DISABLE, org_id, user_id)
        if xact is not None:
            await request.audit(connection, "member.disable", target_kind="user", target_id=user_id)
    if xact is not None:
        return await receipt_of(request, user_id, xact, began=began)
    assert locked.disabled_at is not None, "it was disabled before"
    return await receipt_again(
        request, user_id, kind="user", ended_at=locked.disabled_at, began=began
    )


async def enable_member(request: ApiRequest) -> Member:
    """Let a member in again."""
    org_id, user_id = request.id("org"), request.id("user")
    async with request.transaction() as connection:
        locked = await lock_member(connection, org_id, user_id)
        check_touches(locked.role, by=request.membership.role)
        if await connection.fetchval(_ENABLE, org_id, user_id) is not None:
            await request.audit(connection, "member.enable", target_kind="user", target_id=user_id)
        return await _read(connection, org_id, user_id)


async def remove_member(request: ApiRequest) -> ChangeReceipt:
    """Take a member out of the org, end the tokens, and return the receipt."""
    return await _remove(request, request.id("user"), "member.remove")


async def leave_org(request: ApiRequest) -> ChangeReceipt:
    """Leave the org; the tokens that one had in it end."""
    return await _remove(request, request.membership.user_id, "member.leave")


async def _remove(request: ApiRequest, user_id: uuid.UUID, action: str) -> ChangeReceipt:
    began, org_id = time.monotonic(), request.id("org")
    async with request.transaction() as connection:
        locked = await lock_member(connection, org_id, user_id)
        check_touches(locked.role, by=request.membership.role)
        if locked.is_last_owner:
            raise _last_owner()
        await connection.execute(_REMOVE_FROM_WORKSPACES, org_id, user_id)
        await connection.execute(_STAND_FOR_TOKENS)
        await connection.execute(_REVOKE_TOKENS, org_id, user_id)
        xact: str = await connection.fetchval(_REMOVE, org_id, user_id)
        await request.audit(
            connection, action, target_kind="user", target_id=user_id, before={"role": locked.role}
        )
    if locked.disabled_at is None:
        return await receipt_of(request, user_id, xact, began=began)
    return await receipt_again(
        request, user_id, kind="user", ended_at=locked.disabled_at, began=began
    )


async def lock_member(
    connection: asyncpg.Connection, org_id: uuid.UUID, user_id: uuid.UUID
) -> LockedMember:
    """Return a member, and keep it and who else owns the org as they are. Raises NotFound."""
    rows: Sequence[Any] = await connection.fetch(_LOCK, org_id, user_id)
    found = next((row for row in rows if row["id"] == user_id), None)
    if found is None:
        raise _no_member()
    owners = {row["id"] for row in rows if row["role"] == Role.OWNER and row["is_active"]}
    return LockedMember(
        user_id=user_id,
        role=Role(found["role"]),
        disabled_at=found["disabled_at"],
        is_last_owner=owners == {user_id},
    )


def check_touches(role: Role, *, by: Role) -> None:
    """Raise Forbidden where someone of this role stands above who wants to change them."""
    if not may_confer(role, by=by):
        raise Forbidden(f"Only an {Role.OWNER} changes who is {role}.")


async def _read(connection: asyncpg.Connection, org_id: uuid.UUID, user_id: uuid.UUID) -> Member:
    row = await connection.fetchrow(_READ, org_id, user_id)
    if row is None:
        raise _no_member()
    return _member(row)


def _member(row: asyncpg.Record) -> Member:
    return Member(
        id=row["id"],
        name=row["name"],
        email=row["email"],
        role=Role(row["role"]),
        is_person=row["is_person"],
        disabled_at=row["disabled_at"],
        created_at=row["created_at"],
    )


def _no_member() -> NotFound:
    return NotFound("There is no such member.", field="user")


def _last_owner() -> Refused:
    return Refused("This is the org's last owner: make another one first.", code="last_owner")


_MEMBERS: Final = "/api/v1/orgs/{org}/members"
_MEMBER: Final = f"{_MEMBERS}/{{user}}"
_READS: Final = Needs(permission=Permission.MEMBERS_READ)
_WRITES: Final = Needs(permission=Permission.MEMBERS_WRITE)

ROUTES: Final = (
    Route(
        method="GET",
        path=_MEMBERS,
        summary="The members of an org",
        access=_READS,
        rate_class=RateClass.READ,
        handler=list_members,
        query=MembersQuery,
        answer=Page[Member],
    ),
    Route(
        method="GET",
        path=_MEMBER,
        summary="A member",
        access=_READS,
        rate_class=RateClass.READ,
        handler=read_member,
        answer=Member,
    ),
    Route(
        method="PATCH",
        path=_MEMBER,
        summary="Give a member another role",
        access=_WRITES,
        rate_class=RateClass.WRITE,
        handler=change_member,
        body=MemberChange,
        answer=Member,
        errors=(409, 412),
    ),
    Route(
        method="POST",
        path=f"{_MEMBER}/disable",
        summary="Disable a member: tokens are refused and streams cut at once",
        access=_WRITES,
        rate_class=RateClass.WRITE,
        handler=disable_member,
        answer=ChangeReceipt,
        errors=(409,),
    ),
    Route(
        method="POST",
        path=f"{_MEMBER}/enable",
        summary="Let a disabled member in again",
        access=_WRITES,
        rate_class=RateClass.WRITE,
        handler=enable_member,
        answer=Member,
    ),
    Route(
        method="DELETE",
        path=_MEMBER,
        summary="Take a member out of an org: tokens are revoked and streams cut at once",
        access=_WRITES,
        rate_class=RateClass.WRITE,
        handler=remove_member,
        answer=ChangeReceipt,
        errors=(409,),
    ),
    Route(
        method="POST",
        path="/api/v1/orgs/{org}/leave",
        summary="Leave an org",
        access=Needs(permission=Permission.ORG_READ),
        rate_class=RateClass.WRITE,
        handler=leave_org,
        answer=ChangeReceipt,
        errors=(409,),
    ),
)
