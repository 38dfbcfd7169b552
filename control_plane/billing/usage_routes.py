"""Usage by API: a month's sums for people, and every event once for billing."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from control_plane.billing.feed import read_events_of
from control_plane.billing.usage import Seen, read_sealed_through, report_usage
from control_plane.settings import parse_month
from control_plane.tenancy.rbac import Permission
from control_plane.throttle import RateClass
from control_plane.web.request import ApiRequest
from control_plane.web.route import Needs, Route, Scope

REPORT_ROWS_MAX: Final = 1_000
EVENTS_DEFAULT: Final = 100
EVENTS_MAX: Final = 1_000  # in one answer: with what vendors reported, 8 MiB at most
SCOPE: Final = "usage:read"

Grouping = Literal["token", "user", "workspace", "vendor", "model", "day", "hour"]


class UsageQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which sums are asked for; `month` as 2026-11, none: the present one."""

    month: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d{2}$")] | None = None
    by: Grouping = "token"


class UsageSums(msgspec.Struct, frozen=True, kw_only=True):
    """What calls add up to. A sum is null where no call told the number.

    It says for what: by one of the first seven, null for calls of which that is not known. `name`
    goes with the first three. `usage_partial`: of so many calls the sums have what was told until
    they were cut off; `usage_unknown`: of so many nothing was told.
    """

    token_id: str | UnsetType | None = UNSET
    user_id: str | UnsetType | None = UNSET
    workspace_id: str | UnsetType | None = UNSET
    vendor: str | UnsetType | None = UNSET
    model: str | UnsetType | None = UNSET
    day: str | UnsetType = UNSET
    hour: str | UnsetType = UNSET
    name: str | UnsetType | None = UNSET
    calls: int
    counted: int
    usage_partial: int
    usage_unknown: int
    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """A month's sums. Every call that was admitted before `sealed_through` is in them.

    `truncated`: there are more rows than are told; those with the most calls are.
    """

    month: str
    by: Grouping
    sealed_through: datetime
    rows: list[UsageSums]
    truncated: bool


class UsageEventsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which events are asked for: those after the one that has the cursor `after`."""

    after: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=EVENTS_MAX)] = EVENTS_DEFAULT


class UsageEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A call, or a correction of one (`corrects`). Null: not known, or not said by the vendor."""

    id: str
    cursor: str
    ordinal: int
    call_id: str
    attempt: int
    retry_of: str | None
    corrects: str | None
    time: datetime
    ended_at: datetime | None
    month: str
    org_id: str
    workspace_id: str | None
    user_id: str | None
    token_id: str | None
    vendor: str | None
    endpoint: str | None
    client_format: str | None
    model_requested: str | None
    model_served: str | None
    stream: bool | None
    status: str
    http_status: int | None
    reason: str | None
    counted: bool
    usage_source: str
    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    cache_write_5m_tokens: int | None
    cache_write_1h_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    audio_input_tokens: int | None
    audio_output_tokens: int | None
    image_input_tokens: int | None
    seconds: float | None
    searches: int | None
    pages: int | None
    service_tier: str | None
    finish_reason: str | None
    session_id: str | None
    vendor_request_id: str | None
    ttfb_ms: float | None
    duration_ms: float | None
    bytes_up: int | None
    bytes_down: int | None
    flags: list[str]
    vendor_usage: Any


class UsageEvents(msgspec.Struct, frozen=True, kw_only=True):
    """Some events, in the order in which they came to the ledger.

    `next` is the `after` to ask with next, now or later; null: there was none yet. `more`: there
    are more by now. Every call that was admitted before `sealed_through` has its event by now.
    """

    data: list[UsageEvent]
    next: str | None
    more: bool
    sealed_through: datetime


async def read_report(request: ApiRequest) -> UsageReport:
    """Return a month's sums of what the asker may see."""
    query, seen = request.query_as(UsageQuery), _seen(request)
    month = None if query.month is None else parse_month(query.month, field="month")
    async with request.transaction() as connection:
        report = await report_usage(
            connection, month=month, by=query.by, seen=seen, rows_max=REPORT_ROWS_MAX + 1
        )
    rows = report.pop("rows")
    return msgspec.convert(
        {**report, "rows": rows[:REPORT_ROWS_MAX], "truncated": len(rows) > REPORT_ROWS_MAX},
        UsageReport,
    )


async def read_usage_events(request: ApiRequest) -> UsageEvents:
    """Return the next events of what the asker may see."""
    query, seen = request.query_as(UsageEventsQuery), _seen(request)
    async with request.transaction() as connection:
        sealed_through = await read_sealed_through(connection)
        events = await read_events_of(connection, seen, after=query.after, limit=query.limit + 1)
    data = [_event(event) for event in events[: query.limit]]
    return UsageEvents(
        data=data,
        next=data[-1].cursor if data else query.after,
        more=len(events) > query.limit,
        sealed_through=sealed_through,
    )


def _seen(request: ApiRequest) -> Seen:
    """Return what the asker may see: a token all of its org, a member what the roles say."""
    assert request.org_id is not None
    if request.reader is not None:
        request.authorized = True
        return Seen(org_id=request.org_id)
    return Seen(
        org_id=request.org_id,
        workspaces=request.workspaces(),
        user_id=request.membership.user_id,
    )


def _event(event: dict[str, Any]) -> UsageEvent:
    usage = event["vendor_usage"]
    return UsageEvent(**{**event, "vendor_usage": None if usage is None else msgspec.Raw(usage)})


ROUTES: Final = (
    Route(
        method="GET",
        path="/api/v1/usage",
        summary="A month's sums of what you may see",
        access=Needs(permission=Permission.USAGE_READ, scope=Scope.EACH),
        rate_class=RateClass.READ,
        handler=read_report,
        query=UsageQuery,
        answer=UsageReport,
        token_scope=SCOPE,
    ),
    Route(
        method="GET",
        path="/api/v1/usage/events",
        summary="The usage events that you may see, each once, in the order of the ledger",
        access=Needs(permission=Permission.USAGE_READ, scope=Scope.EACH),
        rate_class=RateClass.READ,
        handler=read_usage_events,
        query=UsageEventsQuery,
        answer=UsageEvents,
        errors=(410,),
        token_scope=SCOPE,
    ),
)
