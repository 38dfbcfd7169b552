import asyncpg

from tests.control_plane.conftest import Node, People


async def test_an_account_is_told_who_it_is_and_where_it_is_a_member(
    node: Node, people: People
) -> None:
    org = await people.org("acme")
    person = await people.member(org, "editor")

    answer = await node.call("GET", "/api/v1/me", by=person)

    assert answer.status == 200, answer.content
    assert answer.json["email"] == person.email
    assert [(one["name"], one["role"]) for one in answer.json["orgs"]] == [("acme", "editor")]


async def test_nobody_is_told_anything(node: Node) -> None:
    answer = await node.call("GET", "/api/v1/me")

    assert answer.status == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["code"] == "unauthenticated"
    assert answer.json["request_id"] == answer.headers["x-request-id"]


async def test_a_session_that_has_ended_is_over_at_once(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    person = await people.person()
    assert (await node.call("GET", "/api/v1/me", by=person)).status == 200

    await owner.execute("UPDATE sessions SET ended_at = now() WHERE id = $1", person.session_id)

    assert (await node.call("GET", "/api/v1/me", by=person)).status == 401
