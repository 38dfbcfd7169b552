"""Signing up: asking for an account and an org, and getting both with the link that is mailed.

Whoever asks gets one and the same answer, whether the address has an account or not; only its
mailbox is told which. The account is made when the link comes back with the password that was
chosen with it. Until then nobody can sign in, no org exists, and the address is nobody's: who signs
up with somebody else's address gains nothing by it, not even if that person clicks the link.
"""

import uuid
from datetime import timedelta
from typing import Annotated, Final

import asyncpg
import msgspec
from msgspec import Meta

from control_plane import audit_log
from control_plane.errors import BadArgument, Forbidden, Refused, TooManyRequests
from control_plane.identity.email_address import EmailAddress, parse_email
from control_plane.identity.links import (
    RESET_PATH,
    VERIFY_PATH,
    Link,
    LinkToken,
    bad_link,
    link_digest,
    make_link,
)
from control_plane.identity.mails import exists_mail, verify_mail
from control_plane.identity.passwords import PasswordHash, check_length
from control_plane.identity.sessions import (
    Email,
    Password,
    SignedIn,
    open_session,
    own_origin,
)
from control_plane.identity.sign_in import PASSWORD, Proof, bad_credentials
from control_plane.mail import Mail
from control_plane.services import Services
from control_plane.throttle import RateClass, Taking, address_key, secret_key, take
from control_plane.web.request import ApiRequest
from control_plane.web.route import Access, Route
from gateway.sql import load_queries

SIGNUP_LIFE: Final = timedelta(hours=24)
MAILS_ASKED: Final = (5, timedelta(hours=1))  # to one mailbox, by one client's address
MAILS_MAX: Final = (20, timedelta(hours=1))  # to one mailbox, whoever asks
TRIES_OF_LINK: Final = (5, timedelta(minutes=15))  # of passwords, with one link

_QUERIES: Final = load_queries(__package__, "signup.sql")
_KEEP = _QUERIES["keep"]
_PRUNE = _QUERIES["prune"]
_RENEW_LINK = _QUERIES["renew_link"]
_FIND = _QUERIES["find"]
_TAKE = _QUERIES["take"]
_MAKE_ACCOUNT = _QUERIES["make_account"]
_MAKE_ORG = _QUERIES["make_org"]
_MAKE_WORKSPACE = _QUERIES["make_workspace"]
_MAKE_OWNER = _QUERIES["make_owner"]
_SIGN_IN_ACCOUNT: Final = load_queries(__package__, "sessions.sql")["sign_in_account"]

Name = Annotated[str, Meta(max_length=200)]
OrgName = Annotated[str, Meta(min_length=1, max_length=200)]


class Signup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who wants an account, and what the org is called that it begins with."""

    email: Email
    password: Password
    org_name: OrgName
    name: Name = ""


class SignupAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """What is said whether there is such an account already or not."""

    detail: str = "A mail is on its way to you. Its link is good for 24 hours."


class EmailOnly(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose mail is to be sent."""

    email: Email


