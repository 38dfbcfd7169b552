"""Sending to a URL: to public addresses only, signed, without redirects, and not for long."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from control_plane.alerts.webhook import (
    WebhookFailed,
    WebhookSender,
    check_webhook_url,
    signature,
)
from control_plane.errors import BadArgument

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
BODY = b'{"id":"1"}'


@asynccontextmanager
async def receiver(answer: Answer) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that keeps what it is sent, and answers by a function."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            request = head + await reader.readexactly(len(BODY))
            requests.append(request)
            await answer(request, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], requests


async def send(url: str, *, allow_private: bool = True, seconds_max: float = 5) -> None:
    sender = WebhookSender(allow_private=allow_private, seconds_max=seconds_max)
    await sender.send(url, BODY, alert_id="a1", signed=signature("s", BODY, at=7))


def status(line: bytes) -> Answer:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(line + b"\r\ncontent-length: 0\r\n\r\n")

    return answer


async def test_a_receiver_can_tell_who_sent_it() -> None:
    async with receiver(status(b"HTTP/1.1 204 No Content")) as (port, requests):
        await send(f"http://127.0.0.1:{port}/hook/a?key=b%20c")
    (request,) = requests
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /hook/a?key=b%20c HTTP/1.1"
    headers = dict(line.split(": ", 1) for line in lines[1:])
    assert headers["host"] == f"127.0.0.1:{port}"
    assert headers["x-kaixu-alert-id"] == "a1"
    at, signed = (part.partition("=")[2] for part in headers["x-kaixu-signature"].split(","))
    expected = hmac.new(b"s", f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    assert (body, hmac.compare_digest(signed, expected)) == (BODY, True)


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/",
        b"HTTP/1.1 307 Again\r\nlocation: /elsewhere",
        b"HTTP/1.1 500 Oops",
        b"HTTP/1.1 400",
        b"SSH-2.0-OpenSSH",
        b"x" * 20_000,
        b"",
    ],
)
async def test_what_is_no_success_is_a_failure_and_no_redirect_is_followed(line: bytes) -> None:
    async with receiver(status(line)) as (port, requests):
        with pytest.raises(WebhookFailed):
            await send(f"http://127.0.0.1:{port}/")
    assert len(requests) == 1


async def test_a_receiver_that_hangs_or_drips_is_given_up() -> None:
    async def hang(_: bytes, writer: asyncio.StreamWriter) -> None:
        for one in b"HTTP/1.1 200 OK":
            writer.write(bytes([one]))
            await writer.drain()
            await asyncio.sleep(0.1)

    async with receiver(hang) as (port, _):
        began = time.monotonic()
        with pytest.raises(WebhookFailed, match=r"No answer within 0\.3 seconds"):
            await send(f"http://127.0.0.1:{port}/", seconds_max=0.3)
        assert time.monotonic() - began < 2


async def test_no_private_address_is_called_by_whatever_name() -> None:
    async with receiver(status(b"HTTP/1.1 200 OK")) as (port, requests):
        for url in (
            f"http://127.0.0.1:{port}/",
            f"https://localhost:{port}/",
            "https://localhost/",
        ):
            with pytest.raises(WebhookFailed):
                await send(url, allow_private=False)
    assert requests == []


async def test_a_name_that_leads_to_a_private_address_is_not_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def rebound(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr("control_plane.alerts.webhook._look_up", rebound)
    with pytest.raises(WebhookFailed, match="AddressNotAllowed"):
        await send("https://hooks.example.com/", allow_private=False)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",
        "https://127.0.0.1/",
        "https://169.254.169.254/latest",
        "https://localhost/",
        "https://hooks.example.com:8443/",
        "https://u:p@hooks.example.com/",
        "https://hooks.example.com/a b",
        "https://hooks.example.com/?a=\r\nx: y",
        "https://hooks.example.com/?a=b#c",
        "file:///etc/passwd",
        "gopher://x/",
        "//hooks.example.com/",
        "",
    ],
)
def test_a_url_that_leads_elsewhere_is_refused_as_it_is_set(url: str) -> None:
    with pytest.raises(BadArgument) as refused:
        check_webhook_url(url, allow_private=False)
    assert refused.value.field == "url"


def test_a_url_may_have_a_query() -> None:
    url = "https://hooks.example.com/services/T0/B0?token=a%20b&x=1"
    assert check_webhook_url(url, allow_private=False) == url
