"""Aliases: names that clients may use for a vendor's model."""

import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

import asyncpg

from control_plane.audit_log import COMMAND, Origin, record
from control_plane.errors import BadArgument, NotFound, Refused
from gateway.proxy.routing import model_problem
from gateway.sql import load_queries

ALIAS_CHARS_MAX: Final = 256
ALIASES_MAX: Final = 1_000  # of one org; each is loaded by every gateway

# It stands in bodies, and in paths before ':'.
_ALIAS: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._/@+-]{{0,{ALIAS_CHARS_MAX - 1}}}")
_QUERIES: Final = load_queries(__package__, "aliases.sql")
_LIST = _QUERIES["list"]
_FIND = _QUERIES["find"]
_COUNT = _QUERIES["count"]
_SET = _QUERIES["set"]
_SET_IN_ORG = _QUERIES["set_in_org"]
_REMOVE = _QUERIES["remove"]
_REMOVE_IN_ORG = _QUERIES["remove_in_org"]
_LOCK = load_queries(__package__, "vendors.sql")["lock"]
_FIND_VENDOR = load_queries(__package__, "vendors.sql")["find"]


async def set_alias(
    connection: asyncpg.Connection,
    name: str,
    target: str,
    *,
    org_id: uuid.UUID | None = None,
    origin: Origin = COMMAND,
    check: Callable[[asyncpg.Record | None], None] | None = None,
) -> dict[str, Any]:
    """Let `name` stand for the `vendor/model` in `target`.

    `org_id`: for this org only, None for everyone. `check` is called with the alias of this name
    that is there, in the transaction, and may refuse. Raises BadArgument, NotFound.
    """
    vendor, _, model = target.partition("/")
    if not _ALIAS.fullmatch(name):
        raise BadArgument(
            f"An alias has 1 to {ALIAS_CHARS_MAX} letters, digits and . _ / @ + -, and begins with "
            "a letter or digit.",
            field="name",
        )
    if not vendor or not model:
        raise BadArgument(
            "Write where the alias leads as VENDOR/MODEL, as in openai/gpt-5.", field="target"
        )
    if problem := model_problem(model):
        raise BadArgument(f"The model's name {problem}.", field="target")
    async with connection.transaction():
        await connection.execute(_LOCK)
        old = await connection.fetchrow(_FIND, org_id, name)
        if check is not None:
            check(old)
        if await connection.fetchval(_FIND_VENDOR, vendor, org_id) is None:
            raise NotFound(
                f"There is no vendor '{vendor}': `kaixu vendor list` has them.", field="target"
            )
        if org_id is None:
            await connection.execute(_SET, name, vendor, model)
        elif old is None and await connection.fetchval(_COUNT, org_id) >= ALIASES_MAX:
            raise Refused(f"An org has at most {ALIASES_MAX} aliases.", field="name")
        else:
            await connection.execute(_SET_IN_ORG, name, vendor, model, org_id)
        after = {"vendor": vendor, "model": model}
        if old is None or facts(old) != after:
            await record(
                connection, origin, "alias.set", org_id=org_id, target_kind="alias",
                target_id=name, before=None if old is None else facts(old), after=after,
            )  # fmt: skip
    return {"name": name, "vendor": vendor, "model": model}


async def list_aliases(
    connection: asyncpg.Connection, *, org_id: uuid.UUID | None = None
) -> list[dict[str, Any]]:
    """Return the aliases of an org, or (None) everyone's, by name."""
    return [dict(row) for row in await connection.fetch(_LIST, org_id)]


async def find_alias(
    connection: asyncpg.Connection, name: str, *, org_id: uuid.UUID | None
) -> dict[str, Any]:
    """Return an alias of an org, or (None) of everyone's. Raises NotFound."""
    row = await connection.fetchrow(_FIND, org_id, name)
    if row is None:
        raise NotFound(f"There is no alias '{name}': `kaixu alias list` has them.", field="name")
    return dict(row)


async def remove_alias(
    connection: asyncpg.Connection,
    name: str,
    *,
    org_id: uuid.UUID | None = None,
    origin: Origin = COMMAND,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Forget an alias; `check` is called with it, and may refuse.

    `xact` of what is returned is the transaction, for `change_of`. Raises NotFound.
    """
    async with connection.transaction():
        await connection.execute(_LOCK)
        old = await find_alias(connection, name, org_id=org_id)
        if check is not None:
            check(old)
        xact: str = (
            await connection.fetchval(_REMOVE, name)
            if org_id is None
            else await connection.fetchval(_REMOVE_IN_ORG, name, org_id)
        )
        await record(
            connection, origin, "alias.delete", org_id=org_id, target_kind="alias", target_id=name,
            before=facts(old),
        )  # fmt: skip
    return {"name": name, "removed": True, "xact": xact}


def facts(row: asyncpg.Record | Mapping[str, Any]) -> dict[str, Any]:
    """Return what the audit log says of an alias."""
    return {"vendor": row["vendor"], "model": row["model"]}
