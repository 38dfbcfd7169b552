"""The first person of an installation: who runs it, and owns the org that it begins with."""

import secrets
import string
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from control_plane import audit_log
from control_plane.identity.email_address import parse_email
from control_plane.identity.passwords import hash_once
from control_plane.secrets import ControlKeys
from gateway.sql import load_queries

EMAIL_SETTING: Final = "KAIXU_OWNER_EMAIL"
EMAIL_DEFAULT: Final = "owner@localhost"  # nobody's mailbox: the owner may change it
PASSWORD_CHARS: Final = 24  # of 62: 142 bits

_ALPHABET: Final = string.ascii_letters + string.digits
_QUERIES: Final = load_queries(__package__, "first_owner.sql")
_HAS_ACCOUNT = _QUERIES["has_account"]
_MAKE_OPERATOR = _QUERIES["make_operator"]
_MAKE_OWNER = _QUERIES["make_owner"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstOwner:
    """How the first owner signs in."""

    email: str
    password: str = field(repr=False)


async def make_first_owner(
    connection: asyncpg.Connection, *, keys: ControlKeys, email: str
) -> FirstOwner | None:
    """Make the first account, an operator who owns the first org; None where there is an account.

    `connection` is the owner's. Raises BadArgument for an address that is none.
    """
    address = parse_email(email, field=EMAIL_SETTING)
    if await has_account(connection):
        return None
    password = make_password()
    hashed = await hash_once(password, keys)
    async with connection.transaction():
        account_id = await connection.fetchval(
            _MAKE_OPERATOR, address.text, address.key, hashed.text, hashed.key_id
        )
        if account_id is None:  # another machine was first
            return None
        row = await connection.fetchrow(_MAKE_OWNER, account_id)
        await audit_log.record(
            connection,
            audit_log.COMMAND,
            "account.create",
            org_id=None if row is None else row["org_id"],
            target_kind="account",
            target_id=account_id,
            after={"email": address.text, "is_operator": True, "role": "owner"},
        )
    return FirstOwner(email=address.text, password=password)


async def has_account(connection: asyncpg.Connection) -> bool:
    """Return whether there is an account."""
    return bool(await connection.fetchval(_HAS_ACCOUNT))


def make_password() -> str:
    """Return a password that nobody guesses."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(PASSWORD_CHARS))
