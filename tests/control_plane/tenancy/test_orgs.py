import asyncpg

from control_plane.tenancy.orgs import ORGS_OWNED_MAX
from tests.control_plane.conftest import Node, People
from tests.control_plane.world import unthrottle


async def test_an_account_makes_another_org_and_owns_it(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    person = await people.person(name="Ada")
    answer = await node.call("POST", "/api/v1/orgs", by=person, json={"name": "Engines"})
    assert answer.status == 201, answer.content
    org = answer.json["id"]
    orgs = (await node.call("GET", "/api/v1/me", by=person)).json["orgs"]
    assert [(one["id"], one["name"], one["role"]) for one in orgs] == [(org, "Engines", "owner")]
    workspaces = await node.call("GET", f"/api/v1/orgs/{org}/workspaces", by=person)
    assert [one["name"] for one in workspaces.json["data"]] == ["default"]
    row = await owner.fetchrow("SELECT org_id::text, action FROM audit_log")
    assert row is not None
    assert tuple(row) == (org, "org.create")


async def test_an_account_makes_only_so_many_orgs_and_none_unconfirmed(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    await unthrottle(owner)
    person = await people.person()
    for _ in range(ORGS_OWNED_MAX):
        assert (
            await node.call("POST", "/api/v1/orgs", by=person, json={"name": "x"})
        ).status == 201
    assert (await node.call("POST", "/api/v1/orgs", by=person, json={"name": "x"})).status == 409
    await owner.execute("UPDATE accounts SET email_verified_at = NULL")
    assert (await node.call("POST", "/api/v1/orgs", by=person, json={"name": "x"})).status == 403


async def test_what_is_not_given_is_not_changed(node: Node, people: People) -> None:
    org = await people.org("acme")
    path, admin = f"/api/v1/orgs/{org}", await people.member(org, "admin")
    answer = await node.call("PATCH", path, by=admin, json={"token_days_max": 7})
    assert (answer.json["name"], answer.json["token_days_max"]) == ("acme", 7)
    answer = await node.call("PATCH", path, by=admin, json={"name": "new"})
    assert (answer.json["name"], answer.json["token_days_max"]) == ("new", 7)
    for body, field in (
        ({"token_days_max": 91}, "token_days_max"),
        ({"name": " x"}, "name"),
        ({"name": "x\u200b\n"}, "name"),
        ({"deleted_at": None}, "deleted_at"),
    ):
        answer = await node.call("PATCH", path, by=admin, json=body)
        assert (answer.status, answer.json["field"]) == (400, field)


async def test_nobody_locks_themselves_out_by_asking_for_a_second_factor(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    org = await people.org("acme")
    path, admin = f"/api/v1/orgs/{org}", await people.member(org, "admin")
    other = await people.member(org, "viewer")
    body = {"requires_totp": True}
    assert (await node.call("PATCH", path, by=admin, json=body)).status == 409
    await owner.execute(
        "UPDATE accounts SET totp_sealed = 'x', totp_enabled_at = now() WHERE id = $1",
        admin.account_id,
    )
    assert (await node.call("PATCH", path, by=admin, json=body)).json["requires_totp"] is True
    assert (await node.call("GET", path, by=other)).json["code"] == "totp_required"


async def test_an_org_that_is_deleted_is_none(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    org = await people.org("acme")
    path, person = f"/api/v1/orgs/{org}", await people.member(org, "owner")
    answer = await node.call("DELETE", path, by=person)
    assert answer.status == 200, answer.content
    assert await owner.fetchval(
        "SELECT kind || ' ' || effect FROM change_log WHERE ordinal = $1", answer.json["ordinal"]
    ) == "org dead"  # fmt: skip
    assert (await node.call("GET", path, by=person)).status == 404
    assert (await node.call("GET", "/api/v1/me", by=person)).json["orgs"] == []


async def test_the_operator_finds_orgs_by_name_and_suspends_one(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    operator, org = await people.person(is_operator=True), await people.org("100% ours")
    member = await people.member(org, "owner")
    path = "/api/v1/operator/orgs"
    every = [one["name"] for one in (await node.call("GET", path, by=operator)).json["data"]]
    assert every == ["100% ours", "default"]
    for search, found in (("% O", ["100% ours"]), ("%", ["100% ours"]), ("_", [])):
        answer = await node.call("GET", path, by=operator, params={"search": search})
        assert [one["name"] for one in answer.json["data"]] == found
    first = (await node.call("GET", path, by=operator, params={"limit": "1"})).json
    second = await node.call("GET", path, by=operator, params={"after": first["next"]})
    assert [one["name"] for one in second.json["data"]] == ["default"]

    receipt = await node.call("POST", f"{path}/{org}/suspend", by=operator)
    again = await node.call("POST", f"{path}/{org}/suspend", by=operator)
    assert (receipt.status, again.json["ordinal"]) == (200, receipt.json["ordinal"])
    assert (await node.call("GET", f"/api/v1/orgs/{org}", by=member)).status == 404
    assert (await node.call("POST", f"{path}/{org}/unsuspend", by=operator)).status == 200
    assert (await node.call("GET", f"/api/v1/orgs/{org}", by=member)).status == 200
    assert (await node.call("POST", f"{path}/{org}/unsuspend", by=operator)).status == 409
    log = await owner.fetch("SELECT action FROM audit_log WHERE org_id = $1 ORDER BY ordinal", org)
    assert [row["action"] for row in log] == ["org.suspend", "org.unsuspend"]
