"""Group D, where the control plane answers: what tokens are minted with, and how they end."""

import asyncio
import time
import uuid
from pathlib import Path
from typing import Any, Final

import asyncpg

from tests.conftest import Database
from tests.control_plane.conftest import Node, People, Person
from tests.corpus.attacks import TITLES
from tests.corpus.conftest import Outcomes
from tests.gateway.test_app import Running, running

ALONE: Final = {45, 47}
PATH: Final = "/api/v1/tokens"
GRACE_SECONDS: Final = 2.0
LET_IN: Final = (404, "no_route")  # there is no vendor


async def editor_of(people: People, org: uuid.UUID) -> Person:
    return await people.workspace_member(org, await people.workspace_id(org), "editor")


async def make(node: Node, person: Person, **body: Any) -> Any:
    answer = await node.call("POST", PATH, by=person, json=body)
    assert answer.status == 201, answer.content
    return answer.json


async def test_45_minting_more_than_one_has(
    node: Node, people: People, owner: asyncpg.Connection, outcomes: Outcomes
) -> None:
    assert 45 in TITLES
    org = await people.org(workspaces=("default", "other"))
    editor = await editor_of(people, org)
    here, other = await people.workspace_id(org), await people.workspace_id(org, "other")
    await owner.execute("INSERT INTO call_limits VALUES ('org', $1, $1, 100)", org)
    mine = {"workspace_id": str(here)}
    asked: list[dict[str, Any]] = [
        {**mine, "scopes": ["admin"]},
        {**mine, "scopes": ["usage:read"]},
        {**mine, "scopes": ["calls", "batches"]},
        {"workspace_id": str(other)},
        {**mine, "limit": 101},
    ]
    statuses = {(await node.call("POST", PATH, by=editor, json=one)).status for one in asked}
    made = await make(node, editor, **mine, limit=100)
    for change in ({"scopes": ["calls", "usage:read"]}, {"limit": 101}):
        answer = await node.call("PATCH", f"{PATH}/{made['id']}", by=editor, json=change)
        statuses.add(answer.status)
    assert await owner.fetchval("SELECT count(*) FROM tokens") == 1
    outcomes[45] = "/".join(map(str, sorted(statuses)))
    assert outcomes[45] == "403"


async def refused_within(run: Running, secret: str, seconds: float) -> float:
    """Call until it is refused as the end of a token is; return when that was."""
    async with asyncio.timeout(seconds):
        while (found := await run.call(secret)) == LET_IN:  # noqa: ASYNC110 - it is asked
            await asyncio.sleep(0.01)
    assert found[0] == 401
    return time.time()


async def test_47_rotation_with_a_time_of_grace(  # noqa: PLR0917 - fixtures
    node: Node,
    people: People,
    database: Database,
    owner: asyncpg.Connection,
    tmp_path: Path,
    outcomes: Outcomes,
) -> None:
    assert 47 in TITLES
    org = await people.org()
    editor = await editor_of(people, org)
    made = await make(node, editor)
    async with running(database.gateway_url, tmp_path / "journal") as run:
        await run.ready()
        assert await run.call(made["token"]) == LET_IN
        path = f"{PATH}/{made['id']}/rotate"
        grace = {"grace": f"{GRACE_SECONDS:.0f}s"}
        new = (await node.call("POST", path, by=editor, json=grace)).json
        assert [one["state"] for one in new["receipt"]["workers"]] == ["confirmed"]
        until = await owner.fetchval(
            "SELECT extract(epoch FROM until)::float8 FROM retired_digests"
        )
        assert await run.call(made["token"]) == LET_IN
        assert await run.call(new["token"]) == LET_IN
        ended = await refused_within(run, made["token"], GRACE_SECONDS + 2)
        assert until - 0.1 < ended < until + 1
        assert (await run.call(made["token"]))[1] == "token_expired"
        assert await run.call(new["token"]) == LET_IN

        newer = (await node.call("POST", path, by=editor, json={"grace": "72h"})).json
        assert [await run.call(one["token"]) for one in (new, newer)] == [LET_IN, LET_IN]
        await node.call("POST", f"{PATH}/{made['id']}/revoke", by=editor)
        found = [await run.call(one["token"]) for one in (new, newer)]
        assert found == [(401, "token_revoked")] * 2
    outcomes[47] = "old works until T, 401 within 1 s; revoke ends both"


async def test_a_token_is_used_from_its_networks_alone_behind_a_trusted_proxy(
    node: Node, people: People, database: Database, tmp_path: Path
) -> None:
    editor = await editor_of(people, await people.org())
    made = await make(node, editor, addresses=["203.0.113.0/24"])
    refused = (403, "address_not_allowed")
    forwarded = {"x-forwarded-for": "198.51.100.1, 203.0.113.7"}
    async with running(database.gateway_url, tmp_path / "plain") as run:
        await run.ready()
        assert await run.call(made["token"]) == refused
        assert await run.call(made["token"], **forwarded) == refused  # nobody vouches for it
    folder = tmp_path / "proxied"
    async with running(database.gateway_url, folder, KAIXU_TRUSTED_PROXIES="127.0.0.0/8") as run:
        await run.ready()
        assert await run.call(made["token"], **forwarded) == LET_IN
        spoofed = {"x-forwarded-for": "203.0.113.7, 198.51.100.1"}
        assert await run.call(made["token"], **spoofed) == refused
        answer = await node.call(
            "PATCH", f"{PATH}/{made['id']}", by=editor, json={"addresses": ["127.0.0.1"]}
        )
        assert answer.json["receipt"]["complete"] in {True, False}
        assert await run.call(made["token"]) == LET_IN
        assert await run.call(made["token"], **forwarded) == refused
