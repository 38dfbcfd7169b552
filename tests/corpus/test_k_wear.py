"""Group K: clients and vendors that wear the gateway out. The journeys have all of them at once."""

import asyncio
import contextlib
import gzip
import time
import zlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import brotli
import psutil
import pytest
import zstandard

from gateway.auth.authenticate import token_candidates
from gateway.auth.token import is_well_formed
from gateway.connect_guard import BaseUrlInvalid, check_base_url
from gateway.errors import GatewayError
from gateway.limits import (
    CLIENT_STALL_SECONDS_MAX,
    CONNECTIONS_PER_ADDRESS_MAX,
    CONNECTIONS_PER_WORKER_MAX,
    REQUEST_BODY_BYTES_MAX,
    REQUEST_HEAD_SECONDS_MAX,
)
from gateway.proxy.client_connection import BODY_GRACE_SECONDS
from gateway.proxy.endpoints import find
from gateway.proxy.live_calls import LiveCalls
from tests.corpus.attacks import (
    BODY,
    CHUNKED,
    JSON,
    LENGTH,
    Case,
    answers_well,
    ask_all,
    post,
    say,
    statuses,
)
from tests.corpus.conftest import Outcomes
from tests.corpus.real_tokens import know_tokens
from tests.gateway.proxy.rig import DEADLINE_SECONDS, TOKEN, RawClient, Rig, Script
from tests.gateway.proxy.test_calls import EVENTS_HEAD, chunk, hangs

MEGABYTE: Final = 1_000_000
LOOP_SECONDS_MAX: Final = 0.1  # that one odd body may hold everybody else up
STREAM: Final = b'{"model":"gpt-4o","stream":true,"messages":[]}'


def streaming(*lines: bytes) -> bytes:
    return post(b"Content-Length: %d\r\n" % len(STREAM), *lines, body=STREAM)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0.001)


def sweep_after(rig: Rig, seconds: float) -> None:
    """Have the deadlines of connections looked at as if so much time had gone by."""
    now = asyncio.get_running_loop().time() + seconds
    for connection in list(rig.lane.connections):
        connection.sweep(now)


async def dripping_heads(rig: Rig) -> str:
    clients = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(50)]
    for _, writer in clients:
        writer.write(b"POST /v1/chat")
    await until(lambda: sum(not one._head_whole for one in rig.lane.connections) == len(clients))
    sweep_after(rig, REQUEST_HEAD_SECONDS_MAX + 0.1)
    got = [statuses(await reader.read()) for reader, _ in clients]
    for _, writer in clients:
        writer.transport.abort()
    assert got == [[408]] * len(clients)
    return f"408, closed after {REQUEST_HEAD_SECONDS_MAX:.0f} s"


async def dripping_bodies(rig: Rig) -> str:
    async with rig.client() as client:
        client.send(post(LENGTH, body=BODY[:5]))
        await until(lambda: any(one._reading for one in rig.lane.connections))
        sweep_after(rig, BODY_GRACE_SECONDS - 1)
        client.send(BODY[5:6])
        await asyncio.sleep(0.01)
        sweep_after(rig, BODY_GRACE_SECONDS + 1)
        got = statuses(await client.until(b"\r\n\r\n"))
    assert rig.lane.budget.held_bytes == 0
    return f"{got[0]} after {BODY_GRACE_SECONDS:.0f} s, closed"


async def endless_events(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(EVENTS_HEAD)
    piece = chunk(b"data: " + b"x" * 60_000 + b"\n\n")
    while True:
        writer.write(piece)
        await writer.drain()


async def silent_reader(rig: Rig) -> str:
    rig.vendor.script = endless_events
    async with rig.client() as client:
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        client.send(streaming())
        await until(lambda: any(one.is_behind for one in rig.lane.connections))
        await asyncio.sleep(0.05)
        assert rig.lane.unsent_bytes() < 512 * 1024
        sweep_after(rig, 0)
        sweep_after(rig, CLIENT_STALL_SECONDS_MAX + 1)
        row = await rig.lines.row()
    assert row["status"] == "client_closed"
    await asyncio.wait_for(rig.vendor.closed.wait(), DEADLINE_SECONDS)
    return f"bounded, cut after {CLIENT_STALL_SECONDS_MAX:.0f} s"


async def idle_connections(rig: Rig) -> str:
    rig.lane._connections_max = 40
    clients = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(60)]
    await until(lambda: len(rig.lane.connections) == 40)
    cut = 0
    for reader, writer in clients[40:]:
        try:
            cut += not await asyncio.wait_for(reader.read(), DEADLINE_SECONDS)
        except ConnectionError:
            cut += 1
        writer.transport.abort()
    clients[0][1].write(post(b"Connection: close\r\n", body=b"", line=b"GET /v1/models HTTP/1.1"))
    assert statuses(await clients[0][0].read()) == [200]
    for _, writer in clients:
        writer.transport.abort()
    assert cut == 20
    return f"{CONNECTIONS_PER_WORKER_MAX} a worker, {CONNECTIONS_PER_ADDRESS_MAX} an address"


