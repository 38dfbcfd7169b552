"""Limits by API: who may set, lower and see them, and what comes of numbers that are none."""

import uuid
from typing import Any

import asyncpg
import pytest

from control_plane.tenancy.limits import parse_changes, set_limits
from tests.control_plane.conftest import Answer, Node, People, Person

PATH = "/api/v1/limits"


@pytest.fixture
async def org(people: People) -> uuid.UUID:
    return await people.org()  # type: ignore[no-any-return]


@pytest.fixture
async def admin(people: People, org: uuid.UUID) -> Person:
    return await people.member(org, "admin")


@pytest.fixture
async def lead(people: People, org: uuid.UUID) -> Person:
    """The admin of the org's workspace."""
    return await people.workspace_member(org, await people.workspace_id(org), "admin")


async def put(node: Node, person: Person, kind: str, subject: Any, **body: Any) -> Answer:
    return await node.call("PUT", f"{PATH}/{kind}/{subject}", by=person, json=body)


async def test_a_limit_is_set_lowered_and_taken_away_with_a_receipt(
    node: Node, org: uuid.UUID, admin: Person, owner: asyncpg.Connection
) -> None:
    first = await put(node, admin, "org", org, limit=1000, rate="60/1m", concurrency=8)
    assert first.status == 200, first.content
    shown = {
        "kind": "org",
        "subject_id": str(org),
        "limit": 1000,
        "rate": "60/60s",
        "concurrency": 8,
    }
    assert {k: v for k, v in first.json.items() if k != "receipt"} == shown
    assert first.json["receipt"]["complete"] in {True, False}
    path = f"{PATH}/org/{org}"
    read = await node.call("GET", path, by=admin)
    assert read.json == shown

    lowered = await put(node, admin, "org", org, limit=10)
    assert (lowered.json["limit"], lowered.json["rate"]) == (10, None)
    assert lowered.json["receipt"]["ordinal"] > first.json["receipt"]["ordinal"]
    same = await put(node, admin, "org", org, limit=10)
    assert same.json["receipt"] is None
    stale = await node.call("DELETE", path, by=admin, headers={"if-match": read.headers["etag"]})
    assert stale.status == 412
    gone = await node.call("DELETE", path, by=admin)
    assert (gone.json["limit"], gone.json["receipt"] is None) == (None, False)
    changes = await owner.fetch("SELECT kind, effect FROM change_log ORDER BY ordinal")
    assert {(row["kind"], row["effect"]) for row in changes} == {("org", "limit")}
    actions = await owner.fetch("SELECT action, after FROM audit_log ORDER BY ordinal")
    assert [row["action"] for row in actions] == ["limit.update"] * 3
    assert '"limit": 10' in actions[1]["after"]


@pytest.mark.parametrize("field", ["limit", "concurrency", "rate"])
@pytest.mark.parametrize("number", ["-1", "0", "1.5", str(2**63), "null", '"none"', "{}"])
async def test_what_is_no_number_of_calls_is_refused_by_name(
    node: Node, org: uuid.UUID, admin: Person, field: str, number: str
) -> None:
    answer = await node.call(
        "PUT",
        f"{PATH}/org/{org}",
        by=admin,
        data=f'{{"{field}": {number}}}',
        headers={"content-type": "application/json"},
    )
    assert (answer.status, answer.json["field"]) == (400, field), answer.content


async def test_windows_and_caps_are_on_tokens_and_the_org(
    node: Node, people: People, org: uuid.UUID, admin: Person
) -> None:
    workspace = await people.workspace_id(org)
    user = await people.user_id(org, admin)
    for kind, subject in (("workspace", workspace), ("user", user)):
        for field, value in (("rate", "1/1s"), ("concurrency", 1)):
            refused = await put(node, admin, kind, subject, **{field: value})
            assert (refused.status, refused.json["field"]) == (400, field)
        assert (await put(node, admin, kind, subject, limit=1)).status == 200
    assert (await put(node, admin, "org", org)).json["field"] == "limit"
    assert (await put(node, admin, "team", org, limit=1)).status == 404


