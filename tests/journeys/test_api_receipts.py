"""What ends rights by the API: the answer is the receipt, and by then the streams are cut."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import asyncpg
import pytest

from control_plane.identity.session_keys import parse_session_keys
from control_plane.secrets import make_control_key, parse_control_keys
from control_plane.server_settings import ServerSettings
from gateway.auth.token import digest, generate, hint
from tests.control_plane.conftest import JWT_SECRET, Node, People, Person, started
from tests.journeys.client import Answer, call, check_refusal, check_stream_error, send
from tests.journeys.product import Product

pytestmark = pytest.mark.journey

STREAMS: Final = 4
RECEIPT_MILLISECONDS_MAX: Final = (
    1_000  # the figure is 500 on a machine that has nothing else to do
)
LOGIN: Final = "kaixu_control_journey"
# By what is done: the request, by the operator or by who administers the org.
ENDINGS: Final = {
    "user disabled": ("POST", "/api/v1/orgs/{org}/members/{user}/disable"),
    "user removed": ("DELETE", "/api/v1/orgs/{org}/members/{user}"),
    "user left the workspace": (
        "DELETE",
        "/api/v1/orgs/{org}/workspaces/{workspace}/members/{user}",
    ),
    "workspace deleted": ("DELETE", "/api/v1/orgs/{org}/workspaces/{workspace}"),
    "org suspended": ("POST", "/api/v1/operator/orgs/{org}/suspend"),
    "org deleted": ("DELETE", "/api/v1/orgs/{org}"),
}


@dataclass(frozen=True, kw_only=True)
class Team:
    """An org with an owner, who is the operator too, and a member with a token."""

    org: uuid.UUID
    workspace: uuid.UUID
    user: uuid.UUID
    boss: Person
    token: str


@asynccontextmanager
async def control_plane(product: Product, owner: asyncpg.Connection) -> AsyncIterator[Node]:
    """Run a control plane on the product's database, under its own role."""
    password = uuid.uuid4().hex
    make = "ALTER" if await owner.fetchval(
        "SELECT true FROM pg_roles WHERE rolname = $1", LOGIN
    ) else "CREATE"  # fmt: skip
    await owner.execute(f"{make} ROLE {LOGIN} LOGIN PASSWORD '{password}'")
    await owner.execute(f"GRANT kaixu_control TO {LOGIN}")
    place = product.facts["database_url"].rpartition("@")[2]
    settings = ServerSettings(
        database_url=f"postgresql://{LOGIN}:{password}@{place}",
        session_keys=parse_session_keys(JWT_SECRET),
        control_keys=parse_control_keys(make_control_key()),
        database_is_embedded=True,
    )
    async with started(settings) as node:
        yield node


async def make_team(owner: asyncpg.Connection) -> Team:
    people = People(owner, parse_session_keys(JWT_SECRET))
    org = await people.org(uuid.uuid4().hex)
    workspace = await people.workspace_id(org)
    boss = await people.member(org, "owner", await people.person(is_operator=True))
    member = await people.workspace_member(org, workspace, "editor")
    user, token = await people.user_id(org, member), generate("g")
    await owner.execute(
        """
        INSERT INTO tokens (id, digest, hint, org_id, workspace_id, user_id, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, now() + interval '1 hour')
        """,
        uuid.uuid4(), digest(token), hint(token), org, workspace, user,
    )  # fmt: skip
    return Team(org=org, workspace=workspace, user=user, boss=boss, token=token)


