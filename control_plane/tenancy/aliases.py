"""Aliases: names that clients may use for a vendor's model."""

import re
from typing import Any, Final

import asyncpg

from control_plane.errors import BadArgument, NotFound
from gateway.proxy.routing import model_problem
from gateway.sql import load_queries

ALIAS_CHARS_MAX: Final = 256

# It stands in bodies, and in paths before ':'.
_ALIAS: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._/@+-]{{0,{ALIAS_CHARS_MAX - 1}}}")
_QUERIES: Final = load_queries(__package__, "aliases.sql")
_LIST = _QUERIES["list"]
_SET = _QUERIES["set"]
_REMOVE = _QUERIES["remove"]
_LOCK = load_queries(__package__, "vendors.sql")["lock"]
_FIND_VENDOR = load_queries(__package__, "vendors.sql")["find"]


async def set_alias(connection: asyncpg.Connection, name: str, target: str) -> dict[str, Any]:
    """Let `name` stand for the `vendor/model` in `target`. Raises BadArgument, NotFound."""
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
        if await connection.fetchval(_FIND_VENDOR, vendor) is None:
            raise NotFound(
                f"There is no vendor '{vendor}': `kaixu vendor list` has them.", field="target"
            )
        await connection.execute(_SET, name, vendor, model)
    return {"name": name, "vendor": vendor, "model": model}


async def list_aliases(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    """Return every alias, by name."""
    return [dict(row) for row in await connection.fetch(_LIST)]


async def remove_alias(connection: asyncpg.Connection, name: str) -> dict[str, Any]:
    """Forget an alias. Raises NotFound."""
    if await connection.fetchval(_REMOVE, name) is None:
        raise NotFound(f"There is no alias '{name}': `kaixu alias list` has them.", field="name")
    return {"name": name, "removed": True}
