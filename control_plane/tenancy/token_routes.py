"""Gateway tokens by API: made, listed, changed and revoked by the members of an org."""

import time
import uuid
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg
import msgspec
from msgspec import UNSET

from control_plane.errors import BadArgument, Forbidden, Refused
from control_plane.settings import told_duration
from control_plane.tenancy.limits import hold_limits, setter_of, write_limits
from control_plane.tenancy.rbac import Permission
from control_plane.tenancy.receipts import receipt_of
from control_plane.tenancy.token_bodies import (
    ChangedToken,
    CreatedToken,
    TokenCreation,
    TokenPatch,
    TokenRevocation,
    life_of,
    limit_changes,
    said_limits,
    widened,
)
from control_plane.tenancy.token_rights import (
    check_limits,
    check_scopes,
    holder_for,
    workspace_for,
)
from control_plane.tenancy.token_views import (
    GatewayToken,
    TokensQuery,
    find_token,
    page_of_tokens,
)
from control_plane.tenancy.tokens import (
    Holder,
    NewToken,
    check_model_patterns,
    check_name,
    check_vendor_names,
    create_token,
    end_token,
    life_max,
    parse_networks,
    revocation_receipt,
)
from control_plane.throttle import RateClass
from control_plane.web.pages import Page
from control_plane.web.request import ApiRequest
from control_plane.web.route import Needs, Route, Scope
from gateway.auth.token import generate
from gateway.sql import load_queries

_QUERIES: Final = load_queries(__package__, "token_routes.sql")
_NOW = _QUERIES["now"]
_UPDATE = _QUERIES["update"]
_CHANGING = _QUERIES["changing_transaction"]


async def create(request: ApiRequest) -> CreatedToken:
    """Make a token and tell its secret, this once."""
    body, membership = request.body_as(TokenCreation), request.membership
    async with request.transaction() as connection:
        cap = await life_max(connection, membership.org_id)
        workspace_id = await workspace_for(connection, membership, body.workspace_id)
        request.authorize(workspace_id=workspace_id)
        user_id = await holder_for(connection, membership, body.user_id, workspace_id=workspace_id)
        life = life_of(body, now=await connection.fetchval(_NOW), cap=cap)
        assert life is not None, "a new token ends"
        changes = limit_changes(body)
        new = NewToken(
            text=generate(),
            life=life,
            name=body.name,
            **said_limits(changes),
            models=body.models,
            vendors=body.vendors,
            addresses=networks_of(body.addresses),
            scopes=check_scopes(membership, body.scopes),
        )
        await check_limits(
            connection,
            membership,
            workspace_id=workspace_id,
            user_id=user_id,
            changes=changes,
        )
        holder = Holder(
            org_id=membership.org_id,
            workspace_id=workspace_id,
            user_id=user_id,
            created_by=membership.user_id,
        )
        return await created(request, connection, new, holder)


async def created(
    request: ApiRequest, connection: asyncpg.Connection, new: NewToken, holder: Holder
) -> CreatedToken:
    """Insert a token and return it with its secret."""
    made = await create_token(
        connection, new, ids=request.services.ids, holder=holder, origin=request.origin
    )
    token = await find_token(connection, holder.org_id, uuid.UUID(made["id"]))
    return CreatedToken(**msgspec.structs.asdict(token), token=new.text)


async def list_tokens(request: ApiRequest) -> Page[GatewayToken]:
    """Return the tokens that the asker may see, newest first."""
    membership = request.membership
    request.authorized = True  # the query finds nothing else
    async with request.transaction() as connection:
        return await page_of_tokens(
            connection,
            request.query_as(TokensQuery),
            org_id=membership.org_id,
            workspaces=membership.workspaces(Permission.TOKENS_READ),
            user_id=membership.user_id,
        )


async def read(request: ApiRequest) -> GatewayToken:
    """Return a token."""
    async with request.transaction() as connection:
        token = await find_token(connection, request.membership.org_id, request.id("token"))
    request.authorize(workspace_id=token.workspace, user_id=token.user)
    return token


async def change(request: ApiRequest) -> ChangedToken:
    """Change what a token may do; what lowers it comes with a receipt."""
    began = time.monotonic()
    patch, org_id = request.body_as(TokenPatch), request.membership.org_id
    async with request.transaction() as connection:
        await hold_limits(connection, "token", request.path["token"])
        cap = await life_max(connection, org_id)
        before = await find_token(connection, org_id, request.id("token"), lock=True)
        request.authorize(workspace_id=before.workspace, user_id=before.user)
        request.check_match(before)
        check_changeable(before)
        await _check_patch(request, connection, before, patch, cap=cap)
        after = await find_token(connection, org_id, request.id("token"))
        told = _difference(before, after)
        if told:
            await request.audit(
                connection,
                "token.update",
                target_kind="token",
                target_id=after.id,
                before={name: old for name, (old, _) in told.items()},
                after={name: new for name, (_, new) in told.items()},
            )
        xact = await connection.fetchval(_CHANGING)
    receipt = await receipt_of(
        request.services.database,
        xact,
        is_embedded=request.services.settings.database_is_embedded,
        began=began,
    )
    return ChangedToken(**msgspec.structs.asdict(after), receipt=receipt)


