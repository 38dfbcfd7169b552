"""Which schema a gateway needs: it serves nothing on an older one, and any newer one will do.

Schema files only ever add (what they take away, no supported release uses any more), so the schema
goes first and gateways follow, one by one, and back again where a release has to be taken back.
"""

from typing import Any, Final

import asyncpg

from gateway.sql import load_queries

# The newest file of the schema that gives the gateway something. A test holds it to that.
NEEDED: Final = 25

_HAS_RUN: Final = load_queries(__package__, "schema.sql")["has_run"]


class SchemaTooOld(Exception):
    """The database was not migrated yet. The message is for the operator's log."""


async def check_schema(connection: "asyncpg.Connection[Any]") -> None:
    """Raise SchemaTooOld where the database lacks what this gateway needs."""
    try:
        has_run = await connection.fetchval(_HAS_RUN, NEEDED)
    except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError):
        has_run = False  # older than the table, or than the right to read it
    if not has_run:
        raise SchemaTooOld(
            f"the database's schema is older than this gateway's ({NEEDED:04}): run `kaixu migrate`"
        )
