import asyncio
import uuid
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from control_plane.server_settings import ServerSettings
from tests.control_plane.conftest import Node, People, Person, started
from tests.control_plane.world import make_world


@dataclass(frozen=True, kw_only=True)
class Team:
    org: uuid.UUID
    owner: Person
    admin: Person
    viewer: Person


@pytest.fixture
async def team(people: People) -> Team:
    org = await people.org("acme")
    owner, admin, viewer = [
        await people.member(org, role, await people.person(f"{role}@example.com"))
        for role in ("owner", "admin", "viewer")
    ]
    return Team(org=org, owner=owner, admin=admin, viewer=viewer)


async def member_path(people: People, team: Team, person: Person) -> str:
    return f"/api/v1/orgs/{team.org}/members/{await people.user_id(team.org, person)}"


async def test_members_are_listed_page_by_page_and_found_by_a_part_of_their_address(
    node: Node, team: Team
) -> None:
    path = f"/api/v1/orgs/{team.org}/members"
    first = (await node.call("GET", path, by=team.viewer, params={"limit": "2"})).json
    second = (
        await node.call("GET", path, by=team.viewer, params={"limit": "2", "after": first["next"]})
    ).json
    assert [one["email"] for one in first["data"] + second["data"]] == [
        "admin@example.com", "owner@example.com", "viewer@example.com",
    ]  # fmt: skip
    assert second["next"] is None
    assert [one["role"] for one in first["data"]] == ["admin", "owner"]

    found = await node.call("GET", path, by=team.viewer, params={"search": "OWN"})
    assert [one["email"] for one in found.json["data"]] == ["owner@example.com"]
    for bad in ("x", "", "WyJhIiwiYiJd"):
        answer = await node.call("GET", path, by=team.viewer, params={"after": bad})
        assert (answer.status, answer.json["field"]) == (400, "after")


async def test_a_role_changes_and_the_log_says_who_changed_it(
    node: Node, people: People, team: Team, owner: asyncpg.Connection
) -> None:
    path = await member_path(people, team, team.viewer)
    answer = await node.call("PATCH", path, by=team.admin, json={"role": "editor"})
    assert (answer.status, answer.json["role"]) == (200, "editor")
    row = await owner.fetchrow("SELECT * FROM audit_log WHERE org_id = $1", team.org)
    assert row is not None
    assert (row["action"], row["actor_id"]) == ("member.change", team.admin.account_id)
    assert (row["before"], row["after"]) == ('{"role": "viewer"}', '{"role": "editor"}')


async def test_a_role_that_is_lowered_holds_for_open_sessions_on_every_node_at_once(
    node: Node, people: People, team: Team, server_settings: ServerSettings
) -> None:
    path = await member_path(people, team, team.viewer)
    invite = f"/api/v1/orgs/{team.org}/invitations"
    body = {"email": "someone@example.com", "role": "viewer"}
    async with started(server_settings) as other_node:
        for role, status in (("admin", 201), ("viewer", 403)):
            answer = await node.call("PATCH", path, by=team.owner, json={"role": role})
            assert answer.status == 200, answer.content
            for asked in (other_node, node):
                answer = await asked.call("POST", invite, by=team.viewer, json=body)
                assert answer.status == status, (role, answer.content)


async def test_a_change_of_what_was_changed_meanwhile_is_refused(
    node: Node, people: People, team: Team
) -> None:
    path = await member_path(people, team, team.viewer)
    tag = (await node.call("GET", path, by=team.admin)).headers["etag"]
    for status in (200, 412):
        answer = await node.call(
            "PATCH", path, by=team.admin, json={"role": "editor"}, headers={"if-match": tag}
        )
        assert answer.status == status


