"""What holds for every answer of every route, refusals and broken requests included."""

import asyncio
import contextlib
import json
import re
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import asyncpg
import pytest

from control_plane.routes import ROUTES
from control_plane.server_settings import ServerSettings
from control_plane.web.route import Route
from control_plane.web.security_headers import HEADERS
from tests.conftest import Database
from tests.control_plane.conftest import Answer, Node, People, Person, started

ROOT: Final = Path(__file__).resolve().parents[3]
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
SAME_ON_ALL: Final = {**HEADERS, "cache-control": "no-store"}
# What an answer never tells: where it went wrong, in which file, by which query, on which server.
LEAKS: Final = re.compile(
    rb"Traceback|\.py\b|File \"|site-packages|asyncpg|psycopg|SELECT |INSERT |UPDATE |relation \""
    rb"|permission denied|password authentication|127\.0\.0\.1:\d|port \d|aiohttp|Python/"
    rb"|kaixu_control|Errno"
    rb"|/tmp/|/usr/|PostgreSQL|sqlstate|" + re.escape(str(ROOT).encode()),
    re.IGNORECASE,
)


def path_of(route: Route) -> str:
    path = route.path
    for name in route.names:
        path = path.replace(f"{{{name}}}", "x" if name in route.text_names else str(uuid.uuid4()))
    return path


def check(answer: Answer, *, asked: str) -> None:
    for name, value in SAME_ON_ALL.items():
        assert answer.headers.get(name) == value, (asked, answer.status, name, answer.headers)
    assert "content-security-policy" in answer.headers, asked
    assert "server" not in answer.headers, (asked, answer.headers)
    if answer.status >= 400 and answer.content:
        assert not LEAKS.search(answer.content), (asked, answer.content)
        assert answer.headers["content-type"].startswith("application/problem+json"), asked
        assert json.loads(answer.content)["request_id"], asked


@pytest.fixture
async def unthrottled(node: Node, owner: asyncpg.Connection) -> None:
    """Let as many requests come as a crawl takes."""
    await owner.execute(
        "CREATE OR REPLACE FUNCTION "
        "throttle_take(keys text[], limits integer[], windows interval[]) "
        "RETURNS double precision LANGUAGE sql AS 'SELECT NULL::float8'"
    )


@pytest.mark.usefixtures("unthrottled")
async def test_every_route_answers_everyone_with_the_headers_that_protect(
    node: Node, people: People
) -> None:
    org = await people.org()
    statuses = set()
    for route in ROUTES:
        askers = [  # new ones for each, as some routes end a session, or an account
            None, await people.member(org, "viewer"), await people.member(org, "owner"),
            await people.person(is_operator=True),
        ]  # fmt: skip
        for asker in askers:
            for body in (None, {}, {"unknown": 1}, "[", "\\u0000"):
                data = body if isinstance(body, str) else json.dumps(body) if body else None
                headers = {"content-type": "application/json"} if data else {}
                path = path_of(route)
                answer = await node.call(route.method, path, by=asker, data=data, headers=headers)
                check(answer, asked=f"{route} {body}")
                assert answer.status < 500, (str(route), body, answer.content)
                statuses.add(answer.status)
    assert {200, 400, 401, 403, 404} <= statuses


@pytest.mark.usefixtures("unthrottled")
async def test_methods_and_paths_that_nobody_serves_have_them_too(node: Node) -> None:
    paths = {path_of(route) for route in ROUTES} | {
        "/", "/api", "/api/v1", "/api/openapi.json", "/healthz", "/metrics", "/debug", "/.git/x",
        "/docs", "/api/v1/me/", "//api/v1/me", "/api/v1/%2e%2e/me", "/api/v1/vendors/%00",
        "/api/v1/orgs/x", "/api/v1/me?debug=1", "/api/v1/vendors/" + "x" * 5_000,
    }  # fmt: skip
    for path in sorted(paths):
        for method in METHODS:
            answer = await node.call(method, path)
            check(answer, asked=f"{method} {path}")
            assert answer.status < 500


