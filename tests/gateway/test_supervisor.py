import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from gateway.limits import UNSENT_BYTES_MAX
from gateway.log import Log
from gateway.supervisor import PortTaken, Supervisor, open_listeners, url_of

# A worker of which only the line to the supervisor is real. It answers "pid\n" to a connection.
WORKER = textwrap.dedent(
    """
    import json, os, select, socket, sys, time

    listen_fd, channel_fd = map(int, os.environ["KAIXU_WORKER_FDS"].split(","))
    number = os.environ["KAIXU_WORKER_NUMBER"]
    mode = sys.argv[1]
    if mode == "crash" and number == "0":
        sys.exit(3)
    print("stdout of a worker")
    listener = socket.socket(fileno=listen_fd)
    listener.setblocking(False)
    channel = socket.socket(fileno=channel_fd)
    lines = channel.makefile("rb")

    def tell(report):
        channel.sendall(json.dumps(report).encode() + b"\\n")

    if mode == "nonsense" and number == "0":
        channel.sendall(b"nonsense\\n")
    tell({"state": {"worker_id": f"w{number}", "not_ready": ["database"]}})
    tell({"state": {"worker_id": f"w{number}", "not_ready": []}})
    while True:
        readable, _, _ = select.select([listener, channel], [], [])
        if listener in readable:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue
            connection.sendall(f"{os.getpid()}\\n".encode())
            connection.close()
        if channel in readable:
            line = lines.readline()
            if not line:
                sys.exit(0)
            ask = json.loads(line)["ask"]
            if ask == "metrics":
                tell({"metrics": {"kaixu_ledger_rows": [[[], 5, []]]}})
            elif mode == "deaf":
                pass
            else:
                time.sleep(0.1)
                sys.exit(0)
    """
)


