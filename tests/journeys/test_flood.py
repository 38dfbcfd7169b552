"""Clients and a vendor that mean no good, many at once; one that means well notices nothing."""

import asyncio
import contextlib
import json
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import psutil
import pytest

from tests.journeys.client import Answer, call, send
from tests.journeys.product import Product, eventually

pytestmark = pytest.mark.journey

MEGABYTE: Final = 1_000_000
CALLS_PER_SECOND: Final = 20
PIECE: Final = b"x" * 65_536
FILES_MIN: Final = 8_192  # open at once, in this process
SOFT_FILES: Final = 1_024  # what systems give a process that asks for no more
RECOVER_SECONDS_MAX: Final = 45.0  # freed memory is given back every 30 s


@dataclass(frozen=True, kw_only=True)
class Flood:
    """How much of everything."""

    seconds: float
    dripping_heads: int
    stalled_bodies: int
    silent_readers: int
    line_bytes: int
    peak_bytes_max: int  # above what the gateway had before
    kept_bytes_max: int  # above it, when all is over


SMALL: Final = Flood(
    seconds=4,
    dripping_heads=100,
    stalled_bodies=50,
    silent_readers=50,
    line_bytes=100 * MEGABYTE,
    peak_bytes_max=64 * MEGABYTE,
    kept_bytes_max=32 * MEGABYTE,
)
WHOLE: Final = Flood(
    seconds=75,  # all that is cut after 60 s is cut within it
    dripping_heads=1_000,
    stalled_bodies=500,
    silent_readers=500,
    line_bytes=1_000 * MEGABYTE,
    peak_bytes_max=200 * MEGABYTE,
    kept_bytes_max=64 * MEGABYTE,
)


