"""Whether a login to the database is bound by what keeps orgs apart: row-level security."""

from typing import Final

import asyncpg

from gateway.sql import load_queries

FIX: Final = (
    "Give a login of its own that is a member of kaixu_gateway or kaixu_control, and of nothing "
    "else: no superuser, no BYPASSRLS, not the tables' owner."
)

_STANDS_ABOVE: Final = load_queries(__package__, "database_role.sql")["stands_above"]


class RoleTooPowerful(Exception):
    """Row-level policies don't bind the role that this process has in the database."""


async def check_role(connection: asyncpg.Connection) -> None:
    """Raise RoleTooPowerful where `stands_above_policies`."""
    if await stands_above_policies(connection):
        raise RoleTooPowerful(FIX)


async def stands_above_policies(connection: asyncpg.Connection) -> bool:
    """Return whether row-level policies don't bind this login, or whom it can become."""
    return bool(await connection.fetchval(_STANDS_ABOVE))
