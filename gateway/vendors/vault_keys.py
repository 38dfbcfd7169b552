"""Where the vault's private keys come from, and come from again while they rotate.

A file is read again, a command is run again, when a vendor's key turns out to be sealed to a key
that this process does not have. So a rotation needs no restart, and a gateway whose key can't be
had when it starts opens its vendors once it can.
"""

import asyncio
from pathlib import Path
from typing import Final

from gateway.vendors.seal import KeyTextInvalid, parse_private

COMMAND_SECONDS_MAX: Final = 10.0
KEYS_BYTES_MAX: Final = 64 * 1024
KEYS_MAX: Final = 2  # the current one, and the previous one while keys rotate


class KeysNotRead(Exception):
    """The keys can't be had now. The message never quotes what was read."""


class VaultKeySource:
    """A file or a command that tells the private keys, the current one first."""

    def __init__(self, *, path: Path | None = None, command: tuple[str, ...] = ()) -> None:
        """Neither: there is nothing to read again. The command is run without a shell."""
        self._path = path
        self._command = command

    @property
    def can_change(self) -> bool:
        """Whether reading again can give other keys."""
        return self._path is not None or bool(self._command)

    async def read(self) -> tuple[str, ...]:
        """Return the private keys as they are now. Raises KeysNotRead."""
        raw = await (self._run() if self._command else asyncio.to_thread(self._read_file))
        if len(raw) > KEYS_BYTES_MAX:
            raise KeysNotRead("There is far more to read than a vault key.")
        try:
            keys = tuple(raw.decode("ascii").split())
            for key in keys:
                parse_private(key)
        except (UnicodeDecodeError, KeyTextInvalid):
            raise KeysNotRead("What was read is not a vault key.") from None  # it may be quoted
        if not 0 < len(keys) <= KEYS_MAX:
            raise KeysNotRead(f"There are {len(keys)} keys, not 1 to {KEYS_MAX}.")
        return keys

    def _read_file(self) -> bytes:
        assert self._path is not None
        try:
            with self._path.open("rb") as file:
                return file.read(KEYS_BYTES_MAX + 1)
        except OSError as error:
            raise KeysNotRead(f"{self._path} can't be read: {error.strerror}.") from error

    async def _run(self) -> bytes:
        name = self._command[0]
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            raise KeysNotRead(f"{name} can't be run: {error.strerror}.") from error
        assert process.stdout is not None
        try:
            async with asyncio.timeout(COMMAND_SECONDS_MAX):
                told = await process.stdout.read(KEYS_BYTES_MAX + 1)
                while len(told) <= KEYS_BYTES_MAX and (more := await process.stdout.read(4096)):
                    told += more
                code = await process.wait() if len(told) <= KEYS_BYTES_MAX else 0
        except TimeoutError:
            raise KeysNotRead(f"{name} did not end within {COMMAND_SECONDS_MAX:g} s.") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.stdout.read()  # a full pipe would keep `wait` waiting
                await process.wait()
        if code != 0:
            raise KeysNotRead(f"{name} ended with exit code {code}.")
        return told
