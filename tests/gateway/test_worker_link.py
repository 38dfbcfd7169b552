import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.metrics import Series
from gateway.worker_link import DRAIN, METRICS, State, SupervisorLink, encode_ask


class Ends:
    """The worker's link, and the supervisor's end of the line."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.ours, theirs = socket.socketpair()
        self.link = SupervisorLink(
            theirs,
            snapshot=lambda: {"kaixu_ledger_rows": [Series((), 5)]},
            on_drain=lambda: self.heard.append("drain"),
            on_supervisor_gone=lambda: self.heard.append("gone"),
        )
        self.ours.setblocking(False)

    async def line(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        line = b""
        while not line.endswith(b"\n"):
            line += await asyncio.wait_for(loop.sock_recv(self.ours, 1), 5)
        told: dict[str, Any] = json.loads(line)
        return told


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ends = Ends()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(ends.link.run())
        yield ends
        ends.ours.close()
        await asyncio.wait([task], timeout=5)
    assert ends.heard[-1] == "gone"


async def test_a_state_is_told_when_it_is_new(ends: Ends) -> None:
    ready = State(worker_id="w", not_ready=())
    away = State(worker_id="w", not_ready=("database",))
    ends.ours.sendall(encode_ask(METRICS))
    await ends.line()  # it runs
    for state in (away, away, ready, ready, away):
        ends.link.tell_state(state)
    told = [(await ends.line())["state"]["not_ready"] for _ in range(3)]
    assert told == [["database"], [], ["database"]]


async def test_a_state_from_before_the_start_is_told_as_it_is_then() -> None:
    ends = Ends()
    for not_ready in (("database",), ()):
        ends.link.tell_state(State(worker_id="w", not_ready=not_ready))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ends.link.run())
        assert await ends.line() == {"state": {"worker_id": "w", "not_ready": []}}
        ends.ours.close()


async def test_metrics_are_told_when_asked(ends: Ends) -> None:
    ends.ours.sendall(encode_ask(METRICS))
    assert await ends.line() == {"metrics": {"kaixu_ledger_rows": [[[], 5, []]]}}


async def test_a_drain_is_heard(ends: Ends) -> None:
    ends.ours.sendall(encode_ask(DRAIN) + encode_ask(METRICS))
    await ends.line()
    assert ends.heard == ["drain"]


async def test_a_line_without_an_end_is_the_end(ends: Ends) -> None:
    ends.ours.sendall(b'{"ask":"dra')
    ends.ours.shutdown(socket.SHUT_WR)
    async with asyncio.timeout(5):
        while not ends.heard:  # noqa: ASYNC110 - what is awaited is a plain call
            await asyncio.sleep(0)
    assert ends.heard == ["gone"]
