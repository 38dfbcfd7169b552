"""One gateway machine as real processes: a supervisor, its workers, and a journal of its own."""

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import psutil

from tests.faults.chaos_proxy import ChaosProxy
from tests.faults.faulty_libc import FaultyLibc
from tests.journeys.client import fetch
from tests.journeys.product import KAIXU, clean_environment, first_line

READY_SECONDS_MAX: Final = 60.0
END_SECONDS_MAX: Final = 60.0
KILL_SECONDS_MAX: Final = 10.0
LOOK_SECONDS: Final = 0.05
ANSWER_SECONDS_MAX: Final = 5.0
DISK_BYTES: Final = 24 * 1024 * 1024  # small enough to fill; the segments on it are small too

Span = tuple[float, float]  # Unix seconds: from when to when


@dataclass(kw_only=True)
class Machine:
    """A machine. `pool` and `feed` are its two ways to the database."""

    name: str
    folder: Path
    environment: Mapping[str, str]
    pool: ChaosProxy
    feed: ChaosProxy
    kills: list[Span] = field(default_factory=list)
    killed: int = 0  # processes, by SIGKILL
    disk_is_small: bool = False
    libc: FaultyLibc | None = None
    code: Path | None = None  # where another release is that it is to run
    url: str = ""
    ops_url: str = ""
    _process: "subprocess.Popen[str] | None" = None

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    # ------------------------------------------------------------------------- start and end

    def make_disk(self) -> None:
        """Give the journal a small disk of its own, where we have the right to mount one."""
        self.journal.mkdir(parents=True, exist_ok=True)
        mount = shutil.which("mount")
        if mount is None or os.geteuid() != 0:
            return
        options = f"size={DISK_BYTES},mode=0700"
        command = [mount, "-t", "tmpfs", "-o", options, "kaixu-faults", str(self.journal)]
        done = subprocess.run(command, capture_output=True, check=False)
        self.disk_is_small = done.returncode == 0

    def drop_disk(self) -> None:
        """Take the small disk away."""
        if self.disk_is_small:
            subprocess.run(["umount", "--lazy", str(self.journal)], check=True)
            self.disk_is_small = False

    async def start(self) -> None:
        """Start the processes; return once they are ready."""
        await asyncio.to_thread(self._start)

    def code_found(self) -> Path:
        """Return where a process that is started as the machine's are finds its code."""
        command = [sys.executable, "-P", "-c", "import gateway; print(gateway.__file__)"]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self._environment, cwd=self.folder,
            timeout=READY_SECONDS_MAX, check=True,
        )  # fmt: skip
        return Path(done.stdout.strip()).parents[1]

    @property
    def _environment(self) -> dict[str, str]:
        more = {**self.environment, "KAIXU_JOURNAL_DIR": str(self.journal)}
        if self.code is not None:
            more["PYTHONPATH"] = str(self.code)  # goes before what is installed
        return clean_environment(self.folder, more)

    def _start(self) -> None:
        with self.log.open("a") as errors:
            self._process = subprocess.Popen(
                [str(KAIXU), "gateway"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=self._environment,
                cwd=self.folder,
                start_new_session=True,
            )
        facts = json.loads(first_line(self._process, seconds=READY_SECONDS_MAX))
        self.url, self.ops_url = facts["gateway_url"], facts["ops_url"]

    def keep_ports(self) -> None:
        """Have it listen on the ports that it has now when it is started again."""
        ports = {"KAIXU_PORT": self.url, "KAIXU_OPS_PORT": self.ops_url}
        told = {name: str(urlsplit(url).port) for name, url in ports.items()}
        self.environment = {**self.environment, **told}

    async def terminate(self) -> int:
        """Send SIGTERM to the supervisor; return the exit code once it has drained."""
        process = self._running
        process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(process.wait, END_SECONDS_MAX)
        self._forget()
        return code

    def destroy(self) -> None:
        """Leave no process behind."""
        if self._process is not None:
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self._process.wait(END_SECONDS_MAX)
            self._forget()

    def _forget(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

    # ----------------------------------------------------------------------------- readiness

    async def readiness(self) -> dict[str, Any] | None:
        """Return what /readyz says, or None where nobody answers."""
        if not self.ops_url:
            return None
        answer = await fetch(f"{self.ops_url}/readyz", method="GET", seconds=ANSWER_SECONDS_MAX)
        if answer.broke:
            return None
        told: dict[str, Any] = answer.json()
        return told

    async def is_ready(self) -> bool:
        """Whether /readyz says so."""
        with contextlib.suppress(AssertionError):  # no answer in time
            told = await self.readiness()
            return told is not None and bool(told["ready"])
        return False

    async def wait_until_ready(self, *, seconds: float = READY_SECONDS_MAX) -> None:
        """Return once /readyz says 200. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not await self.is_ready():  # noqa: ASYNC110 - another process tells it
                await asyncio.sleep(LOOK_SECONDS)

    async def has_recovered(self) -> bool:
        """Whether every journal here is one of a worker that runs, of whom all answer."""
        told = await self.readiness()
        if told is None or not told["ready"]:
            return False
        workers = {worker["id"] for worker in told["workers"]}
        return workers == {path.name for path in self.journal.iterdir() if _is_id(path.name)}

    async def worker_pids(self) -> list[int]:
        """Return the workers that run."""
        told = await self.readiness()
        return [worker["pid"] for worker in (told or {"workers": []})["workers"]]

    # --------------------------------------------------------------------------------- kills

    def kill(self, pids: list[int]) -> None:
        """Kill some of its workers at once, by SIGKILL."""
        began = time.time()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._wait_gone(pids)
        self.killed += len(pids)
        self.kills.append((began, time.time()))

    def kill_all(self) -> None:
        """Kill the supervisor and all workers at once."""
        family = self.processes()
        began = time.time()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _, alive = psutil.wait_procs(family, timeout=KILL_SECONDS_MAX)
        assert not alive
        self.killed += len(family)
        self.kills.append((began, time.time()))
        self._running.wait(KILL_SECONDS_MAX)
        self._forget()

    @contextlib.asynccontextmanager
    async def frozen(self, pids: list[int]) -> AsyncIterator[None]:
        """Have some of its processes stand still meanwhile."""
        began = time.time()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            if not all(map(_runs, pids)):  # their supervisor has seen that they are stuck
                self.kills.append((began, time.time()))

    @contextlib.asynccontextmanager
    async def without_memory(self, pids: list[int]) -> AsyncIterator[None]:
        """Refuse some of its processes all memory that they don't have, meanwhile."""
        began = time.time()
        for pid in pids:
            has = psutil.Process(pid).memory_info().vms
            resource.prlimit(pid, resource.RLIMIT_AS, (has, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            if not all(map(_runs, pids)):
                self.kills.append((began, time.time()))

    def kill_supervisor(self) -> list[psutil.Process]:
        """Kill the supervisor alone; return its workers, which drain."""
        workers = [process for process in self.processes() if process.pid != self._running.pid]
        self._running.kill()
        self._running.wait(KILL_SECONDS_MAX)
        self.killed += 1
        self._forget()
        return workers

    @property
    def _running(self) -> "subprocess.Popen[str]":
        assert self._process is not None, "it was started"
        return self._process

    def processes(self) -> list[psutil.Process]:
        """Return supervisor and workers, as far as they run."""
        try:
            supervisor = psutil.Process(self._running.pid)
            return [supervisor, *supervisor.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _wait_gone(self, pids: list[int]) -> None:
        deadline = time.monotonic() + KILL_SECONDS_MAX
        while any(_runs(pid) for pid in pids):
            assert time.monotonic() < deadline, "a killed process ends"
            time.sleep(0.002)

    # ---------------------------------------------------------------------------------- disk

    def fill_disk(self) -> Path:
        """Fill its small disk to the last block; return the file that does."""
        ballast = self.journal / ".ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(64 * 1024))
        with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        return ballast

    def newest_segments(self) -> list[Path]:
        """Return the newest segment of each journal."""
        newest = (max(folder.glob("*.seg"), default=None) for folder in self.journal.iterdir())
        return [path for path in newest if path is not None]


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    """Whether all of them end in time. Blocking."""
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_id(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False
