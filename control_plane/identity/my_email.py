"""Having another e-mail address: asked for while signed in, true when its mailbox confirms it."""

from datetime import timedelta
from typing import Final

import asyncpg
import msgspec

from control_plane import audit_log
from control_plane.audit_log import Origin
from control_plane.errors import Refused
from control_plane.identity.email_address import EmailAddress, parse_email
from control_plane.identity.links import (
    CHANGE_PATH,
    Link,
    LinkToken,
    bad_link,
    link_digest,
    make_link,
)
from control_plane.identity.mails import change_mail, told_mail
from control_plane.identity.sessions import audit_account
from control_plane.identity.signup import EmailOnly, SignupAccepted, may_mail
from control_plane.mail import Mail
from control_plane.throttle import RateClass
from control_plane.web.request import ApiRequest
from control_plane.web.route import Access, Route
from gateway.sql import load_queries

CHANGE_LIFE: Final = timedelta(hours=24)
CHANGE: Final = "change_email"

_QUERIES: Final = load_queries(__package__, "account_changes.sql")
_KEEP_LINK = _QUERIES["keep_link"]
_GOOD_LINK = _QUERIES["good_link"]
_USE_LINK = _QUERIES["use_link"]
_VOID_LINKS = _QUERIES["void_links"]
_LOCK = _QUERIES["lock"]
_SET_EMAIL = _QUERIES["set_email"]
_SIGN_IN_ACCOUNT: Final = load_queries(__package__, "sessions.sql")["sign_in_account"]


class EmailConfirmation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the link has behind `#token=`."""

    token: LinkToken


async def ask_for_email(request: ApiRequest) -> SignupAccepted:
    """Mail a link to the new address, and tell the old one."""
    services = request.services
    actor = request.signed_in
    email = parse_email(request.body_as(EmailOnly).email)
    if email.key == parse_email(actor.email).key:
        raise Refused("This is your address already.", field="email")
    link = make_link(services.settings.public_url, CHANGE_PATH)
    what = "Somebody who is signed in to your kAIxU account asked for another address for it."
    services.outbox.send(
        told_mail(to=actor.email, subject="Your address is to be changed", what=what)
    )

    async def job() -> Mail | None:
        if not await may_mail(services, email, address=request.address):
            return None
        return await _change_mail(request, email, link)

    services.outbox.post(job)
    return SignupAccepted()


async def confirm_email(request: ApiRequest) -> None:
    """Give the account of a link the address that the link went to."""
    services = request.services
    digest = link_digest(request.body_as(EmailConfirmation).token)
    async with services.database.connection() as connection:
        row = await connection.fetchrow(_GOOD_LINK, digest, CHANGE)
    if row is None:
        raise bad_link()
    account_id, email = row["account_id"], parse_email(row["email"])
    async with services.database.transaction(account_id=account_id) as connection:
        before = await connection.fetchrow(_LOCK, account_id)
        if before is None or await connection.fetchrow(_GOOD_LINK, digest, CHANGE) is None:
            raise bad_link()
        if not await connection.fetchval(_USE_LINK, digest, CHANGE, account_id):
            raise bad_link()
        await connection.execute(_VOID_LINKS, account_id)
        try:
            await connection.execute(_SET_EMAIL, account_id, email.text, email.key)
        except asyncpg.UniqueViolationError as error:
            raise Refused("Another account has this address by now.", field="email") from error
        origin = Origin(
            actor_kind="account",
            actor_id=account_id,
            credential="link",
            address=request.address,
            request_id=request.request_id,
        )
        await audit_log.record(
            connection, origin, "account.change_email", org_id=None,
            target_kind="account", target_id=account_id,
            before={"email": before["email"]}, after={"email": email.text},
        )  # fmt: skip
    what = f"Your kAIxU account has another address now: {email.text}."
    services.outbox.send(
        told_mail(to=before["email"], subject="Your address was changed", what=what)
    )


async def _change_mail(request: ApiRequest, email: EmailAddress, link: Link) -> Mail | None:
    """Keep the link and return the mail; None where the address is somebody's: nobody is told."""
    account_id = request.signed_in.account_id
    async with request.transaction() as connection:
        if await connection.fetchrow(_SIGN_IN_ACCOUNT, email.key) is not None:
            return None
        await connection.execute(
            _KEEP_LINK, link.digest, account_id, CHANGE, email.text, CHANGE_LIFE
        )
        await audit_account(
            request, connection, "account.ask_for_email", account_id, after={"email": email.text}
        )
    return change_mail(to=email.text, link=link.url, life=CHANGE_LIFE)


ROUTES: Final = (
    Route(
        method="POST",
        path="/api/v1/me/email",
        summary="Ask for another e-mail address; a mail to it has the link that confirms it",
        access=Access.SIGNED_IN,
        rate_class=RateClass.WRITE,
        handler=ask_for_email,
        body=EmailOnly,
        answer=SignupAccepted,
        status=202,
        errors=(409,),
        needs_fresh=True,
    ),
    Route(
        method="POST",
        path="/api/v1/email/confirm",
        summary="Confirm another e-mail address, by a link",
        access=Access.PUBLIC,
        rate_class=RateClass.SIGN_IN,
        handler=confirm_email,
        body=EmailConfirmation,
        status=204,
        errors=(409,),
    ),
)
