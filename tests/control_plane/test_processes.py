import asyncio
import signal
import sys

import pytest

from control_plane.processes import KeptProcess

SAYS_READY = "import threading; print('{}', flush=True); threading.Event().wait()"


@pytest.mark.parametrize("rounds", range(6))
async def test_a_start_that_is_cancelled_as_it_gets_ready_stays_cancelled(rounds: int) -> None:
    process = KeptProcess(
        "child",
        lambda: ((sys.executable, "-c", SAYS_READY), {}),
        note=print,
        ready_seconds_max=30,
        dies_with_us=True,
    )
    async with asyncio.TaskGroup() as group:
        start = group.create_task(process.start())
        await asyncio.sleep(0)
        running = process._running
        assert running is not None
        while not running.said.is_set():  # noqa: ASYNC110 - it is this very round that is meant
            await asyncio.sleep(0)
        for _ in range(rounds):
            await asyncio.sleep(0)
        was_done = not start.cancel()
    await process.stop(seconds_max=10)
    assert start.cancelled() or was_done


async def test_a_stop_that_is_cancelled_leaves_nothing_running() -> None:
    code = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SAYS_READY}"
    process = KeptProcess(
        "child",
        lambda: ((sys.executable, "-c", code), {}),
        note=print,
        ready_seconds_max=30,
        dies_with_us=True,
    )
    await process.start()
    running = process._running
    assert running is not None
    async with asyncio.TaskGroup() as group:
        stop = group.create_task(process.stop(seconds_max=600))
        await asyncio.sleep(0)
        stop.cancel()
    async with asyncio.timeout(20):
        await running.ended.wait()
    assert running.code == -signal.SIGKILL
