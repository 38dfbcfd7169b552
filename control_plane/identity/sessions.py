"""Sessions: opened by who has proven who it is, listed and ended by their owner."""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import asyncpg
import msgspec
from msgspec import Meta

from control_plane import audit_log
from control_plane.audit_log import Origin
from control_plane.errors import BadArgument, NotFound
from control_plane.identity.authenticate import IDLE_MAX
from control_plane.identity.email_address import EMAIL_CHARS_MAX, parse_email
from control_plane.identity.passwords import PASSWORD_BYTES_MAX
from control_plane.identity.session_keys import SESSION_LIFE, SessionClaims, refusal
from control_plane.identity.sign_in import Proof, bad_credentials, prove
from control_plane.throttle import RateClass
from control_plane.web.pages import PageQuery, check_limit, decode_cursor, page_of
from control_plane.web.request import ApiRequest
from control_plane.web.route import Access, Route
from gateway.sql import load_queries

SESSIONS_MAX: Final = 100  # open ones of an account; what was used longest ago ends
OVER_KEPT: Final = timedelta(days=90)  # that a session is remembered after its end
CODE_CHARS_MAX: Final = 40

_QUERIES: Final = load_queries(__package__, "sessions.sql")
_OPEN = _QUERIES["open"]
_END_SURPLUS = _QUERIES["end_surplus"]
_FORGET_OLD = _QUERIES["forget_old"]
_PROVE_AGAIN = _QUERIES["prove_again"]
_END = _QUERIES["end"]
_END_ALL = _QUERIES["end_all"]
_LIST = _QUERIES["list"]

Email = Annotated[str, Meta(min_length=3, max_length=EMAIL_CHARS_MAX)]
Password = Annotated[str, Meta(min_length=1, max_length=PASSWORD_BYTES_MAX)]
Code = Annotated[str, Meta(max_length=CODE_CHARS_MAX)]  # empty: none, as forms send it


class SignIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who one is, and what proves it."""

    email: Email
    password: Password
    totp: Code | None = None  # of an authenticator app, or a recovery code


class Reauthentication(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What proves again who is behind a session."""

    password: Password
    totp: Code | None = None


class SignedIn(msgspec.Struct, frozen=True, kw_only=True):
    """An open session. The token is told this once."""

    access_token: str
    expires_at: datetime
    session_id: uuid.UUID
    token_type: str = "Bearer"  # noqa: S105 - RFC 6749's name of the kind


class Reauthenticated(msgspec.Struct, frozen=True, kw_only=True):
    """When it was proven last who is behind the session."""

    authenticated_at: datetime


class MySession(msgspec.Struct, frozen=True, kw_only=True):
    """A session of one's own."""

    id: uuid.UUID
    current: bool
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    authenticated_at: datetime
    methods: list[str]
    address: str
    user_agent: str


class MySessions(msgspec.Struct, frozen=True, kw_only=True):
    """Some of one's sessions; `next` is the `after` of the next page."""

    data: list[MySession]
    next: str | None = None


class SessionsEnded(msgspec.Struct, frozen=True, kw_only=True):
    """How many sessions are over now."""

    ended: int


async def open_session(
    request: ApiRequest, connection: asyncpg.Connection, proof: Proof
) -> SignedIn:
    """Open a session, in the transaction at hand.

    Raises Unauthenticated where the account was disabled, its password changed, or its second
    factor enabled, meanwhile.
    """
    services = request.services
    session_id = uuid.UUID(services.ids.new())
    row = await connection.fetchrow(
        _OPEN,
        session_id,
        proof.account_id,
        proof.password_hash,
        SESSION_LIFE,
        list(proof.methods),
        request.address,
        request.user_agent,
    )
    if row is None:
        raise bad_credentials()
    await connection.execute(_END_SURPLUS, proof.account_id, SESSIONS_MAX)
    await connection.execute(_FORGET_OLD, proof.account_id, OVER_KEPT)
    await audit_log.record(
        connection,
        own_origin(request, proof.account_id, session_id),
        "session.open",
        org_id=None,
        target_kind="session",
        target_id=session_id,
        after={"account_id": str(proof.account_id), "methods": list(proof.methods)},
    )
    token = services.session_keys.sign(
        SessionClaims(session_id=session_id, account_id=proof.account_id),
        issued_at=int(row["created_at"].timestamp()),
        expires_at=int(row["expires_at"].timestamp()),
    )
    return SignedIn(access_token=token, expires_at=row["expires_at"], session_id=session_id)


async def end_sessions(
    connection: asyncpg.Connection,
    account_id: uuid.UUID,
    *,
    reason: str,
    but: uuid.UUID | None = None,
) -> int:
    """End an account's sessions (all `but` one) and return how many.

    The transaction has changed the account's row before, or no other may open one meanwhile.
    """
    return len(await connection.fetch(_END_ALL, account_id, but, reason))


async def renew_session(
    request: ApiRequest, connection: asyncpg.Connection, proof: Proof, *, reason: str
) -> SignedIn:
    """End every session of the asker, and open one by which the asker goes on.

    As `end_sessions`, in a transaction that has changed the account's row. Raises Unauthenticated
    where the session that asks was ended meanwhile: nothing goes on from that.
    """
    actor = request.signed_in
    if await connection.fetchval(_END, actor.session_id, actor.account_id, reason) is None:
        raise refusal()
    await end_sessions(connection, actor.account_id, reason=reason)
    return await open_session(request, connection, proof)


def own_origin(request: ApiRequest, account_id: uuid.UUID, session_id: uuid.UUID) -> Origin:
    """Return the origin of what someone does in opening a session."""
    return Origin(
        actor_kind="account",
        actor_id=account_id,
        credential=f"session {session_id}",
        address=request.address,
        request_id=request.request_id,
    )


