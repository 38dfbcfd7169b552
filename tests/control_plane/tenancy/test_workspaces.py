import uuid

import asyncpg

from tests.control_plane.conftest import Node, People
from tests.control_plane.world import World, make_world


async def test_members_see_the_workspaces_that_they_are_in_and_admins_all(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    world = await make_world(owner, people)
    path = f"/api/v1/orgs/{world.org}/workspaces"
    made = await node.call("POST", path, by=world.who["org admin"], json={"name": "a second"})
    assert made.status == 201
    for who, names in (
        ("org admin", ["a second", "default"]),
        ("workspace viewer", ["default"]),
    ):
        answer = await node.call("GET", path, by=world.who[who])
        assert [one["name"] for one in answer.json["data"]] == names
    answer = await node.call("GET", f"{path}/{made.json['id']}", by=world.who["workspace owner"])
    assert answer.status == 403


async def test_a_name_is_one_workspace_s_until_that_is_deleted(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    world = await make_world(owner, people)
    path, admin = f"/api/v1/orgs/{world.org}/workspaces", world.who["org admin"]
    answer = await node.call("POST", path, by=admin, json={"name": "default"})
    assert (answer.status, answer.json["code"]) == (409, "name_taken")
    second = (await node.call("POST", path, by=admin, json={"name": "second"})).json["id"]
    answer = await node.call("PATCH", f"{path}/{second}", by=admin, json={"name": "default"})
    assert (answer.status, answer.json["code"]) == (409, "name_taken")

    receipt = await node.call("DELETE", f"{path}/{world.workspace}", by=admin)
    assert (receipt.status, receipt.json["id"]) == (200, str(world.workspace))
    assert (await node.call("GET", f"{path}/{world.workspace}", by=admin)).status == 404
    answer = await node.call("PATCH", f"{path}/{second}", by=admin, json={"name": "default"})
    assert answer.status == 200


async def put(node: Node, world: World, by: str, user: uuid.UUID, role: str) -> int:
    path = f"/api/v1/orgs/{world.org}/workspaces/{world.workspace}/members/{user}"
    return (await node.call("PUT", path, by=world.who[by], json={"role": role})).status


async def test_in_a_workspace_too_nobody_rises_above_who_lifts_them(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    world = await make_world(owner, people)
    editor = await world.user_id("org editor")
    their_owner = await world.user_id("workspace owner")
    assert await put(node, world, "workspace admin", editor, "admin") == 200
    assert await put(node, world, "workspace admin", editor, "owner") == 403
    assert await put(node, world, "workspace admin", their_owner, "viewer") == 403
    assert await put(node, world, "workspace owner", editor, "owner") == 200
    assert await put(node, world, "org admin", their_owner, "viewer") == 200
    assert (
        await put(node, world, "org admin", await world.user_id("other org's owner"), "viewer")
        == 404
    )
    assert await put(node, world, "org admin", uuid.uuid4(), "viewer") == 404


async def test_who_leaves_a_workspace_leaves_the_tokens_in_it_behind_ended(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    world = await make_world(owner, people)
    user = await world.user_id("workspace editor")
    await world.token(world.org, world.workspace, user)
    path = f"/api/v1/orgs/{world.org}/workspaces/{world.workspace}/members"
    listed = await node.call("GET", path, by=world.who["workspace viewer"])
    assert len(listed.json["data"]) == 5

    receipt = await node.call("DELETE", f"{path}/{user}", by=world.who["workspace admin"])

    assert receipt.status == 200, receipt.content
    assert receipt.json["ordinal"] >= 1
    assert await owner.fetchval("SELECT revoked_at FROM tokens WHERE user_id = $1", user)
    nothing = await node.call(
        "DELETE", f"{path}/{world.bystander}", by=world.who["workspace admin"]
    )
    assert (nothing.json["ordinal"], nothing.json["complete"]) == (None, True)