async def large_heads(rig: Rig) -> str:
    heads = {
        post(b"X: " + b"a" * MEGABYTE + b"\r\n"): 431,
        post(*(b"X%d: a\r\n" % at for at in range(101))): 431,
        post(line=b"POST /" + b"a" * 8_200 + b" HTTP/1.1"): 414,
        post(line=b"POST /v1/chat/completions?" + b"a" * MEGABYTE + b" HTTP/1.1"): 414,
    }
    for head, status in heads.items():
        assert statuses(await say(rig, head)) == [status]
    return "431, 414"


async def took(work: Callable[[], Awaitable[object]]) -> float:
    """Return the longest time for which the loop stood still meanwhile."""
    longest = 0.0
    over = asyncio.Event()

    async def watch() -> None:
        nonlocal longest
        while not over.is_set():
            began = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - began)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        await work()
        over.set()
    return longest


async def odd_bodies(rig: Rig) -> str:
    rig.vendor.script = answers_well
    said = post(b"Content-Length: %d\r\n" % (REQUEST_BODY_BYTES_MAX + 1), body=b"")
    assert await ask_all(rig, [said]) == [(413, "body_too_large")]
    rest = b',"model":"gpt-4o"}'
    bodies = {
        b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + rest: {400},
        b'{"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + rest: {400},
        b"{" + b",".join(b'"k%d":1' % at for at in range(10**6)) + rest: {400},
        b'{"x":1e400' + rest: {200, 400},  # a number that the vendor may judge
        b'{"x":"\\ud800"' + rest: {200},  # as JavaScript cuts an emoji; passed on as it came
        b'{"x":' + b"9" * 10_000 + rest: {200, 400},
        b'{"model":"\\ud800"}': {200, 400},  # a model that no vendor has
        b'{"model":"gpt-4o\xff"}': {400},
    }
    for body, allowed in bodies.items():
        found: list[tuple[int, str | None]] = []

        async def ask(body: bytes = body, found: "list[tuple[int, str | None]]" = found) -> None:
            found += await ask_all(rig, [post(b"Content-Length: %d\r\n" % len(body), body=body)])

        longest = await took(ask)
        assert found[0][0] in allowed, (body[:60], found)
        assert longest < 5 * LOOP_SECONDS_MAX, (body[:60], longest)  # a busy machine takes longer
    assert all(body in bodies for body in rig.vendor.bodies)
    assert rig.lane.budget.held_bytes == 0
    return "413, 400"


async def bombs(rig: Rig) -> str:
    rig.vendor.script = answers_well
    zeros = b" " * (200 * MEGABYTE)
    packed = {
        b"gzip": gzip.compress(zeros, 9),
        b"deflate": zlib.compress(zeros, 9),
        b"br": brotli.compress(zeros, quality=5),
        b"zstd": zstandard.compress(zeros, 9),
    }
    del zeros
    process = psutil.Process()
    before = process.memory_info().rss
    for coding, bomb in packed.items():
        head = b"Content-Encoding: %b\r\nContent-Length: %d\r\n" % (coding, len(bomb))
        assert await ask_all(rig, [post(head, body=bomb)]) == [(413, "body_too_large")]
    assert process.memory_info().rss - before < 2 * REQUEST_BODY_BYTES_MAX
    assert rig.vendor.heads == []
    for coding, bomb in packed.items():
        answer = (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: %b\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (coding, len(bomb), bomb)
        )

        async def script(
            head: bytes, body: bytes, writer: asyncio.StreamWriter, answer: bytes = answer
        ) -> None:
            writer.write(answer)

        rig.vendor.script = script
        before = process.memory_info().rss
        accepts = b"Accept-Encoding: gzip, deflate, br, zstd\r\n"
        async with rig.client() as client:
            client.send(post(accepts, LENGTH))
            got = await client.answer()
        assert (got.body, got.clean) == (bomb, True), "an answer passes as it came"
        assert process.memory_info().rss - before < 32 * MEGABYTE
        row = await rig.lines.row()
        assert row["output_tokens"] is None
    return "up 413 within its bound; down passed as it came, its copy bounded"


