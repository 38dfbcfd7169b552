"""Group G: one org's people at what is another's, and at more than their role gives them."""

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import asyncpg
import pytest

from control_plane.routes import ROUTES
from control_plane.web.request import STANDING_SECONDS_MAX
from control_plane.web.route import Access, Needs, Route
from tests.conftest import Database
from tests.control_plane.conftest import Answer, Node, People, Person
from tests.control_plane.examples import Example, asked_by, example_of
from tests.control_plane.tenants import Tenant, make_accounts, make_tenant
from tests.control_plane.world import OPERATOR, World, make_world, told, unthrottle
from tests.corpus.attacks import TITLES
from tests.corpus.conftest import Outcomes

FOREIGN_FIELDS: Final = (
    "role", "org_id", "is_admin", "is_operator", "user_id", "account_id", "limit", "price",
    "created_at",
)  # fmt: skip
LATE_SECONDS_MAX: Final = 1.0  # from a lowered role to the end of what it permitted
TIMEOUT_SECONDS_MAX: Final = 4.0  # of a statement that hangs, and all around it


@dataclass(frozen=True, kw_only=True)
class Tenancy:
    """A control plane, and the two orgs that it has."""

    node: Node
    owner: asyncpg.Connection
    owner_url: str
    people: People

    async def world(self) -> World:
        return await make_world(self.owner, self.people)

    async def ask(self, route: Route, example: Example, by: Person) -> Answer:
        body = {} if example.body is None else {"json": example.body}
        return await self.node.call(route.method, example.path, by=by, params=example.query, **body)


@dataclass(frozen=True, kw_only=True)
class Case:
    number: int
    expected: str
    attempt: Callable[[Tenancy], Awaitable[str]]

    def __str__(self) -> str:
        return f"{self.number}: {TITLES[self.number]}"


@pytest.fixture
async def tenancy(
    node: Node, owner: asyncpg.Connection, people: People, database: Database
) -> Tenancy:
    await unthrottle(owner)
    return Tenancy(node=node, owner=owner, owner_url=database.owner_url, people=people)


def _is_id(value: object) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


def swapped(route: Route, ours: Example, theirs: Example) -> list[tuple[str, Example, Example]]:
    """Return, for each place of an id, our request with their id there, and with nobody's."""
    places: list[tuple[str, Example, Example]] = []
    nobody = str(uuid.uuid4())
    for at, (part, mine) in enumerate(
        zip(route.path.split("/"), ours.path.split("/"), strict=True)
    ):
        if part.startswith("{") and _is_id(mine):
            before, after = ours.path.split("/")[:at], ours.path.split("/")[at + 1 :]
            with_theirs, with_nobodys = (
                replace(ours, path="/".join([*before, other, *after]))
                for other in (theirs.path.split("/")[at], nobody)
            )
            places.append((part, with_theirs, with_nobodys))
    for name, value in ours.query.items():
        if _is_id(value):
            with_theirs, with_nobodys = (
                replace(ours, query={**ours.query, name: other})
                for other in (theirs.query[name], nobody)
            )
            places.append((f"?{name}", with_theirs, with_nobodys))
    for name, value in (ours.body or {}).items():
        if _is_id(value):
            with_theirs, with_nobodys = (
                replace(ours, body={**ours.body, name: other})
                for other in (theirs.body[name], nobody)
            )
            places.append((name, with_theirs, with_nobodys))
    return places


async def ids_of_another_org(tenancy: Tenancy) -> str:
    world, tried = await tenancy.world(), 0
    boss = world.who["org owner"]
    for route in ROUTES:
        if not isinstance(route.access, Needs):
            continue
        ours = await example_of(route, await asked_by(world, "org owner"))
        theirs = await example_of(route, await asked_by(world, "org owner", elsewhere=True))
        before = await world.rows()
        for place, with_theirs, with_nobodys in swapped(route, ours, theirs):
            answers = [await tenancy.ask(route, one, boss) for one in (with_theirs, with_nobodys)]
            where = f"{route}, {place}: {[one.content[:200] for one in answers]}"
            assert [one.status for one in answers] == [404, 404], where
            assert told(answers[0].content) == told(answers[1].content), where
            assert _headers(answers[0]) == _headers(answers[1]), where
            tried += 1
        assert await world.rows() == before, route
    print(f"\n{tried} places of an id")
    assert tried >= len([route for route in ROUTES if isinstance(route.access, Needs)])
    return "404, as what is not there"


