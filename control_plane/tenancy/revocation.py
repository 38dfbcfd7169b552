"""The end of many tokens at once, and of one by whoever holds it.

Where all tokens of a user, of an org, or all there are end together, workers are told of the user
or of the orgs, not of each token: a worker that hears of ten thousand ends cuts no stream sooner.
"""

import time
import uuid
from typing import Annotated, Any, Final

import asyncpg
import msgspec

from control_plane.audit_log import Origin, record
from control_plane.errors import NotFound
from control_plane.tenancy.rbac import Permission
from control_plane.tenancy.receipts import (
    Receipt,
    change_of,
    receipt_of,
    wait_for_receipt,
)
from control_plane.throttle import RateClass
from control_plane.web.request import ApiRequest
from control_plane.web.route import Access, Needs, Route
from gateway.auth.token import digest
from gateway.sql import load_queries

BULK_MILLISECONDS_MAX: Final = 20_000  # for one statement; a request has 30 s
SHOWN_CHARS_MAX: Final = 200  # of what somebody takes for a token

_QUERIES: Final = load_queries(__package__, "revocation.sql")
_ALLOW_TIME = _QUERIES["allow_time"]
_HOLD_ORG = _QUERIES["hold_org"]
_SCOPE = _QUERIES["scope"]
_REVOKE_OF_ORG = _QUERIES["revoke_of_org"]
_REVOKE_OF_USER = _QUERIES["revoke_of_user"]
_REVOKE_EVERY = _QUERIES["revoke_every"]
_REVOKE_SHOWN = _QUERIES["revoke_shown"]
_USER_EXISTS = _QUERIES["user_exists"]
_CHANGING = _QUERIES["changing_transaction"]


class BulkRevocation(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens have ended; `receipt` null: there were none."""

    revoked: int
    receipt: Receipt | None


class BulkRevocationBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose tokens are to end; null: everybody's in the org."""

    user_id: uuid.UUID | None = None


class ShownToken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token that somebody holds, whoever that is."""

    token: Annotated[str, msgspec.Meta(max_length=SHOWN_CHARS_MAX)]


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """What is answered to every token alike: nobody learns here which ones there are."""

    accepted: bool = True


async def end_tokens_of(
    connection: asyncpg.Connection,
    org_id: uuid.UUID,
    *,
    user_id: uuid.UUID | None = None,
    origin: Origin,
) -> tuple[int, str | None]:
    """End every token of an org, or of one of its members, in the caller's transaction.

    Return how many, and what finds the change (None: nothing has changed). Raises NotFound.
    """
    if user_id is not None and not await connection.fetchval(_USER_EXISTS, org_id, user_id):
        raise NotFound("There is no such member.", field="user_id")
    await connection.execute(_ALLOW_TIME, str(BULK_MILLISECONDS_MAX))
    await connection.execute(_HOLD_ORG, org_id)
    await connection.execute(_SCOPE, "org" if user_id is None else "user")
    revoked: int = (
        await connection.fetchval(_REVOKE_OF_ORG, org_id)
        if user_id is None
        else await connection.fetchval(_REVOKE_OF_USER, org_id, user_id)
    )
    await connection.execute(_SCOPE, "")
    await record(
        connection,
        origin,
        "token.revoke_all",
        org_id=org_id,
        target_kind="org" if user_id is None else "user",
        target_id=org_id if user_id is None else user_id,
        after={"revoked": revoked},
    )
    return revoked, await connection.fetchval(_CHANGING)


async def end_every_token(
    connection: asyncpg.Connection, *, origin: Origin
) -> tuple[int, str | None]:
    """End every token that there is, in the caller's transaction; return as `end_tokens_of`."""
    await connection.execute(_ALLOW_TIME, str(BULK_MILLISECONDS_MAX))
    revoked: int = await connection.fetchval(_REVOKE_EVERY)
    await record(
        connection,
        origin,
        "token.revoke_all",
        org_id=None,
        target_kind="installation",
        target_id="",
        after={"revoked": revoked},
    )
    return revoked, await connection.fetchval(_CHANGING)


async def revoke_every_token(
    connection: asyncpg.Connection, *, origin: Origin, is_embedded: bool
) -> dict[str, Any]:
    """End every token that there is; return how many, and the receipt (None: there were none)."""
    began = time.monotonic()
    async with connection.transaction():
        revoked, xact = await end_every_token(connection, origin=origin)
    receipt = None
    if xact is not None:
        change = await change_of(connection, xact)
        receipt = await wait_for_receipt(connection, change, is_embedded=is_embedded, began=began)
    return {"revoked": revoked, "receipt": receipt}


async def revoke_all(request: ApiRequest) -> BulkRevocation:
    """End every token of the org, or of one member."""
    began = time.monotonic()
    async with request.transaction() as connection:
        revoked, xact = await end_tokens_of(
            connection,
            request.membership.org_id,
            user_id=request.body_as(BulkRevocationBody).user_id,
            origin=request.origin,
        )
    return await _told(request, revoked, xact, began=began)


async def revoke_everything(request: ApiRequest) -> BulkRevocation:
    """End every token that there is."""
    began = time.monotonic()
    async with request.transaction() as connection:
        revoked, xact = await end_every_token(connection, origin=request.origin)
    return await _told(request, revoked, xact, began=began)


async def _told(
    request: ApiRequest, revoked: int, xact: str | None, *, began: float
) -> BulkRevocation:
    receipt = await receipt_of(
        request.services.database,
        xact,
        is_embedded=request.services.settings.database_is_embedded,
        began=began,
    )
    return BulkRevocation(revoked=revoked, receipt=receipt)


async def revoke_shown(request: ApiRequest) -> Accepted:
    """End the token that is shown, if it is one; say the same in any case.

    The form of what is shown is not looked at: that would be an answer.
    """
    shown = request.body_as(ShownToken).token
    async with request.transaction() as connection:
        row = await connection.fetchrow(_REVOKE_SHOWN, digest(shown))
        assert row is not None, "the function returns one row"
        if row["token_id"] is not None:
            await record(
                connection,
                request.origin,
                "token.revoke",
                org_id=row["org_id"],
                target_kind="token",
                target_id=row["token_id"],
                after={"shown": True, "old_secret_only": row["is_retired"]},
            )
    return Accepted()


ROUTES: Final = (
    Route(
        method="POST",
        path="/api/v1/tokens/revoke",
        summary="End a gateway token that you hold, found or were sent; no account is needed",
        access=Access.PUBLIC,
        rate_class=RateClass.PUBLIC,
        handler=revoke_shown,
        body=ShownToken,
        answer=Accepted,
        status=202,
    ),
    Route(
        method="POST",
        path="/api/v1/tokens/revoke-all",
        summary="End every gateway token of the org, or of one member, now",
        access=Needs(permission=Permission.TOKENS_REVOKE_ALL),
        rate_class=RateClass.WRITE,
        handler=revoke_all,
        body=BulkRevocationBody,
        body_is_optional=True,
        answer=BulkRevocation,
    ),
    Route(
        method="POST",
        path="/api/v1/operator/tokens/revoke-all",
        summary="End every gateway token of this installation, now",
        access=Access.OPERATOR,
        rate_class=RateClass.WRITE,
        handler=revoke_everything,
        answer=BulkRevocation,
    ),
)
