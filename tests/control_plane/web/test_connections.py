"""Nobody takes all connections; who sends nothing loses theirs."""

import asyncio
from contextlib import suppress
from functools import partial
from ipaddress import ip_network

import pytest

from control_plane import app
from control_plane.server_settings import ServerSettings
from control_plane.web.connections import Connections
from tests.control_plane.conftest import Node, started


def test_one_address_has_so_many_and_others_theirs() -> None:
    connections = Connections(most=5, most_per_address=2)
    assert [connections.admit("203.0.113.1") for _ in range(3)] == [True, True, False]
    assert connections.admit("203.0.113.2")
    connections.forget("203.0.113.1")
    assert connections.admit("203.0.113.1")


def test_proxies_and_this_machine_speak_for_many() -> None:
    connections = Connections(trusted=[ip_network("10.0.0.0/8")], most=6, most_per_address=1)
    for address in ("10.1.1.1", "::ffff:10.1.1.1", "127.0.0.1"):
        assert [connections.admit(address) for _ in range(2)] == [True, True], address
    assert not connections.admit("10.1.1.1"), "and no more than there may be at all"


async def ended(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_connection_too_many_is_closed_and_the_others_are_served(
    server_settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 3
    monkeypatch.setattr(app, "Connections", partial(Connections, most=most))
    request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"

    async def ask(node: Node) -> tuple[asyncio.StreamWriter, bytes]:
        host, port = node.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        try:
            return writer, await reader.readline()
        except ConnectionError:
            return writer, b""

    async with started(server_settings) as node:
        asked = [await ask(node) for _ in range(most + 2)]
        assert [line[:12] for _, line in asked] == [b"HTTP/1.1 200"] * most + [b""] * 2
        for writer, _ in asked:
            await ended(writer)
        writer, line = await ask(node)
        await ended(writer)
        assert line.startswith(b"HTTP/1.1 200"), "those that ended make room"
