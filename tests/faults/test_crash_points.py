"""Journal, ledger and allowances through crashes at every step of disk and database."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.metering import journal, journal_segments, journal_shipping
from gateway.metering.journal_lines import LINE_OVERHEAD_BYTES
from tests.faults.simulation import Simulation
from tests.faults.virtual_time import VirtualLoop

LOOKS_A_SEED = 1000
# What a journal may ship from memory, in turn: all of it, a few rows, nothing.
MEMORY_BYTES = (journal_shipping.RECENT_BYTES_MAX, 2000, 0)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in memory, and segments that are full after some calls."""
    line = journal_segments.PAYLOAD_BYTES_MAX + LINE_OVERHEAD_BYTES
    monkeypatch.setattr(journal_segments, "SEGMENT_BYTES_SMALL", 3 * line)
    monkeypatch.setattr(journal, "STUCK_SEGMENTS_MAX", 2)
    memory = Path("/dev/shm")  # noqa: S108 - mkdtemp makes the folder in it
    folder = Path(tempfile.mkdtemp(prefix="kaixu-crash-", dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


def run(root: Path, *, seed: int, looks: int) -> Simulation:
    loop = VirtualLoop()
    try:
        simulation = Simulation(root=root / str(seed), seed=seed, looks_max=looks)
        simulation.root.mkdir()
        loop.run_until_complete(simulation.run())
    finally:
        loop.close()
    shutil.rmtree(simulation.root)
    return simulation


@pytest.mark.parametrize("seeds", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_nothing_is_lost_doubled_or_unusable_wherever_a_worker_dies(
    disk: Path, seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = kills = calls = segments = 0
    for seed in range(seeds):
        memory = MEMORY_BYTES[seed % len(MEMORY_BYTES)]
        monkeypatch.setattr(journal_shipping, "RECENT_BYTES_MAX", memory)
        done = run(disk, seed=seed, looks=LOOKS_A_SEED)
        looks += done.looks
        kills += done.kills
        calls += sum(len(life.calls) for life in done.lives)
        segments += sum(life.journal._segments._number for life in done.lives)
    print(f"\n{looks} crash points, {kills} workers killed, {calls} calls, {segments} segments")
    assert looks >= seeds * LOOKS_A_SEED
    assert kills >= seeds
    assert segments > kills, "segments were filled, and went"
