"""Every route by everybody: what the table of permissions says is what the server does.

The requests are generated from the routes, so that a route that is added is asked as well.
"""

from collections import Counter

import asyncpg
import msgspec
import pytest

from control_plane.routes import ROUTES
from control_plane.tenancy.rbac import Role, allows
from control_plane.web.problems import CONTENT_TYPE
from control_plane.web.route import Access, Needs, Route, Scope
from tests.control_plane.conftest import Answer, Node, People
from tests.control_plane.examples import Example, asked_by, example_of
from tests.control_plane.world import (
    EVERYBODY,
    GATEWAY_TOKEN,
    IN_ORG,
    IN_WORKSPACE,
    NOBODY,
    OPERATOR,
    OUTSIDE,
    OWN,
    World,
    make_world,
    unthrottle,
)

REFUSED = frozenset({401, 403, 404})
UNAUTHENTICATED = "unauthenticated"  # nobody knows who asks
ALLOWED = frozenset(range(200, 600)) - REFUSED


def expected(route: Route, who: str, *, has_owner: bool) -> frozenset[int]:
    """Return the statuses that the table of permissions leaves for a request."""
    if route.access is Access.PUBLIC:
        return frozenset(range(200, 500))  # the same for everybody: that is compared
    if who in NOBODY:
        is_known = who == GATEWAY_TOKEN and route.token_scope is not None  # and lacks that scope
        return frozenset({403 if is_known else 401})
    if route.access is Access.SIGNED_IN:
        return ALLOWED
    if route.access is Access.OPERATOR:
        return ALLOWED if who == OPERATOR else frozenset({403})
    assert isinstance(route.access, Needs)
    if who in OUTSIDE:
        return frozenset({404})
    is_own = who in OWN and has_owner
    org_role = {**IN_ORG, **OWN}.get(who, Role.VIEWER)
    workspace_role = IN_WORKSPACE.get(who)
    permission, scope = route.access.permission, route.access.scope
    if scope is Scope.ORG:
        return _allowed_if(allows(permission, org_role=org_role))
    if scope is Scope.EACH and not _names_one(route):
        # A list, of what there is for who asks; or something new in the workspace.
        is_own = True
    if allows(permission, org_role=org_role, workspace_role=workspace_role, is_own=is_own):
        return ALLOWED
    # What is found and may not be seen is told apart from what isn't there, or it is not.
    return frozenset({403, 404}) if scope is Scope.EACH else frozenset({403})


def _refuses_a_secret(answer: Answer) -> bool:
    """Return whether the route's own function was asked, and did not take a password or a code."""
    return answer.status == 401 and answer.json["code"] != UNAUTHENTICATED


def _names_one(route: Route) -> bool:
    return bool(set(route.names) - {"org"}) or route.body is not None


def _allowed_if(held: bool) -> frozenset[int]:  # noqa: FBT001
    return ALLOWED if held else frozenset({403})


async def ask(node: Node, world: World, route: Route, who: str, example: Example) -> Answer:
    arguments = {} if example.body is None else {"json": example.body}
    return await node.call(
        route.method,
        example.path,
        headers=world.headers(who),
        params=example.query,
        **arguments,
    )


@pytest.mark.parametrize("route", ROUTES, ids=str)
async def test_everybody_may_what_the_table_says_and_nothing_else(
    node: Node, owner: asyncpg.Connection, people: People, route: Route
) -> None:
    await unthrottle(owner)
    world = await make_world(owner, people)
    seen: Counter[str] = Counter()
    statuses = set()
    for who in EVERYBODY:
        example = await example_of(route, await asked_by(world, who))
        before = "" if route.method == "GET" else await world.rows()
        answer = await ask(node, world, route, who, example)
        allowed = expected(route, who, has_owner=example.has_owner)
        told = f"{route} as {who}: {answer.status} {answer.content[:300]!r}, not {sorted(allowed)}"
        assert answer.status < 500, told
        statuses.add(answer.status)
        if who not in NOBODY and _refuses_a_secret(answer):
            seen["allowed"] += 1
            continue
        assert answer.status in allowed, told
        if answer.status in REFUSED:
            assert answer.headers["content-type"] == CONTENT_TYPE
            after = "" if route.method == "GET" else await world.rows()
            assert after == before, f"{told}: it was refused, and changed something"
        else:
            seen["allowed"] += 1
            if route.method != "GET":
                world = await make_world(owner, people)
    if route.access is Access.PUBLIC:
        assert len(statuses) == 1, f"{route} is public, and answers {statuses}"
    else:
        assert seen["allowed"], f"{route}: nobody may ask for this"


@pytest.mark.parametrize("route", [one for one in ROUTES if isinstance(one.access, Needs)], ids=str)
async def test_what_is_the_other_org_s_is_answered_as_what_is_not_there(
    node: Node, owner: asyncpg.Connection, people: People, route: Route
) -> None:
    await unthrottle(owner)
    world = await make_world(owner, people)
    theirs = await example_of(route, await asked_by(world, "org owner", elsewhere=True))
    before = await world.rows()

    answer = await ask(node, world, route, "org owner", theirs)

    assert answer.status == 404, f"{route}: {answer.status} {answer.content!r}"
    assert await world.rows() == before


@pytest.mark.parametrize("route", [one for one in ROUTES if one.needs_fresh], ids=str)
async def test_what_is_dangerous_takes_a_fresh_proof_of_who_asks(
    node: Node, owner: asyncpg.Connection, people: People, route: Route
) -> None:
    await unthrottle(owner)
    world = await make_world(owner, people)
    await owner.execute("UPDATE sessions SET authenticated_at = now() - interval '11 minutes'")
    example = await example_of(route, await asked_by(world, "org owner"))
    before = await world.rows()

    answer = await ask(node, world, route, "org owner", example)

    assert (answer.status, answer.json["code"]) == (403, "reauthentication_required")
    assert await world.rows() == before


def test_every_body_refuses_fields_that_it_does_not_name() -> None:
    for route in ROUTES:
        for struct in (route.body, route.query):
            if struct is not None:
                assert _forbids_unknown(struct), f"{route}: {struct.__name__}"


def _forbids_unknown(struct: type[msgspec.Struct]) -> bool:
    return struct.__struct_config__.forbid_unknown_fields
