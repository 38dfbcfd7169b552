"""Proving who one is: by password, and by a second factor where there is one.

Every refusal is the same and takes the same time, whatever was wrong: the address, the password, or
that the account is disabled. Only who has the password is told that a code is missing.

Failures are counted, successes are not: by address and account, so that nobody guesses for long; by
account over all addresses that it has not signed in from lately, so that many addresses guess no
more, and its owner gets in nevertheless; and by address over all accounts.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from control_plane.errors import TooManyRequests, Unauthenticated
from control_plane.identity.email_address import EmailAddress
from control_plane.identity.passwords import PasswordHash, check_length
from control_plane.identity.second_factor import prove_second_factor
from control_plane.services import Services
from control_plane.throttle import Taking, address_key, give_back, secret_key, take
from gateway.sql import load_queries

PAIR_FAILURES: Final = (10, timedelta(minutes=15))  # of one account from one address
STRANGERS_FAILURES: Final = (100, timedelta(hours=1))  # of one account, from anywhere new
ADDRESS_FAILURES: Final = (100, timedelta(hours=1))  # from one address, whatever the account
PASSWORD: Final = "pwd"  # noqa: S105 - RFC 8176's name of the means

_QUERIES: Final = load_queries(__package__, "sessions.sql")
_SIGN_IN_ACCOUNT = _QUERIES["sign_in_account"]
_REHASH = _QUERIES["rehash"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Who has proven it, and by what; `password_hash` is what the password was checked against."""

    account_id: uuid.UUID
    email: str
    methods: tuple[str, ...]
    password_hash: str | None = field(repr=False)


def bad_credentials() -> Unauthenticated:
    """Return the one refusal for whatever was wrong."""
    return Unauthenticated(
        "The address or the password is wrong, or the address was not confirmed yet.",
        code="bad_credentials",
    )


async def prove(
    services: Services,
    *,
    email: EmailAddress,
    password: str,
    code: str | None,
    address: str,
    asks_code: bool = True,
) -> Proof:
    """Return who has proven to be behind an e-mail address.

    `code` is of an authenticator app, or a recovery code; `address` is the client's. `asks_code`
    False: the second factor was proven just before. Raises Unauthenticated, BadArgument,
    TooManyRequests.
    """
    check_length(password)
    async with services.database.connection() as connection:
        row = await connection.fetchrow(_SIGN_IN_ACCOUNT, email.key)
        is_familiar = row is not None and any(
            address_key(one) == address_key(address) for one in row["addresses"]
        )
        asked = _failures(email, address, is_familiar=is_familiar)
        await take(connection, asked)
    stored = None
    if row is not None and row["password_hash"] is not None:
        stored = PasswordHash(text=row["password_hash"], key_id=row["password_key"] or "")
    try:
        is_right = await services.passwords.check(password, stored)
    except TooManyRequests:
        await _give_back(services, asked)  # nobody has tried anything
        raise
    if not is_right or row is None or stored is None or not row["is_usable"]:
        raise bad_credentials()
    methods: tuple[str, ...] = (PASSWORD,)
    if row["has_totp"] and asks_code:
        if code is None:
            await _give_back(services, asked)
            raise Unauthenticated(
                "Give the code of your authenticator app, or a recovery code.",
                field="totp",
                code="totp_required",
            )
        methods += await prove_second_factor(services, account_id=row["id"], code=code)
    await _give_back(services, asked)
    return Proof(
        account_id=row["id"],
        email=row["email"],
        methods=methods,
        password_hash=await _renewed(services, row["id"], password, stored),
    )


async def _renewed(
    services: Services, account_id: uuid.UUID, password: str, stored: PasswordHash
) -> str:
    """Return the hash that the account has now: a new one, where the old one is outdated."""
    if not services.passwords.is_outdated(stored):
        return stored.text
    try:
        new = await services.passwords.hash(password)
    except TooManyRequests:
        return stored.text  # next time
    async with services.database.transaction(account_id=account_id) as connection:
        is_kept = await connection.fetchval(_REHASH, account_id, stored.text, new.text, new.key_id)
    return new.text if is_kept else stored.text


def _failures(email: EmailAddress, address: str, *, is_familiar: bool) -> Sequence[Taking]:
    where = address_key(address)
    asked = [
        _taking(secret_key("sign_in:pair", f"{email.key} {where}"), PAIR_FAILURES),
        _taking(f"sign_in:failures:{where}", ADDRESS_FAILURES),
    ]
    if not is_familiar:
        asked.append(_taking(secret_key("sign_in:account", email.key), STRANGERS_FAILURES))
    return asked


def _taking(key: str, window: tuple[int, timedelta]) -> Taking:
    limit, length = window
    return Taking(key=key, limit=limit, length=length)


async def _give_back(services: Services, asked: Sequence[Taking]) -> None:
    async with services.database.connection() as connection:
        await give_back(connection, asked)
