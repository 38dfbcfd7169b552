"""A process that is kept running: waited for until it is ready, started again when it ends.

A process says that it is ready by its first line on stdout, a JSON object. It has a process group
of its own, so that Ctrl-C in a terminal reaches nobody but us.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson

from control_plane.errors import ControlError

KILL_SECONDS: Final = 10.0  # that the kernel gets to end a process
LAST_WORDS_SECONDS: Final = 2.0  # between the end of a process's stdout and its own
BACKOFF_SECONDS: Final = 0.1  # before the first restart, doubling
BACKOFF_SECONDS_MAX: Final = 5.0
HEALTHY_SECONDS: Final = 30.0  # then the next end counts as the first one
LINE_BYTES_MAX: Final = 64 * 1024

# Looked up here: between fork and exec, libc's loader may be locked by a thread that is not there.
_prctl: Final = ctypes.CDLL(None).prctl
_PR_SET_PDEATHSIG: Final = 1
_PASSED_ON: Final = ("PATH", "HOME", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PASSED_ON_STARTS: Final = ("LC_", "LANG", "PYTHON", "COVERAGE_", "XDG_RUNTIME_")

Start = Callable[[], tuple[Sequence[str], Mapping[str, str]]]


class ProcessFailed(ControlError):
    """A process ended, or said nothing, before it was ready. Its stderr has said why."""

    code = "process_failed"


def reduced(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what every process may see of our environment: no setting, no secret."""
    return {
        name: value
        for name, value in environment.items()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_STARTS)
    }


class KeptProcess:
    """One process, under one name."""

    def __init__(
        self,
        name: str,
        start: Start,
        *,
        note: Callable[[str], None],
        ready_seconds_max: float,
        dies_with_us: bool,
    ) -> None:
        """`start` gives command and environment anew for each start; `note` tells the operator.

        `dies_with_us`: the kernel ends it when we are killed. Otherwise it has a pipe as its stdin,
        whose end tells it.
        """
        self._name = name
        self._start = start
        self._note = note
        self._ready_seconds_max = ready_seconds_max
        self._dies_with_us = dies_with_us
        self._running: _Running | None = None

    async def start(self) -> dict[str, Any]:
        """Start it and return what it says when it is ready. Raises ProcessFailed, OSError."""
        command, environment = self._start()
        running = self._running = _Running(command, environment, dies_with_us=self._dies_with_us)
        await _wait(running.said, seconds=self._ready_seconds_max)
        try:
            facts = orjson.loads(running.line)
        except orjson.JSONDecodeError:
            facts = None
        if isinstance(facts, dict):
            return facts
        if running.said.is_set():
            await _wait(running.ended, seconds=LAST_WORDS_SECONDS)
        code = running.code
        running.signal_group(signal.SIGKILL)
        await _wait(running.ended, seconds=KILL_SECONDS)
        said = "does not get ready" if code is None else f"ended before it was ready{_told(code)}"
        error = ProcessFailed(f"The {self._name} {said}.")
        error.exit_code = code if code in {2, 3} else 1
        raise error

    async def keep(self) -> None:
        """Start it again whenever it ends, until cancelled."""
        backoff = BACKOFF_SECONDS
        while True:
            began = time.monotonic()
            running = self._running
            assert running is not None
            await running.ended.wait()
            running.signal_group(signal.SIGTERM)  # what it left behind finishes, and ends
            if time.monotonic() - began > HEALTHY_SECONDS:
                backoff = BACKOFF_SECONDS
            self._note(f"The {self._name} has ended{_told(running.code)}; it is started again.")
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_SECONDS_MAX)
            try:
                await self.start()
            except (ProcessFailed, OSError) as error:
                self._note(str(error))

    async def stop(self, *, seconds_max: float) -> None:
        """Ask it to end, and make it end after a while."""
        if self._running is None:
            return
        self._running.terminate()
        try:
            await _wait(self._running.ended, seconds=seconds_max)
        finally:  # who is cancelled leaves nothing running either
            self.kill()
        await _wait(self._running.ended, seconds=KILL_SECONDS)

    def kill(self) -> None:
        """End it, and all that it started, at once."""
        if self._running is not None:
            self._running.signal_group(signal.SIGKILL)


class _Running:
    """A started process. Two threads watch it: one its stdout, one its end."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, dies_with_us: bool
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.line = b""  # the first of its stdout
        self.said = asyncio.Event()  # that line is there, or never will be
        self.ended = asyncio.Event()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if dies_with_us else subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=_end_with_parent if dies_with_us else None,  # noqa: PLW1509
        )
        for watch in (self._read, self._wait):
            threading.Thread(target=watch, daemon=True).start()

    @property
    def code(self) -> int | None:
        """Its exit code, or -N for signal N; None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask it to end; nothing where it has ended."""
        self._process.terminate()

    def signal_group(self, number: signal.Signals) -> None:
        """Signal it and what it started; nothing where nobody is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        with stdout:
            self.line = stdout.readline(LINE_BYTES_MAX)
            self._tell(self.said)
            while stdout.readline(LINE_BYTES_MAX):  # a pipe that nobody reads would block it
                pass

    def _wait(self) -> None:
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._tell(self.ended)

    def _tell(self, event: asyncio.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
            self._loop.call_soon_threadsafe(event.set)


async def _wait(event: asyncio.Event, *, seconds: float) -> None:
    """Wait for an event, or for so long.

    Not by `asyncio.wait_for`: until Python 3.12 that loses a cancellation that comes with the
    event, and a Ctrl-C would end nothing (https://github.com/python/cpython/issues/86296).
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _end_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the parent ends, however it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _told(code: int | None) -> str:
    if code is not None and code < 0:
        return f" (signal {-code})"
    return f" (exit code {code})"
