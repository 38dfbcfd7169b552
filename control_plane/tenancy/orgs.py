"""Orgs: making another one, what it asks of its members, its end; and the operator's view of all.

An org that is suspended or deleted is none to its members: they find nothing there.
"""

import time
import uuid
from datetime import datetime, timedelta
from typing import Annotated, Final

import asyncpg
from msgspec import Meta, Struct

from control_plane.errors import Forbidden, NotFound, Refused
from control_plane.settings import TOKEN_LIFE_MAX
from control_plane.tenancy.names import NAME_CHARS_MAX, check_name
from control_plane.tenancy.rbac import Permission
from control_plane.tenancy.receipt_answers import ChangeReceipt, receipt_again, receipt_of
from control_plane.throttle import RateClass
from control_plane.web.database import belong
from control_plane.web.pages import LIMIT_DEFAULT, Page, check_limit, decode_place, page_of
from control_plane.web.request import ApiRequest
from control_plane.web.route import Access, Needs, Route
from gateway.sql import load_queries

ORGS_OWNED_MAX: Final = 20  # by one account; a company has some, a machine that makes orgs has more

_QUERIES: Final = load_queries(__package__, "orgs.sql")
_OWNED = _QUERIES["owned"]
_CREATE = _QUERIES["create"]
_CREATE_WORKSPACE = _QUERIES["create_workspace"]
_CREATE_OWNER = _QUERIES["create_owner"]
_READ = _QUERIES["read"]
_READ_LOCKED = _QUERIES["read_locked"]
_CHANGE = _QUERIES["change"]
_DELETE = _QUERIES["delete"]
_STANDING = _QUERIES["standing"]
_SUSPEND = _QUERIES["suspend"]
_UNSUSPEND = _QUERIES["unsuspend"]
_LIST_ALL = _QUERIES["list_all"]

Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]


class Org(Struct, frozen=True, kw_only=True):
    """An org; no token of it lives longer than `token_days_max`."""

    id: str
    name: str
    requires_totp: bool
    token_days_max: float
    created_at: datetime


