"""What clients may send, byte by byte, and how answers are framed. The handler here is a tiny echo:
it answers with the method, the path and the body that it was given."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.errors import BodyBudgetSpent, GatewayError, UpgradeRefused
from gateway.limits import (
    CLIENT_STALL_SECONDS_MAX,
    PIPELINED_REQUESTS_MAX,
    REQUEST_BODY_BYTES_MAX,
    REQUEST_HEAD_SECONDS_MAX,
    REQUEST_HEADERS_MAX,
)
from gateway.proxy.body_budget import BodyBudget
from gateway.proxy.client_connection import (
    LINGER_IDLE_SECONDS_MAX,
    LINGER_SECONDS_MAX,
    ClientConnection,
)
from gateway.proxy.client_peer import is_loopback
from gateway.proxy.exchange import Exchange
from gateway.proxy.lane import Lane

DEADLINE_SECONDS = 5.0


class Client:
    """A raw connection to the lane."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.reader.readuntil(end)

    async def rest(self) -> bytes:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.reader.read()


class House:
    """A lane, listening, whose answers a test chooses."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, str, bytes, bytes]] = []
        self.exchanges: list[Exchange] = []
        self.answer: Callable[[Exchange], None] | None = None
        self.reads_body = True
        self.started = asyncio.Event()
        self.defects: list[BaseException] = []
        self.cancelled = 0
        self.lane = Lane(
            self.handle,
            self.refuse,
            loop=asyncio.get_running_loop(),
            on_defect=self.defects.append,
        )
        self.port = 0

    async def handle(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self.started.set()
        try:
            body = await exchange.read_body(org_id="org") if self.reads_body else b""
        except GatewayError as error:
            self.refuse(exchange, error)
            return
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.seen.append((exchange.method, exchange.path, exchange.query, body))
        if self.answer is not None:
            self.answer(exchange)
            return
        text = exchange.method + b" " + exchange.path.encode() + b" " + body
        exchange.respond(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))

    def refuse(self, exchange: Exchange, error: GatewayError) -> None:
        exchange.respond(
            b"HTTP/1.1 %d No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % error.status
        )


@asynccontextmanager
async def house() -> AsyncIterator[House]:
    opened = House()
    server = await asyncio.get_running_loop().create_server(opened.lane.protocol, "127.0.0.1", 0)
    opened.port = server.sockets[0].getsockname()[1]
    try:
        yield opened
    finally:
        server.close()
        opened.lane.abort_all()
        assert await opened.lane.ended(by=opened.lane.loop.time() + DEADLINE_SECONDS)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while opened.lane.connections:  # noqa: ASYNC110 - the last ones say nothing
                await asyncio.sleep(0)


@asynccontextmanager
async def connected(to: House) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", to.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def answers(*pieces: bytes) -> tuple[bytes, House]:
    """Send pieces on one connection and return all that comes until the lane closes it."""
    async with house() as lane, connected(lane) as client:
        for piece in pieces:
            client.send(piece)
        return await client.rest(), lane


HOST = b"Host: gateway\r\n"
CLOSE = b"Connection: close\r\n"


async def test_a_request_is_read_and_answered() -> None:
    request = b"POST /a/b?c=d HTTP/1.1\r\n" + HOST + CLOSE + b"Content-Length: 3\r\n\r\nxyz"
    answer, lane = await answers(request)
    assert answer.endswith(b"POST /a/b xyz")
    assert lane.seen == [(b"POST", "/a/b", b"c=d", b"xyz")]


async def test_a_request_may_come_byte_by_byte() -> None:
    request = (
        b"POST /a HTTP/1.1\r\n"
        + HOST
        + CLOSE
        + b"Transfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n2;e=1\r\nab\r\n0\r\n\r\n"
    )
    async with house() as lane, connected(lane) as client:
        for at in range(len(request)):
            client.send(request[at : at + 1])
            await asyncio.sleep(0)
        assert (await client.rest()).endswith(b"POST /a xyzab")


async def test_requests_sent_ahead_are_answered_in_order() -> None:
    ahead = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(20))
    last = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer, lane = await answers(ahead + last)
    assert [path for _, path, _, _ in lane.seen] == [*(f"/{n}" for n in range(20)), "/last"]
    assert answer.index(b"GET /3 ") < answer.index(b"GET /4 ") < answer.index(b"GET /last ")


async def test_too_many_requests_sent_ahead_end_the_connection() -> None:
    ahead = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * (PIPELINED_REQUESTS_MAX + 5)
    answer, lane = await answers(ahead)
    assert answer.count(b"200 OK") == PIPELINED_REQUESTS_MAX
    assert answer.count(b"HTTP/1.1 400") == 1
    assert len(lane.seen) == PIPELINED_REQUESTS_MAX


BAD: list[tuple[str, bytes, bytes]] = [
    ("bare LF", b"GET / HTTP/1.1\nHost: a\n\n", b"400"),
    ("folded header", b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", b"400"),
    ("NUL", b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x00c\r\n\r\n", b"400"),
    ("space before colon", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", b"400"),
    ("two spaces", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
    ("HTTP/0.9", b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", b"505"),
    ("no version", b"GET /\r\n\r\n", b"505"),
    ("HTTP/2.0", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", b"505"),
    ("no Host", b"GET / HTTP/1.1\r\n\r\n", b"400"),
    ("two Hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", b"400"),
    ("a Host longer than any name", b"GET / HTTP/1.1\r\nHost: " + b"a" * 256 + b"\r\n\r\n", b"400"),
    ("Host with a path", b"GET / HTTP/1.1\r\nHost: a/x?y=\r\n\r\n", b"400"),
    ("Host with a user", b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", b"400"),
    ("absolute form", b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
    ("asterisk form", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
    ("CONNECT", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
    ("unknown method", b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
    (
        "length and chunks",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"400",
    ),
    ("two lengths", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc", b"400"),
    (
        "chunks on HTTP/1.0",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"400",
    ),
    (
        "gzip, chunked",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"400",
    ),
    ("many headers", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 70 + b"\r\n", b"431"),
    ("long headers", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", b"431"),
    ("a head without end", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000, b"431"),
    ("long target", b"GET /" + b"y" * 9_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"414"),
    ("RTSP", b"POST / RTSP/1.0\r\nHost: a\r\nContent-Length: 0\r\n\r\n", b"400"),
    ("CONNECT to a path", b"CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n", b"426"),
    ("a port that is none", b"GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n", b"400"),
    ("two spaces after a blank line", b"\r\nGET  / HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
    (
        "h2c or WebSocket",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c, WebSocket\r\n\r\n",
        b"426",
    ),
    (
        "WebSocket",
        b"GET /v1/r HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"426",
    ),
]


@pytest.mark.parametrize(("sent", "status"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
async def test_a_bad_head_is_refused_and_nothing_after_it_is_read(
    sent: bytes, status: bytes
) -> None:
    canary = b"GET /canary HTTP/1.1\r\nHost: a\r\n\r\n"
    answer, lane = await answers(sent + canary)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert answer.count(b"HTTP/1.1") == 1
    assert lane.seen == []


async def test_as_many_headers_as_allowed_pass() -> None:
    head = b"GET / HTTP/1.1\r\n" + HOST + CLOSE + b"X: y\r\n" * (REQUEST_HEADERS_MAX - 2)
    answer, _ = await answers(head + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


async def test_trailers_are_dropped() -> None:
    request = (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
        b"Authorization: Bearer other\r\n\r\nGET /2 HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
    )
    _, lane = await answers(request)
    assert [path for _, path, _, _ in lane.seen] == ["/", "/2"]
    assert all(name != b"authorization" for one in lane.exchanges for name, _ in one.headers)


async def test_broken_chunks_refuse_their_own_request_once() -> None:
    request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n"
    answer, lane = await answers(request)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1
    assert lane.seen == []


async def test_continue_is_said_when_the_body_is_wanted() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
    async with house() as lane, connected(lane) as client:
        client.send(head + CLOSE + b"\r\n")
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"ok")
        assert (await client.rest()).endswith(b"POST / ok")


async def test_a_body_that_is_too_large_is_refused_while_it_comes() -> None:
    async with house() as lane, connected(lane) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"100000\r\n" + bytes(1024 * 1024) + b"\r\n"
        for _ in range(REQUEST_BODY_BYTES_MAX // 1024 // 1024 + 1):
            client.send(piece)
            await client.writer.drain()
        assert (await client.rest()).startswith(b"HTTP/1.1 413")
        assert lane.lane.budget.held_bytes == 0


async def test_a_body_that_says_that_it_is_too_large_is_refused_at_once() -> None:
    async with house() as lane, connected(lane) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 413")


async def test_an_answer_before_the_body_ends_the_connection_after_it() -> None:
    async with house() as lane, connected(lane) as client:
        lane.reads_body = False
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab")
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 200")


async def test_a_client_that_leaves_cancels_its_request() -> None:
    async with house() as lane:
        async with connected(lane) as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab")
            await asyncio.wait_for(lane.started.wait(), DEADLINE_SECONDS)
            assert lane.cancelled == 0
        assert await lane.lane.ended(by=asyncio.get_running_loop().time() + DEADLINE_SECONDS)
        assert lane.cancelled == 1
        assert lane.lane.budget.held_bytes == 0


def chunked_answer(exchange: Exchange) -> None:
    exchange.begin(200, b"OK", [(b"x", b"y")], length=None, no_body=False)
    exchange.send(b"one")
    exchange.flush()
    exchange.send(b"two")
    exchange.finish()


async def test_an_answer_of_unknown_length_is_chunked() -> None:
    async with house() as lane, connected(lane) as client:
        lane.answer = chunked_answer
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await client.until(b"0\r\n\r\n")
        assert answer.endswith(
            b"transfer-encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        )


async def test_towards_http_1_0_the_end_of_the_connection_ends_the_answer() -> None:
    async with house() as lane, connected(lane) as client:
        lane.answer = chunked_answer
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        answer = await client.rest()
        assert answer.endswith(b"connection: close\r\n\r\nonetwo")


async def test_draining_closes_idle_connections_and_others_after_their_answer() -> None:
    async with house() as lane, connected(lane) as idle, connected(lane) as busy:
        busy.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na")
        await asyncio.wait_for(lane.started.wait(), DEADLINE_SECONDS)
        lane.lane.drain()
        assert await idle.rest() == b""
        busy.send(b"b")
        assert (await busy.rest()).endswith(b"POST / ab")


async def test_a_head_that_drips_is_refused_at_its_deadline() -> None:
    async with house() as lane, connected(lane) as client:
        client.send(b"GET / HT")
        async with asyncio.timeout(DEADLINE_SECONDS):
            while all(one._head_whole for one in lane.lane.connections):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.001)
        for connection in lane.lane.connections:
            connection.sweep(asyncio.get_running_loop().time() + REQUEST_HEAD_SECONDS_MAX + 1)
        assert (await client.rest()).startswith(b"HTTP/1.1 408")


async def test_one_address_gets_only_so_many_connections() -> None:
    async with house() as lane:
        lane.lane._per_address_max = 1
        async with connected(lane) as first:
            first.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await first.until(b"GET / ")
            async with connected(lane) as second:
                second.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await second.until(b"GET / ")


def test_the_body_budget_gives_nobody_all_of_it() -> None:
    budget = BodyBudget(bytes_max=100, share_max=0.5)
    budget.take(50, ("org:a",))
    with pytest.raises(BodyBudgetSpent):
        budget.take(1, ("org:a",))
    budget.take(50, ("org:b",))
    with pytest.raises(BodyBudgetSpent):
        budget.take(1, ("org:c",))
    budget.give_back(50, ("org:a",))
    budget.take(20, ("org:a",))
    assert budget.held_bytes == 70


def test_loopback_is_known_in_every_form() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("10.0.0.1")
    assert not is_loopback("::ffff:10.0.0.1")


def test_an_upgrade_has_its_own_status() -> None:
    assert UpgradeRefused.status == 426


H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
BODIES = [
    b"Content-Length: 6\r\n\r\nabcdef",
    b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("body", BODIES, ids=["length", "chunks"])
@pytest.mark.parametrize("offer", [H2C, H2C.replace(b"h2c", b"TLS/1.0, foo/2")])
async def test_an_offer_of_another_protocol_is_ignored(offer: bytes, body: bytes) -> None:
    request = b"POST /a?b=c HTTP/1.1\r\n" + HOST + offer + body
    last = b"GET /last HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
    for cut in range(1, len(request)):
        async with house() as lane, connected(lane) as client:
            client.send(request[:cut])
            await asyncio.sleep(0)
            client.send(request[cut:] + request + last)
            await client.rest()
        assert lane.seen == [(b"POST", "/a", b"b=c", b"abcdef")] * 2 + [(b"GET", "/last", b"", b"")]
        assert all(name != b"upgrade" for one in lane.exchanges for name, _ in one.headers)
        assert not lane.defects


async def test_offers_of_another_protocol_are_bounded_as_other_requests() -> None:
    ahead = (b"GET / HTTP/1.1\r\n" + HOST + H2C + b"\r\n") * (PIPELINED_REQUESTS_MAX + 5)
    answer, lane = await answers(ahead)
    assert answer.count(b"200 OK") == len(lane.seen) == PIPELINED_REQUESTS_MAX
    assert answer.count(b"HTTP/1.1 400") == 1


async def test_a_request_line_is_looked_at_however_it_is_cut() -> None:
    request = b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n"
    for cut in range(1, len(request)):
        async with house() as lane, connected(lane) as client:
            client.send(request[:cut])
            await asyncio.sleep(0.001)
            client.send(request[cut:])
            assert (await client.rest()).startswith(b"HTTP/1.1 400")
        assert lane.seen == []


CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "framing",
    [
        b"1;e=" + b"x" * 64 * 1024 + b"\r\na\r\n0\r\n\r\n",
        b"1;e=" + b"x" * 10_000_000,
        b"1\r\na\r\n0\r\nX: " + b"x" * 10_000_000,
        b"1\r\na\r\n0\r\n" + b"a:b\r\n" * 10_000 + b"\r\n",
        b"1\r\na\r\n0\r\n" + b"a:b\r\n" * 65 + b"\r\n",
    ],
    ids=["extension", "endless extension", "endless trailer", "10,000 trailers", "65 trailers"],
)
async def test_framing_without_a_bound_is_refused(framing: bytes) -> None:
    answer, lane = await answers(CHUNKED + framing)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
    assert lane.seen == []


async def test_a_million_chunks_of_one_byte_are_a_body() -> None:
    request = CHUNKED.replace(b"\r\n\r\n", b"\r\n" + CLOSE + b"\r\n", 1)
    answer, lane = await answers(request + b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert [len(body) for _, _, _, body in lane.seen] == [100_000]


async def test_only_the_names_that_the_gateway_has_are_served() -> None:
    async with house() as lane:
        lane.lane.hosts = frozenset({b"ai.example", b"10.0.0.1:8080"})
        for host, status in [
            (b"ai.example", b"200"),
            (b"AI.Example:8443", b"200"),
            (b"10.0.0.1:8080", b"200"),
            (b"10.0.0.1", b"421"),
            (b"10.0.0.1:80", b"421"),
            (b"other.example", b"421"),
        ]:
            async with connected(lane) as client:
                client.send(b"GET / HTTP/1.1\r\n" + CLOSE + b"Host: " + host + b"\r\n\r\n")
                assert (await client.rest()).startswith(b"HTTP/1.1 " + status), host
        async with connected(lane) as client:
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            assert (await client.rest()).startswith(b"HTTP/1.1 421")


async def test_a_defect_behind_the_parser_is_told_and_no_fault_of_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with house() as lane, connected(lane) as client:
        failure = RuntimeError("of a test")

        def fails(**about: object) -> None:
            monkeypatch.undo()
            raise failure

        monkeypatch.setattr("gateway.proxy.client_connection.check_head", fails)
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not lane.defects:  # noqa: ASYNC110 - a list tells nobody
                await asyncio.sleep(0.001)
        assert lane.defects == [failure]


# --------------------------------------------------------------------------- how connections end


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"POST  / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", b"400"),
        (CHUNKED + b"zz\r\n", b"400"),
    ],
    ids=["too large", "bad head", "bad chunk"],
)
async def test_a_client_that_goes_on_sending_gets_its_refusal(head: bytes, status: bytes) -> None:
    """It reads only when it has sent all: nothing may have reset its connection until then."""
    async with house() as lane:
        reader, writer = await asyncio.open_connection("127.0.0.1", lane.port)
        writer.write(head)
        for _ in range(40):
            writer.write(bytes(1024 * 1024))
            async with asyncio.timeout(DEADLINE_SECONDS):
                await writer.drain()
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert (await reader.read()).startswith(b"HTTP/1.1 " + status)
        writer.transport.abort()


async def refused_and_open(lane: House, client: Client) -> ClientConnection:
    """Return a connection whose refusal was read, and which the client keeps open."""
    client.send(b"GET  / HTTP/1.1\r\n\r\n")
    assert (await client.rest()).startswith(b"HTTP/1.1 400")
    [connection] = lane.lane.connections
    return connection


async def gone(lane: House) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while lane.lane.connections:  # noqa: ASYNC110 - the last one says nothing
            await asyncio.sleep(0.001)


async def test_a_refused_client_that_falls_silent_is_not_waited_for() -> None:
    async with house() as lane, connected(lane) as client:
        connection = await refused_and_open(lane, client)
        now = asyncio.get_running_loop().time()
        connection.sweep(now + LINGER_IDLE_SECONDS_MAX - 1)
        assert lane.lane.connections
        connection.sweep(now + LINGER_IDLE_SECONDS_MAX + 1)
        await gone(lane)


async def test_a_refused_client_may_not_send_for_ever() -> None:
    async with house() as lane, connected(lane) as client:
        connection = await refused_and_open(lane, client)
        connection._since = (
            asyncio.get_running_loop().time() + LINGER_SECONDS_MAX + 1
        )  # it has sent
        connection.sweep(connection._since)
        await gone(lane)


def large_answer(exchange: Exchange) -> None:
    exchange.begin(200, b"OK", [], length=16_000_000, no_body=False)
    exchange.send(bytes(16_000_000))
    exchange.flush()


async def behind(lane: House, client: Client) -> ClientConnection:
    """Return a connection of which more waits for the client than may."""
    lane.answer = large_answer
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not any(one.is_behind for one in lane.lane.connections):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.001)
    [connection] = lane.lane.connections
    return connection


async def test_a_client_that_takes_nothing_is_cut() -> None:
    async with house() as lane, connected(lane) as client:
        connection = await behind(lane, client)
        await asyncio.sleep(0.05)  # for the kernel to take what it takes
        now = asyncio.get_running_loop().time()
        connection.sweep(now)
        connection.sweep(now + CLIENT_STALL_SECONDS_MAX - 1)
        assert not connection._transport.is_closing()  # type: ignore[union-attr]
        connection.sweep(now + CLIENT_STALL_SECONDS_MAX + 1)
        await gone(lane)


async def test_a_client_that_takes_slowly_but_steadily_is_not_cut() -> None:
    async with house() as lane:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)  # so that it tells each step
        slow.connect(("127.0.0.1", lane.port))
        reader, writer = await asyncio.open_connection(sock=slow, limit=2**14)
        connection = await behind(lane, Client(reader, writer))
        now = asyncio.get_running_loop().time()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        took = 0
        for _ in range(40):
            async with asyncio.timeout(DEADLINE_SECONDS):
                took += len(await reader.readexactly(200_000))
            await asyncio.sleep(0.002)
            now += CLIENT_STALL_SECONDS_MAX - 1
            connection.sweep(now)
        assert took == 8_000_000
        assert connection.is_behind
        assert connection in lane.lane.connections
        writer.transport.abort()
