"""`python -m gateway.reseal`: seal every vendor key to the current vault key, while calls go on.

A process of its own, because only gateway processes may open vendor keys; it has the database
owner's URL (KAIXU_DATABASE_URL), because the gateway's role can't write them. Gateways that do not
have the current key yet go on with what they opened before.

Prints one line of JSON: `public_key`, `resealed`, `unchanged`, `failed` with name and problem of
each vendor. Exit codes: 0 all of them, 1 some failed, 2 a setting can't be used, 3 the database
can't be reached.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

import asyncpg
import orjson

from gateway.connect_guard import BaseUrlInvalid, check_base_url
from gateway.hardening import harden_process
from gateway.settings import ResealSettings, SettingsInvalid
from gateway.sql import DATABASE_FAULTS, load_queries
from gateway.vendors.seal import KeyTextInvalid, public_of
from gateway.vendors.vault import KeyNotOpened, Vault, info_of
from gateway.vendors.vault_keys import KeysNotRead, VaultKeySource

CONNECT_SECONDS_MAX: Final = 10.0
STATEMENT_SECONDS_MAX: Final = 10.0
DONE: Final = 0
SOME_FAILED: Final = 1
BAD_SETTING: Final = 2
DATABASE_AWAY: Final = 3

_QUERIES: Final = load_queries(__package__, "reseal.sql")


async def reseal(connection: asyncpg.Connection, vault: Vault, *, public: str) -> dict[str, Any]:
    """Seal every vendor key to the public key of one of the vault's; return what became of them.

    Raises what asyncpg raises.
    """
    async with connection.transaction():
        await connection.execute(_QUERIES["lock"])
        await connection.execute(_QUERIES["register_public_key"], public)
    resealed, unchanged, failed = 0, 0, []
    for row in await connection.fetch(_QUERIES["sealed_vendors"]):
        try:
            base_url = check_base_url(row["base_url"], allow_private=row["is_private"])
            sealed = vault.resealed(row["sealed_key"], info=info_of(row, base_url), public=public)
        except (BaseUrlInvalid, KeyNotOpened) as error:
            failed.append({"name": row["name"], "problem": str(error)})
            continue
        if sealed is None or not await connection.fetchval(
            _QUERIES["replace_sealed_key"], row["id"], row["sealed_key"], sealed
        ):
            unchanged += 1  # closed to it already, or by someone who entered another key just now
        else:
            resealed += 1
    return {"public_key": public, "resealed": resealed, "unchanged": unchanged, "failed": failed}


async def main(environ: Mapping[str, str]) -> int:
    """Do it with what the environment says; return the exit code."""
    try:
        settings = ResealSettings.from_env(environ)
        keys = settings.vault_keys
        if settings.vault_key_command:
            keys = await VaultKeySource(command=settings.vault_key_command).read()
        vault = Vault(keys)
    except (SettingsInvalid, KeysNotRead, KeyTextInvalid) as error:
        return _failed(str(error), BAD_SETTING)
    try:
        connection = await asyncpg.connect(
            settings.database_url,
            timeout=CONNECT_SECONDS_MAX,
            command_timeout=STATEMENT_SECONDS_MAX,
        )
        try:
            told = await reseal(connection, vault, public=public_of(keys[0]))
        finally:
            connection.terminate()
    except DATABASE_FAULTS as error:
        return _failed(f"The database failed: {type(error).__name__}.", DATABASE_AWAY)
    sys.stdout.buffer.write(orjson.dumps(told) + b"\n")
    return SOME_FAILED if told["failed"] else DONE


def _failed(message: str, code: int) -> int:
    sys.stderr.write(message + "\n")
    return code


if __name__ == "__main__":
    harden_process()
    sys.exit(asyncio.run(main(dict(os.environ))))
