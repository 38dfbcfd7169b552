"""Who is told of alerts, by mail or at a URL; and what there was to tell."""

import secrets
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import msgspec

from control_plane.alerts.webhook import check_webhook_url
from control_plane.errors import BadArgument, NotFound, Refused
from control_plane.secrets import Place
from control_plane.tenancy.rbac import Permission
from control_plane.throttle import RateClass
from control_plane.web.input import read_uuid
from control_plane.web.pages import Page, PageQuery, check_limit, decode_cursor, page_of
from control_plane.web.request import ApiRequest
from control_plane.web.route import Needs, Route
from gateway.sql import load_queries

SUBSCRIPTIONS_MAX: Final = 50  # of one org
SECRET_BYTES: Final = 32
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what secrets begin with

_YEARS: Final = range(2000, 9000)  # that every reader of dates can count with

AlertKind = Literal["limit", "token_expiring", "vendor_key"]

_QUERIES: Final = load_queries(__package__, "subscriptions.sql")
_HOLD = _QUERIES["hold"]
_COUNT = _QUERIES["count"]
_HAS_ADDRESS = _QUERIES["has_address"]
_CREATE = _QUERIES["create"]
_LIST = _QUERIES["list"]
_REMOVE = _QUERIES["remove"]
_ALERTS = _QUERIES["alerts"]


class AlertSubscription(msgspec.Struct, frozen=True, kw_only=True):
    """Who is told: a member by mail, or a URL. `kinds` null: of everything."""

    id: str
    channel: Literal["email", "webhook"]
    user_id: str | None
    url: str | None
    kinds: list[AlertKind] | None
    created_at: datetime


class CreatedSubscription(AlertSubscription, frozen=True, kw_only=True):
    """With the secret that a URL's alerts are signed with; null: told before, or by mail."""

    secret: str | None


class AlertSubscriptions(msgspec.Struct, frozen=True, kw_only=True):
    """All of an org's."""

    data: list[AlertSubscription]


class SubscriptionBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is to be told. By mail: a member, null being oneself; its verified address counts."""

    channel: Literal["email", "webhook"]
    user_id: uuid.UUID | None = None
    url: Annotated[str, msgspec.Meta(max_length=2048)] | None = None
    kinds: Annotated[list[AlertKind], msgspec.Meta(min_length=1, max_length=3)] | None = None


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """Something to be told of; it comes once for a subject, period and level.

    `level` 1: in time; 2: late. `sent`, `waiting` and `failed` count who was to be told.
    """

    id: str
    kind: AlertKind
    level: int
    subject_kind: str
    subject: str
    period: str
    detail: dict[str, Any]
    at: datetime
    sent: int
    waiting: int
    failed: int


class AlertsQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which alerts are asked for."""

    kind: AlertKind | None = None


def secret_place(org_id: uuid.UUID | str, subscription_id: uuid.UUID | str) -> Place:
    """Return where a subscription's secret is sealed for."""
    return Place(
        table="alert_subscriptions",
        column="secret_sealed",
        row_id=str(subscription_id),
        org_id=str(org_id),
    )


async def subscribe(request: ApiRequest) -> CreatedSubscription:
    """Have somebody told; a URL's secret is told this once."""
    body, membership = request.body_as(SubscriptionBody), request.membership
    user_id, url, secret = None, None, None
    if body.channel == "email":
        if body.url is not None:
            raise BadArgument("A mail goes to a member, not to a URL.", field="url")
        user_id = body.user_id or membership.user_id
    else:
        if body.user_id is not None:
            raise BadArgument("A webhook is a URL, not a member.", field="user_id")
        url = check_webhook_url(
            body.url or "", allow_private=request.services.settings.private_webhooks
        )
        secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    subscription_id = uuid.UUID(request.services.ids.new())
    async with request.transaction() as connection:
        await connection.execute(_HOLD, str(membership.org_id))
        if await connection.fetchval(_COUNT, membership.org_id) >= SUBSCRIPTIONS_MAX:
            raise Refused(f"An org has {SUBSCRIPTIONS_MAX} subscriptions at most: remove one.")
        if user_id is not None:
            row = await connection.fetchrow(_HAS_ADDRESS, membership.org_id, user_id)
            if row is None:
                raise NotFound("There is no such member.", field="user_id")
            if not row["is_verified"]:
                raise Refused("This member has no verified address.", field="user_id")
        sealed = None
        if secret is not None:
            place = secret_place(membership.org_id, subscription_id)
            sealed = request.services.control_keys.seal(secret.encode(), place)
        row = await connection.fetchrow(
            _CREATE, subscription_id, membership.org_id, body.channel, user_id, url, sealed,
            body.kinds,
        )  # fmt: skip
        assert row is not None, "an insert returns its row"
        await request.audit(
            connection,
            "alert_subscription.create",
            target_kind="alert_subscription",
            target_id=subscription_id,
            after={"channel": body.channel, "user_id": user_id, "url": url, "kinds": body.kinds},
        )
    return CreatedSubscription(**dict(row), secret=secret)