async def revoke(request: ApiRequest) -> TokenRevocation:
    """End a token now, open streams included."""
    began = time.monotonic()
    token_id = request.id("token")
    async with request.transaction() as connection:
        token = await find_token(connection, request.membership.org_id, token_id)
        request.authorize(workspace_id=token.workspace, user_id=token.user)
        ended = await end_token(connection, token_id, origin=request.origin)
    receipt = await revocation_receipt(
        request.services.database,
        ended,
        is_embedded=request.services.settings.database_is_embedded,
        began=began,
    )
    return msgspec.convert(receipt, TokenRevocation)


def check_changeable(token: GatewayToken) -> None:
    """Raise Refused for a token that is not changed any more."""
    if token.state == "revoked":
        raise Refused("This token was revoked.", code="token_revoked")
    if token.parent_id is not None:
        raise Refused("A child token lives for an hour at most: make another.", code="child_token")


async def _check_patch(
    request: ApiRequest,
    connection: asyncpg.Connection,
    token: GatewayToken,
    patch: TokenPatch,
    *,
    cap: timedelta,
) -> None:
    """Carry a patch out, as far as the asker may. Raises BadArgument, Forbidden."""
    if patch.scopes is not UNSET and not set(patch.scopes) <= set(token.scopes):
        raise Forbidden(
            "A token keeps its scopes or loses some: make another for more.", field="scopes"
        )
    if patch.name is not UNSET:
        check_name(patch.name)
    if patch.models:
        check_model_patterns(patch.models)
    if patch.vendors:
        check_vendor_names(patch.vendors)
    ends_at = await _new_end(connection, token, patch, cap=cap)
    field = widened(token, patch, ends_at=ends_at)
    if field is not None and not request.membership.holds(
        Permission.TOKENS_CREATE, workspace_id=token.workspace
    ):
        raise Forbidden("You may narrow this token, and not widen it.", field=field)
    changes = limit_changes(patch)
    await check_limits(
        connection,
        request.membership,
        workspace_id=token.workspace,
        user_id=token.user,
        changes=changes,
    )
    await connection.execute(
        _UPDATE,
        uuid.UUID(token.id),
        token.name if patch.name is UNSET else patch.name,
        token.scopes if patch.scopes is UNSET else sorted(set(patch.scopes)),
        token.models if patch.models is UNSET else patch.models,
        token.vendors if patch.vendors is UNSET else patch.vendors,
        networks_of(token.addresses if patch.addresses is UNSET else patch.addresses),
        ends_at or token.expires_at,
    )
    if changes:
        await write_limits(
            connection,
            "token",
            token.id,
            str(request.membership.org_id),
            changes,
            setter=setter_of(request.signed_in),
        )


async def _new_end(
    connection: asyncpg.Connection, token: GatewayToken, patch: TokenPatch, *, cap: timedelta
) -> datetime | None:
    """Return the end that a patch says; None: it says none.

    A secret lives no longer than the org allows, counted from when it was made. Raises BadArgument.
    """
    now: datetime = await connection.fetchval(_NOW)
    life = life_of(patch, now=now, cap=cap)
    if life is None:
        return None
    # The first of the two also because what is far enough away is no date.
    if life > cap or now + life > max(token.issued_at + cap, token.expires_at):
        raise BadArgument(
            f"A token of this org ends {told_duration(cap)} after its secret was made at the "
            "latest: rotate it.",
            field="expires" if patch.expires is not UNSET else "expires_at",
        )
    return now + life


def networks_of(texts: list[str] | None) -> list[Any] | None:
    """Return an address list as the database takes it. Raises BadArgument."""
    return None if texts is None else parse_networks(texts, field="addresses")


def _difference(before: GatewayToken, after: GatewayToken) -> dict[str, tuple[object, object]]:
    old, new = msgspec.structs.asdict(before), msgspec.structs.asdict(after)
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


ROUTES: Final = (
    Route(
        method="POST",
        path="/api/v1/tokens",
        summary="Make a gateway token; its secret is told this once",
        access=Needs(permission=Permission.TOKENS_CREATE, scope=Scope.EACH),
        rate_class=RateClass.WRITE,
        handler=create,
        body=TokenCreation,
        answer=CreatedToken,
        status=201,
        tells_once=frozenset({"token"}),
    ),
    Route(
        method="GET",
        path="/api/v1/tokens",
        summary="The gateway tokens that you may see, newest first",
        access=Needs(permission=Permission.TOKENS_READ, scope=Scope.EACH),
        rate_class=RateClass.READ,
        handler=list_tokens,
        query=TokensQuery,
        answer=Page[GatewayToken],
    ),
    Route(
        method="GET",
        path="/api/v1/tokens/{token}",
        summary="A gateway token",
        access=Needs(permission=Permission.TOKENS_READ, scope=Scope.EACH),
        rate_class=RateClass.READ,
        handler=read,
        answer=GatewayToken,
    ),
    Route(
        method="PATCH",
        path="/api/v1/tokens/{token}",
        summary="Change what a gateway token may do",
        access=Needs(permission=Permission.TOKENS_WRITE, scope=Scope.EACH),
        rate_class=RateClass.WRITE,
        handler=change,
        body=TokenPatch,
        answer=ChangedToken,
        errors=(409, 412),
    ),
    Route(
        method="POST",
        path="/api/v1/tokens/{token}/revoke",
        summary="End a gateway token now, open streams included",
        access=Needs(permission=Permission.TOKENS_REVOKE, scope=Scope.EACH),
        rate_class=RateClass.WRITE,
        handler=revoke,
        answer=TokenRevocation,
    ),
)
