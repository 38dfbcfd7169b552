import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import closing

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.log import Log
from gateway.ops import listening, make_app

Client = TestClient[web.Request, web.Application]

CANARY = "kxg_c4n4ryc4n4ryc4n4ryc4n4ryc4n4ry012345"


class FakeMachine:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def not_ready(self) -> list[str]:
        return self.reasons

    def workers(self) -> list[tuple[str, int]]:
        return [("0193", 42)]

    async def exposition(self) -> bytes:
        return b"# HELP kaixu_x X.\n"


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
async def client(machine: FakeMachine) -> AsyncIterator[Client]:
    async with TestClient(TestServer(make_app(machine))) as client:
        yield client


async def test_it_lives_whatever_is_not_ready(client: Client, machine: FakeMachine) -> None:
    machine.reasons = ["worker 0: database"]
    answer = await client.get("/healthz")
    assert answer.status == 200


async def test_readiness_is_the_machine_s(client: Client, machine: FakeMachine) -> None:
    answer = await client.get("/readyz")
    assert answer.status == 200
    assert await answer.json() == {
        "ready": True,
        "not_ready": [],
        "workers": [{"id": "0193", "pid": 42}],
    }
    machine.reasons = ["worker 0: database"]
    answer = await client.get("/readyz")
    assert answer.status == 503
    told = await answer.json()
    assert (told["ready"], told["not_ready"]) == (False, ["worker 0: database"])


async def test_metrics_are_in_the_format_of_prometheus(
    client: Client,
) -> None:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert await answer.text() == "# HELP kaixu_x X.\n"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("POST", "/healthz", 405), ("GET", "/healthz/", 404)],
)
async def test_other_requests_get_a_page_that_says_nothing(
    client: Client, method: str, path: str, status: int
) -> None:
    answer = await client.request(method, path)
    assert answer.status == status
    assert await answer.json() == {"error": {"status": status}}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/nope"])
async def test_every_answer_is_hardened(client: Client, path: str) -> None:
    answer = await client.get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers


@pytest.mark.parametrize(
    "request_bytes",
    [
        f"GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CANARY}\x00\r\n\r\n".encode(),
        f"GET /{CANARY}\x01 HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        f"{CANARY}\r\n\r\n".encode(),
    ],
)
async def test_a_broken_request_is_repeated_nowhere(
    machine: FakeMachine, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[bytes] = []

    def write(line: bytes) -> bool:
        lines.append(line)
        return True

    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    async with listening(make_app(machine), sock, Log(write, now=lambda: 0.0)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with closing(writer):
            writer.write(request_bytes)
            answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert CANARY.encode() not in answer + b"".join(lines)
    assert CANARY not in caplog.text
