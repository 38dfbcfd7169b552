"""Limits by API: of tokens, members, workspaces and the org. All that apply hold, in the gateway.

Who is limited does not set the limit: a workspace's and a member's are written by who runs the org,
a token's by who runs its workspace.
"""

import time
import uuid
from typing import Final, Literal

import asyncpg
import msgspec
from msgspec import UNSET, UnsetType

from control_plane.errors import BadArgument, NotFound
from control_plane.tenancy.limits import (
    KINDS,
    LimitChange,
    find_limits,
    hold_limits,
    parse_rate,
    record_limits,
    setter_of,
    shown_limits,
    write_limits,
)
from control_plane.tenancy.rbac import Permission
from control_plane.tenancy.receipts import Receipt, receipt_of
from control_plane.tenancy.token_bodies import Calls, OpenCalls, RateText
from control_plane.throttle import RateClass
from control_plane.web.input import read_uuid
from control_plane.web.pages import Page, PageQuery, check_limit, decode_cursor, page_of
from control_plane.web.request import ApiRequest
from control_plane.web.route import Needs, Route, Scope
from gateway.sql import load_queries

LimitKind = Literal["token", "user", "workspace", "org"]

_QUERIES: Final = load_queries(__package__, "limits.sql")
_PLACE = _QUERIES["place"]
_PAGE = _QUERIES["page"]
_CHANGING = _QUERIES["changing_transaction"]


class SubjectLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What limits a subject has; null: none of that kind."""

    kind: LimitKind
    subject_id: str
    limit: int | None
    rate: str | None
    concurrency: int | None


class ChangedLimits(SubjectLimits, frozen=True, kw_only=True):
    """The limits that hold now; `receipt` null: they did before."""

    receipt: Receipt | None


class LimitsBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All limits that a subject is to have; one that is not said is taken away."""

    limit: Calls | UnsetType = UNSET
    rate: RateText | UnsetType = UNSET
    concurrency: OpenCalls | UnsetType = UNSET


class LimitsQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which limits are asked for."""

    kind: LimitKind | None = None


async def list_limits(request: ApiRequest) -> Page[SubjectLimits]:
    """Return the limits that the asker may see."""
    query, membership = request.query_as(LimitsQuery), request.membership
    request.authorized = True  # the query finds nothing else
    limit = check_limit(query.limit)
    after = decode_cursor(query.after, parts=2)
    workspaces = membership.workspaces(Permission.LIMITS_READ)
    tokens_in = membership.workspaces(Permission.TOKENS_READ)
    async with request.transaction() as connection:
        rows = await connection.fetch(
            _PAGE,
            membership.org_id,
            query.kind,
            None if workspaces is None else list(workspaces),
            membership.user_id,
            [] if tokens_in is None else list(tokens_in),
            None if after is None else after[0],
            None if after is None else read_uuid(after[1], field="after"),
            limit + 1,
        )
    kept, following = page_of(rows, limit, key=lambda row: (row["kind"], row["subject_id"]))
    return Page(data=[SubjectLimits(**shown_limits(dict(row))) for row in kept], next=following)


async def read(request: ApiRequest) -> SubjectLimits:
    """Return a subject's limits."""
    async with request.transaction() as connection:
        return await _found(request, connection)


async def replace(request: ApiRequest) -> ChangedLimits:
    """Give a subject these limits and no others."""
    body = request.body_as(LimitsBody)
    if body.limit is UNSET and body.rate is UNSET and body.concurrency is UNSET:
        raise BadArgument("Say limit, rate or concurrency; DELETE takes them away.", field="limit")
    rate = None if body.rate is UNSET else parse_rate(body.rate, field="rate")
    return await _write(
        request,
        [
            LimitChange(name="calls_a_month", value=None if body.limit is UNSET else body.limit),
            LimitChange(name="rate", value=rate),
            LimitChange(
                name="concurrency", value=None if body.concurrency is UNSET else body.concurrency
            ),
        ],
    )


