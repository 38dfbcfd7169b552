"""Rotation: another secret for the same token, and the end of the old one."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from gateway.auth.token import digest
from gateway.auth.token_store import Found, TokenStore
from tests.control_plane.conftest import Answer, Node, People, Person

PATH = "/api/v1/tokens"


@pytest.fixture
async def org(people: People) -> uuid.UUID:
    return await people.org()  # type: ignore[no-any-return]


@pytest.fixture
async def editor(people: People, org: uuid.UUID) -> Person:
    person = await people.member(org, "editor")
    return await people.workspace_member(org, await people.workspace_id(org), "editor", person)


async def make(node: Node, person: Person, **body: Any) -> Any:
    answer = await node.call("POST", PATH, by=person, json=body)
    assert answer.status == 201, answer.content
    return answer.json


async def rotate(node: Node, person: Person, token_id: str, **body: Any) -> Answer:
    return await node.call("POST", f"{PATH}/{token_id}/rotate", by=person, json=body)


async def look_up(pool: asyncpg.Pool, secret: str) -> Found:
    return await TokenStore(pool).find(
        digest(secret), worker_id=str(uuid.uuid4()), block_ids=[str(uuid.uuid4())]
    )


async def test_both_secrets_open_the_same_token_until_the_old_one_ends(
    node: Node, editor: Person, gateway_pool: asyncpg.Pool, owner: asyncpg.Connection
) -> None:
    made = await make(node, editor, expires="10d", limit=100)
    key = {"idempotency-key": "r"}
    path = f"{PATH}/{made['id']}/rotate"
    first = await node.call("POST", path, by=editor, headers=key)  # no body: a day of grace
    again = await node.call("POST", path, by=editor, headers=key)
    assert first.status == 200, first.content
    assert again.json["token"] is None
    new = first.json
    assert new["token"] != made["token"]
    assert (new["id"], new["limit"]) == (made["id"], 100)
    assert new["hint"] == f"kxg_…{new['token'][-4:]}"
    until = datetime.fromisoformat(new["old_secret_until"]) - datetime.now(UTC)
    assert abs(until - timedelta(hours=24)) < timedelta(minutes=1)
    life = datetime.fromisoformat(new["expires_at"]) - datetime.now(UTC)
    assert abs(life - timedelta(days=10)) < timedelta(minutes=1)

    old = await look_up(gateway_pool, made["token"])
    present = await look_up(gateway_pool, new["token"])
    assert old.caller is not None
    assert present.caller is not None
    assert old.caller.token_id == present.caller.token_id == made["id"]
    assert old.caller.limits == present.caller.limits
    ends = datetime.fromisoformat(new["old_secret_until"]).timestamp()
    assert old.caller.expires_at == pytest.approx(ends, abs=0.001)
    assert present.caller.expires_at > ends

    await owner.execute("UPDATE retired_digests SET until = clock_timestamp()")
    assert (await look_up(gateway_pool, made["token"])).why == "expired"
    assert (await look_up(gateway_pool, new["token"])).why is None


async def test_a_revocation_goes_before_the_grace(
    node: Node, editor: Person, gateway_pool: asyncpg.Pool
) -> None:
    made = await make(node, editor)
    new = (await rotate(node, editor, made["id"], grace="72h")).json
    await node.call("POST", f"{PATH}/{made['id']}/revoke", by=editor)
    for secret in (made["token"], new["token"]):
        assert (await look_up(gateway_pool, secret)).why == "revoked"
    assert (await rotate(node, editor, made["id"])).status == 409


async def test_without_grace_every_old_secret_ends_at_once(
    node: Node, editor: Person, gateway_pool: asyncpg.Pool
) -> None:
    made = last = await make(node, editor)
    secrets = [made["token"]]
    for grace in ("72h", "1h", "0s"):
        answer = await rotate(node, editor, made["id"], grace=grace)
        assert answer.status == 200, answer.content
        last = answer.json
        secrets.append(last["token"])
        if grace == "1h":
            callers = [(await look_up(gateway_pool, secret)).caller for secret in secrets]
            ends = [caller.expires_at for caller in callers if caller is not None]
            assert len(ends) == 3
            assert max(ends[:2]) < datetime.now(UTC).timestamp() + 3601  # the first one too
    assert last["old_secret_until"] is None
    assert last["receipt"]["ordinal"] > 0
    found = [(await look_up(gateway_pool, secret)).why for secret in secrets]
    assert found == ["unknown", "unknown", "unknown", None]


async def test_an_old_secret_ends_with_its_own_time(
    node: Node, editor: Person, gateway_pool: asyncpg.Pool
) -> None:
    made = await make(node, editor, expires="1h")
    new = (await rotate(node, editor, made["id"], grace="24h", expires="30d")).json
    assert new["old_secret_until"] == made["expires_at"]
    caller = (await look_up(gateway_pool, made["token"])).caller
    assert caller is not None
    ends = datetime.fromisoformat(made["expires_at"]).timestamp()
    assert caller.expires_at == pytest.approx(ends, abs=0.001)


async def test_a_rotation_is_within_bounds(
    node: Node, people: People, org: uuid.UUID, editor: Person, owner: asyncpg.Connection
) -> None:
    made = await make(node, editor)
    await owner.execute("UPDATE orgs SET token_life_max = '20 days' WHERE id = $1", org)
    for field, body in (
        ("grace", {"grace": "73h"}),
        ("grace", {"grace": "1"}),
        ("grace", {"grace": 5}),
        ("expires", {"expires": "21d"}),
        ("scopes", {"scopes": ["calls"]}),
    ):
        refused = await rotate(node, editor, made["id"], **body)
        assert (refused.status, refused.json["field"]) == (400, field)
    rotated = await rotate(node, editor, made["id"], grace="0h")
    life = datetime.fromisoformat(rotated.json["expires_at"]) - datetime.now(UTC)
    assert life < timedelta(days=20)
    for _ in range(10):
        assert (await rotate(node, editor, made["id"])).status == 200
    refused = await rotate(node, editor, made["id"])
    assert (refused.status, refused.json["field"]) == (409, "grace")

    admin = await people.member(org, "admin")
    holder = await people.member(org, "editor")  # who may make none in this workspace
    workspace = await people.workspace_id(org)
    await people.workspace_member(org, workspace, "viewer", holder)
    user_id = str(await people.user_id(org, holder))
    given = await make(node, admin, user_id=user_id, expires="5d")
    assert (await rotate(node, holder, given["id"], expires="6d")).status == 403
    assert (await rotate(node, holder, given["id"])).json["expires_at"] == given["expires_at"]
    actions = await owner.fetch(
        "SELECT action, after FROM audit_log WHERE target_id = $1", given["id"]
    )
    assert {row["action"] for row in actions} == {"token.create", "token.rotate"}


async def test_nobody_is_told_another_ones_secret_that_opens_more_than_they_may_give(
    node: Node, people: People, org: uuid.UUID
) -> None:
    admin = await people.member(org, "admin")
    here = await people.workspace_id(org)
    local = await people.workspace_member(org, here, "admin")
    reads_all = await make(node, admin, workspace_id=str(here), scopes=["calls", "usage:read"])
    calls = await make(node, admin, workspace_id=str(here))

    refused = await rotate(node, local, reads_all["id"])

    assert (refused.status, refused.json["field"]) == (403, "scopes"), refused.content
    assert (await rotate(node, local, calls["id"])).status == 200
    assert (await rotate(node, admin, reads_all["id"])).status == 200
