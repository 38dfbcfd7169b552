"""The simulated vendor's own record of its calls."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import orjson


class Tally:
    """The file that tells every call; lines reach the disk in groups."""

    def __init__(self, path: Path | None) -> None:
        """Append to `path`; None keeps no tally."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = None if path is None else os.open(path, flags, 0o600)
        self._written = 0
        self._synced = 0
        self._syncing = asyncio.Lock()

    def note(self, line: Mapping[str, object]) -> None:
        """Write a line; the kernel has it on return."""
        if self._file is not None:
            os.write(self._file, orjson.dumps(line) + b"\n")
            self._written += 1

    async def sync(self) -> None:
        """Return when every line noted so far is on disk."""
        due = self._written
        async with self._syncing:
            if self._file is not None and self._synced < due:
                upto = self._written
                await asyncio.get_running_loop().run_in_executor(None, os.fdatasync, self._file)
                self._synced = upto

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