BROKEN: Final = {
    "no version": b"GET /api/v1/me\r\n\r\n",
    "another version": b"GET /api/v1/me HTTP/9.9\r\nHost: a\r\n\r\n",
    "no host": b"GET /api/v1/me HTTP/1.1\r\n\r\n",
    "a NUL beside a bearer": b"GET /api/v1/me HTTP/1.1\r\nHost: a\r\n"
    b"Authorization: Bearer canary-0123456789\x00\r\n\r\n",
    "length and chunks": b"POST /api/v1/me HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a long line": b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "a long header": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 9_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 500 + b"\r\n",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "an upgrade": b"GET /api/v1/me HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n"
    b"Upgrade: h2c\r\n\r\n",
    "an expectation": b"PUT /api/v1/vendors/x HTTP/1.1\r\nHost: a\r\nExpect: canary\r\n"
    b"Content-Length: 1\r\n\r\n{",
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN.keys())
async def test_broken_requests_are_answered_by_a_page_that_repeats_nothing(
    node: Node, raw: bytes
) -> None:
    url = urlsplit(node.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    async with asyncio.timeout(10):
        writer.write(raw)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        content = await reader.readexactly(int(length[1])) if length else await reader.read()
    writer.close()
    got = head + content
    lines = head.decode().strip().split("\r\n")
    headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:])}
    status = int(lines[0].split()[1])
    check(Answer(status=status, headers=headers, content=content), asked=raw[:60].decode("latin-1"))
    assert 400 <= status < 500
    assert b"canary" not in got
    assert not [line for line in node.lines if b"canary" in line]


async def test_a_database_that_is_away_is_told_without_saying_where_it_was(
    server_settings: ServerSettings, database: Database, people: People
) -> None:
    person = await people.member(await people.org(), "owner")
    server = await asyncpg.connect(database.server.owner_url)
    async with contextlib.AsyncExitStack() as opened:
        opened.push_async_callback(server.close)
        node = await opened.enter_async_context(started(server_settings))
        assert (await node.call("GET", "/api/v1/me", by=person)).status == 200
        await server.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS false")
        try:
            await server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = $1 AND usename = 'kaixu_control_test'",
                database.name,
            )
            for route in ROUTES:
                answer = await node.call(route.method, path_of(route), by=person)
                check(answer, asked=str(route))
                assert answer.status in (400, 503), (str(route), answer.content)
            assert (
                int((await node.call("GET", "/api/v1/me", by=person)).headers["retry-after"]) >= 1
            )
        finally:
            await server.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS true")
        assert (await node.call("GET", "/api/v1/me", by=person)).status == 200


async def test_connections_that_are_all_in_use_make_nobody_wait_for_long(
    node: Node, people: People
) -> None:
    person = await people.member(await people.org(), "owner")
    pool = node.services.database.pool
    held = [await pool.acquire() for _ in range(pool.get_max_size())]
    try:
        async with asyncio.timeout(5):
            answer = await node.call("GET", "/api/v1/me", by=person)
    finally:
        for connection in held:
            await pool.release(connection)
    check(answer, asked="pool")
    assert answer.status == 503


@pytest.mark.parametrize(
    "broken",
    [
        "ALTER TABLE accounts RENAME TO gone",
        "REVOKE SELECT ON accounts FROM kaixu_control",
        "ALTER TABLE sessions DROP COLUMN methods",
    ],
)
async def test_a_database_that_is_not_as_it_should_be_tells_nobody_its_queries(
    node: Node, people: People, owner: asyncpg.Connection, broken: str
) -> None:
    person = await people.member(await people.org(), "owner")
    await owner.execute(broken)
    answer = await node.call("GET", "/api/v1/me", by=person)
    check(answer, asked=broken)
    assert answer.status in (500, 503)


async def test_a_statement_that_takes_too_long_is_given_up(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    person: Person = await people.member(await people.org(), "owner")
    async with owner.transaction():
        await owner.execute("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(10):
            answer = await node.call("GET", "/api/v1/me", by=person)
    check(answer, asked="lock")
    assert answer.status == 503


ORIGIN: Final = "https://admin.example.com"


@pytest.fixture
def server_settings_with_origin(server_settings: ServerSettings) -> ServerSettings:
    return replace(server_settings, allowed_origins=(ORIGIN,))


async def test_pages_of_configured_origins_may_call_and_no_others(
    server_settings_with_origin: ServerSettings, people: People
) -> None:
    person = await people.member(await people.org(), "owner")
    others = (
        "https://admin.example.com.evil.example", "https://evil.example", "null",
        "http://admin.example.com", "https://admin.example.com:444", "https://ADMIN.example.com",
    )  # fmt: skip
    asks = {
        "access-control-request-method": "PUT",
        "access-control-request-headers": "authorization",
    }
    async with started(server_settings_with_origin) as node:
        for origin in (ORIGIN, *others):
            preflight = await node.call(
                "OPTIONS", "/api/v1/vendors/x", headers={"origin": origin, **asks}
            )
            answer = await node.call("GET", "/api/v1/me", by=person, headers={"origin": origin})
            refused = await node.call("GET", "/api/v1/me", headers={"origin": origin})
            for one in (preflight, answer, refused):
                check(one, asked=f"CORS {origin}")
                allowed = one.headers.get("access-control-allow-origin")
                assert allowed == (ORIGIN if origin == ORIGIN else None), (origin, one)
                assert "access-control-allow-credentials" not in one.headers
            assert preflight.status == (200 if origin == ORIGIN else 403)