class Verification(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the link has behind `#token=`, and the password that was chosen with it."""

    token: LinkToken
    password: Password


async def sign_up(request: ApiRequest) -> SignupAccepted:
    """Keep what is asked for, and mail the link that makes it true."""
    services = request.services
    if not services.settings.signup_is_open:
        raise Forbidden("Nobody can sign up here: ask to be invited.", code="signup_closed")
    body = request.body_as(Signup)
    email = parse_email(body.email)
    name, org_name = check_name(body.name, "name"), check_name(body.org_name, "org_name")
    if not org_name:
        raise BadArgument("An org has a name.", field="org_name")
    services.password_rules.check(body.password, email=email.text)
    hashed = await services.passwords.hash(body.password)
    link = make_link(services.settings.public_url, VERIFY_PATH)
    async with services.database.transaction() as connection:
        await connection.execute(_PRUNE)
        await connection.execute(
            _KEEP,
            uuid.UUID(services.ids.new()),
            link.digest,
            email.text,
            email.key,
            name,
            org_name,
            hashed.text,
            hashed.key_id,
            SIGNUP_LIFE,
        )

    async def job() -> Mail | None:
        if not await may_mail(services, email, address=request.address):
            return None
        return await _first_mail(services, email, link)

    services.outbox.post(job)
    return SignupAccepted()


async def resend(request: ApiRequest) -> SignupAccepted:
    """Mail the link of the last sign-up with an address once more; the one before is void."""
    services = request.services
    email = parse_email(request.body_as(EmailOnly).email)
    link = make_link(services.settings.public_url, VERIFY_PATH)

    async def job() -> Mail | None:
        if not await may_mail(services, email, address=request.address):
            return None
        async with services.database.transaction() as connection:
            to = await connection.fetchval(_RENEW_LINK, email.key, link.digest)
        return None if to is None else verify_mail(to=to, link=link.url, life=SIGNUP_LIFE)

    services.outbox.post(job)
    return SignupAccepted()


async def verify(request: ApiRequest) -> SignedIn:
    """Make the account and its org, and sign the new owner in."""
    services = request.services
    body = request.body_as(Verification)
    check_length(body.password)
    digest = link_digest(body.token)
    limit, length = TRIES_OF_LINK
    async with services.database.connection() as connection:
        key = secret_key("verify", digest.hex())
        await take(connection, [Taking(key=key, limit=limit, length=length)])
        row = await connection.fetchrow(_FIND, digest)
    stored = None
    if row is not None:
        stored = PasswordHash(text=row["password_hash"], key_id=row["password_key"])
    is_right = await services.passwords.check(body.password, stored)
    if row is None:
        raise bad_link()
    if not is_right:
        raise bad_credentials()
    account_id, org_id = uuid.UUID(services.ids.new()), uuid.UUID(services.ids.new())
    async with services.database.transaction(org_id=org_id, account_id=account_id) as connection:
        return await _make(request, connection, digest, account_id=account_id, org_id=org_id)


async def _make(
    request: ApiRequest,
    connection: asyncpg.Connection,
    digest: bytes,
    *,
    account_id: uuid.UUID,
    org_id: uuid.UUID,
) -> SignedIn:
    """Make what a sign-up asked for, once. Raises BadArgument, Refused."""
    signup = await connection.fetchrow(_TAKE, digest)
    if signup is None:
        raise bad_link()
    is_new = await connection.fetchval(
        _MAKE_ACCOUNT,
        account_id,
        signup["email"],
        signup["email_key"],
        signup["name"],
        signup["password_hash"],
        signup["password_key"],
    )
    if not is_new:
        raise Refused("This address has an account by now: sign in.", code="account_exists")
    user_id = uuid.UUID(request.services.ids.new())
    await connection.execute(_MAKE_ORG, org_id, signup["org_name"])
    await connection.execute(_MAKE_WORKSPACE, uuid.UUID(request.services.ids.new()), org_id)
    owner = signup["name"] or signup["email"]
    await connection.execute(_MAKE_OWNER, user_id, org_id, owner, account_id)
    proof = Proof(
        account_id=account_id,
        email=signup["email"],
        methods=(PASSWORD,),
        password_hash=signup["password_hash"],
    )
    session = await open_session(request, connection, proof)
    origin = own_origin(request, account_id, session.session_id)
    await audit_log.record(
        connection, origin, "account.create", org_id=None,
        target_kind="account", target_id=account_id, after={"email": signup["email"]},
    )  # fmt: skip
    await audit_log.record(
        connection, origin, "org.create", org_id=org_id,
        target_kind="org", target_id=org_id, after={"name": signup["org_name"]},
    )  # fmt: skip
    await audit_log.record(
        connection, origin, "member.create", org_id=org_id,
        target_kind="user", target_id=user_id, after={"role": "owner"},
    )  # fmt: skip
    return session


async def _first_mail(services: Services, email: EmailAddress, link: Link) -> Mail:
    """Return what is written to who has signed up: the link, unless there is an account."""
    async with services.database.connection() as connection:
        account = await connection.fetchrow(_SIGN_IN_ACCOUNT, email.key)
    if account is None:
        return verify_mail(to=email.text, link=link.url, life=SIGNUP_LIFE)
    return exists_mail(to=account["email"], link=f"{services.settings.public_url}{RESET_PATH}")


async def may_mail(services: Services, email: EmailAddress, *, address: str) -> bool:
    """Return whether one more mail may go to a mailbox that a client named."""
    pair = secret_key("mail:pair", f"{email.key} {address_key(address)}")
    asked = [(pair, MAILS_ASKED), (secret_key("mail:all", email.key), MAILS_MAX)]
    takings = [Taking(key=key, limit=limit, length=length) for key, (limit, length) in asked]
    try:
        async with services.database.connection() as connection:
            await take(connection, takings)
    except TooManyRequests:
        services.log.warning("mail not sent: too many to one mailbox")
        return False
    return True


def check_name(text: str, field: str) -> str:
    """Return a name without spaces around it. Raises BadArgument for one with odd characters."""
    if not text.isprintable():
        raise BadArgument("A name has printable characters only.", field=field)
    return text.strip()


ROUTES: Final = (
    Route(
        method="POST",
        path="/api/v1/signup",
        summary="Ask for an account and an org; a mail has the link that makes both",
        access=Access.PUBLIC,
        rate_class=RateClass.SIGNUP,
        handler=sign_up,
        body=Signup,
        answer=SignupAccepted,
        status=202,
        errors=(403,),
    ),
    Route(
        method="POST",
        path="/api/v1/email/verify",
        summary="Make the account that was asked for, and sign in",
        access=Access.PUBLIC,
        rate_class=RateClass.SIGN_IN,
        handler=verify,
        body=Verification,
        answer=SignedIn,
        status=201,
        errors=(401, 409),
    ),
    Route(
        method="POST",
        path="/api/v1/email/resend",
        summary="Have the link of your sign-up mailed again",
        access=Access.PUBLIC,
        rate_class=RateClass.SIGN_IN,
        handler=resend,
        body=EmailOnly,
        answer=SignupAccepted,
        status=202,
    ),
)
