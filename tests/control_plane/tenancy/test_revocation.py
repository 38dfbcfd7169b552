"""The end of many tokens at once, and of one by whoever holds it."""

import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from control_plane.audit_log import COMMAND
from control_plane.tenancy.revocation import revoke_every_token
from gateway.auth.token import generate
from tests.control_plane.conftest import Node, People, Person

PATH = "/api/v1/tokens"
MANY = 10_000
SECONDS_MAX = 60.0


@pytest.fixture
async def org(people: People) -> uuid.UUID:
    return await people.org()  # type: ignore[no-any-return]


@pytest.fixture
async def admin(people: People, org: uuid.UUID) -> Person:
    return await people.member(org, "admin")


@pytest.fixture
async def editor(people: People, org: uuid.UUID) -> Person:
    return await people.workspace_member(org, await people.workspace_id(org), "editor")


async def make(node: Node, person: Person, **body: Any) -> Any:
    answer = await node.call("POST", PATH, by=person, json=body)
    assert answer.status == 201, answer.content
    return answer.json


async def states(owner: asyncpg.Connection) -> dict[str, bool]:
    rows = await owner.fetch("SELECT id::text, revoked_at IS NULL AS lives FROM tokens")
    return {row["id"]: row["lives"] for row in rows}


async def changes_since(owner: asyncpg.Connection, head: int) -> list[tuple[str, str, str]]:
    rows = await owner.fetch(
        "SELECT kind, subject_id::text, effect FROM change_log WHERE ordinal > $1", head
    )
    return sorted(tuple(row) for row in rows)


async def fill(owner: asyncpg.Connection, org_id: uuid.UUID, count: int) -> None:
    await owner.execute(
        """
        INSERT INTO tokens (id, digest, hint, org_id, workspace_id, user_id, expires_at)
        SELECT gen_random_uuid(), sha256(gen_random_uuid()::text::bytea), '', w.org_id, w.id, u.id,
            now() + interval '1 day'
        FROM workspaces AS w JOIN users AS u ON u.org_id = w.org_id, generate_series(1, $2)
        WHERE w.org_id = $1
        """,
        org_id,
        count,
    )


HEAD = "SELECT last FROM change_head"


async def test_all_tokens_of_a_member_end_and_the_member_stands_for_them(  # noqa: PLR0917 - fixtures
    node: Node,
    people: People,
    org: uuid.UUID,
    admin: Person,
    editor: Person,
    owner: asyncpg.Connection,
) -> None:
    gone = [(await make(node, editor))["id"] for _ in range(3)]
    stays = (await make(node, admin))["id"]
    user = str(await people.user_id(org, editor))
    head = await owner.fetchval(HEAD)
    answer = await node.call("POST", f"{PATH}/revoke-all", by=admin, json={"user_id": user})
    assert (answer.status, answer.json["revoked"]) == (200, 3), answer.content
    assert answer.json["receipt"]["workers"] == []
    assert await changes_since(owner, head) == [("user", user, "dead")]
    assert await states(owner) == {**dict.fromkeys(gone, False), stays: True}
    again = await node.call("POST", f"{PATH}/revoke-all", by=admin, json={"user_id": user})
    assert (again.json["revoked"], again.json["receipt"]) == (0, None)


async def test_ten_thousand_tokens_of_an_org_end_in_one_change(
    node: Node, people: People, org: uuid.UUID, admin: Person, owner: asyncpg.Connection
) -> None:
    await fill(owner, org, MANY)
    other = await people.org("other")
    await people.member(other, "owner")
    await fill(owner, other, 3)
    head = await owner.fetchval(HEAD)
    began = time.monotonic()
    answer = await node.call("POST", f"{PATH}/revoke-all", by=admin)
    took = time.monotonic() - began
    assert (answer.status, answer.json["revoked"]) == (200, MANY), answer.content
    assert took < SECONDS_MAX
    assert await changes_since(owner, head) == [("org", str(org), "dead")]
    assert sum((await states(owner)).values()) == 3
    one = await make(node, admin)  # which is another one's end again, by its own name
    head = await owner.fetchval(HEAD)
    await node.call("POST", f"{PATH}/{one['id']}/revoke", by=admin)
    assert await changes_since(owner, head) == [("token", one["id"], "dead")]


async def test_everything_ends_by_who_runs_the_installation(
    node: Node, people: People, org: uuid.UUID, owner: asyncpg.Connection
) -> None:
    head_of = await people.member(org, "owner")
    other = await people.org("other")
    await people.member(other, "owner")
    await fill(owner, org, 200)
    await fill(owner, other, 200)
    path = "/api/v1/operator/tokens/revoke-all"
    assert (await node.call("POST", path, by=head_of)).status == 403
    assert (await node.call("POST", path)).status == 401
    assert all((await states(owner)).values())
    head = await owner.fetchval(HEAD)
    operator = await people.person(is_operator=True)
    answer = await node.call("POST", path, by=operator)
    assert (answer.status, answer.json["revoked"]) == (200, 400), answer.content
    assert await changes_since(owner, head) == sorted(
        [("org", str(org), "dead"), ("org", str(other), "dead")]
    )
    assert not any((await states(owner)).values())
    told = await revoke_every_token(owner, origin=COMMAND, is_embedded=True)
    assert told == {"revoked": 0, "receipt": None}