@pytest.fixture
def files() -> Iterator[None]:
    """Give the product what a system gives by default, and this process what it needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES_MIN:
        pytest.skip(f"at most {hard} open files are allowed here, {FILES_MIN} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT_FILES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Attackers:
    """What is at the gateway all the time: who is cut comes again."""

    def __init__(self, product: Product) -> None:
        parts = urlsplit(product.url)
        self._host, self._port = parts.hostname, parts.port
        self._head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Authorization: Bearer {product.token}\r\nContent-Type: application/json\r\n"
        ).encode()
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.line_bytes = 0
        self.is_over = False

    async def again(self, name: str, attack: Callable[[], Awaitable[None]]) -> None:
        while True:
            self.begun[name] += 1
            with contextlib.suppress(ConnectionError):
                await attack()
            self.ended[name] += 1

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # what waits, waits there
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (self._host, self._port))
        reader, writer = await asyncio.open_connection(sock=client)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def drip_a_head(self) -> None:
        async with self._connected() as (_, writer):
            for at in range(len(self._head)):
                writer.write(self._head[at : at + 1])
                await writer.drain()
                await asyncio.sleep(1)

    async def stall_a_body(self) -> None:
        async with self._connected() as (reader, writer):
            writer.write(self._head + b'Content-Length: 100000\r\n\r\n{"model":')
            await reader.read()

    async def read_nothing(self) -> None:
        body = json.dumps({"model": "sim-big-100", "stream": True, "messages": []}).encode()
        async with self._connected() as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(self._head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()
            await asyncio.sleep(3600)

    def read_the_line(self) -> None:
        """Read until the test is over; in a thread, since so many bytes would fill its loop."""
        body = json.dumps({"model": "endless/x", "stream": True, "messages": []}).encode()
        head = self._head.replace(b"/v1/", b"/endless/v1/", 1)
        with socket.create_connection((self._host or "", self._port or 0)) as client:
            client.settimeout(30)
            client.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            while not self.is_over and (got := len(client.recv(2**18))):
                self.line_bytes += got


class EndlessVendor:
    """Answers every POST with one line of a stream that does not end, in threads of its own."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(30)
        with client, contextlib.suppress(OSError):
            if not client.recv(2**16).startswith(b"POST"):
                return
            client.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n"
            )
            while True:
                client.sendall(b"%x\r\n%b\r\n" % (len(PIECE), PIECE))

    def close(self) -> None:
        """Stop; whoever is served has left."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


async def mean_well(product: Product, *, seconds: float) -> list[tuple[Answer, float]]:
    """Call so often a second, whatever becomes of the calls before; return what came of each."""
    results: list[tuple[Answer, float]] = []
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def one(number: int) -> None:
        await asyncio.sleep(began + number / CALLS_PER_SECOND - loop.time())
        stream = number % 2 == 0
        request = call("openai", token=product.token, model="fine", stream=stream)
        asked = time.perf_counter()
        answer = await send(product.url, request, seconds=30)
        results.append((answer, time.perf_counter() - asked))

    async with asyncio.TaskGroup() as tasks:
        for number in range(int(seconds * CALLS_PER_SECOND)):
            tasks.create_task(one(number))
    return results


async def flood(product: Product, much: Flood) -> None:
    def rss() -> int:
        return sum(psutil.Process(pid).memory_info().rss for pid in pids)

    def sockets() -> int:
        port = urlsplit(product.url).port
        found = (psutil.Process(pid).net_connections(kind="tcp") for pid in pids)
        return sum(bool(one.raddr) and one.laddr[1] == port for each in found for one in each)

    pids = product.worker_pids()
    calm = await mean_well(product, seconds=2)
    before, sockets_before = rss(), sockets()
    peak = before
    attackers = Attackers(product)
    attacks = {
        "dripping heads": (attackers.drip_a_head, much.dripping_heads),
        "stalled bodies": (attackers.stall_a_body, much.stalled_bodies),
        "silent readers": (attackers.read_nothing, much.silent_readers),
        "endless line": (lambda: asyncio.to_thread(attackers.read_the_line), 1),
    }
    with contextlib.closing(EndlessVendor()) as vendor:
        await asyncio.to_thread(
            product.add_vendor,
            "endless",
            kind="openai",
            base_url=f"http://127.0.0.1:{vendor.port}/v1",
            key="key",
        )
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(attackers.again(name, attack))
                for name, (attack, count) in attacks.items()
                for _ in range(count)
            ]
            healthy = tasks.create_task(mean_well(product, seconds=much.seconds))
            while not healthy.done() or attackers.line_bytes < much.line_bytes:
                await asyncio.sleep(0.5)
                peak = max(peak, rss())
            attackers.is_over = True
            for task in running:
                task.cancel()
    results = healthy.result()

    def over() -> bool:
        return rss() - before < much.kept_bytes_max and sockets() <= sockets_before

    with contextlib.suppress(AssertionError):
        await asyncio.to_thread(
            lambda: eventually(lambda: over() or None, seconds=RECOVER_SECONDS_MAX, what="")
        )
    after, sockets_after = rss(), sockets()
    failed = [answer for answer, _ in results if not answer.is_whole]
    attempts = ", ".join(
        f"{count} {name} ({attackers.begun[name]} begun, {attackers.ended[name]} cut)"
        for name, (_, count) in attacks.items()
    )
    print(
        f"\n{attempts}; {attackers.line_bytes / MEGABYTE:.0f} MB in one line."
        f"\nHealthy client: {len(results)} calls, {len(failed)} failed, "
        f"p50 {quantile(results, 0.5):.1f} ms, p99 {quantile(results, 0.99):.1f} ms "
        f"(calm: {quantile(calm, 0.5):.1f} and {quantile(calm, 0.99):.1f} ms)."
        f"\nWorkers: {before / MEGABYTE:.0f} MB before, {peak / MEGABYTE:.0f} MB at "
        f"most, {after / MEGABYTE:.0f} MB after; "
        f"clients' connections {sockets_before} before, {sockets_after} after."
    )
    assert failed == []
    assert product.worker_pids() == pids
    assert peak - before < much.peak_bytes_max
    assert after - before < much.kept_bytes_max
    assert sockets_after <= sockets_before
    assert '"level":"error"' not in product.log.read_text()


def quantile(results: list[tuple[Answer, float]], at: float) -> float:
    """Return a quantile of how long calls took, in milliseconds."""
    seconds = sorted(one for _, one in results)
    return 1000 * seconds[min(len(seconds) - 1, int(at * len(seconds)))]


def allow_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def test_a_small_flood_harms_nobody(start: Callable[..., Product], files: None) -> None:
    product = start(workers=1)
    allow_files()
    await flood(product, SMALL)


@pytest.mark.slow
async def test_a_flood_harms_nobody(start: Callable[..., Product], files: None) -> None:
    product = start(workers=2)
    allow_files()
    await flood(product, WHOLE)
