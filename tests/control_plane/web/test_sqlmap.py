"""sqlmap finds no way into the database, by whatever a request has: `pytest -m slow` runs it.

It tries each parameter of query, body and path, and the headers that a client chooses.
"""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import asyncpg
import pytest
from aiohttp import web
from msgspec import inspect

from control_plane.routes import ROUTES
from control_plane.web.route import Access, Route
from tests.conftest import required
from tests.control_plane.conftest import Node, People
from tests.control_plane.examples import asked_by, example_of
from tests.control_plane.world import OPERATOR, make_world, unthrottle

SECONDS_MAX: Final = 300.0
SAFE: Final = "do not appear to be injectable"
VULNERABLE: Final = "is vulnerable"
ANY: Final = "1"  # where a query need not say anything: sqlmap tries what is there


def every_parameter(route: Route) -> dict[str, str]:
    """Return something for each parameter of a query."""
    if route.query is None:
        return {}
    info = inspect.type_info(route.query)
    assert isinstance(info, inspect.StructType)
    return {one.encode_name: ANY for one in info.fields}


async def sqlmap(url: str, folder: Path, *options: str) -> list[str]:
    """Return what sqlmap says of a URL."""
    program = shutil.which("sqlmap")
    if program is None:
        assert not required("sqlmap")
        pytest.skip("sqlmap is not installed")
    process = await asyncio.create_subprocess_exec(
        program, "--url", url, "--batch", "--flush-session", "--level", "3", "--risk", "1",
        "--dbms", "postgresql", "--technique", "BEUS", "--threads", "4", "--ignore-code", "*",
        "--disable-coloring", "--output-dir", str(folder), *options,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(SECONDS_MAX):
        told, _ = await process.communicate()
    return told.decode(errors="replace").splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES, ids=str)
async def test_no_parameter_reaches_the_database_as_sql(
    node: Node, owner: asyncpg.Connection, people: People, tmp_path: Path, route: Route
) -> None:
    await unthrottle(owner)
    world = await make_world(owner, people)
    who = OPERATOR if route.access is Access.OPERATOR else "org owner"
    example = await example_of(route, await asked_by(world, who))
    query = {**every_parameter(route), **example.query}
    marked = "*" if route.names else ""  # what is in the path too
    url = f"{node.url}{example.path}{marked}" + (f"?{urlencode(query)}" if query else "")
    authorization = world.headers(who)["authorization"]
    options = ["--method", route.method, "--header", f"Authorization: {authorization}*"]
    if example.body is not None:
        options += ["--data", json.dumps(example.body)]
        options += ["--header", "Content-Type: application/json"]
    lines = await sqlmap(url, tmp_path, *options)
    assert any(SAFE in line for line in lines), "\n".join(lines[-30:])
    assert not any(VULNERABLE in line for line in lines), "\n".join(lines[-30:])


@pytest.mark.slow
async def test_it_finds_a_way_where_there_is_one(
    owner: asyncpg.Connection, people: People, tmp_path: Path, unused_tcp_port: int
) -> None:
    await people.org("ours")
    asking = asyncio.Lock()

    async def find(request: web.Request) -> web.Response:
        statement = f"SELECT name FROM orgs WHERE name = '{request.query['name']}'"  # noqa: S608
        async with asking:
            try:
                return web.json_response([row["name"] for row in await owner.fetch(statement)])
            except asyncpg.PostgresError:
                return web.json_response([], status=500)

    app = web.Application()
    app.router.add_get("/find", find)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    try:
        lines = await sqlmap(f"http://127.0.0.1:{unused_tcp_port}/find?name=ours", tmp_path)
    finally:
        await runner.cleanup()
    assert any(VULNERABLE in line for line in lines), "\n".join(lines[-30:])