async def test_nobody_lifts_anyone_above_themselves_or_touches_who_stands_above(
    node: Node, people: People, team: Team
) -> None:
    viewer, owner = [await member_path(people, team, one) for one in (team.viewer, team.owner)]
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("PATCH", viewer, {"json": {"role": "owner"}}),
        ("PATCH", await member_path(people, team, team.admin), {"json": {"role": "owner"}}),
        ("PATCH", owner, {"json": {"role": "viewer"}}),
        ("POST", f"{owner}/disable", {}),
        ("POST", f"{owner}/enable", {}),
        ("DELETE", owner, {}),
    ]
    for method, path, body in asked:
        answer = await node.call(method, path, by=team.admin, **body)
        assert answer.status == 403, (method, path, answer.content)


async def test_an_org_keeps_an_owner(node: Node, people: People, team: Team) -> None:
    owner = await member_path(people, team, team.owner)
    for method, path in (
        ("POST", f"{owner}/disable"),
        ("DELETE", owner),
        ("POST", f"/api/v1/orgs/{team.org}/leave"),
    ):
        answer = await node.call(method, path, by=team.owner)
        assert (answer.status, answer.json["code"]) == (409, "last_owner"), path
    answer = await node.call("PATCH", owner, by=team.owner, json={"role": "admin"})
    assert (answer.status, answer.json["code"]) == (409, "last_owner")

    second = await people.member(team.org, "owner")
    assert (await node.call("POST", f"{owner}/disable", by=second)).status == 200
    # The one who is disabled is no owner to count on.
    answer = await node.call("POST", f"/api/v1/orgs/{team.org}/leave", by=second)
    assert answer.status == 409


async def test_two_owners_who_demote_each_other_leave_one(
    node: Node, people: People, team: Team
) -> None:
    second = await people.member(team.org, "owner")
    first_path, second_path = [await member_path(people, team, one) for one in (team.owner, second)]
    answers = await asyncio.gather(
        node.call("PATCH", second_path, by=team.owner, json={"role": "viewer"}),
        node.call("PATCH", first_path, by=second, json={"role": "viewer"}),
    )
    assert min(one.status for one in answers) == 200
    assert max(one.status for one in answers) in {403, 409}
    members = await node.call("GET", f"/api/v1/orgs/{team.org}/members", by=team.admin)
    assert [one["role"] for one in members.json["data"]].count("owner") == 1


async def test_a_member_who_is_disabled_is_out_at_once_and_comes_back(
    node: Node, people: People, team: Team
) -> None:
    path = await member_path(people, team, team.viewer)
    receipt = await node.call("POST", f"{path}/disable", by=team.admin)
    assert receipt.status == 200
    assert receipt.json["ordinal"] >= 1
    assert receipt.json["committed_at"].endswith("Z")
    assert (await node.call("GET", f"/api/v1/orgs/{team.org}", by=team.viewer)).status == 404
    again = await node.call("POST", f"{path}/disable", by=team.admin)
    assert again.json["ordinal"] == receipt.json["ordinal"]

    enabled = await node.call("POST", f"{path}/enable", by=team.admin)
    assert (enabled.status, enabled.json["disabled_at"]) == (200, None)
    assert (await node.call("GET", f"/api/v1/orgs/{team.org}", by=team.viewer)).status == 200


async def test_who_is_removed_leaves_no_token_behind(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    world = await make_world(owner, people)
    person = world.who["workspace editor"]
    user_id = await people.user_id(world.org, person)
    for _ in range(3):
        await world.token(world.org, world.workspace, user_id)
    path = f"/api/v1/orgs/{world.org}/members/{user_id}"
    assert (await node.call("DELETE", path, by=world.who["org admin"])).status == 200
    assert await owner.fetchval("SELECT count(*) FROM tokens WHERE user_id = $1", user_id) == 3
    assert await owner.fetchval(
        "SELECT bool_and(revoked_at IS NOT NULL) FROM tokens WHERE user_id = $1", user_id
    )
    assert await owner.fetchval(
        "SELECT count(*) FROM workspace_members WHERE user_id = $1", user_id
    ) == 0  # fmt: skip
    assert (await node.call("DELETE", path, by=world.who["org admin"])).status == 404
    assert (await node.call("GET", f"/api/v1/orgs/{world.org}", by=person)).status == 404
