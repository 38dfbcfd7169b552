import json
import uuid
from typing import Any

import asyncpg
import pytest

from control_plane.mail import Mail
from control_plane.tenancy.invitations import MAILS_AN_ADDRESS_MAX
from gateway.auth.token import digest, is_well_formed
from tests.control_plane.conftest import Node, People, Person


@pytest.fixture
async def org(people: People) -> Any:
    return await people.org("acme")


@pytest.fixture
async def admin(people: People, org: uuid.UUID) -> Person:
    return await people.member(org, "admin")


async def invite(node: Node, org: uuid.UUID, by: Person, email: str, **more: Any) -> str:
    """Invite somebody; return the token of the link."""
    body = {"email": email, "role": "editor", **more}
    answer = await node.call("POST", f"/api/v1/orgs/{org}/invitations", by=by, json=body)
    assert answer.status == 201, answer.content
    token: str = answer.json["link"].partition("#")[2]
    assert token.startswith("kxi_")
    assert is_well_formed(token.encode())
    return token


async def accept(node: Node, by: Person, token: str) -> Any:
    return await node.call("POST", "/api/v1/invitations/accept", by=by, json={"token": token})


async def test_who_is_invited_joins_org_and_workspace_once(
    node: Node, people: People, owner: asyncpg.Connection, org: uuid.UUID, admin: Person
) -> None:
    workspace = await people.workspace_id(org)
    token = await invite(
        node, org, admin, "New@Example.com", workspace_id=str(workspace), workspace_role="admin"
    )
    assert await owner.fetchval("SELECT digest FROM invitations") == digest(token)
    person = await people.person("new@example.com")

    answer = await accept(node, person, token)

    assert answer.status == 200, answer.content
    assert (answer.json["org_name"], answer.json["role"]) == ("acme", "editor")
    path = f"/api/v1/orgs/{org}/workspaces/{workspace}"
    assert (await node.call("PATCH", path, by=person, json={"name": "mine"})).status == 200
    assert (await accept(node, person, token)).status == 404
    actions = await owner.fetch(
        "SELECT action, after::text AS after FROM audit_log WHERE org_id = $1 ORDER BY ordinal", org
    )
    assert [row["action"] for row in actions][:2] == ["invitation.create", "invitation.accept"]
    for row in actions[:2]:
        conferred = json.loads(row["after"])
        assert conferred["role"] == "editor"
        assert conferred["workspace_id"] == str(workspace)
        assert conferred["workspace_role"] == "admin"


async def test_the_mail_has_the_link_and_the_log_has_not(
    node: Node, people: People, org: uuid.UUID, admin: Person
) -> None:
    mails: list[Mail] = []

    async def keep(mail: Mail) -> None:
        mails.append(mail)

    await invite(node, org, admin, "first@example.com")
    await node.services.outbox.drained()
    assert not any(b"kxi_" in line for line in node.lines)

    node.services.outbox._deliver = keep
    token = await invite(node, org, admin, "new@example.com")
    await node.services.outbox.drained()
    assert [(mail.to, mail.subject) for mail in mails] == [
        ("new@example.com", "An invitation to kAIxU")
    ]
    assert f"{node.services.settings.public_url}/invitation#{token}" in mails[0].text


async def test_a_token_is_of_no_use_to_anyone_else(
    node: Node, people: People, owner: asyncpg.Connection, org: uuid.UUID, admin: Person
) -> None:
    token = await invite(node, org, admin, "new@example.com")
    thief = await people.person("thief@example.com")
    unverified = await people.person("new@example.com")
    await owner.execute(
        "UPDATE accounts SET email_verified_at = NULL WHERE id = $1", unverified.account_id
    )
    refusals = [await accept(node, one, token) for one in (thief, unverified)]
    refusals.append(await accept(node, thief, "kxi_" + "0" * 38))
    assert {one.status for one in refusals} == {404}
    assert len({one.json["detail"] for one in refusals}) == 1


