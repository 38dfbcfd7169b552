"""Group A: requests that two servers might read differently."""

import asyncio
from typing import Final

import psutil
import pytest

from gateway.limits import PIPELINED_REQUESTS_MAX, REQUEST_LINE_BYTES_MAX
from tests.corpus.attacks import (
    AUTH,
    BODY,
    CHUNKED,
    CHUNKS,
    HOST,
    LENGTH,
    Case,
    answers_well,
    ask_all,
    post,
    refused,
    say,
    statuses,
)
from tests.corpus.conftest import Outcomes
from tests.corpus.real_tokens import know_tokens
from tests.gateway.proxy.rig import TOKEN, Rig

GET: Final = b"GET /v1/models HTTP/1.1\r\n"
MEGABYTE: Final = 1_000_000


def coding(value: bytes) -> bytes:
    return b"Transfer-Encoding: " + value + b"\r\n"


def length(value: bytes) -> bytes:
    return b"Content-Length: " + value + b"\r\n"


def chunk(size: bytes, end: bytes = b"\r\n") -> bytes:
    return post(CHUNKED, body=size + end + BODY + b"\r\n0\r\n\r\n")


SIZE: Final = b"%x" % len(BODY)


async def trailers(rig: Rig) -> str:
    rig.vendor.script = answers_well
    framing = await refused(
        *(post(CHUNKED, body=CHUNKS[:-2] + line + b"\r\n") for line in (length(b"3"), CHUNKED))
    )(rig)
    body = CHUNKS[:-2] + b"Authorization: Bearer other\r\nHost: b\r\n\r\n"
    got = await say(
        rig, post(CHUNKED, body=body) + GET + HOST + AUTH + b"Connection: close\r\n\r\n"
    )
    assert statuses(got) == [200, 200]
    assert rig.vendor.bodies == [BODY]
    assert b"Bearer other" not in rig.vendor.heads[0]
    process = psutil.Process()
    many = post(CHUNKED, body=CHUNKS[:-2] + b"".join(b"X%d: y\r\n" % at for at in range(10_000)))
    await say(rig, many + b"\r\n")  # so that the test's own buffers are there already
    before = process.memory_info().rss
    got = await say(rig, many + b"\r\n")
    assert process.memory_info().rss - before < MEGABYTE
    return f"dropped; of framing {framing}; ten thousand {statuses(got)[0]}"


async def hosts(rig: Rig) -> str:
    bad = [b"a/health?x=", b"a#", b"u@a", b"a:99999", b"a b", b"[::1", b"", b"a,b", b"a\x80"]
    lines = [b"", HOST * 2, *(b"Host: " + host + b"\r\n" for host in bad)]
    outcome = await refused(*(GET + line + AUTH + b"\r\n" for line in lines))(rig)
    rig.lane.hosts = frozenset({b"ai.example.com"})
    unknown = await refused(GET + HOST + AUTH + b"\r\n")(rig)
    known = await ask_all(rig, [GET + b"Host: AI.example.com:443\r\n" + AUTH + b"\r\n"])
    assert known == [(200, None)]
    return f"{outcome}; unknown {unknown}"


async def methods(rig: Rig) -> str:
    outcome = await refused(
        *(post(LENGTH, line=method + b" /v1/chat/completions HTTP/1.1")
          for method in (b"post", b"Post", b"BREW", b"P(ST", b""))
    , post(line=b"OPTIONS * HTTP/1.1"), post(line=b"CONNECT a:443 HTTP/1.1"))(rig)  # fmt: skip
    known = await ask_all(
        rig, [post(line=b"%b /v1/chat/completions HTTP/1.1" % one, body=b"")
              for one in (b"TRACE", b"PUT", b"DELETE", b"PROPFIND", b"GET")]
    )  # fmt: skip
    assert set(known) == {(405, "no_route")}
    tunnel = await refused(post(line=b"CONNECT /a HTTP/1.1"))(rig)
    return f"{outcome}; of known paths 405; CONNECT to a path {tunnel}"