def _headers(answer: Answer) -> dict[str, str]:
    return {
        name: value
        for name, value in answer.headers.items()
        if name not in {"date", "x-request-id"}
    }


async def fields_that_are_nobody_s(tenancy: Tenancy) -> str:
    world, tried = await tenancy.world(), 0
    for route in ROUTES:
        if route.body is None:
            continue
        who = OPERATOR if route.access is Access.OPERATOR else "org owner"
        example = await example_of(route, await asked_by(world, who))
        before = await world.rows()
        for field in set(FOREIGN_FIELDS) - set(route.body.__struct_encode_fields__):
            for value in (None, 1, "owner", str(world.other_org)):
                more = replace(example, body={**example.body, field: value})
                answer = await tenancy.ask(route, more, world.who[who])
                assert answer.status == 400, (str(route), field, answer.content)
                assert answer.json["field"] == field
                tried += 1
        assert await world.rows() == before, route
    print(f"\n{tried} bodies with a field too many")
    return "400"


async def roles_above_one_s_own(tenancy: Tenancy) -> str:
    world, found = await tenancy.world(), set()
    org = f"/api/v1/orgs/{world.org}"
    owner_id = await world.user_id("org owner")
    admin_id = await world.user_id("org admin")
    last = f"{org}/members/{owner_id}"
    asked: list[tuple[str, str, str, Any]] = [
        ("org owner", "PATCH", last, {"role": "viewer"}),
        ("org owner", "POST", f"{last}/disable", None),
        ("org owner", "DELETE", last, None),
        ("org owner", "POST", f"{org}/leave", None),
        ("org admin", "PATCH", last, {"role": "viewer"}),
        ("org admin", "DELETE", last, None),
        ("org admin", "POST", f"{last}/disable", None),
        ("org admin", "PATCH", f"{org}/members/{admin_id}", {"role": "owner"}),
        ("org admin", "POST", f"{org}/invitations", {"email": "a@example.com", "role": "owner"}),
        (
            "workspace admin",
            "PUT",
            f"{org}/workspaces/{world.workspace}/members/{await world.user_id('workspace admin')}",
            {"role": "owner"},
        ),
    ]
    before = await world.rows()
    for who, method, path, body in asked:
        more = {} if body is None else {"json": body}
        answer = await tenancy.node.call(method, path, by=world.who[who], **more)
        wanted = 409 if who == "org owner" else 403
        assert answer.status == wanted, (who, method, path, answer.content)
        found.add(answer.status)
    assert await world.rows() == before
    return "/".join(map(str, sorted(found)))


async def waiting_for_a_lock(owner: asyncpg.Connection) -> None:
    """Return once a statement of the control plane's waits for somebody's lock."""
    async with asyncio.timeout(5):
        while not await owner.fetchval(  # noqa: ASYNC110 - the server is asked
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'kaixu-control' AND wait_event_type = 'Lock')"
        ):
            await asyncio.sleep(0.005)


