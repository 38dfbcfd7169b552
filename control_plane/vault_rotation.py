"""Rotating the vault key: a new pair, and every vendor key sealed to it while calls go on.

Opening is the gateway's alone: sealing anew runs in a process of the gateway's code, and what it
opens never comes here.
"""

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from control_plane.database import DatabasePlace, running
from control_plane.errors import BadArgument, DatabaseUnreachable, Refused
from control_plane.files import write_private
from control_plane.processes import reduced
from control_plane.settings import read_secret_file
from gateway.vendors.seal import KeyTextInvalid, keygen, public_of

RESEAL_SECONDS_MAX: Final = 300.0
VAULT_SETTINGS: Final = ("KAIXU_VAULT_KEY", "KAIXU_VAULT_KEY_FILE", "KAIXU_VAULT_KEY_COMMAND")

_BAD_SETTING: Final = 2
_DATABASE_AWAY: Final = 3


def vault_key_file(place: DatabasePlace, environment: Mapping[str, str]) -> Path:
    """Return the file that the private keys are in. Raises BadArgument: they are in none."""
    if path := environment.get("KAIXU_VAULT_KEY_FILE"):
        return Path(path)
    for name in ("KAIXU_VAULT_KEY", "KAIXU_VAULT_KEY_COMMAND"):
        if environment.get(name):
            raise BadArgument(
                f"{name} is not a file that can be written: put a new key before the present one "
                "by yourself (`kaixu vault keygen`), then run `kaixu vault reseal`.",
                field=name,
            )
    return place.data_dir / "vault.key"


def add_key(path: Path) -> str:
    """Put a new private key before the present one in a file; return its public key.

    The one before the present one goes: nothing is sealed to it since the last rotation. Raises
    BadArgument, Refused.
    """
    present = read_secret_file(path, field="KAIXU_VAULT_KEY_FILE").split()
    try:
        for key in present:
            public_of(key)
    except KeyTextInvalid as error:
        raise Refused(f"{path} holds something else than vault keys.") from error
    pair = keygen()
    write_private(path, f"{pair.private}\n{present[0]}\n")
    return pair.public


async def reseal(place: DatabasePlace, environment: Mapping[str, str]) -> dict[str, Any]:
    """Seal every vendor key to the current vault key; return what became of them.

    Raises BadArgument, DatabaseUnreachable, Refused.
    """
    vault = {name: environment[name] for name in VAULT_SETTINGS if environment.get(name)}
    if not vault:
        vault = {"KAIXU_VAULT_KEY_FILE": str(place.data_dir / "vault.key")}
    async with running(place) as url:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "gateway.reseal",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**reduced(environment), **vault, "KAIXU_DATABASE_URL": url},
        )  # fmt: skip
        try:
            async with asyncio.timeout(RESEAL_SECONDS_MAX):
                told, problem = await process.communicate()
        except TimeoutError:
            raise Refused(f"Sealing anew took longer than {RESEAL_SECONDS_MAX:g} s.") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    message = problem.decode(errors="replace").strip()
    if process.returncode == _BAD_SETTING:
        raise BadArgument(message, field="KAIXU_VAULT_KEY")
    if process.returncode == _DATABASE_AWAY:
        raise DatabaseUnreachable(message)
    if not told:
        raise Refused(f"Sealing anew ended with exit code {process.returncode}.")
    document: dict[str, Any] = orjson.loads(told)
    return document
