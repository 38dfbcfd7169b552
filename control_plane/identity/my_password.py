"""Choosing another password: while signed in, or by a link where the old one is forgotten."""

import uuid
from datetime import timedelta
from typing import Final

import asyncpg
import msgspec

from control_plane import audit_log
from control_plane.audit_log import Origin
from control_plane.identity.email_address import EmailAddress, parse_email
from control_plane.identity.links import (
    RESET_PATH,
    Link,
    LinkToken,
    bad_link,
    link_digest,
    make_link,
)
from control_plane.identity.mails import reset_mail, told_mail
from control_plane.identity.passwords import PasswordHash
from control_plane.identity.sessions import (
    Password,
    SignedIn,
    audit_account,
    end_sessions,
    renew_session,
)
from control_plane.identity.sign_in import Proof, bad_credentials, prove
from control_plane.identity.signup import EmailOnly, may_mail
from control_plane.mail import Mail
from control_plane.services import Services
from control_plane.throttle import RateClass
from control_plane.web.request import ApiRequest
from control_plane.web.route import Access, Route
from gateway.sql import load_queries

RESET_LIFE: Final = timedelta(minutes=30)
RESET: Final = "reset_password"

_QUERIES: Final = load_queries(__package__, "account_changes.sql")
_SET_PASSWORD = _QUERIES["set_password"]
_KEEP_LINK = _QUERIES["keep_link"]
_GOOD_LINK = _QUERIES["good_link"]
_USE_LINK = _QUERIES["use_link"]
_VOID_LINKS = _QUERIES["void_links"]
_SIGN_IN_ACCOUNT: Final = load_queries(__package__, "sessions.sql")["sign_in_account"]


class PasswordChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The password as it is, and as it is to be."""

    current_password: Password
    new_password: Password


class PasswordReset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the link has behind `#token=`, and the new password."""

    token: LinkToken
    password: Password


class ResetAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """What is said whether there is such an account or not."""

    detail: str = "If there is such an account, a mail is on its way. Its link is good for 30 min."


async def change_password(request: ApiRequest) -> SignedIn:
    """Give the asker another password, end every session, and open one by which it goes on.

    The session is fresh: the second factor was proven with it, minutes ago.
    """
    services = request.services
    actor = request.signed_in
    body = request.body_as(PasswordChange)
    services.password_rules.check(body.new_password, email=actor.email, field="new_password")
    proof = await prove(
        services,
        email=parse_email(actor.email),
        password=body.current_password,
        code=None,
        address=request.address,
        asks_code=False,
    )
    new = await services.passwords.hash(body.new_password)
    async with request.transaction() as connection:
        await _set_password(connection, proof.account_id, new)
        await audit_account(request, connection, "account.change_password", proof.account_id)
        renewed = Proof(
            account_id=proof.account_id,
            email=proof.email,
            methods=tuple(sorted(actor.methods)),
            password_hash=new.text,
        )
        session = await renew_session(request, connection, renewed, reason="password changed")
    _tell(services, actor.email)
    return session


async def request_reset(request: ApiRequest) -> ResetAccepted:
    """Mail a link by which a new password can be chosen, if there is such an account."""
    services = request.services
    email = parse_email(request.body_as(EmailOnly).email)
    link = make_link(services.settings.public_url, RESET_PATH)
    origin = request.origin

    async def job() -> Mail | None:
        if not await may_mail(services, email, address=request.address):
            return None
        return await _reset_mail(services, email, link, origin)

    services.outbox.post(job)
    return ResetAccepted()


async def reset_password(request: ApiRequest) -> None:
    """Give the account of a link another password, and end every session of it.

    A second factor stays: whoever reads the mailbox alone does not get in.
    """
    services = request.services
    body = request.body_as(PasswordReset)
    digest = link_digest(body.token)
    async with services.database.connection() as connection:
        row = await connection.fetchrow(_GOOD_LINK, digest, RESET)
    if row is None:
        raise bad_link()
    services.password_rules.check(body.password, email=row["account_email"])
    new = await services.passwords.hash(body.password)
    account_id = row["account_id"]
    async with services.database.transaction(account_id=account_id) as connection:
        # This locks the account, so that neither its address nor its links change meanwhile.
        await _set_password(connection, account_id, new)
        if await connection.fetchrow(_GOOD_LINK, digest, RESET) is None:
            raise bad_link()
        if not await connection.fetchval(_USE_LINK, digest, RESET, account_id):
            raise bad_link()
        await connection.execute(_VOID_LINKS, account_id)
        await end_sessions(connection, account_id, reason="password reset")
        origin = Origin(
            actor_kind="account",
            actor_id=account_id,
            credential="link",
            address=request.address,
            request_id=request.request_id,
        )
        await audit_log.record(
            connection, origin, "account.reset_password", org_id=None,
            target_kind="account", target_id=account_id,
        )  # fmt: skip
    _tell(services, row["account_email"])


async def _set_password(
    connection: asyncpg.Connection, account_id: uuid.UUID, new: PasswordHash
) -> None:
    if await connection.fetchval(_SET_PASSWORD, account_id, new.text, new.key_id) is None:
        raise bad_credentials()  # disabled meanwhile


async def _reset_mail(
    services: Services, email: EmailAddress, link: Link, origin: Origin
) -> Mail | None:
    async with services.database.connection() as connection:
        row = await connection.fetchrow(_SIGN_IN_ACCOUNT, email.key)
    if row is None or not row["is_usable"] or row["password_hash"] is None:
        return None
    async with services.database.transaction(account_id=row["id"]) as connection:
        await connection.execute(_KEEP_LINK, link.digest, row["id"], RESET, None, RESET_LIFE)
        await audit_log.record(
            connection, origin, "account.request_reset", org_id=None,
            target_kind="account", target_id=row["id"],
        )  # fmt: skip
    return reset_mail(to=row["email"], link=link.url, life=RESET_LIFE)


def _tell(services: Services, email: str) -> None:
    what = "The password of your kAIxU account was changed, and every session was ended."
    services.outbox.send(told_mail(to=email, subject="Your password was changed", what=what))


ROUTES: Final = (
    Route(
        method="PUT",
        path="/api/v1/me/password",
        summary="Choose another password; every other session ends",
        access=Access.SIGNED_IN,
        rate_class=RateClass.SIGN_IN,
        handler=change_password,
        body=PasswordChange,
        answer=SignedIn,
        needs_fresh=True,
    ),
    Route(
        method="POST",
        path="/api/v1/password/reset-request",
        summary="Have a link mailed by which you choose another password",
        access=Access.PUBLIC,
        rate_class=RateClass.SIGN_IN,
        handler=request_reset,
        body=EmailOnly,
        answer=ResetAccepted,
        status=202,
    ),
    Route(
        method="POST",
        path="/api/v1/password/reset",
        summary="Choose another password, by a link",
        access=Access.PUBLIC,
        rate_class=RateClass.SIGN_IN,
        handler=reset_password,
        body=PasswordReset,
        status=204,
        errors=(401,),
    ),
)