async def remove(request: ApiRequest) -> ChangedLimits:
    """Take all limits of a subject away."""
    names = ("calls_a_month", "rate", "concurrency")
    return await _write(request, [LimitChange(name=name, value=None) for name in names])


async def _write(request: ApiRequest, changes: list[LimitChange]) -> ChangedLimits:
    began = time.monotonic()
    async with request.transaction() as connection:
        await hold_limits(connection, request.path["kind"], request.path["subject"])
        before = await _found(request, connection)
        request.check_match(before)
        org_id = str(request.membership.org_id)
        await write_limits(
            connection,
            before.kind,
            before.subject_id,
            org_id,
            changes,
            setter=setter_of(request.signed_in),
        )
        limits = await find_limits(connection, before.kind, before.subject_id)
        old = {name: getattr(before, name) for name in limits}
        if limits != old:
            await record_limits(
                connection,
                request.origin,
                before.kind,
                before.subject_id,
                org_id,
                before=old,
                after=limits,
            )
        xact = await connection.fetchval(_CHANGING)
    receipt = await receipt_of(
        request.services.database,
        xact,
        is_embedded=request.services.settings.database_is_embedded,
        began=began,
    )
    return ChangedLimits(kind=before.kind, subject_id=before.subject_id, **limits, receipt=receipt)


async def _found(request: ApiRequest, connection: asyncpg.Connection) -> SubjectLimits:
    """Return the limits of the path's subject, if the asker may. Raises NotFound, Forbidden."""
    kind, subject_id = request.path["kind"], request.id("subject")
    if kind not in KINDS:
        raise NotFound(f"There are limits of {', '.join(KINDS)}.", field="kind")
    row = await connection.fetchrow(_PLACE, kind, request.membership.org_id, subject_id)
    if row is None:
        raise NotFound(f"There is no such {kind}.", field="subject")
    _authorize(request, kind, workspace_id=row["workspace_id"], user_id=row["user_id"])
    values = await find_limits(connection, kind, str(subject_id))
    return msgspec.convert({"kind": kind, "subject_id": str(subject_id), **values}, SubjectLimits)


def _authorize(
    request: ApiRequest, kind: str, *, workspace_id: uuid.UUID | None, user_id: uuid.UUID | None
) -> None:
    """Refuse who may not. Raises Forbidden."""
    if request.route.method != "GET":
        request.authorize(workspace_id=workspace_id if kind == "token" else None)
    elif kind == "token":
        request.authorize(
            workspace_id=workspace_id, user_id=user_id, permission=Permission.TOKENS_READ
        )
    elif not request.may(workspace_id=workspace_id) and user_id != request.membership.user_id:
        request.authorize()


_PATH: Final = "/api/v1/limits/{kind}/{subject}"
_WRITES: Final = Needs(permission=Permission.LIMITS_WRITE, scope=Scope.EACH)
_READS: Final = Needs(permission=Permission.LIMITS_READ, scope=Scope.EACH)
_KIND: Final = frozenset({"kind"})

ROUTES: Final = (
    Route(
        method="GET",
        path="/api/v1/limits",
        summary="The limits that you may see",
        access=_READS,
        rate_class=RateClass.READ,
        handler=list_limits,
        query=LimitsQuery,
        answer=Page[SubjectLimits],
    ),
    Route(
        method="GET",
        path=_PATH,
        summary="The limits of a token, a user, a workspace or the org",
        access=_READS,
        rate_class=RateClass.READ,
        handler=read,
        answer=SubjectLimits,
        text_names=_KIND,
    ),
    Route(
        method="PUT",
        path=_PATH,
        summary="Limit a token, a user, a workspace or the org; it holds at once",
        access=_WRITES,
        rate_class=RateClass.WRITE,
        handler=replace,
        body=LimitsBody,
        answer=ChangedLimits,
        text_names=_KIND,
        errors=(412,),
    ),
    Route(
        method="DELETE",
        path=_PATH,
        summary="Take all limits of a subject away",
        access=_WRITES,
        rate_class=RateClass.WRITE,
        handler=remove,
        answer=ChangedLimits,
        text_names=_KIND,
        errors=(412,),
    ),
)