async def roles_that_are_lowered(tenancy: Tenancy) -> str:
    """A request waits for a lock; meanwhile who asked stops being who may."""
    found = []
    for change, status in (
        ("UPDATE users SET role = 'viewer' WHERE account_id = $1", 403),
        ("UPDATE users SET disabled_at = now(), removed_at = now() WHERE account_id = $1", 404),
        ("UPDATE sessions SET ended_at = now() WHERE account_id = $1", 401),
    ):
        world = await tenancy.world()
        admin = world.who["org admin"]
        path = f"/api/v1/orgs/{world.org}/workspaces/{world.workspace}"
        blocker = await asyncpg.connect(tenancy.owner_url)
        try:
            hold = blocker.transaction()
            await hold.start()
            await blocker.execute(
                "SELECT FROM workspaces WHERE id = $1 FOR UPDATE", world.workspace
            )
            async with asyncio.TaskGroup() as group:
                asked = group.create_task(
                    tenancy.node.call("PATCH", path, by=admin, json={"name": "too late"})
                )
                await waiting_for_a_lock(tenancy.owner)
                await tenancy.owner.execute(change, admin.account_id)
                began = time.monotonic()
                await asyncio.sleep(STANDING_SECONDS_MAX)  # what counts as a moment ago is over
                await hold.rollback()
            answer, took = asked.result(), time.monotonic() - began
        finally:
            await blocker.close()
        assert answer.status == status, answer.content
        assert took < LATE_SECONDS_MAX
        name = await tenancy.owner.fetchval(
            "SELECT name FROM workspaces WHERE id = $1", world.workspace
        )
        assert name == "default"
        found.append(str(answer.status))
    return f"{'/'.join(found)} within 1 s, nothing changed"


async def lists_and_searches(tenancy: Tenancy) -> str:
    """Everything that an owner can read says nothing of the other org, whatever is searched for."""
    ours, theirs = Tenant("ours"), Tenant("theirs")
    await make_accounts(tenancy.owner, ours, theirs)
    for one in (ours, theirs):
        await make_tenant(tenancy.owner, one)
    boss = await tenancy.people.session(ours.account, "ours@example.com")
    words = [theirs.mark.encode(), str(theirs.org).encode(), str(theirs.id("user")).encode()]
    read = 0
    for route in ROUTES:
        if route.method != "GET" or route.access is Access.OPERATOR or set(route.names) - {"org"}:
            continue
        path = route.path.replace("{org}", str(ours.org))
        names = () if route.query is None else route.query.__struct_encode_fields__
        for search in (None, "%", "_", "theirs", "\\", "%' OR true --") if "search" in names else (
            None,
        ):  # fmt: skip
            params = {} if search is None else {"search": search}
            answer = await tenancy.node.call("GET", path, by=boss, params=params)
            assert answer.status < 500, (str(route), answer.content)
            assert not any(word in answer.content for word in words), (str(route), answer.content)
            if search in {"%", "_", "theirs", "\\"}:
                assert answer.json["data"] == [], (str(route), search)
            read += 1
    print(f"\n{read} lists and searches")
    # A statement that hangs ends by itself, and its refusal tells nothing of it.
    blocker = await asyncpg.connect(tenancy.owner_url)
    try:
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE invitations IN ACCESS EXCLUSIVE MODE")
            began = time.monotonic()
            answer = await tenancy.node.call("GET", f"/api/v1/orgs/{ours.org}/invitations", by=boss)
            assert time.monotonic() - began < TIMEOUT_SECONDS_MAX
    finally:
        await blocker.close()
    assert answer.status == 503
    assert b"invitations" not in answer.content
    return "own rows only, 503 where a statement hangs"


SWITCHES: Final = (
    "SET ROLE {owner}",
    "SET ROLE kaixu_gateway",
    "SET SESSION AUTHORIZATION {owner}",
    "ALTER TABLE orgs DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE orgs NO FORCE ROW LEVEL SECURITY",
    "DROP POLICY tenant ON orgs",
    "CREATE POLICY mine ON orgs USING (true)",
    "ALTER ROLE CURRENT_USER BYPASSRLS",
    "GRANT kaixu_gateway TO CURRENT_USER",
    "CREATE FUNCTION mine() RETURNS SETOF orgs SECURITY DEFINER LANGUAGE sql AS 'TABLE orgs'",
    "SELECT isolate('sessions', 'true')",
    "TRUNCATE orgs CASCADE",
    "SELECT pg_read_file('PG_VERSION')",
)