async def list_subscriptions(request: ApiRequest) -> AlertSubscriptions:
    """Return who is told."""
    async with request.transaction() as connection:
        rows = await connection.fetch(_LIST, request.membership.org_id)
    return AlertSubscriptions(data=[AlertSubscription(**dict(row)) for row in rows])


async def unsubscribe(request: ApiRequest) -> None:
    """Tell nobody there any more; what waits to be sent is not sent."""
    async with request.transaction() as connection:
        row = await connection.fetchrow(
            _REMOVE, request.membership.org_id, request.id("subscription")
        )
        if row is None:
            raise NotFound("There is no such subscription.")
        await request.audit(
            connection,
            "alert_subscription.delete",
            target_kind="alert_subscription",
            target_id=request.id("subscription"),
            before=dict(row),
        )


async def list_alerts(request: ApiRequest) -> Page[Alert]:
    """Return what there was to tell, newest first."""
    query = request.query_as(AlertsQuery)
    limit = check_limit(query.limit)
    after = decode_cursor(query.after, parts=2)
    async with request.transaction() as connection:
        rows = await connection.fetch(
            _ALERTS,
            request.membership.org_id,
            query.kind,
            None if after is None else _moment(after[0]),
            None if after is None else read_uuid(after[1], field="after"),
            limit + 1,
        )
    kept, following = page_of(rows, limit, key=lambda row: (row["at"].isoformat(), row["id"]))
    alerts = [Alert(**{**row, "detail": msgspec.json.decode(row["detail"])}) for row in kept]
    return Page(data=alerts, next=following)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadArgument("This is no cursor of ours.", field="after") from error
    if moment.tzinfo is not UTC or moment.year not in _YEARS:
        raise BadArgument("This is no cursor of ours.", field="after")
    return moment


_READS: Final = Needs(permission=Permission.ALERTS_READ)
_WRITES: Final = Needs(permission=Permission.ALERTS_WRITE)

ROUTES: Final = (
    Route(
        method="GET",
        path="/api/v1/alerts",
        summary="What there was to be told of, newest first",
        access=_READS,
        rate_class=RateClass.READ,
        handler=list_alerts,
        query=AlertsQuery,
        answer=Page[Alert],
    ),
    Route(
        method="GET",
        path="/api/v1/alerts/subscriptions",
        summary="Who is told of alerts",
        access=_READS,
        rate_class=RateClass.READ,
        handler=list_subscriptions,
        answer=AlertSubscriptions,
    ),
    Route(
        method="POST",
        path="/api/v1/alerts/subscriptions",
        summary="Have a member or a URL told of alerts; a URL's secret is told this once",
        access=_WRITES,
        rate_class=RateClass.WRITE,
        handler=subscribe,
        body=SubscriptionBody,
        answer=CreatedSubscription,
        status=201,
        tells_once=frozenset({"secret"}),
    ),
    Route(
        method="DELETE",
        path="/api/v1/alerts/subscriptions/{subscription}",
        summary="Tell nobody there any more",
        access=_WRITES,
        rate_class=RateClass.WRITE,
        handler=unsubscribe,
        status=204,
    ),
)