async def open_streams(product: Product, token: str, group: asyncio.TaskGroup) -> list[
    "asyncio.Task[Answer]"
]:  # fmt: skip
    """Open streams that never end by themselves; return once each has begun."""
    tasks, begun = [], []
    for number in range(STREAMS):
        event = asyncio.Event()
        request = call(
            ("openai", "anthropic")[number % 2], token=token, model="sim-slow-2000-50", stream=True
        )
        tasks.append(group.create_task(send(product.url, request, begun=event)))
        begun.append(event.wait())
    async with asyncio.timeout(30):
        await asyncio.gather(*begun)
    return tasks


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_request_that_ends_rights_answers_when_the_streams_are_cut(
    product: Product, ending: str
) -> None:
    workers = {worker["id"] for worker in product.wait_until_ready()["workers"]}
    owner = await asyncpg.connect(product.facts["database_url"])
    try:
        team = await make_team(owner)
        method, path = ENDINGS[ending]
        async with control_plane(product, owner) as node, asyncio.TaskGroup() as group:
            streams = await open_streams(product, team.token, group)
            answer = await node.call(
                method,
                path.format(org=team.org, workspace=team.workspace, user=team.user),
                by=team.boss,
            )
            assert answer.status == 200, answer.content
            receipt = answer.json
            assert receipt["complete"] is True, receipt
            assert {one["worker_id"] for one in receipt["workers"]} == workers
            assert receipt["streams_cut"] == STREAMS
            print(f"\n{ending}: {receipt['took_ms']} ms")
            assert receipt["took_ms"] < RECEIPT_MILLISECONDS_MAX
            async with asyncio.timeout(5):
                ended = await asyncio.gather(*streams)
        for number, one in enumerate(ended):
            check_stream_error(("openai", "anthropic")[number % 2], one)
        again = await send(product.url, call("openai", token=team.token, model="m", stream=True))
        check_refusal("openai", again, status=401, reason="token_revoked")
    finally:
        await owner.close()


async def test_a_limit_that_is_lowered_holds_when_it_is_answered_and_cuts_no_stream(
    product: Product,
) -> None:
    workers = {worker["id"] for worker in product.wait_until_ready()["workers"]}
    owner = await asyncpg.connect(product.facts["database_url"])
    try:
        team = await make_team(owner)
        request = call("openai", token=team.token, model="sim-1-1", stream=False)
        token_id = await owner.fetchval(
            "SELECT id FROM tokens WHERE digest = $1", digest(team.token)
        )
        path = f"/api/v1/tokens/{token_id}?org={team.org}"
        async with control_plane(product, owner) as node, asyncio.TaskGroup() as group:
            raised = await node.call("PATCH", path, by=team.boss, json={"limit": 1_000})
            assert raised.status == 200, raised.content
            streams = await open_streams(product, team.token, group)
            assert (await send(product.url, request)).status == 200
            answer = await node.call("PATCH", path, by=team.boss, json={"limit": STREAMS + 1})
            assert answer.status == 200, answer.content
            receipt = answer.json["receipt"]
            assert receipt["complete"] is True, receipt
            assert {one["worker_id"] for one in receipt["workers"]} == workers
            assert receipt["streams_cut"] == 0
            assert receipt["took_ms"] < RECEIPT_MILLISECONDS_MAX
            refused = await asyncio.gather(*(send(product.url, request) for _ in range(8)))
            for one in refused:
                check_refusal("openai", one, status=429, reason="monthly_limit")
            assert not any(stream.done() for stream in streams)
            ended = await node.call(
                "POST", f"/api/v1/tokens/{token_id}/revoke?org={team.org}", by=team.boss
            )
            assert ended.json["streams_cut"] == STREAMS
    finally:
        await owner.close()


async def test_a_member_who_is_enabled_again_calls_again(product: Product) -> None:
    owner = await asyncpg.connect(product.facts["database_url"])
    try:
        team = await make_team(owner)
        path = f"/api/v1/orgs/{team.org}/members/{team.user}"
        request = call("openai", token=team.token, model="sim-1-1", stream=False)
        async with control_plane(product, owner) as node:
            assert (await send(product.url, request)).status == 200
            assert (await node.call("POST", f"{path}/disable", by=team.boss)).status == 200
            assert (await send(product.url, request)).status == 401
            assert (await node.call("POST", f"{path}/enable", by=team.boss)).status == 200
            async with asyncio.timeout(10):
                while (await send(product.url, request)).status != 200:
                    pass
    finally:
        await owner.close()