async def switches(tenancy: Tenancy) -> str:
    """Under the control plane's own login nothing lifts what keeps orgs apart."""
    name = await tenancy.owner.fetchval("SELECT current_user")
    orgs = [await tenancy.people.org(f"org {number}") for number in range(2)]
    database = tenancy.node.services.database
    for statement in SWITCHES:
        async with database.pool.acquire() as connection:
            with pytest.raises(asyncpg.PostgresError) as caught:
                await connection.execute(statement.format(owner=name))
            assert caught.value.sqlstate in {"42501", "22023"}, statement
            assert await connection.fetch("SELECT id FROM orgs") == []
    async with database.pool.acquire() as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):  # it would have been affected
            await connection.execute("SET row_security = off; SELECT * FROM orgs")
    await mixed(tenancy, orgs, transactions=2_000, requests=200)
    return "refused; nobody inherits an org"


async def mixed(
    tenancy: Tenancy, orgs: list[uuid.UUID], *, transactions: int, requests: int
) -> None:
    """Use the pool for one org and the other, with errors and cancellations between."""
    database, chance = tenancy.node.services.database, random.Random(1)
    members = [await tenancy.people.member(org, "owner") for org in orgs]

    async def transact() -> None:
        org = chance.choice([*orgs, None])
        ending = chance.choice(["commit", "commit", "error", "cancel"])
        with suppress(asyncpg.PostgresError, TimeoutError):
            async with asyncio.timeout(None if ending != "cancel" else chance.random() * 0.005):
                async with database.transaction(org_id=org) as connection:
                    rows = await connection.fetch("SELECT id FROM orgs")
                    assert [row["id"] for row in rows] == ([] if org is None else [org])
                    if ending == "error":
                        await connection.execute("SELECT 1 / 0")

    async def request() -> None:
        at = chance.randrange(2)
        answer = await tenancy.node.call("GET", f"/api/v1/orgs/{orgs[at]}", by=members[at])
        assert (answer.status, answer.json["id"]) == (200, str(orgs[at]))
        other = await tenancy.node.call("GET", f"/api/v1/orgs/{orgs[1 - at]}", by=members[at])
        assert other.status == 404

    work = [transact] * transactions + [request] * requests
    chance.shuffle(work)
    queue = iter(work)

    async def worker() -> None:
        for one in queue:
            await one()

    async with asyncio.TaskGroup() as group:
        for _ in range(8):  # fewer than the pool has: nobody is refused for want of a connection
            group.create_task(worker())
    async with asyncio.timeout(10):
        for _ in range(database.pool.get_size()):
            async with database.pool.acquire() as connection:
                assert await connection.fetch("SELECT id FROM orgs") == []


CASES: Final = [
    Case(number=74, expected="404, as what is not there", attempt=ids_of_another_org),
    Case(number=75, expected="400", attempt=fields_that_are_nobody_s),
    Case(number=76, expected="403/409", attempt=roles_above_one_s_own),
    Case(
        number=77,
        expected="403/404/401 within 1 s, nothing changed",
        attempt=roles_that_are_lowered,
    ),
    Case(
        number=78,
        expected="own rows only, 503 where a statement hangs",
        attempt=lists_and_searches,
    ),
    Case(number=79, expected="refused; nobody inherits an org", attempt=switches),
]


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_group_g(case: Case, tenancy: Tenancy, outcomes: Outcomes) -> None:
    outcome = await case.attempt(tenancy)
    outcomes[case.number] = outcome
    assert outcome == case.expected


@pytest.mark.slow
async def test_79_ten_thousand_requests_leave_no_connection_in_an_org(tenancy: Tenancy) -> None:
    orgs = [await tenancy.people.org(f"org {number}") for number in range(2)]
    await mixed(tenancy, orgs, transactions=10_000, requests=5_000)


def test_their_ids_are_where_ours_were() -> None:
    route = next(one for one in ROUTES if one.path.endswith("/members/{user}"))
    ids = [str(uuid.uuid4()) for _ in range(4)]
    ours, theirs = (
        Example(path=f"/api/v1/orgs/{a}/members/{b}", query={}, body=None, has_owner=False)
        for a, b in (ids[:2], ids[2:])
    )
    places = swapped(route, ours, theirs)
    assert [place for place, _, _ in places] == ["{org}", "{user}"]
    assert places[0][1].path == f"/api/v1/orgs/{ids[2]}/members/{ids[1]}"
    assert places[1][1].path == f"/api/v1/orgs/{ids[0]}/members/{ids[3]}"