async def test_a_new_invitation_takes_the_place_of_the_one_before_and_can_be_withdrawn(
    node: Node, people: People, org: uuid.UUID, admin: Person
) -> None:
    first = await invite(node, org, admin, "new@example.com")
    second = await invite(node, org, admin, "NEW@example.com")
    person = await people.person("new@example.com")
    assert (await accept(node, person, first)).status == 404
    path = f"/api/v1/orgs/{org}/invitations"
    listed = (await node.call("GET", path, by=admin)).json["data"]
    assert [one["email"] for one in listed] == ["NEW@example.com"]
    assert (await node.call("DELETE", f"{path}/{listed[0]['id']}", by=admin)).status == 204
    assert (await node.call("DELETE", f"{path}/{listed[0]['id']}", by=admin)).status == 404
    assert (await accept(node, person, second)).status == 404


async def test_an_invitation_gives_nothing_that_who_invited_could_not_give_by_now(
    node: Node, people: People, owner: asyncpg.Connection, org: uuid.UUID, admin: Person
) -> None:
    token = await invite(node, org, admin, "new@example.com", role="admin")
    person = await people.person("new@example.com")
    change = "UPDATE users SET role = $2 WHERE account_id = $1"
    await owner.execute(change, admin.account_id, "editor")
    assert (await accept(node, person, token)).status == 404
    await owner.execute(change, admin.account_id, "admin")
    assert (await accept(node, person, token)).status == 200


async def test_nobody_invites_above_themselves_or_into_another_org_s_workspace(
    node: Node, people: People, org: uuid.UUID, admin: Person
) -> None:
    path = f"/api/v1/orgs/{org}/invitations"
    body: dict[str, Any] = {"email": "a@example.com", "role": "owner"}
    answer = await node.call("POST", path, by=admin, json=body)
    assert (answer.status, answer.json["field"]) == (403, "role")
    theirs = await people.workspace_id(await people.org("theirs"))
    for workspace in (theirs, uuid.uuid4()):
        body = {"email": "a@example.com", "role": "viewer", "workspace_id": str(workspace)}
        answer = await node.call("POST", path, by=admin, json=body)
        assert (answer.status, answer.json["field"]) == (400, "workspace_id")
        answer = await node.call("POST", path, by=admin, json={**body, "workspace_role": "viewer"})
        assert (answer.status, answer.json["field"]) == (404, "workspace_id")


async def test_a_member_is_not_invited_and_one_who_left_comes_back_without_the_old_tokens(
    node: Node, people: People, owner: asyncpg.Connection, org: uuid.UUID, admin: Person
) -> None:
    person = await people.member(org, "editor", await people.person("new@example.com"))
    path = f"/api/v1/orgs/{org}"
    body = {"email": "new@example.com", "role": "viewer"}
    answer = await node.call("POST", f"{path}/invitations", by=admin, json=body)
    assert (answer.status, answer.json["field"]) == (409, "email")
    user_id = await people.user_id(org, person)
    await owner.execute(
        """
        INSERT INTO tokens (id, digest, hint, org_id, workspace_id, user_id, expires_at)
        VALUES ($1, sha256('x'), '', $2, $3, $4, now() + interval '1 hour')
        """,
        uuid.uuid4(), org, await people.workspace_id(org), user_id,
    )  # fmt: skip
    assert (await node.call("POST", f"{path}/leave", by=person)).status == 200

    answer = await accept(node, person, await invite(node, org, admin, "new@example.com"))

    assert (answer.status, answer.json["user_id"]) == (200, str(user_id))
    assert (await node.call("GET", path, by=person)).status == 200
    assert await owner.fetchval("SELECT ended FROM token_standings") == "revoked"


async def test_an_address_is_written_to_only_so_often(
    node: Node, org: uuid.UUID, admin: Person
) -> None:
    path = f"/api/v1/orgs/{org}/invitations"
    statuses = [
        (await node.call(
            "POST", path, by=admin, json={"email": "a@example.com", "role": "viewer"}
        )).status
        for _ in range(MAILS_AN_ADDRESS_MAX + 1)
    ]  # fmt: skip
    assert statuses == [201] * MAILS_AN_ADDRESS_MAX + [429]
