"""Child tokens: for an hour at most, and for nothing that their parent is not for.

Whose token it is may hand a part of it on, to an agent or a job. The gateway holds the parent's
lists, limits, scopes and end against the child at each call, whatever changes meanwhile; what is
refused here is what would only look like more.
"""

from typing import Final

import asyncpg
from msgspec import UNSET

from control_plane.errors import BadArgument, Forbidden, Refused
from control_plane.settings import parse_duration
from control_plane.tenancy.limits import Rate, parse_rate
from control_plane.tenancy.rbac import Permission
from control_plane.tenancy.token_bodies import (
    CHILD_LIFE_MAX,
    ChildCreation,
    CreatedToken,
    limit_changes,
    said_limits,
)
from control_plane.tenancy.token_routes import created, networks_of
from control_plane.tenancy.token_views import GatewayToken, find_token
from control_plane.tenancy.tokens import Holder, NewToken, life_max
from control_plane.throttle import RateClass
from control_plane.web.request import ApiRequest
from control_plane.web.route import Needs, Route, Scope
from gateway.auth.token import generate
from gateway.sql import load_queries

LIVE_CHILDREN_MAX: Final = 1_000  # of one token; an agent's run takes one

_COUNT_CHILDREN: Final = load_queries(__package__, "child_tokens.sql")["count_children"]


async def create_child(request: ApiRequest) -> CreatedToken:
    """Make a child of one's own token, and tell its secret, this once."""
    body = request.body_as(ChildCreation)
    async with request.transaction() as connection:
        await life_max(connection, request.membership.org_id)  # locks the org before its token
        parent = await find_token(
            connection, request.membership.org_id, request.id("token"), lock=True
        )
        request.authorize(workspace_id=parent.workspace, user_id=parent.user)
        await _check_parent(connection, parent)
        life = parse_duration(body.expires, field="expires")
        if life > CHILD_LIFE_MAX:
            raise BadArgument("A child token lives for an hour at most.", field="expires")
        changes = limit_changes(body)
        for change in changes:
            _check_limit(parent, change.name, change.value)
        new = NewToken(
            text=generate("c"),
            life=life,
            name=body.name,
            **said_limits(changes),
            models=body.models,
            vendors=body.vendors,
            addresses=networks_of(body.addresses),
            scopes=_scopes(parent, None if body.scopes is UNSET else body.scopes),
        )
        holder = Holder(
            org_id=request.membership.org_id,
            workspace_id=parent.workspace,
            user_id=parent.user,
            created_by=request.membership.user_id,
            parent_id=request.id("token"),
        )
        return await created(request, connection, new, holder)


async def _check_parent(connection: asyncpg.Connection, parent: GatewayToken) -> None:
    """Raise Refused for a token that can't have another child now."""
    if parent.parent_id is not None:
        raise Refused("A child token has no children.", code="child_token")
    if parent.state != "live":
        raise Refused(f"This token is {parent.state}.", code=f"token_{parent.state}")
    if await connection.fetchval(_COUNT_CHILDREN, parent.id) >= LIVE_CHILDREN_MAX:
        raise Refused(f"This token has {LIVE_CHILDREN_MAX} children that live: wait for some.")


def _scopes(parent: GatewayToken, asked: list[str] | None) -> list[str]:
    """Return a child's scopes, each once. Raises Forbidden for one that its parent lacks."""
    if asked is None:
        return ["calls"] if "calls" in parent.scopes else parent.scopes
    for scope in asked:
        if scope not in parent.scopes:
            raise Forbidden(
                f"The parent has not this scope; it has {', '.join(sorted(parent.scopes))}.",
                field="scopes",
            )
    return sorted(set(asked))


def _check_limit(parent: GatewayToken, name: str, value: int | Rate | None) -> None:
    """Raise Forbidden for a limit above the parent's own."""
    if isinstance(value, Rate):
        if parent.rate is not None:
            most = parse_rate(parent.rate, field="rate")
            if value.calls * most.window_seconds > most.calls * value.window_seconds:
                raise Forbidden(f"The parent has a rate of {parent.rate}.", field="rate")
        return
    field = "limit" if name == "calls_a_month" else "concurrency"
    own = parent.limit if name == "calls_a_month" else parent.concurrency
    if own is not None and value is not None and value > own:
        raise Forbidden(f"The parent has a {field} of {own}.", field=field)


ROUTES: Final = (
    Route(
        method="POST",
        path="/api/v1/tokens/{token}/children",
        summary="Make a child of your own token, for an hour at most; its secret is told this once",
        access=Needs(permission=Permission.TOKENS_DELEGATE, scope=Scope.EACH),
        rate_class=RateClass.WRITE,
        handler=create_child,
        body=ChildCreation,
        body_is_optional=True,
        answer=CreatedToken,
        status=201,
        tells_once=frozenset({"token"}),
    ),
)
