"""Invitations to an org: sent as a link by mail, accepted by the account that has the address.

The token of the link exists as its SHA-256 digest only. Having it is not enough: the account that
accepts has to have confirmed the address that was invited. A new invitation of an address takes the
place of the one before.
"""

import uuid
from datetime import datetime, timedelta
from typing import Annotated, Final

import asyncpg
from msgspec import Meta, Struct

from control_plane.errors import BadArgument, Forbidden, NotFound, Refused
from control_plane.identity.email_address import EMAIL_CHARS_MAX, EmailAddress, parse_email
from control_plane.mail import Mail
from control_plane.tenancy.rbac import Permission, Role, allows, may_confer
from control_plane.throttle import RateClass, Taking, secret_key, take
from control_plane.web.database import belong
from control_plane.web.pages import LIMIT_DEFAULT, Page, check_limit, decode_place, page_of
from control_plane.web.request import ApiRequest
from control_plane.web.route import Access, Needs, Route
from gateway.auth.token import TOKEN_CHARS, digest, generate, is_well_formed
from gateway.sql import load_queries

LIFE: Final = timedelta(days=7)
OPEN_MAX: Final = 500  # of one org: mails go to strangers
# How often one org may write to one address, and how many mails it may cause in all.
MAILS_AN_ADDRESS_MAX: Final = 5
MAILS_AN_ORG_MAX: Final = 200
MAILS_WINDOW: Final = timedelta(hours=1)

_PREFIX: Final = "kxi_"
_QUERIES: Final = load_queries(__package__, "invitations.sql")
_LIST = _QUERIES["list"]
_READ = _QUERIES["read"]
_LOCK_ORG = _QUERIES["lock_org"]
_COUNT_OPEN = _QUERIES["count_open"]
_IS_MEMBER = _QUERIES["is_member"]
_WORKSPACE_EXISTS = _QUERIES["workspace_exists"]
_WITHDRAW_EARLIER = _QUERIES["withdraw_earlier"]
_CREATE = _QUERIES["create"]
_WITHDRAW = _QUERIES["withdraw"]
_FIND_ORG = _QUERIES["find_org"]
_ACCEPT = _QUERIES["accept"]
_JOIN = _QUERIES["join"]
_JOIN_WORKSPACE = _QUERIES["join_workspace"]


class Invitation(Struct, frozen=True, kw_only=True):
    """An invitation that nobody has accepted."""

    id: str
    email: str
    role: Role
    workspace_id: str | None
    workspace_role: Role | None
    invited_by: str
    created_at: datetime
    expires_at: datetime


class Invited(Struct, frozen=True, kw_only=True):
    """An invitation that was just made; `link` is the one in the mail, told this once."""

    id: str
    email: str
    role: Role
    expires_at: datetime
    link: str


class InvitationsQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which page of the invitations."""

    limit: int = LIMIT_DEFAULT
    after: str | None = None


class NewInvitation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom to invite, as what; with a workspace, as what there as well."""

    email: Annotated[str, Meta(min_length=3, max_length=EMAIL_CHARS_MAX)]
    role: Role
    workspace_id: uuid.UUID | None = None
    workspace_role: Role | None = None