class NewOrg(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An org that is to be."""

    name: Name


class OrgChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be changed of an org; null, or not there: nothing."""

    name: Name | None = None
    requires_totp: bool | None = None
    token_days_max: Annotated[int, Meta(ge=1, le=TOKEN_LIFE_MAX.days)] | None = None


class AnyOrg(Struct, frozen=True, kw_only=True):
    """An org, as the operator sees it."""

    id: str
    name: str
    created_at: datetime
    suspended_at: datetime | None
    members: int
    workspaces: int


class OrgsQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which orgs the operator asks for; `search` is a part of the name."""

    limit: int = LIMIT_DEFAULT
    after: str | None = None
    search: Annotated[str, Meta(max_length=NAME_CHARS_MAX)] | None = None


async def create_org(request: ApiRequest) -> Org:
    """Make an org, with the one who asks as its owner, and a workspace."""
    wanted = request.body_as(NewOrg)
    check_name(wanted.name)
    account_id, org_id = request.signed_in.account_id, uuid.uuid4()
    async with request.transaction() as connection:
        account = await connection.fetchrow(_OWNED, account_id)
        assert account is not None, "a session has an account"
        if not account["is_verified"]:
            raise Forbidden("Confirm your e-mail address first.", code="email_unverified")
        if account["owned"] >= ORGS_OWNED_MAX:
            raise Refused(f"An account owns at most {ORGS_OWNED_MAX} orgs.")
        await belong(connection, org_id=org_id, account_id=account_id)
        await connection.execute(_CREATE, org_id, wanted.name)
        await connection.execute(_CREATE_WORKSPACE, org_id)
        await connection.execute(_CREATE_OWNER, org_id, account_id, account["name"])
        await request.audit(
            connection, "org.create", target_kind="org", target_id=org_id,
            after={"name": wanted.name}, org_id=org_id,
        )  # fmt: skip
        return await _read(connection, org_id)


async def read_org(request: ApiRequest) -> Org:
    """Return the org."""
    async with request.transaction() as connection:
        return await _read(connection, request.id("org"))


async def change_org(request: ApiRequest) -> Org:
    """Change what is given, and return the org."""
    wanted = request.body_as(OrgChange)
    org_id = request.id("org")
    if wanted.name is not None:
        check_name(wanted.name)
    if wanted.requires_totp and not request.signed_in.has_totp:
        raise Refused(
            "Enable a second factor in your own account first: you would be locked out.",
            field="requires_totp",
        )
    async with request.transaction() as connection:
        before = await _read(connection, org_id, locked=True)
        request.check_match(before)
        life = None if wanted.token_days_max is None else timedelta(days=wanted.token_days_max)
        await connection.execute(_CHANGE, org_id, wanted.name, wanted.requires_totp, life)
        after = await _read(connection, org_id)
        changed = [
            name
            for name in ("name", "requires_totp", "token_days_max")
            if getattr(before, name) != getattr(after, name)
        ]
        if changed:
            await request.audit(
                connection,
                "org.change",
                target_kind="org",
                target_id=org_id,
                before={name: getattr(before, name) for name in changed},
                after={name: getattr(after, name) for name in changed},
            )
    return after


async def delete_org(request: ApiRequest) -> ChangeReceipt:
    """End the org and everything that its tokens have open, and return the receipt."""
    began, org_id = time.monotonic(), request.id("org")
    async with request.transaction() as connection:
        request.check_match(await _read(connection, org_id, locked=True))
        xact: str = await connection.fetchval(_DELETE, org_id)
        await request.audit(connection, "org.delete", target_kind="org", target_id=org_id)
    return await receipt_of(request, org_id, xact, began=began)


async def list_orgs(request: ApiRequest) -> Page[AnyOrg]:
    """Return a page of all orgs of this installation."""
    asked = request.query_as(OrgsQuery)
    limit = check_limit(asked.limit)
    after_name, after_id = decode_place(asked.after)
    async with request.transaction() as connection:
        rows = await connection.fetch(_LIST_ALL, asked.search, after_name, after_id, limit + 1)
    orgs, following = page_of(
        [AnyOrg(**dict(row)) for row in rows], limit, key=lambda org: (org.name, org.id)
    )
    return Page(data=orgs, next=following)


async def suspend_org(request: ApiRequest) -> ChangeReceipt:
    """Suspend an org: its tokens are refused, its streams end, its members are in no org of it."""
    return await _set_suspended(request, is_suspended=True)


async def unsuspend_org(request: ApiRequest) -> ChangeReceipt:
    """Let an org go on, and return the receipt: who lets its tokens in again."""
    return await _set_suspended(request, is_suspended=False)


async def _set_suspended(request: ApiRequest, *, is_suspended: bool) -> ChangeReceipt:
    began, org_id = time.monotonic(), request.id("org")
    async with request.transaction() as connection:
        await belong(connection, org_id=org_id, account_id=request.signed_in.account_id)
        before = await connection.fetchrow(_STANDING, org_id)
        if before is None:
            raise NotFound("There is no such org.", field="org")
        xact = await connection.fetchval(_SUSPEND if is_suspended else _UNSUSPEND, org_id)
        if xact is not None:
            action = "org.suspend" if is_suspended else "org.unsuspend"
            await request.audit(
                connection, action, target_kind="org", target_id=org_id, org_id=org_id
            )
    if xact is not None:
        return await receipt_of(request, org_id, xact, began=began)
    if not is_suspended:
        raise Refused("This org is not suspended.", code="not_suspended")
    return await receipt_again(
        request, org_id, kind="org", ended_at=before["suspended_at"], began=began
    )


async def _read(connection: asyncpg.Connection, org_id: uuid.UUID, *, locked: bool = False) -> Org:
    row = await connection.fetchrow(_READ_LOCKED if locked else _READ, org_id)
    if row is None:
        raise NotFound("There is no such org.", field="org")
    fields = dict(row)
    days = fields.pop("life") / timedelta(days=1).total_seconds()
    return Org(**fields, token_days_max=days)


_ORG: Final = "/api/v1/orgs/{org}"
_OPERATOR: Final = "/api/v1/operator/orgs"

ROUTES: Final = (
    Route(
        method="POST",
        path="/api/v1/orgs",
        summary="Make another org, and be its owner",
        access=Access.SIGNED_IN,
        rate_class=RateClass.WRITE,
        handler=create_org,
        body=NewOrg,
        answer=Org,
        status=201,
        errors=(403, 409),
    ),
    Route(
        method="GET",
        path=_ORG,
        summary="An org, and what it asks of its members",
        access=Needs(permission=Permission.ORG_READ),
        rate_class=RateClass.READ,
        handler=read_org,
        answer=Org,
    ),
    Route(
        method="PATCH",
        path=_ORG,
        summary="Change an org",
        access=Needs(permission=Permission.ORG_WRITE),
        rate_class=RateClass.WRITE,
        handler=change_org,
        body=OrgChange,
        answer=Org,
        errors=(409, 412),
    ),
    Route(
        method="DELETE",
        path=_ORG,
        summary="End an org: its tokens are refused and its streams cut at once",
        access=Needs(permission=Permission.ORG_DELETE),
        rate_class=RateClass.WRITE,
        handler=delete_org,
        answer=ChangeReceipt,
        errors=(412,),
        needs_fresh=True,
    ),
    Route(
        method="GET",
        path=_OPERATOR,
        summary="Every org of this installation",
        access=Access.OPERATOR,
        rate_class=RateClass.READ,
        handler=list_orgs,
        query=OrgsQuery,
        answer=Page[AnyOrg],
    ),
    Route(
        method="POST",
        path=f"{_OPERATOR}/{{org}}/suspend",
        summary="Suspend an org: its tokens are refused and its streams cut at once",
        access=Access.OPERATOR,
        rate_class=RateClass.WRITE,
        handler=suspend_org,
        answer=ChangeReceipt,
    ),
    Route(
        method="POST",
        path=f"{_OPERATOR}/{{org}}/unsuspend",
        summary="Let a suspended org go on",
        access=Access.OPERATOR,
        rate_class=RateClass.WRITE,
        handler=unsuspend_org,
        answer=ChangeReceipt,
        errors=(409,),
    ),
)