class Running:
    """A supervisor in this process, its workers and its announcements."""

    def __init__(self, supervisor: Supervisor, announced: asyncio.Queue[bytes]) -> None:
        self.supervisor = supervisor
        self.announced = announced
        self.urls: dict[str, Any] = {}
        self.lines: list[dict[str, Any]] = []

    def pids(self) -> dict[str, int]:
        return dict(self.supervisor.workers())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - processes have no events
                await asyncio.sleep(0.01)

    async def ready(self) -> None:
        await self.until(lambda: not self.supervisor.not_ready())

    async def get(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(self.urls["ops_url"] + path) as answer,
        ):
            return answer.status, await answer.text()

    async def call(self) -> int:
        """Connect, and return the process id of the worker that answers."""
        port = int(self.urls["gateway_url"].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            return int(await asyncio.wait_for(reader.readline(), 10))
        finally:
            writer.close()


@asynccontextmanager
async def running(
    tmp_path: Path,
    mode: str = "good",
    *,
    drain_timeout_seconds: float = 5,
    wait: bool = True,
    port: int = 0,
    parent_pipe: bool = False,
) -> AsyncIterator[Running]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    announced: asyncio.Queue[bytes] = asyncio.Queue()
    lines: list[dict[str, Any]] = []

    def write(line: bytes) -> bool:
        lines.append(json.loads(line))
        return True

    supervisor = Supervisor(
        command=(sys.executable, "-I", str(script), mode),
        environ={"PATH": os.defpath, "KAIXU_PARENT_PIPE": str(int(parent_pipe))},
        host="127.0.0.1",
        port=port,
        ops_host="127.0.0.1",
        ops_port=0,
        workers=2,
        drain_timeout_seconds=drain_timeout_seconds,
        log=Log(write, now=lambda: 0.0),
        announce=announced.put_nowait,
    )
    run = Running(supervisor, announced)
    run.lines = lines
    task = asyncio.create_task(supervisor.run())  # noqa: TID251 - ended below
    try:
        if wait:
            run.urls = json.loads(await asyncio.wait_for(announced.get(), 10))
        yield run
    finally:
        if "draining" not in supervisor.not_ready():
            supervisor.stop()
        await asyncio.wait_for(task, 15)


async def test_it_announces_itself_once_when_all_workers_are_ready(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        assert set(run.urls) == {"gateway_url", "ops_url", "supervisor_pid"}
        assert run.urls["supervisor_pid"] == os.getpid()
        assert set(run.pids()) == {"w0", "w1"}
        status, told = await run.get("/readyz")
        assert (status, json.loads(told)["not_ready"]) == (200, [])
        os.kill(run.pids()["w0"], signal.SIGKILL)
        await run.until(lambda: "w0" not in run.pids())
        await run.ready()
    assert run.announced.empty()


async def test_a_killed_worker_comes_back_on_its_socket_and_loses_no_connection(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as run:
        killed = run.pids()["w0"]
        os.kill(killed, signal.SIGKILL)
        await run.until(lambda: run.pids().get("w0") != killed)
        answered = await asyncio.gather(*(run.call() for _ in range(40)))
        assert killed not in answered
        assert set(answered) == set(run.pids().values())


async def test_readiness_names_the_worker_that_is_missing(tmp_path: Path) -> None:
    async with running(tmp_path, "crash", wait=False) as run:
        await run.until(lambda: "w1" in run.pids() and "w0" not in run.pids())
        await run.until(lambda: run.supervisor.not_ready()[0].startswith("worker 0: "))
        # Each failed start waits for longer.
        await run.until(lambda: sum(one["event"] == "worker ended" for one in run.lines) == 2)
        assert not run.announced.qsize()


async def test_a_worker_that_talks_nonsense_is_replaced(tmp_path: Path) -> None:
    async with running(tmp_path, "nonsense", wait=False) as run:
        await run.until(lambda: any(o["event"] == "worker talks nonsense" for o in run.lines))
        await run.until(lambda: any(o.get("exit_code") == -9 for o in run.lines))


async def test_metrics_are_summed_and_survive_a_worker(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        _, told = await run.get("/metrics")
        assert "kaixu_ledger_rows_total 10.0" in told
        assert "kaixu_workers_ready 2.0" in told
        killed = run.pids()["w0"]
        os.kill(killed, signal.SIGKILL)
        await run.until(lambda: run.pids().get("w0") not in (None, killed))
        await run.ready()
        _, told = await run.get("/metrics")
        assert "kaixu_ledger_rows_total 15.0" in told
        assert "kaixu_worker_restarts_total 1.0" in told


async def test_a_stop_drains_the_workers_and_frees_the_port(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        pids = run.pids().values()
        run.supervisor.stop()
        assert run.supervisor.not_ready()[0] == "draining"
        status, told = await run.get("/readyz")
        assert (status, json.loads(told)["ready"]) == (503, False)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert [one["exit_code"] for one in run.lines if one["event"] == "worker ended"] == [0, 0]
    port = int(run.urls["gateway_url"].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        pass


async def test_a_second_stop_does_not_wait(tmp_path: Path) -> None:
    async with running(tmp_path, "deaf", drain_timeout_seconds=60) as run:
        run.supervisor.stop()
        run.supervisor.stop()
    assert [one["exit_code"] for one in run.lines if one["event"] == "worker ended"] == [-9, -9]


async def test_without_its_parent_it_leaves_its_ports_before_the_drain_ends(
    tmp_path: Path,
) -> None:
    ours, parents = os.pipe()
    stdin = os.dup(0)
    os.dup2(ours, 0)
    try:
        async with running(tmp_path, "deaf", drain_timeout_seconds=60, parent_pipe=True) as run:
            os.close(parents)
            port = int(run.urls["ops_url"].rpartition(":")[2])

            def is_free() -> bool:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    return probe.connect_ex(("127.0.0.1", port)) != 0

            await run.until(is_free)
            assert set(run.pids()) == {"w0", "w1"}
            run.supervisor.stop()
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
        os.close(ours)


async def test_a_signal_stops_it(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        os.kill(os.getpid(), signal.SIGTERM)
        await run.until(lambda: "draining" in run.supervisor.not_ready())


async def test_a_worker_is_told_nothing_of_the_parent_pipe(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        environ = psutil.Process(run.pids()["w0"]).environ()
        assert set(environ) - {"LC_CTYPE"} == {
            "PATH",
            "KAIXU_WORKER_FDS",
            "KAIXU_WORKER_NUMBER",
        }


async def test_a_port_in_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.supervisor.PORT_WAIT_SECONDS_MAX", 0.3)
    earlier = await open_listeners("127.0.0.1", 0, 2)
    port = earlier[0].getsockname()[1]
    assert {one.getsockname()[1] for one in earlier} == {port}
    with pytest.raises(PortTaken):
        await open_listeners("127.0.0.1", port, 1)
    for one in earlier:
        one.close()
    again = await open_listeners("127.0.0.1", port, 1)
    again[0].close()


async def test_the_kernel_takes_little_for_a_client_who_reads_nothing() -> None:
    [listener] = await open_listeners("127.0.0.1", 0, 1)
    taken_bytes = 0
    with listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted, contextlib.suppress(BlockingIOError):
            accepted.setblocking(False)
            while True:
                taken_bytes += accepted.send(bytes(16 * 1024))
    assert 64 * 1024 < taken_bytes < 4 * UNSENT_BYTES_MAX


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:"), ("::", "http://[::1]:")],
)
async def test_a_url_is_one_that_this_machine_can_reach(host: str, url: str) -> None:
    if ":" in host and not socket.has_ipv6:
        pytest.skip("no IPv6")
    [listener] = await open_listeners(host, 0, 1)
    with listener:
        assert url_of(listener).startswith(url)