async def sign_in(request: ApiRequest) -> SignedIn:
    """Open a session for who proves who it is."""
    body = request.body_as(SignIn)
    proof = await prove(
        request.services,
        email=parse_email(body.email),
        password=body.password,
        code=body.totp or None,
        address=request.address,
    )
    async with request.services.database.transaction(account_id=proof.account_id) as connection:
        return await open_session(request, connection, proof)


async def sign_out(request: ApiRequest) -> None:
    """End the session that asks."""
    async with request.transaction() as connection:
        await _end(request, connection, request.signed_in.session_id, reason="signed out")


async def reauthenticate(request: ApiRequest) -> Reauthenticated:
    """Note that who is behind the session has proven it again."""
    body = request.body_as(Reauthentication)
    actor = request.signed_in
    proof = await prove(
        request.services,
        email=parse_email(actor.email),
        password=body.password,
        code=body.totp or None,
        address=request.address,
    )
    async with request.transaction() as connection:
        proven_at = await connection.fetchval(
            _PROVE_AGAIN, actor.session_id, proof.account_id, list(proof.methods)
        )
        if proven_at is None:
            raise bad_credentials()
        await _audit(request, connection, "session.reauthenticate", actor.session_id)
    return Reauthenticated(authenticated_at=proven_at)


async def list_sessions(request: ApiRequest) -> MySessions:
    """Return the sessions of the one who asks."""
    query = request.query_as(PageQuery)
    limit = check_limit(query.limit)
    after = _read_cursor(query.after)
    async with request.transaction() as connection:
        rows = await connection.fetch(
            _LIST, request.signed_in.account_id, *after, IDLE_MAX, limit + 1
        )
    kept, following = page_of(
        rows, limit, key=lambda row: (row["created_at"].isoformat(), str(row["id"]))
    )
    current = request.signed_in.session_id
    data = [MySession(**dict(row), current=row["id"] == current) for row in kept]
    return MySessions(data=data, next=following)


async def end_session(request: ApiRequest) -> None:
    """End one of the asker's sessions."""
    async with request.transaction() as connection:
        await _end(request, connection, request.id("session"), reason="ended by its owner")


async def end_other_sessions(request: ApiRequest) -> SessionsEnded:
    """End all of the asker's sessions but the one that asks."""
    actor = request.signed_in
    async with request.transaction() as connection:
        ended = await end_sessions(
            connection, actor.account_id, reason="ended by its owner", but=actor.session_id
        )
        await audit_account(
            request, connection, "account.end_sessions", actor.account_id, after={"ended": ended}
        )
    return SessionsEnded(ended=ended)


async def audit_account(
    request: ApiRequest,
    connection: asyncpg.Connection,
    action: str,
    account_id: uuid.UUID,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Append an entry about an account, which is the installation's and no org's."""
    await audit_log.record(
        connection,
        request.origin,
        action,
        org_id=None,
        target_kind="account",
        target_id=account_id,
        before=before,
        after=after,
    )


async def _end(
    request: ApiRequest, connection: asyncpg.Connection, session_id: uuid.UUID, *, reason: str
) -> None:
    ended = await connection.fetchval(_END, session_id, request.signed_in.account_id, reason)
    if ended is None:
        raise NotFound("You have no such session that is open.", field="session")
    await _audit(request, connection, "session.end", session_id)


async def _audit(
    request: ApiRequest, connection: asyncpg.Connection, action: str, session_id: uuid.UUID
) -> None:
    await audit_log.record(
        connection,
        request.origin,
        action,
        org_id=None,
        target_kind="session",
        target_id=session_id,
    )


def _read_cursor(text: str | None) -> tuple[datetime | None, uuid.UUID | None]:
    key = decode_cursor(text, parts=2)
    if key is None:
        return None, None
    try:
        return datetime.fromisoformat(key[0]).astimezone(UTC), uuid.UUID(key[1])
    except (ValueError, OverflowError) as error:
        raise BadArgument("This is no cursor of this list.", field="after") from error


ROUTES: Final = (
    Route(
        method="POST",
        path="/api/v1/sessions",
        summary="Sign in",
        access=Access.PUBLIC,
        rate_class=RateClass.SIGN_IN,
        handler=sign_in,
        body=SignIn,
        answer=SignedIn,
        status=201,
        errors=(401,),
    ),
    Route(
        method="GET",
        path="/api/v1/sessions",
        summary="List your sessions",
        access=Access.SIGNED_IN,
        rate_class=RateClass.READ,
        handler=list_sessions,
        query=PageQuery,
        answer=MySessions,
    ),
    Route(
        method="DELETE",
        path="/api/v1/sessions",
        summary="End all your sessions but this one",
        access=Access.SIGNED_IN,
        rate_class=RateClass.WRITE,
        handler=end_other_sessions,
        answer=SessionsEnded,
    ),
    Route(
        method="DELETE",
        path="/api/v1/sessions/current",
        summary="Sign out",
        access=Access.SIGNED_IN,
        rate_class=RateClass.WRITE,
        handler=sign_out,
        status=204,
        errors=(404,),
    ),
    Route(
        method="POST",
        path="/api/v1/sessions/current/reauthenticate",
        summary="Prove again that it is you, for what needs that",
        access=Access.SIGNED_IN,
        rate_class=RateClass.SIGN_IN,
        handler=reauthenticate,
        body=Reauthentication,
        answer=Reauthenticated,
    ),
    Route(
        method="DELETE",
        path="/api/v1/sessions/{session}",
        summary="End one of your sessions",
        access=Access.SIGNED_IN,
        rate_class=RateClass.WRITE,
        handler=end_session,
        status=204,
    ),
)
