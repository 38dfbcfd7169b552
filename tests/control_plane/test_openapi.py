"""The OpenAPI document says what the routes do, and the server does what the document says."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec
import pytest

from control_plane.postgres import MAJOR_VERSION
from control_plane.routes import ROUTES
from control_plane.tenancy.rbac import Permission
from control_plane.throttle import RateClass
from control_plane.web.openapi import openapi_document, statuses
from control_plane.web.route import Access, Needs, Route, Scope
from tests.control_plane.conftest import Node, People
from tests.control_plane.world import make_world, unthrottle

SCHEMATHESIS: Final = Path(sys.executable).with_name("st")
CHECKS: Final = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,response_headers_conformance,ignored_auth"
)
# What would end who asks, or where: asked for with ids of nothing only.
ENDS: Final = frozenset({"leave", "suspend", "disable"})


async def test_the_document_is_the_table_of_routes(node: Node) -> None:
    answer = await node.call("GET", "/api/openapi.json")
    assert answer.status == 200
    paths: dict[str, dict[str, Any]] = answer.json["paths"]
    told = {(path, method.upper()) for path, methods in paths.items() for method in methods}
    assert told == {(route.path, route.method) for route in ROUTES}
    served = {
        (resource.canonical, route.method)
        for resource in _resources(node)
        for route in resource
        if resource.canonical.startswith("/api/v1")
    }
    assert {one for one in served if one[1] not in {"HEAD", "OPTIONS"}} == {
        one for one in told if one[0].startswith("/api/v1")
    }
    for route in ROUTES:
        operation = paths[route.path][route.method.lower()]
        assert set(map(int, operation["responses"])) == set(statuses(route))
        assert operation["x-rate-class"] == route.rate_class
        assert ("security" in operation) is (route.access is not Access.PUBLIC)
        if isinstance(route.access, Needs):
            assert operation["x-permission"] == route.access.permission
        assert ("requestBody" in operation) is (route.body is not None)
    ids = [one["operationId"] for methods in paths.values() for one in methods.values()]
    assert len(ids) == len(set(ids))


def _resources(node: Node) -> Any:
    from control_plane.app import make_app  # noqa: PLC0415

    return make_app(node.services).router.resources()


def test_no_two_structs_have_one_name() -> None:
    structs: dict[str, Any] = {}
    for route in ROUTES:
        for struct in (route.query, route.body):
            if struct is not None:
                assert structs.setdefault(struct.__name__, struct) is struct
    document = openapi_document(ROUTES, version="0")
    assert not [name for name in document["components"]["schemas"] if "." in name]


class Nothing(msgspec.Struct):
    pass


async def nothing(_: object) -> None:
    return None


SOUND: Final[dict[str, Any]] = {
    "method": "GET",
    "path": "/api/v1/x",
    "summary": "x",
    "access": Needs(permission=Permission.ORG_READ),
    "rate_class": RateClass.READ,
    "handler": nothing,
}


@pytest.mark.parametrize(
    "change",
    [
        {"access": None},
        {"access": "public"},
        {"access": Permission.ORG_READ},
        {"rate_class": None},
        {"rate_class": "read"},
        {"method": "TRACE"},
        {"path": "api/v1/x"},
        {"body": Nothing},
        {"access": Needs(permission=Permission.ORG_READ, scope=Scope.WORKSPACE)},
    ],
    ids=str,
)
def test_a_route_that_does_not_say_who_may_how_often_does_not_start(change: dict[str, Any]) -> None:
    Route(**SOUND)
    with pytest.raises((TypeError, ValueError)):
        Route(**{**SOUND, **change})


@pytest.mark.parametrize("missing", ["access", "rate_class", "handler"])
def test_nothing_of_it_has_a_default(missing: str) -> None:
    with pytest.raises(TypeError, match=missing):
        Route(**{name: value for name, value in SOUND.items() if name != missing})


async def schemathesis(
    node: Node, folder: Path, *options: str, ids: dict[str, str], examples: int, token: str
) -> None:
    """Ask for everything in ways that the document allows, and in ways that it doesn't."""
    lines = "\n".join(f'"path.{name}" = "{value}"' for name, value in ids.items())
    config = folder / "schemathesis.toml"
    config.write_text(f"[parameters]\n{lines}\n")
    process = await asyncio.create_subprocess_exec(
        str(SCHEMATHESIS), "--config-file", str(config), "run", f"{node.url}/api/openapi.json",
        "--url", node.url, "--checks", CHECKS, "--max-examples", str(examples),
        "--phases", "examples,coverage,fuzzing", "--mode", "all", "--seed", "1",
        "--header", f"Authorization: Bearer {token}", "--no-color", "--continue-on-failure",
        "--generation-database", "none", *options,
        env={"PATH": os.defpath, "HOME": str(folder), "COLUMNS": "200"},
        cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    text = out.decode()
    assert process.returncode == 0, text[-8000:].replace(token, "[token]")
    print(text[-1500:].replace(token, "[token]"))


@pytest.mark.parametrize(
    "are_there", [True, False], ids=["things there are", "things there are not"]
)
# What the database is makes no difference here.
@pytest.mark.parametrize("postgres_server", [MAJOR_VERSION], indirect=True)
@pytest.mark.parametrize("examples", [8, pytest.param(200, marks=pytest.mark.slow)])
async def test_no_request_brings_about_what_the_document_does_not_tell(
    node: Node, people: People, owner: asyncpg.Connection, *, examples: int, are_there: bool
) -> None:
    await unthrottle(owner)
    world = await make_world(owner, people)
    boss = world.who["org owner"]
    await owner.execute("UPDATE accounts SET is_operator = true WHERE id = $1", boss.account_id)
    # It would sign itself out, or forget itself: an id in a path can be "current".
    ids, ending = (
        {},
        {
            route
            for route in ROUTES
            if route.method == "DELETE" and (not route.names or "session" in route.names)
        },
    )
    if are_there:
        invitation, _ = await world.invitation(world.org)
        ids = {
            "org": str(world.org),
            "workspace": str(world.workspace),
            "user": str(world.bystander),
            "invitation": str(invitation),
        }
        for route in ROUTES:
            if route.method == "DELETE" or route.path.rpartition("/")[2] in ENDS:
                ending.add(route)
    options = [option for route in ending for option in ("--exclude-name", str(route))]
    with tempfile.TemporaryDirectory(prefix="kaixu-schemathesis-") as folder:
        await schemathesis(
            node, Path(folder), *options, ids=ids, examples=examples, token=boss.token
        )
    assert (await node.call("GET", f"/api/v1/orgs/{world.org}", by=boss)).status == 200
    errors = [line for line in node.lines if b'"request failed"' in line]
    assert not errors, errors[0]