class InvitationToken(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The token of the link that came by mail."""

    token: Annotated[str, Meta(min_length=TOKEN_CHARS, max_length=TOKEN_CHARS)]


class Joined(Struct, frozen=True, kw_only=True):
    """The org that an account is in now."""

    org_id: str
    org_name: str
    user_id: str
    role: Role


async def list_invitations(request: ApiRequest) -> Page[Invitation]:
    """Return a page of the invitations."""
    asked = request.query_as(InvitationsQuery)
    limit = check_limit(asked.limit)
    after_text, after_id = decode_place(asked.after)
    async with request.transaction() as connection:
        rows = await connection.fetch(_LIST, request.id("org"), after_text, after_id, limit + 1)
    kept, following = page_of(rows, limit, key=lambda row: (row["place"], row["id"]))
    return Page(data=[_invitation(row) for row in kept], next=following)


async def invite(request: ApiRequest) -> Invited:
    """Invite an address, by a mail with a link; it is answered too, where no mail goes out."""
    wanted, org_id = request.body_as(NewInvitation), request.id("org")
    address = parse_email(wanted.email)
    _check_roles(wanted, by=request.membership.role)
    await _take_mails(request, org_id, address)
    token, invitation_id = generate("i"), uuid.UUID(request.services.ids.new())
    async with request.transaction() as connection:
        org_name: str = await connection.fetchval(_LOCK_ORG, org_id)
        if await connection.fetchval(_IS_MEMBER, org_id, address.key):
            raise Refused("This is a member's address already.", field="email")
        if wanted.workspace_id is not None and not await connection.fetchval(
            _WORKSPACE_EXISTS, org_id, wanted.workspace_id
        ):
            raise NotFound("There is no such workspace.", field="workspace_id")
        await connection.execute(_WITHDRAW_EARLIER, org_id, address.key)
        if await connection.fetchval(_COUNT_OPEN, org_id) >= OPEN_MAX:
            raise Refused(f"An org has at most {OPEN_MAX} open invitations: withdraw some.")
        await connection.execute(
            _CREATE,
            invitation_id,
            org_id,
            digest(token),
            address.text,
            address.key,
            wanted.role,
            wanted.workspace_id,
            wanted.workspace_role,
            request.membership.user_id,
            LIFE,
        )
        await request.audit(
            connection,
            "invitation.create",
            target_kind="invitation",
            target_id=invitation_id,
            after={
                "email": address.text,
                "role": wanted.role,
                "workspace_id": wanted.workspace_id,
                "workspace_role": wanted.workspace_role,
            },
        )
        row = await connection.fetchrow(_READ, org_id, invitation_id)
    assert row is not None, "it was just made"
    link = f"{request.services.settings.public_url}/invitation#{token}"
    request.services.outbox.send(_mail(address.text, org_name=org_name, link=link))
    return Invited(
        id=row["id"],
        email=row["email"],
        role=Role(row["role"]),
        expires_at=row["expires_at"],
        link=link,
    )


async def withdraw_invitation(request: ApiRequest) -> None:
    """Withdraw an invitation: its link is good no more."""
    org_id, invitation_id = request.id("org"), request.id("invitation")
    async with request.transaction() as connection:
        row = await connection.fetchrow(_WITHDRAW, org_id, invitation_id)
        if row is None:
            raise NotFound("There is no such invitation.", field="invitation")
        await request.audit(
            connection,
            "invitation.withdraw",
            target_kind="invitation",
            target_id=invitation_id,
            before=dict(row),
        )


async def accept_invitation(request: ApiRequest) -> Joined:
    """Become a member of the org that one was invited to."""
    token, account_id = request.body_as(InvitationToken).token, request.signed_in.account_id
    if not token.startswith(_PREFIX) or not is_well_formed(token.encode()):
        raise _no_invitation()
    async with request.transaction() as connection:
        org_id: uuid.UUID | None = await connection.fetchval(_FIND_ORG, digest(token))
        if org_id is None:
            raise _no_invitation()
        await belong(connection, org_id=org_id, account_id=account_id)
        row = await connection.fetchrow(_ACCEPT, org_id, digest(token), account_id)
        if row is None or not _may_still(Role(row["inviter_role"]), row):
            raise _no_invitation()
        user_id: uuid.UUID | None = await connection.fetchval(
            _JOIN, org_id, account_id, row["name"], row["role"]
        )
        if user_id is None:
            raise Refused("You are a member of this org already.", code="already_member")
        if row["workspace_id"] is not None:
            await connection.execute(
                _JOIN_WORKSPACE, org_id, row["workspace_id"], user_id, row["workspace_role"]
            )
        await request.audit(
            connection,
            "invitation.accept",
            target_kind="invitation",
            target_id=row["id"],
            after={
                "user_id": user_id,
                "role": row["role"],
                "workspace_id": row["workspace_id"],
                "workspace_role": row["workspace_role"],
            },
            org_id=org_id,
        )
    return Joined(
        org_id=str(org_id), org_name=row["org_name"], user_id=str(user_id), role=Role(row["role"])
    )


def _check_roles(wanted: NewInvitation, *, by: Role) -> None:
    if not may_confer(wanted.role, by=by):
        raise Forbidden(f"Only an {Role.OWNER} invites an {wanted.role}.", field="role")
    if (wanted.workspace_id is None) != (wanted.workspace_role is None):
        raise BadArgument("Say the workspace and the role in it, or neither.", field="workspace_id")


async def _take_mails(request: ApiRequest, org_id: uuid.UUID, address: EmailAddress) -> None:
    """Count a mail of the org's. Raises TooManyRequests."""
    asked = (
        Taking(key=f"invite:{org_id}", limit=MAILS_AN_ORG_MAX, length=MAILS_WINDOW),
        Taking(
            key=secret_key(f"invite:{org_id}", address.key),
            limit=MAILS_AN_ADDRESS_MAX,
            length=MAILS_WINDOW,
        ),
    )
    async with request.services.database.connection() as connection:
        await take(connection, asked)


def _may_still(inviter: Role, row: asyncpg.Record) -> bool:
    """Return whether who invited may give by now what the invitation gives."""
    return allows(Permission.MEMBERS_WRITE, org_role=inviter) and may_confer(
        Role(row["role"]), by=inviter
    )


def _mail(to: str, *, org_name: str, link: str) -> Mail:
    text = (
        f"You are invited to {org_name} on kAIxU. Sign in, or sign up with this address, and use "
        f"the link:\n\n{link}\n\nIt works once, for {LIFE.days} days. If you don't know who "
        "invites you, do nothing.\n"
    )
    # The name is somebody's choice: it stands in the text, not in a header.
    return Mail(to=to, subject="An invitation to kAIxU", text=text, link=link)


def _invitation(row: asyncpg.Record) -> Invitation:
    role = row["workspace_role"]
    return Invitation(
        id=row["id"],
        email=row["email"],
        role=Role(row["role"]),
        workspace_id=row["workspace_id"],
        workspace_role=None if role is None else Role(role),
        invited_by=row["invited_by"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
    )


def _no_invitation() -> NotFound:
    return NotFound(
        "This invitation is for another address, was used or withdrawn, or has run out: ask for "
        "another one.",
        field="token",
    )


_INVITATIONS: Final = "/api/v1/orgs/{org}/invitations"
_WRITES: Final = Needs(permission=Permission.MEMBERS_WRITE)

ROUTES: Final = (
    Route(
        method="GET",
        path=_INVITATIONS,
        summary="The invitations that are out",
        access=_WRITES,
        rate_class=RateClass.READ,
        handler=list_invitations,
        query=InvitationsQuery,
        answer=Page[Invitation],
    ),
    Route(
        method="POST",
        path=_INVITATIONS,
        summary="Invite someone by mail",
        access=_WRITES,
        rate_class=RateClass.WRITE,
        handler=invite,
        body=NewInvitation,
        answer=Invited,
        status=201,
        errors=(409,),
        tells_once=frozenset({"link"}),
    ),
    Route(
        method="DELETE",
        path=f"{_INVITATIONS}/{{invitation}}",
        summary="Withdraw an invitation",
        access=_WRITES,
        rate_class=RateClass.WRITE,
        handler=withdraw_invitation,
        status=204,
    ),
    Route(
        method="POST",
        path="/api/v1/invitations/accept",
        summary="Become a member of the org that invited you",
        access=Access.SIGNED_IN,
        rate_class=RateClass.WRITE,
        handler=accept_invitation,
        body=InvitationToken,
        answer=Joined,
        errors=(404, 409),
    ),
)