async def test_who_may_not_revoke_all_revokes_nothing(
    node: Node, people: People, org: uuid.UUID, admin: Person, owner: asyncpg.Connection
) -> None:
    await make(node, admin)
    lead = await people.workspace_member(org, await people.workspace_id(org), "owner")
    assert (await node.call("POST", f"{PATH}/revoke-all", by=lead)).status == 403
    stranger = await people.member(await people.org("other"), "owner")
    body = {"user_id": str(await people.user_id(org, admin))}
    refused = await node.call("POST", f"{PATH}/revoke-all", by=stranger, json=body)
    assert (refused.status, refused.json["field"]) == (404, "user_id")
    assert (await node.call("POST", f"{PATH}/revoke-all", by=stranger)).json["revoked"] == 0
    assert all((await states(owner)).values())


async def test_whoever_holds_a_token_may_end_it_and_learns_nothing(
    node: Node, editor: Person, owner: asyncpg.Connection
) -> None:
    made, other = await make(node, editor), await make(node, editor)
    expired = await make(node, editor)
    await owner.execute("UPDATE tokens SET expires_at = now() WHERE id = $1", expired["id"])
    shown = [made["token"], made["token"], expired["token"], generate(), "nothing", "", "\u2028"]
    answers = [await node.call("POST", f"{PATH}/revoke", json={"token": one}) for one in shown]
    assert {(answer.status, answer.content) for answer in answers} == {(202, b'{"accepted":true}')}
    alike = [
        {k: v for k, v in one.headers.items() if k not in {"x-request-id", "date"}}
        for one in answers
    ]
    assert all(one == alike[0] for one in alike)
    lives = await states(owner)
    assert (lives[made["id"]], lives[other["id"]]) == (False, True)
    entries = await owner.fetch(
        "SELECT actor_kind, after::text FROM audit_log WHERE action = 'token.revoke' AND "
        "target_id = $1", made["id"]
    )  # fmt: skip
    assert [row["actor_kind"] for row in entries] == ["anonymous"]
    assert made["token"] not in entries[0]["after"]
    assert not any(made["token"].encode() in line for line in node.lines)
    for body in ({}, {"token": None}, {"token": "x" * 201}, {"token": "x", "id": "1"}):
        assert (await node.call("POST", f"{PATH}/revoke", json=body)).status == 400


async def test_an_old_secret_that_is_shown_ends_alone(
    node: Node, editor: Person, owner: asyncpg.Connection
) -> None:
    made = await make(node, editor)
    await node.call("POST", f"{PATH}/{made['id']}/rotate", by=editor)
    head = await owner.fetchval(HEAD)
    answer = await node.call("POST", f"{PATH}/revoke", json={"token": made["token"]})
    assert answer.status == 202
    assert await owner.fetchval("SELECT count(*) FROM retired_digests") == 0
    assert (await states(owner))[made["id"]]
    assert await changes_since(owner, head) == [("token", made["id"], "changed")]


async def test_tokens_are_shown_so_often_and_no_oftener(node: Node) -> None:
    statuses = [
        (await node.call("POST", f"{PATH}/revoke", json={"token": generate()})).status
        for _ in range(121)
    ]
    assert statuses == [*[202] * 120, 429]


async def test_lowering_the_life_of_tokens_shortens_those_that_there_are(
    node: Node, editor: Person, owner: asyncpg.Connection
) -> None:
    long, short = await make(node, editor, expires="30d"), await make(node, editor, expires="1h")
    gone = await make(node, editor, expires="30d")
    await node.call("POST", f"{PATH}/{gone['id']}/revoke", by=editor)
    await owner.execute("UPDATE orgs SET token_life_max = '1 day'")

    async def ends(token: Any) -> datetime:
        found = await node.call("GET", f"{PATH}/{token['id']}", by=editor)
        return datetime.fromisoformat(found.json["expires_at"])

    left = await ends(long) - datetime.now(UTC)
    assert timedelta(hours=23, minutes=59) < left <= timedelta(days=1)
    for same in (short, gone):
        assert await ends(same) == datetime.fromisoformat(same["expires_at"])
    for method, where, body in (
        ("POST", PATH, {"expires": "25h"}),
        ("POST", f"{PATH}/{short['id']}/rotate", {"expires": "25h"}),
        ("PATCH", f"{PATH}/{short['id']}", {"expires": "25h"}),
    ):
        refused = await node.call(method, where, by=editor, json=body)
        assert (refused.status, refused.json["field"]) == (400, "expires"), where
    await owner.execute("UPDATE orgs SET token_life_max = '60 days'")
    assert (await ends(long)) - datetime.now(UTC) <= timedelta(days=1)
