"""CPU accounting: what /proc tells, and what a tree of processes has used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import processes as running
from benchmarks.processes import (
    TICKS_PER_SECOND,
    MachineTime,
    Process,
    RigError,
    cpu_seconds,
    crowd_percent,
    memory_bytes,
    parse_machine_time,
    parse_stat,
    read_line,
    started,
    steal_percent,
    tree,
)

STAT = (
    "4242 (a) (b c) S 17 4242 4242 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 555 6 7 8 "
    "18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0\n"
)
BURN = "import time\nwhile time.process_time() < 0.4: pass\nprint('done', flush=True)\ninput()"


def test_a_process_is_read_behind_its_name_whatever_that_holds() -> None:
    assert parse_stat(STAT) == Process(pid=4242, parent=17, ticks=127)


def test_the_machines_time_counts_guests_once() -> None:
    assert parse_machine_time("cpu  10 20 30 40 50 60 70 80 90 100\ncpu0 1 2\n") == MachineTime(
        total=360, idle=90, stolen=80
    )


def test_steal_is_a_share_of_all_cpu_time() -> None:
    before = MachineTime(total=1000, idle=500, stolen=10)
    after = MachineTime(total=1400, idle=600, stolen=30)
    assert steal_percent(before, after) == 5
    assert steal_percent(before, before) == 0


def test_the_crowd_is_who_was_busy_beside_us() -> None:
    before = MachineTime(total=0, idle=0, stolen=0)
    after = MachineTime(total=10 * TICKS_PER_SECOND, idle=4 * TICKS_PER_SECOND, stolen=0)
    assert crowd_percent(before, after, used_seconds=5) == 10
    assert crowd_percent(before, after, used_seconds=6.01) == 0


def processes(**parents: int) -> dict[int, Process]:
    pairs = ((int(name[1:]), parent) for name, parent in parents.items())
    return {pid: Process(pid=pid, parent=parent, ticks=1) for pid, parent in pairs}


def test_a_tree_is_all_below_its_roots_without_what_is_another_ones() -> None:
    family = processes(p1=0, p2=1, p3=2, p4=1, p5=4, p6=0)
    assert tree(family, [1]) == {1, 2, 3, 4, 5}
    assert tree(family, [1], without=[4]) == {1, 2, 3}
    assert tree(family, [1, 2, 99]) == {1, 2, 3, 4, 5}


def test_the_time_of_a_child_that_ended_stays_in_the_sum(tmp_path: Path) -> None:
    parent = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}], input='\\n',"
    )
    code = f"{parent} text=True, stdout=subprocess.DEVNULL)\nprint('over', flush=True)\ninput()"
    with started(
        [sys.executable, "-c", code],
        log=tmp_path / "log",
        environment={"PATH": os.defpath},
        cpus=os.sched_getaffinity(0),
        folder=tmp_path,
    ) as process:
        assert read_line(process, what="the parent", seconds=60) == "over\n"
        assert 0.3 <= cpu_seconds([process.pid]) < 10
        assert cpu_seconds([process.pid], without=[process.pid]) == 0
        assert 1_000_000 < memory_bytes([process.pid]) < 1_000_000_000
    assert process.returncode is not None


def test_a_process_that_ends_without_a_word_is_told(tmp_path: Path) -> None:
    with (
        started(
            [sys.executable, "-c", "raise SystemExit(3)"],
            log=tmp_path / "log",
            environment={"PATH": os.defpath},
            cpus=os.sched_getaffinity(0),
            folder=tmp_path,
        ) as process,
        pytest.raises(RigError, match="the child ended with 3"),
    ):
        read_line(process, what="the child", seconds=60)


def test_what_a_process_leaves_behind_is_ended_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)"
    )
    with started(
        [sys.executable, "-c", code],
        log=tmp_path / "log",
        environment={"PATH": os.defpath},
        cpus=os.sched_getaffinity(0),
        folder=tmp_path,
    ) as process:
        left = int(read_line(process, what="the parent", seconds=60))
        process.wait(60)
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(left)], capture_output=True, text=True, check=False
    ).stdout.strip()
    assert state in {"", "Z"}


@pytest.mark.parametrize(
    ("driver", "is_kept"), [("haltpoll\n", True), ("none\n", False), (None, False)]
)
def test_idle_cpus_are_kept_awake_where_the_kernel_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, driver: str | None, is_kept: bool
) -> None:
    device, told = tmp_path / "latency", tmp_path / "driver"
    monkeypatch.setattr(running, "LATENCY_DEVICE", device)
    monkeypatch.setattr(running, "IDLE_DRIVER", told)
    if driver is not None:
        told.write_text(driver)
    with running.kept_awake() as kept:
        assert kept is is_kept
        assert device.read_bytes() == bytes(4)


def test_a_machine_whose_cpus_may_not_be_kept_awake_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LATENCY_DEVICE", tmp_path / "absent" / "latency")
    with running.kept_awake() as kept:
        assert not kept
