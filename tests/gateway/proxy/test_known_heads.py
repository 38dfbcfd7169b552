"""Whatever bytes come: a lane that remembers heads takes them as one that parses them all does."""

import asyncio
import gc
from collections.abc import Sequence
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.token import generate
from gateway.errors import GatewayError, NoRoute, TokenInvalid
from gateway.limits import REQUEST_BODY_BYTES_MAX
from gateway.proxy.call_plan import CallPlan, plan_of
from gateway.proxy.cloud_paths import find
from gateway.proxy.exchange import Exchange
from gateway.proxy.known_heads import KNOWN_HEAD_BYTES_MAX, KnownHead, KnownHeads
from gateway.proxy.lane import Lane
from tests.gateway.proxy.rig import TOKEN, open_rig
from tests.gateway.proxy.test_calls import answers_ok

SECRETS = (b"authorization", b"x-api-key", b"cookie", b"proxy-authorization")


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.ended = False

    def get_extra_info(self, _: str) -> tuple[str, int]:
        return "127.0.0.1", 1

    def set_write_buffer_limits(self, **_: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.ended

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def write(self, data: bytes) -> None:
        self.written += data

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True


class Desk:
    """A lane, and all that it understood of what it was sent."""

    def __init__(self, *, remembers: bool) -> None:
        self.remembers = remembers
        self.seen: list[object] = []
        self.errors: list[int] = []
        self.lane = Lane(self.handle, self.refuse, loop=asyncio.get_running_loop())

    async def handle(self, exchange: Exchange) -> None:
        told = exchange.method, exchange.path, exchange.query, list(exchange.headers)
        if self.remembers:
            try:
                match = find(exchange.path, method=exchange.method, headers=exchange.headers)
            except GatewayError:
                pass
            else:
                exchange.remember_head(plan_of(match, exchange.headers, exchange.query))
        try:
            body = await exchange.read_body(org_id="org")
        except GatewayError as error:
            self.refuse(exchange, error)
            return
        kept = exchange.keep_alive, exchange.expects_continue, exchange.is_http10
        self.seen.append((told, kept, exchange.body_whole, body))
        exchange.respond(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    def refuse(self, exchange: Exchange, error: GatewayError) -> None:
        self.errors.append(error.status)
        exchange.respond(b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % error.status)

    async def take(self, reads: Sequence[bytes]) -> tuple[object, ...]:
        """Return what it understood of reads on one connection."""
        transport = Transport()
        connection = self.lane.protocol()
        connection.connection_made(cast("asyncio.Transport", transport))
        self.seen, self.errors = [], []
        for read in reads:
            if not transport.ended:
                connection.data_received(read)
                for _ in range(3):
                    await asyncio.sleep(0)  # what was sent ahead begins in the loop's next round
        connection.connection_lost(None)
        return self.seen, self.errors, transport.written, transport.ended


def head(*lines: bytes, length: bytes = b"2") -> bytes:
    first = b"POST /v1/chat/completions HTTP/1.1"
    return b"\r\n".join((first, b"Host: gateway", *lines, b"Content-Length: " + length, b"", b""))


PLAIN = head(b"Authorization: Bearer " + TOKEN.encode(), b"Content-Type: application/json")

names = st.sampled_from(
    [b"Authorization", b"x-api-key", b"Cookie", b"Content-Type", b"content-length", b"Accept",
     b"X-Length", b"Expect", b"Connection", b"Transfer-Encoding", b"Upgrade", b"X-Session-Id"]
)  # fmt: skip
values = st.sampled_from(
    [b"Bearer " + TOKEN.encode(), b"Bearer x", b"application/json", b"2", b"02", b"+2", b"", b" 2 ",
     b"100-continue", b"close", b"keep-alive", b"chunked", b"websocket", b"length: 2"]
)  # fmt: skip
heads = st.builds(
    lambda lines, length: head(*lines, length=length),
    st.lists(st.builds(lambda n, s, v: n + s + v, names, st.sampled_from([b": ", b":"]), values),
             max_size=4),
    st.sampled_from([b"2", b"2", b"2", b"0", b"02", b"2 ", b"2, 2", b"-2", b"1e1", b"3"]),
)  # fmt: skip


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Return reads: a few requests whose heads come again, some of them damaged, cut anywhere."""
    few = draw(st.lists(heads | st.just(PLAIN), min_size=1, max_size=2))
    requests = [draw(st.sampled_from(few)) + b"{}" for _ in range(draw(st.integers(2, 4)))]
    if draw(st.booleans()):
        at = draw(st.integers(0, len(requests) - 1))
        one = bytearray(requests[at])
        place = draw(st.integers(0, len(one) - 1))
        one[place : place + draw(st.integers(0, 2))] = draw(
            st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b"\0", b"0", b"a", b"\r\n\r\n"])
        )
        requests[at] = bytes(one)
    if draw(st.booleans()):
        return requests
    text = b"".join(requests)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    reads = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [read for read in reads if read]


@given(streams())
async def test_what_is_remembered_changes_nothing(reads: list[bytes]) -> None:
    parsing, remembering = Desk(remembers=False), Desk(remembers=True)
    for _ in range(2):
        assert await remembering.take(reads) == await parsing.take(reads)


async def test_a_head_that_comes_again_is_known() -> None:
    desk, other = Desk(remembers=True), Desk(remembers=False)
    for body in (b"{}", b'{"a":1}', b"x" * 4_000):
        request = PLAIN.replace(b": 2\r", b": %d\r" % len(body)) + body
        assert await desk.take([request]) == await other.take([request])
    assert len(desk.lane.known_heads) == 1
    assert len(other.lane.known_heads) == 0


async def test_a_body_behind_a_known_head_may_come_in_pieces() -> None:
    desk, body = Desk(remembers=True), b"x" * 70_000
    request = PLAIN.replace(b": 2\r", b": 70000\r") + body
    await desk.take([request])
    reads = [request[at : at + 7_001] for at in range(0, len(request), 7_001)]
    reads[-1] += request  # and what is sent ahead
    seen, *_ = await desk.take(reads)
    assert [one[-1] for one in cast("list[tuple[bytes, ...]]", seen)] == [body, body]
    assert len(desk.lane.known_heads) == 1


@pytest.mark.parametrize(
    "unfit",
    [
        PLAIN.replace(b": 2\r", b": 02\r"),
        PLAIN.replace(b": 2\r", b": 2 \r"),
        PLAIN.replace(b"Content-Length: 2", b"Content-Length:2"),
        PLAIN.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked"),
        PLAIN.replace(b"Content-Length: 2\r\n", b""),
        PLAIN.replace(b"Host", b"X-Length: 3\r\nHost"),
        PLAIN.replace(b"Host", b"X: %b\r\nHost" % (b"x" * KNOWN_HEAD_BYTES_MAX)),
        PLAIN[:-2],
        b"ength: 2\r\n\r\n",
        b"",
    ],
)
def test_a_head_that_is_not_as_clients_write_it_is_the_parsers(unfit: bytes) -> None:
    assert KnownHeads().find(unfit + b"{}") is None


def test_two_heads_that_differ_in_a_byte_have_two_digests() -> None:
    found = [
        KnownHeads().find(one)
        for one in (PLAIN, PLAIN.replace(b"json", b"jsOn"), PLAIN.replace(b"POST", b"PUT "))
    ]
    assert len({one.digest for one in found if one}) == len(found)


async def test_a_longer_body_than_may_be_is_refused_behind_a_known_head_too() -> None:
    desk = Desk(remembers=True)
    await desk.take([PLAIN + b"{}"])
    _, errors, *_ = await desk.take(
        [PLAIN.replace(b": 2\r", b": %d\r" % (REQUEST_BODY_BYTES_MAX + 1)), b"{}"]
    )
    assert errors == [413]


@pytest.mark.parametrize(
    "line", [b"Expect: 100-continue", b"Connection: close", b"Connection: Upgrade\r\nUpgrade: h2c"]
)
async def test_a_head_that_asks_for_more_than_an_answer_is_parsed_every_time(line: bytes) -> None:
    desk, other = Desk(remembers=True), Desk(remembers=False)
    for _ in range(2):
        reads = [head(line), b"{}"]
        assert await desk.take(reads) == await other.take(reads)
    assert len(desk.lane.known_heads) == 0


async def test_the_oldest_heads_go_where_they_take_too_much() -> None:
    desk = Desk(remembers=True)
    desk.lane.known_heads = KnownHeads(bytes_max=10_000)
    heads = [head(b"X-Number: %d" % number) for number in range(50)]
    for one in heads:
        await desk.take([one + b"{}"])
    few = len(desk.lane.known_heads)
    assert 5 < few < 20
    known = [(found := desk.lane.known_heads.find(one)) and found.known for one in heads]
    assert [one is not None for one in known] == [False] * (50 - few) + [True] * few
    await desk.take([head(b"X-Long: " + b"x" * 3_000) + b"{}"])
    assert len(desk.lane.known_heads) < few, "a long one takes the place of several"


async def test_a_head_that_two_requests_bring_at_once_is_counted_once() -> None:
    desk = Desk(remembers=True)
    desk.lane.known_heads = KnownHeads(bytes_max=3_000)
    reads = [PLAIN + b"{}", head(b"X: y") + b"{}"]
    for read in reads:
        await desk.take([read])
    assert len(desk.lane.known_heads) == 2
    found = desk.lane.known_heads.find(reads[0])
    assert found is not None
    assert found.known is not None
    for _ in range(9):
        desk.lane.known_heads.remember(found.digest, found.known)
    assert len(desk.lane.known_heads) == 2


async def test_a_head_with_a_secret_in_its_query_is_not_remembered() -> None:
    desk = Desk(remembers=True)
    for query in (b"?key=" + TOKEN.encode(), b"?alt=sse"):
        await desk.take([PLAIN.replace(b" HTTP", query + b" HTTP") + b"{}"])
    assert len(desk.lane.known_heads) == 1


async def test_no_secret_of_a_head_is_remembered() -> None:
    desk, secret = Desk(remembers=True), generate().encode()
    lines = [name + b": Bearer " + secret for name in SECRETS]
    await desk.take([head(*lines) + b"{}"])
    assert len(desk.lane.known_heads) == 1
    reached: list[object] = [desk.lane.known_heads]
    for one in reached:  # grows meanwhile
        if isinstance(one, KnownHeads | KnownHead | CallPlan | list | tuple | dict):
            reached += gc.get_referents(one)
    texts = [one for one in reached if isinstance(one, bytes)]
    assert b"gateway" in texts, "the walk reached no header"
    assert not any(secret in text for text in texts)


async def test_heads_of_strangers_are_not_remembered() -> None:
    async with open_rig() as rig:
        body = {"model": "gpt-5", "messages": []}
        refused = await rig.ask("/v1/chat/completions", body, token=generate())
        assert refused.status == TokenInvalid.status
        assert (await rig.ask("/v1/nowhere", body)).status == NoRoute.status
        assert len(rig.lane.known_heads) == 0


async def test_a_known_head_opens_nothing_once_its_token_is_refused() -> None:
    async with open_rig() as rig:
        rig.vendor.script = answers_ok
        body = {"model": "gpt-5", "messages": []}
        for _ in range(2):
            assert (await rig.ask("/v1/chat/completions", body)).status == 200
        assert len(rig.lane.known_heads) == 1
        rig.authenticated.known = False
        assert (await rig.ask("/v1/chat/completions", body)).status == TokenInvalid.status
        rig.authenticated.known = True
        rig.lease = False
        assert (await rig.ask("/v1/chat/completions", body)).status == 503
        assert len(rig.lines.rows) == 2
