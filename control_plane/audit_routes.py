"""The audit log by the API: an org's for its admins, the installation's for its operator."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import asyncpg
import msgspec

from control_plane.errors import BadArgument
from control_plane.tenancy.rbac import Permission
from control_plane.throttle import RateClass
from control_plane.web.input import read_uuid
from control_plane.web.pages import Page, check_limit, decode_cursor, encode_cursor, page_of
from control_plane.web.request import ApiRequest
from control_plane.web.route import Access, Needs, Reply, Route
from gateway.sql import load_queries

EXPORT_ENTRIES_MAX: Final = 5_000  # in one answer; a header says where the next one begins
NDJSON: Final = "application/x-ndjson"
NEXT_HEADER: Final = "x-kaixu-next"

_ORDINAL_DIGITS_MAX: Final = 18
_PAGE: Final = load_queries(__package__, "audit_log.sql")["page"]


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which entries are asked for; `actor` is an account, the times are RFC 3339."""

    limit: int = 50
    after: str | None = None
    action: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class AuditExportQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which entries are to be exported."""

    after: str | None = None
    action: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What was done by whom. `erased`: what was personal in it is gone."""

    id: str
    ordinal: int
    at: str
    actor_kind: str
    actor_id: str | None
    user_id: str | None
    user_name: str | None
    credential: str
    address: str
    request_id: str
    action: str
    target_kind: str
    target_id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    erased: bool
    hash: str


async def read_audit_log(request: ApiRequest) -> Page[AuditEntry]:
    """Return entries of the org's chain, or of the installation's, newest first."""
    query = request.query_as(AuditQuery)
    limit = check_limit(query.limit)
    rows = await _rows(request, query, limit=limit)
    entries, following = page_of([_entry(row) for row in rows], limit, key=_key)
    return Page(data=entries, next=following)


async def export_audit_log(request: ApiRequest) -> Reply:
    """Return entries one a line, newest first; a header has the cursor of the rest."""
    query = request.query_as(AuditExportQuery)
    rows = await _rows(request, query, limit=EXPORT_ENTRIES_MAX)
    entries = [_entry(row) for row in rows[:EXPORT_ENTRIES_MAX]]
    headers = {}
    if len(rows) > EXPORT_ENTRIES_MAX:
        headers[NEXT_HEADER] = encode_cursor(*_key(entries[-1]))
    return Reply(body=b"".join(msgspec.json.encode(e) + b"\n" for e in entries), headers=headers)


async def _rows(
    request: ApiRequest, query: AuditQuery | AuditExportQuery, *, limit: int
) -> list[asyncpg.Record]:
    """Return the entries that are asked for, and one more where there is one."""
    before = None
    if (cursor := decode_cursor(query.after, parts=1)) is not None:
        if (
            not (cursor[0].isascii() and cursor[0].isdigit())
            or len(cursor[0]) > _ORDINAL_DIGITS_MAX
        ):
            raise BadArgument("This is no cursor: take it from `next`.", field="after")
        before = int(cursor[0])
    for name in ("since", "until"):
        time = getattr(query, name)
        if time is not None and time.tzinfo is None:
            raise BadArgument("A time says its zone, as in 2026-11-25T00:00:00Z.", field=name)
    actor = None if query.actor is None else read_uuid(query.actor, field="actor")
    async with request.transaction() as connection:
        found: list[asyncpg.Record] = await connection.fetch(
            _PAGE, request.org_id, before, query.action, actor, query.since, query.until, limit + 1
        )
    return found


def _entry(row: asyncpg.Record | Mapping[str, Any]) -> AuditEntry:
    values = dict(row)
    values["at"] = values["at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    for name in ("before", "after"):
        if values[name] is not None:
            values[name] = msgspec.json.decode(values[name])
    return AuditEntry(**values)


def _key(entry: AuditEntry) -> tuple[str]:
    return (str(entry.ordinal),)


def _routes(prefix: str, *, access: Access | Needs, whose: str) -> list[Route]:
    return [
        Route(
            method="GET", path=prefix, summary=f"Who changed what {whose}", access=access,
            rate_class=RateClass.READ, handler=read_audit_log, query=AuditQuery,
            answer=Page[AuditEntry],
        ),
        Route(
            method="GET", path=f"{prefix}/export", summary=f"Who changed what {whose}, as NDJSON",
            access=access, rate_class=RateClass.HEAVY, handler=export_audit_log,
            query=AuditExportQuery, content_type=NDJSON,
        ),
    ]  # fmt: skip


ROUTES: Final = (
    *_routes(
        "/api/v1/orgs/{org}/audit-log",
        access=Needs(permission=Permission.AUDIT_READ),
        whose="in an org",
    ),
    *_routes("/api/v1/operator/audit-log", access=Access.OPERATOR, whose="about the installation"),
)