async def versions(rig: Rig) -> str:
    outcome = await refused(
        *(post(LENGTH, line=b"POST /v1/chat/completions" + version)
          for version in (b" HTTP/0.9", b" HTTP/1.2", b" HTTP/2.0", b" HTTP/3", b" HTTP/1", b"",
                          b" http/1.1", b" HTTPS/1.1", b" RTSP/1.0", b" ICE/1.0"))
    , b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")(rig)  # fmt: skip
    rig.vendor.script = answers_well
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    assert await ask_all(rig, [post(offer, LENGTH)]) == [(200, None)]
    assert rig.vendor.bodies == [BODY]
    rig.vendor.heads.clear()
    socket = await refused(post(b"Connection: Upgrade\r\nUpgrade: websocket\r\n"))(rig)
    return f"{outcome}; h2c ignored, served as HTTP/1.1; WebSocket {socket}"


async def paths(rig: Rig) -> str:
    bad = [
        b"/v1/../admin", b"/v1/./models", b"/v1/%2e%2e/admin", b"/v1%2fmodels", b"/v1/models%5c..",
        b"/v1/models/%00", b"//evil/v1/models", b"/v1//models", b"/v1/models;x=1",
        b"/v1/%252e%252e",
        b"/v1/models/%c0%ae", b"/v1/models/..%2f..", b"/v1/models/a%2f..%2fb", b"/v1/models/%zz",
        b"/v1/models\\..", b"/v1/models/a%0d%0ab", b"/openai/../v1/models",
    ]  # fmt: skip
    found = set(
        await ask_all(rig, [b"GET " + p + b" HTTP/1.1\r\n" + HOST + AUTH + b"\r\n" for p in bad])
    )
    assert {reason for _, reason in found} == {"body_invalid"}
    return "/".join(sorted(str(status) for status, _ in found))


async def underscores(rig: Rig) -> str:
    rig.vendor.script = answers_well
    names = [
        b"X_Forwarded_For", b"X_Api_Key", b"Content_Length", b"Transfer_Encoding", b"X_Real_IP",
        b"Openai_Organization", b"Connection_", b"Authorization_", b"X_Kaixu_Org",
    ]  # fmt: skip
    lines = [name + b": 3\r\n" for name in names]
    assert await ask_all(rig, [post(LENGTH, *lines)]) == [(200, None)]
    assert rig.vendor.bodies == [BODY]
    sent = rig.vendor.heads[0].lower()
    kept = [name for name in names if name.lower() in sent]
    assert kept == [b"Connection_", b"Authorization_"], "names that mean nothing to anybody"
    alone = GET + HOST + b"X_Api_Key: " + TOKEN.encode() + b"\r\n\r\n"
    assert await ask_all(rig, [alone]) == [(401, "token_missing")]
    return "dropped, never trusted"


async def two_identities(rig: Rig) -> str:
    rig.vendor.script = answers_well
    world = know_tokens(rig)
    twice = [
        post(b"Authorization: Bearer " + world.other + b"\r\n", LENGTH),
        post(b"X-Api-Key: " + world.other + b"\r\n", LENGTH),
        post(LENGTH, line=b"POST /v1/chat/completions?key=" + world.other + b" HTTP/1.1"),
    ]
    found = await ask_all(rig, [one.replace(TOKEN.encode(), world.token) for one in twice])
    assert found == [(400, "token_invalid")] * 3
    assert rig.vendor.heads == []
    cookie = post(b"Cookie: session=" + world.other + b"\r\n", LENGTH)
    assert await ask_all(rig, [cookie.replace(TOKEN.encode(), world.token)]) == [(200, None)]
    assert b"cookie" not in rig.vendor.heads[0].lower()
    return "two tokens 400; a cookie is dropped"


async def overlong_line(rig: Rig) -> str:
    async with rig.client() as client:
        client.send(b"GET /")
        sent = 5
        while not client.reader.at_eof() and sent < 4 * REQUEST_LINE_BYTES_MAX:
            client.send(b"a")
            sent += 1
            await asyncio.sleep(0)
            if client.reader._buffer:  # type: ignore[attr-defined]
                break
        got = await client.reader.read()
    assert sent < 2 * REQUEST_LINE_BYTES_MAX
    return f"{statuses(got)[0]} at its bound, closed"


async def sent_ahead(rig: Rig) -> str:
    rig.vendor.script = answers_well
    got = await say(rig, post(LENGTH) * 500)
    found = statuses(got)
    assert found == [200] * PIPELINED_REQUESTS_MAX + [400]
    assert len(rig.vendor.heads) == PIPELINED_REQUESTS_MAX
    return f"{PIPELINED_REQUESTS_MAX} served in turn, then 400, closed"


async def named_by_connection(rig: Rig) -> str:
    rig.vendor.script = answers_well
    named = b"Connection: Authorization, X-Org, Content-Length, Host\r\nX-Org: a\r\n"
    assert await ask_all(rig, [post(named, LENGTH)]) == [(200, None)]
    assert rig.lines.rows[0]["token_id"] == rig.caller.token_id
    [sent] = rig.vendor.heads
    assert b"x-org" not in sent.lower()
    assert sent.lower().count(b"authorization: ") == 1, "the vendor's key goes up all the same"
    assert rig.vendor.bodies == [BODY]
    return "served as authenticated; what is named goes no further"


CASES: Final = [
    Case(number=1, expected="400, closed", attempt=refused(
        post(LENGTH, CHUNKED, body=CHUNKS), post(CHUNKED, LENGTH, body=CHUNKS),
        post(CHUNKED, length(b"0"), body=CHUNKS))),
    Case(number=2, expected="400, closed", attempt=refused(
        post(CHUNKED, coding(b"identity"), body=CHUNKS),
        post(coding(b"identity"), CHUNKED, body=CHUNKS),
        post(CHUNKED, CHUNKED, body=CHUNKS), post(coding(b"identity"), body=CHUNKS))),
    Case(number=3, expected="400, closed", attempt=refused(*(
        post(coding(value), body=CHUNKS) for value in (
            b"xchunked", b"\x0bchunked", b"chunked,", b",chunked", b"chunked;q=1", b'"chunked"',
            b"chunked\x00", b"chunked\x0c", b"chun\tked", b"x, chunked", b"chunked, chunked",
            b"")))),
    Case(number=4, expected="400, closed", attempt=refused(
        post(coding(b"gzip, chunked"), body=CHUNKS), post(coding(b"chunked, gzip"), body=CHUNKS))),
    Case(number=5, expected="400, closed", attempt=refused(
        post(CHUNKED, body=CHUNKS, line=b"POST /v1/chat/completions HTTP/1.0"))),
    Case(number=6, expected="400, closed", attempt=refused(
        post(LENGTH, LENGTH), post(LENGTH, length(b"3")),
        *(post(length(value)) for value in (
            b"3, 3", b"+3", b"-3", b"0x3", b"1_0", "\u0663".encode(), b"", b"1" + b"0" * 23,
            b"3 3", b"3;", b"3.0", b"1e2", b"\x0b3")))),
    Case(number=7, expected="400, closed", attempt=refused(
        GET.replace(b"\r\n", b"\n") + HOST + b"\r\n", GET + b"Host: a\nX: b\r\n\r\n",
        GET + b"X: a\rb\r\n" + HOST + b"\r\n", GET + HOST + b"X: a\x00b\r\n\r\n",
        GET + HOST + b"X: a\r\n b\r\n\r\n", GET + HOST + b"X: a\r\n\tb\r\n\r\n",
        GET + HOST + b"X : a\r\n\r\n", GET + b" " + HOST + b"\r\n", GET + HOST + b": a\r\n\r\n",
        GET + HOST + b"X\x80: a\r\n\r\n", GET + HOST + b"no colon\r\n\r\n",
        b" " + GET + HOST + b"\r\n",
        GET + HOST + b"X\x00: a\r\n\r\n", GET + HOST + b"X: a\x7fb\r\n\r\n")),
    Case(number=8, expected="400, closed", attempt=refused(
        *(chunk(size) for size in (
            b"0x" + SIZE, b"-" + SIZE, SIZE + b" ", b"1" * 17, b"+" + SIZE, b" " + SIZE, b"",
            SIZE + b";a\nb", SIZE + b";\x00", b"g", SIZE + b";" + b"x" * 65_536)),
        chunk(SIZE, b""), chunk(SIZE, b"\n"), chunk(SIZE, b"\r"),
        post(CHUNKED, body=SIZE + b"\r\n" + BODY + b"X\r\n0\r\n\r\n"),
        post(CHUNKED, body=SIZE + b"\r\n" + BODY + b"0\r\n\r\n"))),
    Case(number=9, expected="dropped; of framing 400, closed; ten thousand 400", attempt=trailers),
    Case(number=10, expected="400, closed; unknown 421, closed", attempt=hosts),
    Case(number=11, expected="400, closed", attempt=refused(*(
        b"GET " + target + b" HTTP/1.1\r\n" + HOST + AUTH + b"\r\n" for target in (
            b"http://other/v1/models", b"https://gateway/v1/models", b"http:///v1/models",
            b"gateway:80", b"v1/models", b"?x=y", b"mailto:a@b")))),
    Case(number=12, attempt=methods,
         expected="400, closed; of known paths 405; CONNECT to a path 426, closed"),
    Case(number=13, attempt=versions, expected="400/505, closed; h2c ignored, served as HTTP/1.1; "
         "WebSocket 426, closed"),
    Case(number=14, expected="400", attempt=paths),
    Case(number=15, expected="dropped, never trusted", attempt=underscores),
    Case(number=16, expected="two tokens 400; a cookie is dropped", attempt=two_identities),
    Case(number=17, expected="400, closed", attempt=refused(*(
        line + b"\r\n" + HOST + AUTH + b"\r\n" for line in (
            b"GET  /v1/models HTTP/1.1", b"GET /v1/models  HTTP/1.1", b"GET\t/v1/models HTTP/1.1",
            b"GET /v1/models\tHTTP/1.1", b"GET /v1/models HTTP/1.1 ",
            b"GET /v1/mod els HTTP/1.1")))),
    Case(number=18, expected="414 at its bound, closed", attempt=overlong_line),
    Case(number=19, attempt=sent_ahead, expected="32 served in turn, then 400, closed"),
    Case(number=20, attempt=named_by_connection,
         expected="served as authenticated; what is named goes no further"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_group_a(case: Case, rig: Rig, outcomes: Outcomes) -> None:
    outcomes[case.number] = outcome = await case.attempt(rig)
    assert outcome == case.expected
