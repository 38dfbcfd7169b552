"""What one answer leaves behind on the connections of both sides, and the next call on them."""

import asyncio
import contextlib
import json
import socket
import struct
from typing import Any

import pytest

from gateway.errors import MonthlyLimitReached, TokenRevoked
from gateway.proxy.body_budget import BodyBudget
from gateway.proxy.client_connection import ClientConnection
from gateway.proxy.exchange import Exchange
from gateway.proxy.relay import Relay
from tests.gateway.proxy.rig import DEADLINE_SECONDS, Rig, Script
from tests.gateway.proxy.test_calls import (
    CHAT,
    OPENAI_STREAM,
    answers,
    hangs,
    plain,
    streams,
)

PATH = "/v1/chat/completions"
WHOLE = {**CHAT, "stream": False}
UNITS = 1_000_000  # that the rig has


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> list[ClientConnection]:
    """Have the next write fill its transport, which says so once; return whose it was."""
    write = ClientConnection.write
    full: list[ClientConnection] = []

    def fills(self: ClientConnection, data: bytes) -> None:
        write(self, data)
        if not full:
            full.append(self)
            self.pause_writing()

    monkeypatch.setattr(ClientConnection, "write", fills)
    return full


async def test_a_client_that_is_behind_leaves_the_vendors_connection_as_it_was(
    rig: Rig, behind: list[ClientConnection]
) -> None:
    rig.vendor.script = answers(plain(200, {"a": 1}))
    for _ in range(2):
        assert (await rig.ask(PATH, WHOLE)).status == 200
    assert rig.vendor.connections == 1
    assert behind


async def test_a_client_that_is_behind_gets_no_more_of_the_next_answer_either(
    rig: Rig, behind: list[ClientConnection]
) -> None:
    rig.vendor.script = answers(plain(200, {"a": 1}))
    async with rig.client() as client:
        client.send(rig.request(PATH, WHOLE))
        await client.answer()
        client.send(rig.request(PATH, WHOLE))
        await asyncio.wait_for(rig.vendor.asked.wait(), DEADLINE_SECONDS)
        await asyncio.sleep(0.1)
        [relay] = rig.calls._relays
        assert relay.connection is not None
        assert relay.connection.paused
        behind[0].resume_writing()
        assert (await client.answer()).body == b'{"a": 1}'