async def test_who_is_limited_does_not_set_the_limit(
    node: Node, people: People, org: uuid.UUID, lead: Person
) -> None:
    workspace = await people.workspace_id(org)
    made = await node.call("POST", "/api/v1/tokens", by=lead, json={})
    assert made.status == 201, made.content
    token = made.json["id"]
    user = await people.user_id(org, lead)
    for kind, subject in (("workspace", workspace), ("user", user), ("org", org)):
        assert (await put(node, lead, kind, subject, limit=5)).status == 403
    assert (await put(node, lead, "token", token, limit=5)).status == 200
    editor = await people.workspace_member(org, workspace, "editor")
    assert (await put(node, editor, "token", token, limit=5)).status == 403
    assert (await node.call("GET", f"{PATH}/workspace/{workspace}", by=editor)).status == 200
    assert (await node.call("GET", f"{PATH}/org/{org}", by=editor)).status == 403
    assert (await node.call("GET", f"{PATH}/token/{token}", by=editor)).status == 403


async def test_what_a_command_has_set_is_lowered_by_the_org_and_not_raised(
    node: Node, people: People, org: uuid.UUID, admin: Person, owner: asyncpg.Connection
) -> None:
    token = (await node.call("POST", "/api/v1/tokens", by=admin, json={"limit": 9})).json["id"]
    for subject in (f"org:{org}", f"token:{token}"):
        changes = parse_changes(calls_a_month="100", rate="60/1m", concurrency="8")
        await set_limits(owner, subject, changes, is_embedded=True)
    as_it_is: dict[str, Any] = {"limit": 100, "rate": "60/1m", "concurrency": 8}
    for field, more in (
        ("limit", 101), ("limit", None), ("rate", "61/1m"), ("rate", "60/59s"), ("rate", "1/1s"),
        ("rate", None), ("concurrency", 9), ("concurrency", None),
    ):  # fmt: skip
        body = {k: v for k, v in {**as_it_is, field: more}.items() if v is not None}
        for kind, subject in (("org", str(org)), ("token", token)):
            answer = await put(node, admin, kind, subject, **body)
            assert (answer.status, answer.json["field"]) == (403, field), answer.content
        patched = await node.call(
            "PATCH", f"/api/v1/tokens/{token}", by=admin, json={field: more or "none"}
        )
        assert (patched.status, patched.json["field"]) == (403, field), patched.content
    assert (await node.call("DELETE", f"{PATH}/org/{org}", by=admin)).status == 403
    lowered = {"limit": 50, "rate": "30/1m", "concurrency": 4}
    assert (await put(node, admin, "org", org, **lowered)).status == 200
    assert (await put(node, admin, "org", org, **{**lowered, "limit": 51})).status == 403

    operator = await people.member(org, "owner", await people.person(is_operator=True))
    assert (await put(node, operator, "org", org, **as_it_is)).status == 200
    assert (await put(node, admin, "org", org, **{**as_it_is, "limit": 101})).status == 403
    changes = parse_changes(calls_a_month="none", rate="none", concurrency="none")
    await set_limits(owner, f"org:{org}", changes, is_embedded=True)
    assert (await put(node, admin, "org", org, limit=1_000)).status == 200


async def test_a_list_has_what_its_asker_may_see(
    node: Node, people: People, org: uuid.UUID, admin: Person, lead: Person
) -> None:
    workspace = await people.workspace_id(org)
    editor = await people.workspace_member(org, workspace, "editor")
    token = (await node.call("POST", "/api/v1/tokens", by=lead, json={"limit": 3})).json["id"]
    await put(node, admin, "org", org, limit=100)
    await put(node, admin, "workspace", workspace, limit=50)
    await put(node, admin, "user", await people.user_id(org, editor), limit=20)
    await put(node, admin, "user", await people.user_id(org, admin), limit=30)

    async def kinds(person: Person) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        after = ""
        while True:
            answer = await node.call("GET", f"{PATH}?limit=2{after}", by=person)
            assert answer.status == 200, answer.content
            found += [(one["kind"], one["limit"]) for one in answer.json["data"]]
            if answer.json["next"] is None:
                return found
            after = f"&after={answer.json['next']}"

    assert sorted(await kinds(admin)) == [
        ("org", 100), ("token", 3), ("user", 20), ("user", 30), ("workspace", 50),
    ]  # fmt: skip
    assert sorted(await kinds(lead)) == [("token", 3), ("workspace", 50)]
    assert sorted(await kinds(editor)) == [("user", 20), ("workspace", 50)]
    other = await people.member(await people.org("other"), "owner")
    assert await kinds(other) == []
    for kind, subject in (("token", token), ("workspace", workspace), ("org", org)):
        assert (await put(node, other, kind, subject, limit=1)).status == 404
