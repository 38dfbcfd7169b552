"""Mutated requests through nginx and HAProxy: both sides see the same requests, or one smuggles.

The proxy gives each request an id, and both sides tell theirs: each one that was passed on has to
be taken once, and no other. `make fuzz` runs the long form. A failure tells each request in which
the two differ, with the line of the proxy's log, which ends with the number of the attempt and of
the request in it; `attempt(SEED, number)` makes it again.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import required
from tests.fuzz.fronts import FRONTS, Front, front, installed
from tests.fuzz.mutations import ID_HEADER, Attempt, attempt, is_whole
from tests.fuzz.taken import Taken, WatchedConnection, differences
from tests.gateway.proxy.rig import Rig, open_rig

SEED: Final = "kaixu"
SHORT: Final = 500  # through each proxy
LONG: Final = 50_000
BATCH: Final = 500  # sent before both sides are compared
AT_ONCE: Final = 48
SILENCE_SECONDS_MAX: Final = 4.0  # of an answer; the proxies give up on a request before
SETTLE_SECONDS_MAX: Final = 30.0  # the proxies wait for the rest of a request, and for answers

_ECHOED: Final = re.compile(rb'"fuzz_id": "([^"]*)"')
_ID_LINE: Final = re.compile(rb"\r\n" + ID_HEADER.encode() + rb": *([^\r]*)\r\n", re.IGNORECASE)


class Counted:
    """A rig whose vendor echoes the id of each request, behind a port that is watched."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.taken = Taken()
        self.port = 0
        rig.vendor.script = self._echo

    def protocol(self) -> WatchedConnection:
        """Return the protocol for a new connection."""
        return WatchedConnection(self.rig.lane, self.taken)

    async def _echo(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        found = _ID_LINE.search(head)
        text = b'{"fuzz_id": "%b"}' % (found[1] if found else b"")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(text), text)
        )

    def forget(self) -> None:
        """Let go of what the rig keeps of calls that are over."""
        for kept in (self.rig.lines.rows, self.rig.vendor.heads, self.rig.vendor.bodies):
            kept.clear()
        self.rig.lines.opened.clear()
        self.rig.metrics.finished.clear()
        self.rig.metrics.refusals.clear()


async def talk(port: int, one: Attempt) -> bytes:
    """Send an attempt; return all that comes back until the end, or a silence."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = bytearray()
    try:
        for piece in one.pieces:
            writer.write(piece)
            await writer.drain()
            if len(one.pieces) > 1:
                await asyncio.sleep(0.001)
        async with asyncio.timeout(SILENCE_SECONDS_MAX) as silence:
            while data := await reader.read(2**16):
                got += data
                silence.reschedule(asyncio.get_running_loop().time() + SILENCE_SECONDS_MAX)
    except (TimeoutError, ConnectionError):
        pass  # what came until then counts
    finally:
        writer.transport.abort()
    return bytes(got)


def misdelivered(one: Attempt, answers: bytes) -> list[str]:
    """Return the ids that this connection should not have been answered with, or not in turn."""
    echoed = [found.decode("latin-1") for found in _ECHOED.findall(answers)]
    left = list(one.ids)
    wrong = []
    for text in filter(is_whole, echoed):
        if text in left:
            del left[: left.index(text) + 1]
        else:
            wrong.append(text)
    return wrong


class Run:
    """One proxy in front of one gateway."""

    def __init__(self, counted: Counted, proxy: Front) -> None:
        self.counted = counted
        self.proxy = proxy
        self.answered = 0
        self.refused = 0

    async def send(self, attempts: list[Attempt]) -> None:
        """Send attempts, some at once."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def send(one: Attempt) -> None:
            async with gate:
                answers = await talk(self.proxy.port, one)
            wrong = misdelivered(one, answers)
            assert not wrong, f"{self.proxy.name}: attempt {one.number} was answered with {wrong}"
            self.answered += len(_ECHOED.findall(answers))
            self.refused += len(re.findall(rb"HTTP/1\.[01] [45]", answers))

        async with asyncio.TaskGroup() as tasks:
            for one in attempts:
                tasks.create_task(send(one))

    async def differences(self) -> list[str]:
        """Return in what the sides differ, once they had the time to come to the same."""
        log = self.proxy.log
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while True:
            log.read()
            told = differences(lines=log.lines, passed_on=log.passed_on, taken=self.counted.taken)
            if not told or time.monotonic() > deadline:
                return told
            await asyncio.sleep(0.05)

    async def run(self, numbers: range) -> None:
        """Compare both sides over all attempts."""
        for start in range(numbers.start, numbers.stop, BATCH):
            batch = range(start, min(start + BATCH, numbers.stop))
            await self.send([attempt(SEED, number) for number in batch])
            different = await self.differences()
            self.counted.forget()
            assert not different, "\n".join([f"{self.proxy.name}, up to {batch}:", *different])


@asynccontextmanager
async def counted_rig() -> AsyncIterator[Counted]:
    async with open_rig() as rig:
        counted = Counted(rig)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(counted.protocol, "127.0.0.1", 0, backlog=4096)
        counted.port = server.sockets[0].getsockname()[1]
        try:
            yield counted
        finally:
            server.close()


def need(name: str) -> None:
    if installed(name) is None:
        reason = f"{name} is not installed (Debian: apt install nginx-light haproxy)"
        if required(name):
            pytest.fail(reason)
        pytest.skip(reason)


async def compare(name: str, folder: Path, *, count: int, buffering: bool = True) -> None:
    need(name)
    async with (
        counted_rig() as counted,
        front(name, gateway_port=counted.port, folder=folder, buffering=buffering) as proxy,
    ):
        run = Run(counted, proxy)
        began = time.monotonic()
        await run.run(range(count))
        print(
            f"{name}: {count} mutated requests in {time.monotonic() - began:.0f} s: "
            f"{len(proxy.log.passed_on)} passed on, {counted.taken.count} taken, each once; "
            f"{run.answered} answered with their own id, {run.refused} refused, "
            f"{len(counted.rig.defects)} defects"
        )
        assert run.answered > count / 10
        assert run.refused > count / 10
        answer = await counted.rig.ask("/v1/chat/completions", {"model": "m"})  # it still serves
        assert answer.status == 200


@pytest.mark.parametrize("name", FRONTS)
async def test_a_proxy_in_front_sees_the_same_requests(name: str, tmp_path: Path) -> None:
    await compare(name, tmp_path, count=SHORT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "buffering"), [("nginx", True), ("nginx", False), ("haproxy", True)]
)
async def test_a_proxy_in_front_sees_the_same_of_many_requests(
    name: str, tmp_path: Path, *, buffering: bool
) -> None:
    await compare(name, tmp_path, count=LONG if buffering else LONG // 5, buffering=buffering)


def test_attempts_can_be_made_again() -> None:
    assert attempt(SEED, 7) == attempt(SEED, 7)
    assert attempt(SEED, 7) != attempt(SEED, 8)
    assert misdelivered(attempt(SEED, 7), b'{"fuzz_id": "%b"}' % attempt(SEED, 8).ids[0].encode())