async def one_byte_chunks(rig: Rig) -> str:
    rig.vendor.script = answers_well
    times = []
    for count in (50_000, 200_000):
        body = b'{"model":"gpt-4o","x":"' + b"a" * count + b'"}'
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        began = time.process_time()
        assert await ask_all(rig, [post(CHUNKED, body=chunks)]) == [(200, None)]
        times.append(time.process_time() - began)
        assert rig.vendor.bodies[-1] == body
    assert times[1] < 12 * times[0], times  # four times the work, on a busy machine
    return "served, in time that grows as they do"


async def multipart(rig: Rig) -> str:
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\ngpt-4o\r\n--x--\r\n'
    length = b"Content-Length: %d\r\n" % len(form)
    raw = post(length, body=form).replace(
        JSON, b"Content-Type: multipart/form-data; boundary=x\r\n"
    )
    found = await ask_all(rig, [raw, raw.replace(b"multipart/", b"MULTIPART/")])
    assert found == [(415, "body_invalid")] * 2
    assert rig.vendor.heads == []
    return "415"


def event(usage: str) -> bytes:
    return b'data: {"choices":[],"usage":%b}\n\n' % usage.encode()


def stream_of(*events: bytes, end: bytes = b"data: [DONE]\n\n") -> Script:
    async def script(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        whole = b"".join(chunk(one) for one in (*events, end) if one)
        writer.write(EVENTS_HEAD + whole + b"0\r\n\r\n")

    return script


def breaks_after(raw: bytes) -> Script:
    async def script(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        writer.write_eof()

    return script


async def hostile_vendor(rig: Rig) -> str:
    """What the vendor says of usage never makes a row that lies, whatever else it does."""
    good = '{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}'
    words = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
    bad_numbers = ["NaN", "-5", str(2**63), str(10**400), "1e308", '"7"', "null", "[]", "{}", "1.5"]
    told = [
        stream_of(words, event(f'{{"prompt_tokens":{one},"completion_tokens":{one}}}'))
        for one in bad_numbers
    ]
    told += [
        stream_of(words, event(good), event(good)),
        stream_of(words),
        stream_of(words, event(good), end=b"data: [DONE]\n\n" + event(good)),
        stream_of(words, event(good), end=b""),
    ]
    for script in told:
        rig.vendor.script = script
        async with rig.client() as client:
            client.send(streaming())
            answer = await client.answer()
        assert answer.status == 200
        row = await rig.lines.row()
        for name, value in row.items():
            if name.endswith("_tokens") and value is not None:
                assert 0 <= value < 2**63, (name, value)
    broken = [
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X%d: a\r\n" % at for at in range(10**5)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early\r\n\r\n" * 1_000,
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * MEGABYTE,
        b"\x16\x03\x01",
        b"",
    ]
    for raw in broken:
        rig.vendor.script = breaks_after(raw)
        async with rig.client() as client:
            client.send(streaming())
            answer = await client.answer()
        assert (answer.status, answer.headers["x-kaixu-reason"]) == (502, "vendor_unreachable")
        assert (await rig.lines.row())["status"] == "vendor_broke"
    rig.vendor.script = breaks_after(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
    async with rig.client() as client:
        client.send(post(LENGTH))
        assert not (await client.answer()).clean
    row = await rig.lines.row()
    assert (row["status"], row["output_tokens"]) == ("vendor_broke", None)
    await bounded(rig, b"x" * 65_536)
    await bounded(rig, b": nothing\n\n" * 5_000)
    return "502 or cut, memory bounded, rows sane"


async def bounded(rig: Rig, piece: bytes) -> None:
    """Check that a stream of this and nothing else fills no memory."""

    async def endless(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS_HEAD + chunk(b"data: "))
        framed = chunk(piece)
        while True:
            writer.write(framed)
            await writer.drain()
            await asyncio.sleep(0)

    rig.vendor.script = endless
    process = psutil.Process()
    async with rig.client() as client:
        client.send(streaming())
        before = process.memory_info().rss
        for _ in range(80):
            await client.reader.readexactly(250_000)
        assert process.memory_info().rss - before < 16 * MEGABYTE
        client.leave()
        row = await rig.lines.row()
    assert (row["status"], row["output_tokens"]) == ("client_closed", None)


async def long_texts(rig: Rig) -> str:
    """Patterns that see what comes from outside, on what makes patterns search."""
    for text in ("a" * 100_000, "a." * 50_000, "%" * 100_000, "/a" * 50_000, "-" * 99_999 + "!"):
        raw = text.encode()
        looks: list[Callable[[], object]] = [
            partial(find, "/" + text, method=b"POST", headers=[]),
            partial(is_well_formed, b"kxg_" + raw),
            partial(token_candidates, [(b"authorization", raw)], b"key=" + raw),
            partial(check_base_url, f"https://{text}", allow_private=False),
        ]
        for look in looks:
            began = time.perf_counter()
            with contextlib.suppress(GatewayError, BaseUrlInvalid):  # refused is as well as not
                look()
            assert time.perf_counter() - began < 0.05, look  # 10 ms and a busy machine
        answer = await say(rig, post(b"Host2: " + raw + b"\r\n"))
        assert statuses(answer) == [431]
    return "no pattern searches for long"


async def greedy_tenant(rig: Rig) -> str:
    tokens = know_tokens(rig, limits=())
    rig.calls._live = rig.live = LiveCalls(on_cut_failed=rig.defects.append, calls_per_org_max=5)
    rig.vendor.script = hangs
    clients: list[RawClient] = []
    async with asyncio.TaskGroup() as tasks:
        over = asyncio.Event()

        async def hold() -> None:
            async with rig.client() as client:
                client.send(streaming().replace(TOKEN.encode(), tokens.token))
                await client.until(b"{}}]}\n\n\r\n")
                clients.append(client)
                await over.wait()

        for _ in range(5):
            tasks.create_task(hold())
        await until(lambda: len(clients) == 5)
        async with rig.client() as client:
            client.send(streaming().replace(TOKEN.encode(), tokens.token))
            refused = await client.answer()
        assert (refused.status, refused.headers["x-kaixu-reason"]) == (429, "concurrency")
        assert (refused.headers["x-kaixu-limit"], refused.headers["retry-after"]) == ("5", "1")
        rig.vendor.script = answers_well
        other = post(LENGTH).replace(TOKEN.encode(), tokens.other)
        assert await ask_all(rig, [other]) == [(200, None)]
        over.set()
    await until(lambda: not rig.live.count)
    own = post(LENGTH).replace(TOKEN.encode(), tokens.token)
    assert await ask_all(rig, [own]) == [(200, None)]
    return "429 beyond its own bound; others are served"


CASES: Final = [
    Case(number=100, expected="408, closed after 10 s", attempt=dripping_heads),
    Case(number=101, expected="408 after 10 s, closed", attempt=dripping_bodies),
    Case(number=102, expected="bounded, cut after 60 s", attempt=silent_reader),
    Case(number=103, expected="16384 a worker, 1024 an address", attempt=idle_connections),
    Case(number=104, expected="431, 414", attempt=large_heads),
    Case(number=105, expected="413, 400", attempt=odd_bodies),
    Case(
        number=106,
        expected="up 413 within its bound; down passed as it came, its copy bounded",
        attempt=bombs,
    ),
    Case(number=107, expected="served, in time that grows as they do", attempt=one_byte_chunks),
    Case(number=109, expected="415", attempt=multipart),
    Case(number=110, expected="502 or cut, memory bounded, rows sane", attempt=hostile_vendor),
    Case(number=111, expected="no pattern searches for long", attempt=long_texts),
    Case(
        number=112,
        expected="429 beyond its own bound; others are served",
        attempt=greedy_tenant,
    ),
]
ALONE: Final[set[int]] = set()


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_group_k(case: Case, rig: Rig, outcomes: Outcomes) -> None:
    outcomes[case.number] = outcome = await case.attempt(rig)
    assert outcome == case.expected
