"""Processes whose clock can be moved and whose disk can fail: a small library goes before libc."""

import hashlib
import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

from tests.faults.results import PROJECT

SOURCE: Final = Path(__file__).with_suffix(".c")
BUILT: Final = PROJECT / "build" / "faults"
NUMBERS: Final = struct.Struct("=qq")
NANOSECONDS: Final = 1_000_000_000


def no_compiler() -> str:
    """Why the library can't be had, or nothing."""
    return "" if shutil.which("cc") else "it takes a C compiler"


def library() -> Path:
    """Return the library, built where it is not yet there."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    built = BUILT / f"faulty_libc-{digest}.so"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        made = built.with_suffix(f".{os.getpid()}")
        command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(made), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        made.replace(built)
    return built


class FaultyLibc:
    """What one machine, or one server, is told of clock and disk. `folder` is open to all."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._library = Path(shutil.copy(library(), folder / "faulty_libc.so"))
        self._control = folder / "control"
        self._control.write_bytes(NUMBERS.pack(0, 0))
        for path in (self._library, self._control):
            path.chmod(0o644)
        with self._control.open("r+b") as file:
            self._numbers = mmap.mmap(file.fileno(), NUMBERS.size)
        self._ahead_seconds = 0.0
        self._syncs_fail = False

    def environment(self) -> dict[str, str]:
        """Return what its processes have in their environment for it."""
        return {"LD_PRELOAD": str(self._library), "FAULTY_LIBC": str(self._control)}

    @property
    def ahead_seconds(self) -> float:
        """By how much its wall clock is ahead of ours."""
        return self._ahead_seconds

    @ahead_seconds.setter
    def ahead_seconds(self, seconds: float) -> None:
        self._ahead_seconds = seconds
        self._tell()

    @property
    def syncs_fail(self) -> bool:
        """Whether every sync to its disk fails."""
        return self._syncs_fail

    @syncs_fail.setter
    def syncs_fail(self, fail: bool) -> None:
        self._syncs_fail = fail
        self._tell()

    def _tell(self) -> None:
        ahead = round(self._ahead_seconds * NANOSECONDS)
        self._numbers[:] = NUMBERS.pack(ahead, self._syncs_fail)


def with_faulty_postgres(binaries: Path, *, libc: FaultyLibc, folder: Path) -> Path:
    """Return a folder of PostgreSQL's binaries that start the server with this C library."""
    installed = folder / "pginstall"
    made = installed / "bin"
    made.mkdir(mode=0o755, parents=True)
    (installed / "lib").symlink_to(binaries.parent / "lib")
    told = " ".join(f"{name}={text}" for name, text in libc.environment().items())
    scripts = {
        "postgres": f'exec env {told} {binaries / "postgres"} "$@"',
        "pg_ctl": f'exec {binaries / "pg_ctl"} "$@" -p {made / "postgres"}',
    }
    for program in binaries.iterdir():
        path = made / program.name
        if script := scripts.get(program.name):
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        else:
            path.symlink_to(program)
    return made
