"""Where the vault's private keys come from, and come from again while they rotate.

A file is read again, a command is run again, when a vendor's key turns out to be sealed to a key
that this process does not have. So a rotation needs no restart, and a gateway whose key can't be
had when it starts opens its vendors once it can.
"""

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Final

from gateway.vendors.seal import KeyTextInvalid, parse_private

COMMAND_SECONDS_MAX: Final = 10.0
KILL_SECONDS_MAX: Final = 1.0  # a killed process ends at once, unless the kernel holds it
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
            transport, answer = await asyncio.get_running_loop().subprocess_exec(
                _Answer,
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a group of its own, to end it with all its children
            )
        except OSError as error:
            raise KeysNotRead(f"{name} can't be run: {error.strerror}.") from error
        try:
            async with asyncio.timeout(COMMAND_SECONDS_MAX):
                await answer.is_whole.wait()
        except TimeoutError:
            raise KeysNotRead(f"{name} did not end within {COMMAND_SECONDS_MAX:g} s.") from None
        finally:
            if not answer.is_over:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(transport.get_pid(), signal.SIGKILL)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(KILL_SECONDS_MAX):
                        await answer.has_exited.wait()
            transport.close()  # whoever left the group may hold the pipe for as long as it likes
        code = transport.get_returncode()
        if len(answer.told) <= KEYS_BYTES_MAX and code != 0:
            raise KeysNotRead(f"{name} ended with exit code {code}.")
        return bytes(answer.told)


class _Answer(asyncio.SubprocessProtocol):
    """What a command tells: whole once it has ended and nobody holds its pipe, or is too much."""

    def __init__(self) -> None:
        self.told = bytearray()
        self.is_whole = asyncio.Event()
        self.has_exited = asyncio.Event()
        self.is_over = False

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        del fd
        self.told += data[: KEYS_BYTES_MAX + 1 - len(self.told)]
        if len(self.told) > KEYS_BYTES_MAX:
            self.is_whole.set()

    def process_exited(self) -> None:
        self.has_exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.is_over = True
        self.is_whole.set()
