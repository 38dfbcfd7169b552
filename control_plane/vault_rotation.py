"""Rotating the vault key: a new pair, and every vendor key sealed to it while calls go on.

Opening is the gateway's alone: sealing anew runs in a process of the gateway's code, and what it
opens never comes here.

The file has two keys, and a third one pushes the oldest out: a vendor key that is sealed to that
one is lost. So only one rotation at a time may write the file, and it first brings whatever an
interrupted one left behind to the key that stays.
"""

import asyncio
import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
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


async def rotate(place: DatabasePlace, environment: Mapping[str, str]) -> dict[str, Any]:
    """Make a new pair and seal every vendor key to it; return what became of them.

    No key goes that something may still be sealed to: where there is one to go, every vendor key is
    sealed to the present one first, and what failed in that is returned with the file as it was.
    Raises BadArgument, DatabaseUnreachable, Refused.
    """
    path = vault_key_file(place, environment)
    with _alone(path) as lock:
        if len(read_keys(path)) > 1:
            told = await reseal(place, environment, lock=lock)
            if told["failed"]:
                return told
        add_key(path)
        return await reseal(place, environment, lock=lock)


def read_keys(path: Path) -> list[str]:
    """Return the private keys in a file, the current one first. Raises BadArgument, Refused."""
    keys = read_secret_file(path, field="KAIXU_VAULT_KEY_FILE").split()
    try:
        for key in keys:
            public_of(key)
    except KeyTextInvalid as error:
        raise Refused(f"{path} holds something else than vault keys.") from error
    return keys


def add_key(path: Path) -> str:
    """Put a new private key before the present one in a file; return its public key.

    The one before the present one goes: nothing may be sealed to it any more. Who could read the
    file, the gateways' own user above all, still can. Raises BadArgument, Refused.
    """
    present = read_keys(path)
    pair = keygen()
    try:
        write_private(path, f"{pair.private}\n{present[0]}\n", like=path)
    except OSError as error:
        raise Refused(
            f"{path} can't be replaced by a file of the same owner and mode: {error.strerror}. "
            "It is as it was; rotate as its owner or as root.",
            field="KAIXU_VAULT_KEY_FILE",
        ) from error
    return pair.public


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[int]:
    """Give the lock on a key file, which a process that inherits it holds too.

    Raises BadArgument, Refused.
    """
    beside = path.with_name(path.name + ".lock")
    try:
        lock = os.open(beside, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise BadArgument(
            f"{beside} can't be opened: {error.strerror}.", field="KAIXU_VAULT_KEY_FILE"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"The keys in {path} are being rotated already: wait until that has ended.",
                code="already_running",
            ) from None
        yield lock
    finally:
        os.close(lock)


async def reseal(
    place: DatabasePlace, environment: Mapping[str, str], *, lock: int | None = None
) -> dict[str, Any]:
    """Seal every vendor key to the current vault key; return what became of them.

    `lock`: a descriptor that stays open for as long as something is being sealed, even where this
    process is killed meanwhile. Raises BadArgument, DatabaseUnreachable, Refused.
    """
    vault = {name: environment[name] for name in VAULT_SETTINGS if environment.get(name)}
    if not vault:
        vault = {"KAIXU_VAULT_KEY_FILE": str(place.data_dir / "vault.key")}
    async with running(place) as url:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "gateway.reseal",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**reduced(environment), **vault, "KAIXU_DATABASE_URL": url},
            pass_fds=() if lock is None else (lock,),
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
