"""One worker in this process: its parts put together, on a real database."""

import asyncio
import json
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from gateway.app import serve
from gateway.log import Log
from gateway.settings import Settings
from gateway.worker_link import DRAIN, METRICS, WorkerContext, encode_ask
from tests.conftest import Database, Seed

CALL = {"model": "m", "messages": []}


class Running:
    """A worker, seen by its supervisor and by a client."""

    def __init__(
        self, channel: socket.socket, listener: socket.socket, task: "asyncio.Task[None]"
    ) -> None:
        self.channel = channel
        self.listener = listener
        self.task = task
        self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.not_ready: list[str] | None = None
        self.metrics: dict[str, Any] = {}

    async def listen(self) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=self.channel, limit=1 << 24)
        with closing(writer):
            while line := await reader.readline():
                told = json.loads(line)
                if "state" in told:
                    self.not_ready = told["state"]["not_ready"]
                else:
                    self.metrics = told["metrics"]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                if self.task.done():
                    await self.task
                await asyncio.sleep(0.01)

    async def ready(self) -> None:
        await self.until(lambda: self.not_ready == [])

    async def call(self, token: str) -> tuple[int, str | None]:
        """Call and return status and reason."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{self.url}/v1/chat/completions",
                json=CALL,
                headers={"authorization": f"Bearer {token}"},
            ) as answer,
        ):
            return answer.status, answer.headers.get("x-kaixu-reason")


@asynccontextmanager
async def running(database_url: str, folder: Path, **settings: str) -> AsyncIterator[Running]:
    ours, theirs = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    environ = {"KAIXU_GATEWAY_DATABASE_URL": database_url, "KAIXU_JOURNAL_DIR": str(folder)}
    task = asyncio.create_task(  # noqa: TID251 - ended below
        serve(
            Settings.from_env({**environ, **settings}),
            WorkerContext(number=0, listener=listener, channel=theirs),
            log=Log(lambda _: True, now=lambda: 0.0),
        )
    )
    run = Running(ours, listener, task)
    listening = asyncio.create_task(run.listen())  # noqa: TID251 - ended below
    try:
        yield run
        if not task.done():
            with suppress(BrokenPipeError):  # it has drained, and is about to be done
                ours.sendall(encode_ask(DRAIN))
            await asyncio.wait_for(task, 15)
    finally:
        task.cancel()
        await asyncio.wait([task])
        listening.cancel()
        await asyncio.wait([listening])
        ours.close()


async def add_vendor(owner: asyncpg.Connection, port: int) -> None:
    await owner.execute(
        "INSERT INTO vendors (name, kind, base_url, is_private, is_simulator, sealed_key) "
        "VALUES ('openai', 'openai', $1, true, true, '')",
        f"http://127.0.0.1:{port}/v1",
    )


async def test_it_becomes_ready_answers_and_drains(
    database: Database, owner: asyncpg.Connection, seed: Seed, tmp_path: Path
) -> None:
    token, _ = await seed.token()
    async with running(database.gateway_url, tmp_path / "journal") as run:
        await run.ready()
        assert await run.call(token) == (404, "no_route")
        assert await run.call("x") == (401, "token_invalid")
        run.channel.sendall(encode_ask(METRICS))
        await run.until(lambda: bool(run.metrics))
        refused = {labels[0]: value for labels, value, _ in run.metrics["kaixu_refusals"]}
        assert refused == {"no_route": 1, "token_invalid": 1}
        assert await owner.fetchval("SELECT count(*) FROM workers WHERE ended_at IS NULL") == 1
    assert await owner.fetchval("SELECT count(*) FROM workers WHERE ended_at IS NULL") == 0
    told = await owner.fetch("SELECT reason FROM refusals ORDER BY id")
    assert [row["reason"] for row in told] == ["no_route", "token_invalid"]
    with pytest.raises(OSError, match="Cannot connect"):
        await run.call(token)


async def test_a_vendor_is_called_as_soon_as_it_is_added(
    database: Database, owner: asyncpg.Connection, seed: Seed, tmp_path: Path
) -> None:
    token, _ = await seed.token()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        async with running(database.gateway_url, tmp_path / "journal") as run:
            await run.ready()
            assert await run.call(token) == (404, "no_route")
            await add_vendor(owner, nobody.getsockname()[1])
            async with asyncio.timeout(2):
                while await run.call(token) != (502, "vendor_unreachable"):
                    pass


async def test_a_revoked_token_is_refused_at_once(
    database: Database, owner: asyncpg.Connection, seed: Seed, tmp_path: Path
) -> None:
    token, token_id = await seed.token()
    async with running(database.gateway_url, tmp_path / "journal") as run:
        await run.ready()
        assert await run.call(token) == (404, "no_route")
        await owner.execute("UPDATE tokens SET revoked_at = now() WHERE id = $1", token_id)
        async with asyncio.timeout(2):
            while await run.call(token) != (401, "token_revoked"):
                pass
        async with asyncio.timeout(2):
            while not await owner.fetchval("SELECT count(*) FROM confirmations"):
                pass


async def test_a_database_that_is_away_is_waited_for(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"postgresql://x:y@127.0.0.1:{nobody.getsockname()[1]}/x"
        async with running(url, tmp_path / "journal") as run:
            await run.until(lambda: run.not_ready == ["database", "vendors"])
            assert await run.call("kxg_" + "0" * 38) == (503, "database_away")


async def test_without_its_supervisor_it_leaves_the_port_and_ends(
    database: Database, tmp_path: Path
) -> None:
    async with running(database.gateway_url, tmp_path / "journal") as run:
        await run.ready()
        run.channel.shutdown(socket.SHUT_RDWR)
        await asyncio.wait_for(asyncio.shield(run.task), 10)


async def test_it_stops_when_others_hold_it_for_dead(
    database: Database, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    async with running(database.gateway_url, tmp_path / "journal") as run:
        await run.ready()
        await owner.execute("UPDATE workers SET ended_at = now()")
        with pytest.raises(ExceptionGroup):
            await asyncio.wait_for(asyncio.shield(run.task), 10)


async def test_it_finishes_the_journal_of_a_worker_that_died(
    database: Database, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    dead = str(uuid.uuid4())
    folder = tmp_path / "journal" / dead
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    await owner.execute(
        "INSERT INTO workers (id, machine, pid, heartbeat_at, lease, offline_stream_grace, applied)"
        " VALUES ($1, 'm', 1, now(), '15s', '300s', 0)",
        dead,
    )
    async with running(database.gateway_url, tmp_path / "journal") as run:
        await run.ready()
        await run.until(lambda: not folder.exists())
        assert await owner.fetchval("SELECT ended_at FROM workers WHERE id = $1", dead) is not None


async def test_a_drain_leaves_a_slow_client_the_time_to_take_its_answer(
    database: Database, owner: asyncpg.Connection, seed: Seed, tmp_path: Path
) -> None:
    """A call ends when all of it is written; what the kernel has not taken must not be dropped."""
    token, _ = await seed.token()
    body = b'{"x":"' + b"a" * 400_000 + b'"}'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(body) + body)
            await writer.drain()
            await reader.read()

    vendor = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with vendor, running(database.gateway_url, tmp_path / "journal") as run:
        run.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        await run.ready()
        await add_vendor(owner, vendor.sockets[0].getsockname()[1])
        async with asyncio.timeout(5):
            while await run.call(token) != (200, None):
                pass
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            client.connect(("127.0.0.1", run.port))
            client.setblocking(False)
            sent = json.dumps(CALL).encode()
            client.send(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (token.encode(), len(sent), sent)
            )
            loop = asyncio.get_running_loop()
            got = await loop.sock_recv(client, 1)
            run.channel.sendall(encode_ask(DRAIN))
            async with asyncio.timeout(10):
                while piece := await loop.sock_recv(client, 16 * 1024):
                    got += piece
                    await asyncio.sleep(0.01)
        assert got.endswith(body)