@pytest.mark.parametrize("header", ["X: y", "Connection: close"])
@pytest.mark.parametrize("extra", [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\x00" * 99])
async def test_an_answer_is_whole_whatever_comes_behind_it(
    rig: Rig, header: str, extra: bytes
) -> None:
    rig.vendor.script = answers(plain(200, {"a": 1}, header) + extra)
    for _ in range(2):
        answer = await rig.ask(PATH, WHOLE)
        assert (answer.body, answer.clean) == (b'{"a": 1}', True)
    assert rig.vendor.connections == 2
    assert [row["status"] for row in rig.lines.rows] == ["complete", "complete"]


async def test_an_unknown_transfer_coding_ends_with_the_connection(rig: Rig) -> None:
    async def script(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n{}")
        await writer.drain()
        writer.close()

    rig.vendor.script = script
    answer = await rig.ask(PATH, WHOLE)
    assert (answer.body, answer.clean) == (b"{}", True)


async def warm(rig: Rig) -> None:
    """Have a connection in the pool."""
    rig.vendor.script = answers(plain(200, {"a": 1}))
    await rig.ask(PATH, WHOLE)


async def test_a_call_that_is_revoked_between_two_attempts_is_not_sent_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(rig)
    on_broken = Relay.on_broken

    def breaks_and_is_revoked(self: Relay, *, any_byte: bool) -> None:
        on_broken(self, any_byte=any_byte)
        rig.live.cut("token", "token-1", TokenRevoked)  # before the call's task goes on

    monkeypatch.setattr(Relay, "on_broken", breaks_and_is_revoked)
    rig.vendor.script = answers(b"", then_close=True)
    answer = await rig.ask(PATH, WHOLE)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (401, "token_revoked")
    assert len(rig.vendor.heads) == len(rig.lines.rows) == UNITS - rig.units.left == 2


async def test_without_a_unit_for_a_second_attempt_the_first_one_decides(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(rig)
    rig.units.left = 1

    def known_spent(limits: object) -> None:
        if not rig.units.left:
            raise MonthlyLimitReached

    monkeypatch.setattr(rig.units, "known_spent", known_spent)
    rig.vendor.script = answers(b"", then_close=True)
    answer = await rig.ask(PATH, WHOLE)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (502, "vendor_unreachable")


async def test_a_vendor_that_resets_each_connection_at_once_is_unreachable(rig: Rig) -> None:
    def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async with await asyncio.start_server(resets, "127.0.0.1", 0) as vendor:
        rig.vendor.port = vendor.sockets[0].getsockname()[1]
        rig.targets[0] = rig.target("openai", path="/v1")
        for _ in range(50):
            answer = await rig.ask(PATH, WHOLE)
            assert (answer.status, answer.headers["x-kaixu-reason"]) == (502, "vendor_unreachable")
    assert len(rig.lines.rows) == len(rig.lines.opened)


async def test_a_peer_without_a_name_was_reset(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of several threads resets a connection before it is looked at can't be arranged."""
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def nameless(*arguments: Any, **options: Any) -> Any:
        transport, protocol = await connect(*arguments, **options)
        transport.get_extra_info = lambda name, default=None: default  # type: ignore[method-assign]
        return transport, protocol

    monkeypatch.setattr(loop, "create_connection", nameless)
    async with rig.client() as client:
        client.send(rig.request(PATH, WHOLE))
        assert (await client.answer()).status == 502


async def test_a_request_is_let_go_when_its_answer_begins(rig: Rig) -> None:
    rig.lane.budget = BodyBudget(bytes_max=4_000, share_max=1.0)
    rig.vendor.script = hangs
    async with rig.client() as client, rig.client() as other:
        for one in (client, other):  # both fit only one after the other
            one.send(rig.request(PATH, {**CHAT, "padding": "x" * 3_000}))
            await one.until(b"{}}]}\n\n\r\n")
        assert rig.lane.budget.held_bytes == 0
        [first, second] = list(rig.calls._relays)
        assert first._bytes_up == second._bytes_up > 3_000


async def test_nothing_is_begun_on_a_connection_that_is_being_closed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of a refusal may wait for a slow client while the next request is read."""
    started: list[str] = []
    start = rig.lane.start

    def noted(exchange: Exchange) -> None:
        started.append(exchange.path)
        start(exchange)

    monkeypatch.setattr(rig.lane, "start", noted)
    async with rig.client() as client:
        refused = rig.request(PATH, WHOLE, token="x")
        client.send(refused[:-5])
        await client.until(b"\r\n\r\n")
        client.send(refused[-5:] + rig.request("/v1/models", method="GET"))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while rig.lane.connections:  # noqa: ASYNC110 - the last one says nothing
                await asyncio.sleep(0)
    assert started == [PATH]


# ---------------------------------------------------------------------------------------- defects


PLAIN_ANSWER = answers(plain(200, {"a": 1}))
CUT_SHORT = streams(OPENAI_STREAM[:200])


DEFECTS = {
    "head of a stream": ("on_head", hangs),
    "head": ("on_head", PLAIN_ANSWER),
    "piece of a stream": ("on_data", hangs),
    "piece": ("on_data", PLAIN_ANSWER),
    "write": ("on_read_done", hangs),
    "end of a stream": ("on_end", CUT_SHORT),
    "end": ("on_end", PLAIN_ANSWER),
    "break": ("on_broken", answers(plain(200, {"a": 1})[:-1], then_close=True)),
    "bad answer": ("on_broken", answers(b"junk")),
}


@pytest.mark.parametrize(("where", "script"), DEFECTS.values(), ids=DEFECTS)
async def test_a_defect_in_an_answer_ends_its_call_and_is_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, where: str, script: Script
) -> None:
    failure = RuntimeError("of a test")

    def fails(self: Relay, *arguments: object, **options: object) -> None:
        raise failure

    rig.vendor.script = script
    with monkeypatch.context() as patched:
        patched.setattr(Relay, where, fails)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            answer = await rig.ask(PATH, CHAT)
            assert not answer.clean or answer.headers["x-kaixu-reason"] == "internal"
        row = await rig.lines.row()
    assert (row["status"], row["reason"]) == ("interrupted", "internal")
    assert rig.defects == [failure]
    rig.defects.clear()
    rig.vendor.script = answers(plain(200, {"a": 1}))
    assert (await rig.ask(PATH, WHOLE)).status == 200  # and life goes on
    assert len(rig.lines.rows) == 2


async def test_a_defect_behind_the_end_of_a_call_is_told_too(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = RuntimeError("of a test")
    told: list[dict[str, Any]] = []

    def fails(self: Relay) -> None:
        raise failure

    asyncio.get_running_loop().set_exception_handler(lambda _, about: told.append(about))
    monkeypatch.setattr(Relay, "on_read_done", fails)
    rig.vendor.script = answers(plain(200, {"a": 1}))
    answer = await rig.ask(PATH, WHOLE)
    assert (answer.body, answer.clean) == (b'{"a": 1}', True)
    assert [about["exception"] for about in told] == [failure]


async def test_a_meter_that_fails_at_the_end_too_leaves_a_row_without_usage(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: object, *arguments: object, **options: object) -> None:
        raise RuntimeError("of a test")

    monkeypatch.setattr(Relay, "_close", fails)
    rig.vendor.script = answers(plain(200, {"a": 1}))
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        await rig.ask(PATH, WHOLE)
    row = await rig.lines.row()
    assert (row["status"], row["usage_source"]) == ("interrupted", "none")
    [defect] = rig.defects
    assert defect.__notes__
    rig.defects.clear()


async def test_a_defect_while_a_client_leaves_or_a_deadline_comes_is_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: object, *arguments: object, **options: object) -> None:
        raise RuntimeError("of a test")

    monkeypatch.setattr(Relay, "_close", fails)
    rig.vendor.script = hangs
    for leave in (True, False):
        async with rig.client() as client:
            client.send(rig.request(PATH, CHAT))
            await client.until(b"{}}]}\n\n\r\n")
            if leave:
                client.leave()
            else:
                monkeypatch.setattr(rig.times, "idle_seconds", -1.0)
                await rig.calls.sweep()
            assert (await rig.lines.row())["status"] == "interrupted"
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not rig.defects:  # noqa: ASYNC110 - a list tells nobody
                await asyncio.sleep(0.001)
        rig.defects.clear()


async def test_a_java_client_that_offers_http_2_is_served(rig: Rig) -> None:
    """java.net.http sends this over plain http, with a body."""
    rig.vendor.script = answers(plain(200, {"a": 1}))
    offer = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"]
    for _ in range(2):
        answer = await rig.ask(PATH, WHOLE, headers=offer)
        assert (answer.status, answer.body) == (200, b'{"a": 1}')
    assert json.loads(rig.vendor.bodies[0]) == WHOLE
    assert b"upgrade" not in rig.vendor.heads[0].lower()
    assert b"http2-settings" not in rig.vendor.heads[0].lower()
