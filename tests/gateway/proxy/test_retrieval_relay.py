"""A client that leaves in the middle of what it retrieves: the rest is read for the meter."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.errors import TokenRevoked
from gateway.proxy import retrieval_relay
from gateway.proxy.stored_ids import Stored
from gateway.proxy.stored_paths import Kind
from tests.gateway.proxy.rig import DEADLINE_SECONDS, Rig, StayOpen

EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TEXT = b'data: {"type":"response.output_text.done","text":"all of it"}\n\n'
USAGE = b'"usage":{"input_tokens":3,"output_tokens":4,"total_tokens":7}'
END = (
    b'data: {"type":"response.completed","response":{"id":"resp_1","status":"completed",%b}}\n\n'
    % USAGE
)
ENTIRE = b'{"id":"resp_1","object":"response","status":"completed","output":"%b",%b}'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def left(rig: Rig, first: bytes, rest: bytes, *, breaks: bool = False) -> AsyncIterator[None]:
    """Retrieve a response, leave after `first`; the vendor then sends the rest, and no end."""
    made = [Stored("resp_1", Kind.RESPONSE)]
    rig.owned.note(made, caller=rig.caller, vendor_id=rig.targets[0].vendor_id, call_id="c")
    go_on = asyncio.Event()

    async def script(_: bytes, __: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await writer.drain()
        await go_on.wait()
        writer.write(rest)
        await writer.drain()
        if breaks:
            writer.transport.abort()
        raise StayOpen

    rig.vendor.script = script
    async with rig.client() as client:
        client.send(rig.request("/v1/responses/resp_1?stream=true", method="GET"))
        await client.until(b"all of it")
        client.leave()
    async with asyncio.timeout(DEADLINE_SECONDS):
        while rig.lane.connections:  # noqa: ASYNC110 - nothing tells that it was noticed
            await asyncio.sleep(0)
    go_on.set()
    yield


@pytest.mark.parametrize(
    "last", [chunk(END), chunk(END + b"data: more\n\n"), chunk(END) + b"0\r\n\r\n"]
)
async def test_a_stream_that_was_left_is_metered_by_its_last_event(rig: Rig, last: bytes) -> None:
    async with left(rig, EVENTS + chunk(TEXT), last):
        row = await rig.lines.row()
    assert (row["status"], row["usage_source"]) == ("client_closed", "vendor")
    assert (row["output_tokens"], row["metered_object"]) == (4, "resp_1")
    assert row["bytes_down"] == len(TEXT)
    if not last.endswith(b"\r\n0\r\n\r\n"):
        await asyncio.wait_for(rig.vendor.closed.wait(), DEADLINE_SECONDS)


async def test_an_answer_in_one_piece_that_was_left_is_metered_at_its_end(rig: Rig) -> None:
    body = ENTIRE % (b"all of it" + b" " * 100_000, USAGE)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    async with left(rig, head % len(body) + body[:5_000], body[5_000:]):
        row = await rig.lines.row()
    assert (row["status"], row["output_tokens"]) == ("client_closed", 4)
    connection = rig.pool.take_idle(rig.targets[0].origin)
    assert connection is not None, "it serves the next call"
    connection.abort()


@pytest.mark.parametrize("bound", ["READ_ON_SECONDS_MAX", "room", "broken", "revoked"])
async def test_reading_on_has_an_end(rig: Rig, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    if bound == "READ_ON_SECONDS_MAX":
        monkeypatch.setattr(retrieval_relay, bound, 0.05)
    elif bound == "room":
        monkeypatch.setattr(retrieval_relay.RetrievalRelay, "_room", 10)
    rest = b"" if bound == "READ_ON_SECONDS_MAX" else chunk(TEXT)
    async with left(rig, EVENTS + chunk(TEXT), rest, breaks=bound == "broken"):
        if bound == "revoked":
            assert rig.live.cut("token", rig.caller.token_id, TokenRevoked) == 1
        row = await rig.lines.row()
    assert (row["status"], row["usage_source"]) == ("client_closed", "none")
    await asyncio.wait_for(rig.vendor.closed.wait(), DEADLINE_SECONDS)
    assert rig.live.count == 0


async def test_who_leaves_before_an_answer_begins_has_had_nothing(rig: Rig) -> None:
    made = [Stored("resp_1", Kind.RESPONSE)]
    rig.owned.note(made, caller=rig.caller, vendor_id=rig.targets[0].vendor_id, call_id="c")

    async def script(_: bytes, __: bytes, ___: asyncio.StreamWriter) -> None:
        raise StayOpen

    rig.vendor.script = script
    async with rig.client() as client:
        client.send(rig.request("/v1/responses/resp_1", method="GET"))
        await asyncio.wait_for(rig.vendor.asked.wait(), DEADLINE_SECONDS)
        client.leave()
        row = await rig.lines.row()
    assert (row["status"], row["usage_source"]) == ("client_closed", "none")
    await asyncio.wait_for(rig.vendor.closed.wait(), DEADLINE_SECONDS)


@pytest.mark.parametrize("end", ["broken", "revoked", "revoked_between"])
async def test_who_stays_is_told_how_an_answer_ended(rig: Rig, end: str) -> None:
    made = [Stored("resp_1", Kind.RESPONSE)]
    rig.owned.note(made, caller=rig.caller, vendor_id=rig.targets[0].vendor_id, call_id="c")
    go_on = asyncio.Event()

    async def script(_: bytes, __: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + chunk(TEXT if end != "revoked_between" else TEXT[:-2]))
        await writer.drain()
        await go_on.wait()
        if end == "broken":
            writer.transport.abort()
        raise StayOpen

    rig.vendor.script = script
    async with rig.client() as client:
        client.send(rig.request("/v1/responses/resp_1?stream=true", method="GET"))
        await client.until(b"all of it")
        if end != "broken":
            rig.live.cut("token", rig.caller.token_id, TokenRevoked)
        go_on.set()
        assert b'"error"' in await client.until(b"0\r\n\r\n")
    row = await rig.lines.row()
    assert row["status"] == ("vendor_broke" if end == "broken" else "revoked")
    assert row["usage_source"] == "none"
