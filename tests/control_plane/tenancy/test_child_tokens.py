"""Child tokens by API: one's own, for an hour at most, and for no more than their parent."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from tests.control_plane.conftest import Answer, Node, People, Person

PATH = "/api/v1/tokens"


@pytest.fixture
async def org(people: People) -> uuid.UUID:
    return await people.org()  # type: ignore[no-any-return]


@pytest.fixture
async def editor(people: People, org: uuid.UUID) -> Person:
    return await people.workspace_member(org, await people.workspace_id(org), "editor")


async def make(node: Node, person: Person, **body: Any) -> Any:
    answer = await node.call("POST", PATH, by=person, json=body)
    assert answer.status == 201, answer.content
    return answer.json


async def child(node: Node, person: Person, parent: str, **body: Any) -> Answer:
    return await node.call("POST", f"{PATH}/{parent}/children", by=person, json=body)


async def test_a_child_is_made_of_ones_own_token_and_ends_with_it(
    node: Node, editor: Person, owner: asyncpg.Connection
) -> None:
    parent = await make(node, editor, expires="30m", limit=100)
    made = await node.call("POST", f"{PATH}/{parent['id']}/children", by=editor)  # no body at all
    assert made.status == 201, made.content
    assert made.json["token"].startswith("kxc_")
    for same in ("user_id", "workspace_id", "scopes"):
        assert made.json[same] == parent[same]
    assert made.json["parent_id"] == parent["id"]
    assert made.json["expires_at"] == parent["expires_at"]  # not in an hour
    longer = await make(node, editor)
    hour = await child(node, editor, longer["id"])
    life = datetime.fromisoformat(hour.json["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=59) < life <= timedelta(hours=1)
    of_parent = await node.call("GET", f"{PATH}?parent_id={longer['id']}", by=editor)
    assert [one["id"] for one in of_parent.json["data"]] == [hour.json["id"]]
    assert await owner.fetchval("SELECT count(*) FROM audit_log WHERE action = 'token.create'") == 4


async def test_a_child_is_for_no_more_than_its_parent(node: Node, editor: Person) -> None:
    parent = await make(node, editor, limit=100, rate="10/1m", concurrency=3)
    for status, field, body in (
        (403, "scopes", {"scopes": ["batches"]}),
        (403, "scopes", {"scopes": ["admin"]}),
        (403, "limit", {"limit": 101}),
        (403, "rate", {"rate": "11/1m"}),
        (403, "rate", {"rate": "1/1s"}),
        (403, "concurrency", {"concurrency": 4}),
        (400, "expires", {"expires": "61m"}),
        (400, "limit", {"limit": 0}),
        (400, "user_id", {"user_id": str(uuid.uuid4())}),
    ):
        refused = await child(node, editor, parent["id"], **body)
        assert (refused.status, refused.json["field"]) == (status, field), refused.content
    made = await child(
        node, editor, parent["id"], limit=100, rate="10/1m", concurrency=3, models=["gpt-*"]
    )
    assert (made.status, made.json["models"]) == (201, ["gpt-*"])
    for path in (f"{made.json['id']}/children", f"{made.json['id']}/rotate"):
        refused = await node.call("POST", f"{PATH}/{path}", by=editor)
        assert (refused.status, refused.json["code"]) == (409, "child_token")
    changed = await node.call("PATCH", f"{PATH}/{made.json['id']}", by=editor, json={"name": "x"})
    assert changed.status == 409


async def test_nobody_makes_children_of_what_is_not_theirs_or_has_ended(
    node: Node, people: People, org: uuid.UUID, editor: Person
) -> None:
    parent = await make(node, editor)
    admin = await people.member(org, "owner")
    assert (await child(node, admin, parent["id"])).status == 403
    stranger = await people.member(await people.org("other"), "owner")
    assert (await child(node, stranger, parent["id"])).status == 404
    await node.call("POST", f"{PATH}/{parent['id']}/revoke", by=editor)
    refused = await child(node, editor, parent["id"])
    assert (refused.status, refused.json["code"]) == (409, "token_revoked")


async def test_a_gateway_token_opens_nothing_here(node: Node, editor: Person) -> None:
    """49 of the corpus."""
    parent = await make(node, editor)
    made = (await child(node, editor, parent["id"])).json
    for secret in (parent["token"], made["token"]):
        bearer = {"authorization": f"Bearer {secret}"}
        for method, path in (
            ("GET", PATH),
            ("POST", PATH),
            ("GET", "/api/v1/me"),
            ("POST", f"{PATH}/{parent['id']}/children"),
            ("POST", f"{PATH}/{parent['id']}/revoke"),
        ):
            answer = await node.call(method, path, headers=bearer)
            assert (answer.status, answer.json["code"]) == (401, "unauthenticated")
            assert secret.encode() not in answer.content
    assert not any(made["token"].encode() in line for line in node.lines)
