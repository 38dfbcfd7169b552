"""Processes: what a tree of them has used, as /proc tells it; where they run; starting and ending.

CPU is user and system time together. The time of children that ended is their parent's, once it
has waited for them, so a tree's sum never goes back.
"""

import contextlib
import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
LATENCY_DEVICE: Final = Path("/dev/cpu_dma_latency")
IDLE_DRIVER: Final = Path("/sys/devices/system/cpu/cpuidle/current_driver")
TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
END_SECONDS_MAX: Final = 5.0
STOP_SECONDS_MAX: Final = 30.0

# Fields of /proc/PID/stat behind the name in parentheses, which may hold anything.
_PARENT, _USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM = 1, 11, 12, 13, 14
# Fields of the line `cpu` of /proc/stat.
_IDLE: Final = 4
_WAIT: Final = 5
_STEAL: Final = 8
_GUEST: Final = 9  # from here on what is in `user` already


class RigError(Exception):
    """The rig can't go on with this; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process as /proc/PID/stat tells it."""

    pid: int
    parent: int
    ticks: int  # user and system, its waited-for children's included


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineTime:
    """Ticks of all CPUs since the machine's start."""

    total: int
    idle: int  # waiting for a disk included
    stolen: int


def parse_stat(text: str) -> Process:
    """Read a /proc/PID/stat."""
    before, _, after = text.rpartition(")")
    fields = after.split()
    used = (_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM)
    return Process(
        pid=int(before.split("(", 1)[0]),
        parent=int(fields[_PARENT]),
        ticks=sum(int(fields[index]) for index in used),
    )


def parse_machine_time(text: str) -> MachineTime:
    """Read the first line of /proc/stat."""
    fields = text.split("\n", 1)[0].split()
    return MachineTime(
        total=sum(int(one) for one in fields[1:_GUEST]),
        idle=int(fields[_IDLE]) + int(fields[_WAIT]),
        stolen=int(fields[_STEAL]),
    )


def machine_time() -> MachineTime:
    """Return the machine's ticks."""
    return parse_machine_time((PROC / "stat").read_text())


def steal_percent(before: MachineTime, after: MachineTime) -> float:
    """Return the share of all CPUs' time that the host gave to others."""
    total = after.total - before.total
    return 100 * (after.stolen - before.stolen) / total if total else 0.0


def crowd_percent(before: MachineTime, after: MachineTime, *, used_seconds: float) -> float:
    """Return the share of all CPUs' time that processes used beside those that used these seconds.

    They share caches and CPUs with what is measured: above a few percent no figure is good.
    """
    total = after.total - before.total
    away = after.idle + after.stolen - before.idle - before.stolen
    crowd = total - away - used_seconds * TICKS_PER_SECOND
    return 100 * max(crowd, 0.0) / total if total else 0.0


def all_processes() -> dict[int, Process]:
    """Return every process there is, by its id."""
    found = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                process = parse_stat((entry / "stat").read_text())
                found[process.pid] = process
    return found


def tree(
    processes: Mapping[int, Process], roots: Iterable[int], *, without: Iterable[int] = ()
) -> set[int]:
    """Return the roots that exist and all below them, except the subtrees of `without`."""
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    excluded = set(without)
    found: set[int] = set()
    waiting = [pid for pid in roots if pid in processes]
    while waiting:
        pid = waiting.pop()
        if pid not in found and pid not in excluded:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def cpu_seconds(roots: Iterable[int], *, without: Iterable[int] = ()) -> float:
    """Return what these trees have used so far."""
    processes = all_processes()
    pids = tree(processes, roots, without=without)
    return sum(processes[pid].ticks for pid in pids) / TICKS_PER_SECOND


def memory_bytes(roots: Iterable[int], *, without: Iterable[int] = ()) -> int:
    """Return the proportional set size of these trees."""
    total = 0
    for pid in tree(all_processes(), roots, without=without):
        with contextlib.suppress(OSError):
            text = (PROC / str(pid) / "smaps_rollup").read_text()
            total += next(
                int(line.split()[1]) * 1024 for line in text.splitlines() if line[:4] == "Pss:"
            )
    return total


# ----------------------------------------------------------------------------------- where they run


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """CPUs: one for the system that is measured, the others for all around it."""

    system: frozenset[int]
    others: frozenset[int]

    @classmethod
    def of_this_machine(cls) -> "Placement":
        """Return how this machine's CPUs are shared out; with one, all share it."""
        return cls.for_workers(1)

    @classmethod
    def for_workers(cls, workers: int) -> "Placement":
        """Return the same for a system of several workers: a CPU for each, as long as one is left.

        Workers beyond that share what there is.
        """
        cpus = sorted(os.sched_getaffinity(0))
        own = min(workers, max(len(cpus) - 1, 1))
        return cls(system=frozenset(cpus[:own]), others=frozenset(cpus[own:] or cpus))


@contextlib.contextmanager
def pinned(cpus: Iterable[int]) -> Iterator[None]:
    """Start what is started within on these CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def kept_awake() -> Iterator[bool]:
    """Keep idle CPUs from going to sleep within, where that can be; yield whether they are kept.

    It takes root, and a driver of the kernel's (its Documentation/power/pm_qos_interface.rst).
    """
    with contextlib.ExitStack() as opened:
        is_kept = False
        with contextlib.suppress(OSError):
            device = opened.enter_context(LATENCY_DEVICE.open("wb", buffering=0))
            device.write(struct.pack("i", 0))  # microseconds in which a CPU has to be back
            is_kept = IDLE_DRIVER.read_text().strip() != "none"
        yield is_kept


def move(roots: Iterable[int], cpus: Iterable[int]) -> None:
    """Move running processes, their threads and all below them."""
    for pid in tree(all_processes(), roots):
        with contextlib.suppress(OSError):
            for task in (PROC / str(pid) / "task").iterdir():
                os.sched_setaffinity(int(task.name), cpus)


# ----------------------------------------------------------------------------- starting and ending


@contextlib.contextmanager
def started(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    cpus: Iterable[int],
    folder: Path,
    stop_signal: int = signal.SIGTERM,
) -> Iterator["subprocess.Popen[str]"]:
    """Run a process in a group of its own; end it, and what it left behind, afterwards.

    Its stdin stays open while it is to run; stderr goes to `log`.
    """
    with log.open("a") as errors, pinned(cpus):
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(stop_signal)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_SECONDS_MAX)
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def read_line(process: "subprocess.Popen[str]", *, what: str, seconds: float) -> str:
    """Return the next line of stdout. Raises RigError, and kills, where none comes in time."""
    assert process.stdout is not None
    is_late = threading.Event()

    def give_up() -> None:
        is_late.set()
        process.kill()

    overdue = threading.Timer(seconds, give_up)
    overdue.start()
    try:
        line = process.stdout.readline()
    finally:
        overdue.cancel()
    if line.endswith("\n"):
        return line
    if is_late.is_set():
        raise RigError(f"{what} said nothing for {seconds:.0f} s")
    with contextlib.suppress(subprocess.TimeoutExpired):  # between stdout's end and its own
        process.wait(END_SECONDS_MAX)
    raise RigError(f"{what} ended with {process.poll()}")


def last_lines(log: Path, *, count: int = 5) -> str:
    """Return the end of a log, for an error's text."""
    return " | ".join(log.read_text(errors="replace").splitlines()[-count:])


def wait_until(look: Callable[[], object], *, seconds: float, what: str) -> None:
    """Wait until `look()` is true. Raises RigError where that takes too long."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            raise RigError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.05)
