import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import required
from tests.fuzz.fronts import FrontLog, front, installed
from tests.fuzz.taken import Taken, differences

DEADLINE_SECONDS: Final = 5.0
CONNECTIONS: Final = Path("/proc/net/tcp")
SYN_SENT: Final = "02"  # in it: a connection that the other side has not answered
HEAD: Final = b"POST / HTTP/1.1\r\nHost: a\r\nX-Fuzz-Id: f1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def unanswering() -> Iterator[int]:
    """Listen on a port whose queue is full: the kernel drops what asks for a connection."""
    with socket.socket() as server, socket.socket() as first:
        server.bind(("127.0.0.1", 0))
        server.listen(0)  # a queue of one
        first.connect(server.getsockname())
        port: int = server.getsockname()[1]
        yield port


def is_dialled(port: int) -> bool:
    rows = [line.split() for line in CONNECTIONS.read_text().splitlines()[1:]]
    return any(row[2].endswith(f":{port:04X}") and row[3] == SYN_SENT for row in rows)


async def dialled(port: int) -> None:
    """Wait until someone dials a port that does not answer."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            if is_dialled(port):
                return
            await asyncio.sleep(0.005)


@pytest.mark.skipif(not CONNECTIONS.exists(), reason="the kernel does not list its connections")
async def test_what_haproxy_gave_up_as_it_dialled_was_not_passed_on(tmp_path: Path) -> None:
    if installed("haproxy") is None:
        assert not required("haproxy")
        pytest.skip("haproxy is not installed")
    with unanswering() as port:
        async with front("haproxy", gateway_port=port, folder=tmp_path, buffering=True) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(HEAD)
            await dialled(port)
            writer.write(b"no chunk\r\n")
            async with asyncio.timeout(DEADLINE_SECONDS):
                answer = await reader.read()
            writer.transport.abort()
        proxy.log.read()
    assert answer.startswith(b"HTTP/1.1 400")
    (line,) = [line for line in proxy.log.lines.values() if line.endswith(b"{f1.1}")]
    assert b" gateway PH -1 400 " in line  # "PH": the request was with the gateway, it says
    assert proxy.log.passed_on == set()
    assert differences(lines=proxy.log.lines, passed_on=proxy.log.passed_on, taken=Taken()) == []


@asynccontextmanager
async def answering() -> AsyncIterator[int]:
    """Answer every request that has no body by 200."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_haproxy_tells_of_every_request_however_many_come_at_once(tmp_path: Path) -> None:
    if installed("haproxy") is None:
        assert not required("haproxy")
        pytest.skip("haproxy is not installed")
    connections, batches, batch = 8, 20, 50

    async def ask(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(batches):
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * batch)
            for _ in range(batch):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()

    async with (
        answering() as gateway_port,
        front("haproxy", gateway_port=gateway_port, folder=tmp_path, buffering=True) as proxy,
    ):
        await asyncio.gather(*(ask(proxy.port) for _ in range(connections)))
    proxy.log.read()
    assert len(proxy.log.passed_on) == connections * batches * batch


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    log = FrontLog(path=tmp_path / "log", is_passed_on=lambda words: words[1] == b"yes")
    log.path.write_bytes(b"a yes\nb no\nc ye")
    log.read()
    assert (log.lines, log.passed_on) == ({"a": b"a yes", "b": b"b no"}, {"a"})
    with log.path.open("ab") as out:
        out.write(b"s\n")
    log.read()
    assert (log.lines["c"], log.passed_on) == (b"c yes", {"a", "c"})
