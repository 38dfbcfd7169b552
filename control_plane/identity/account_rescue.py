"""What who runs the installation does for people who can't get in any more."""

import uuid
from typing import Any, Final

import asyncpg

from control_plane import audit_log
from control_plane.errors import NotFound
from control_plane.identity.email_address import parse_email
from control_plane.identity.first_owner import make_password
from control_plane.identity.passwords import hash_once
from control_plane.secrets import ControlKeys
from gateway.sql import load_queries

_QUERIES: Final = load_queries(__package__, "account_rescue.sql")
_LIST = _QUERIES["list"]
_FIND = _QUERIES["find"]
_SET_PASSWORD: Final = load_queries(__package__, "account_changes.sql")["set_password"]
_VOID_LINKS: Final = load_queries(__package__, "account_changes.sql")["void_links"]
_END_ALL: Final = load_queries(__package__, "sessions.sql")["end_all"]
_DISABLE_TOTP: Final = load_queries(__package__, "second_factor.sql")["disable"]
_FORGET_RECOVERY_CODES: Final = load_queries(__package__, "second_factor.sql")[
    "forget_recovery_codes"
]


async def list_accounts(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    """Return every account, oldest first; none of them with anything that lets one in."""
    return [dict(row) for row in await connection.fetch(_LIST)]


async def reset_account(
    connection: asyncpg.Connection, email: str, *, keys: ControlKeys, forget_totp: bool
) -> dict[str, Any]:
    """Give an account a new password, told this once, and end its sessions.

    `forget_totp`: its second factor goes as well. Raises NotFound.
    """
    password = make_password()
    hashed = await hash_once(password, keys)
    async with connection.transaction():
        account_id: uuid.UUID | None = await connection.fetchval(_FIND, parse_email(email).key)
        if account_id is None:
            raise NotFound("There is no such account: `kaixu account list` has them.")
        told = await connection.fetchval(_SET_PASSWORD, account_id, hashed.text, hashed.key_id)
        if told is None:
            raise NotFound("This account is disabled.")
        is_forgotten = False
        if forget_totp:
            is_forgotten = bool(await connection.fetchval(_DISABLE_TOTP, account_id))
            await connection.execute(_FORGET_RECOVERY_CODES, account_id)
        await connection.execute(_VOID_LINKS, account_id)
        ended = await connection.fetch(_END_ALL, account_id, None, "reset by the operator")
        await audit_log.record(
            connection,
            audit_log.COMMAND,
            "account.reset",
            org_id=None,
            target_kind="account",
            target_id=account_id,
            after={"totp_forgotten": is_forgotten},
        )
    return {
        "email": told,
        "password": password,
        "sessions_ended": len(ended),
        "totp_forgotten": is_forgotten,
    }
