"""Gateway tokens by API: who may make, see, change and end them."""

import asyncio
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from control_plane.tenancy.receipts import CONFIRMATION_SECONDS_MAX
from control_plane.tenancy.tokens import list_tokens
from control_plane.web.database import POOL_CONNECTIONS_MAX
from gateway.auth.token import digest, is_well_formed
from tests.control_plane.conftest import Answer, Node, People, Person
from tests.control_plane.tenancy.test_tokens import worker

PATH = "/api/v1/tokens"


async def make(node: Node, person: Person, status: int = 201, **body: Any) -> Any:
    answer = await node.call("POST", PATH, by=person, json=body)
    assert answer.status == status, answer.content
    return answer.json


async def patch(node: Node, person: Person, token_id: str, **body: Any) -> Answer:
    return await node.call("PATCH", f"{PATH}/{token_id}", by=person, json=body)


@pytest.fixture
async def org(people: People) -> uuid.UUID:
    return await people.org(workspaces=("default",))  # type: ignore[no-any-return]


@pytest.fixture
async def admin(people: People, org: uuid.UUID) -> Person:
    return await people.member(org, "admin")


@pytest.fixture
async def editor(people: People, org: uuid.UUID) -> Person:
    """An editor of the org and of its workspace."""
    person = await people.member(org, "editor")
    workspace = await people.workspace_id(org)
    return await people.workspace_member(org, workspace, "editor", person)


async def test_a_secret_is_told_once_and_nowhere_kept(
    node: Node, editor: Person, owner: asyncpg.Connection
) -> None:
    body = {"name": "laptop", "expires": "7d", "limit": 500, "rate": "60/1m", "concurrency": 4}
    key = {"idempotency-key": "one"}
    first = await node.call("POST", PATH, by=editor, json=body, headers=key)
    again = await node.call("POST", PATH, by=editor, json=body, headers=key)

    assert (first.status, first.headers["cache-control"]) == (201, "no-store")
    secret = first.json["token"]
    assert is_well_formed(secret.encode())
    assert secret.startswith("kxg_")
    assert (again.status, again.json["token"]) == (201, None)
    assert again.json["id"] == first.json["id"]
    read = await node.call("GET", f"{PATH}/{first.json['id']}", by=editor)
    assert read.json == {k: v for k, v in first.json.items() if k != "token"}
    assert (read.json["limit"], read.json["rate"], read.json["concurrency"]) == (500, "60/60s", 4)
    assert read.json["hint"] == f"kxg_…{secret[-4:]}"
    (row,) = await owner.fetch("SELECT digest, expires_at - created_at AS life FROM tokens")
    assert row["digest"] == digest(secret)
    assert abs(row["life"] - timedelta(days=7)) < timedelta(minutes=1)
    everything = await owner.fetchval(
        "SELECT (SELECT json_agg(a)::text FROM audit_log AS a)"
        " || (SELECT json_agg(convert_from(answer, 'UTF8'))::text FROM idempotency_keys)"
    )
    assert first.json["id"] in everything
    assert secret not in everything
    assert digest(secret).hex() not in everything
    assert not any(secret.encode() in line for line in node.lines)


async def test_without_a_word_a_token_lives_for_30_days_or_as_long_as_the_org_allows(
    node: Node, editor: Person, owner: asyncpg.Connection
) -> None:
    usual = await make(node, editor)
    await owner.execute("UPDATE orgs SET token_life_max = interval '12 hours'")
    short = await make(node, editor)
    lives = [
        datetime.fromisoformat(one["expires_at"]) - datetime.now(UTC) for one in (usual, short)
    ]
    assert abs(lives[0] - timedelta(days=30)) < timedelta(minutes=1)
    assert abs(lives[1] - timedelta(hours=12)) < timedelta(minutes=1)
    refused = await make(node, editor, 400, expires="13h")
    assert (refused["field"], refused["code"]) == ("expires", "bad_argument")
    assert "12h" in refused["detail"]


@pytest.mark.parametrize("field", ["limit", "concurrency", "rate"])
@pytest.mark.parametrize(
    "number",
    ["-1", "0", "1.5", str(2**63), str(2**64), "1e400", "null", '"1"', "true", "[1]"],
)
async def test_what_is_no_number_of_calls_is_refused_by_name(
    node: Node, editor: Person, field: str, number: str
) -> None:
    """46 of the corpus."""
    raw = f'{{"{field}": {number}}}'
    made = await make(node, editor)
    for method, path in (("POST", PATH), ("PATCH", f"{PATH}/{made['id']}")):
        answer = await node.call(
            method, path, by=editor, data=raw, headers={"content-type": "application/json"}
        )
        assert answer.status == 400, answer.content
        assert answer.json["field"] in ({field, "body"} if number == "1e400" else {field})
    for odd in ("-1/1m", "0/1m", "1.5/1m", f"{2**63}/1m", "1/0s", "1/-1s", "1/2d", "none/1m", ""):
        assert (await make(node, editor, 400, rate=odd))["field"] == "rate"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("expires", "91d"),
        ("expires", "0d"),
        ("expires_at", "2020-01-01T00:00:00Z"),
        ("expires_at", "2030-01-01T00:00:00"),
        ("models", []),
        ("models", ["gpt 5"]),
        ("vendors", ["Open AI"]),
        ("addresses", ["203.0.113.1/24"]),
        ("addresses", ["everywhere"]),
        ("addresses", ["fe80::1%eth0"]),
        ("scopes", []),
        ("name", "a\nb"),
        ("org_id", str(uuid.uuid4())),
        ("is_admin", True),
        ("created_at", "2020-01-01T00:00:00Z"),
    ],
)
async def test_what_no_token_can_be_is_refused_by_name(
    node: Node, admin: Person, field: str, value: object, owner: asyncpg.Connection
) -> None:
    refused = await make(node, admin, 400, **{field: value})
    wanted = {field, "expires"} if field == "expires_at" else {field}
    assert refused["field"] in wanted
    assert await owner.fetchval("SELECT count(*) FROM tokens") == 0


async def test_nobody_mints_more_than_it_has(  # noqa: PLR0917 - fixtures
    node: Node,
    people: People,
    owner: asyncpg.Connection,
    org: uuid.UUID,
    admin: Person,
    editor: Person,
) -> None:
    """45 of the corpus."""
    await owner.execute("INSERT INTO workspaces (org_id, name) VALUES ($1, 'other')", org)
    here, other = await people.workspace_id(org), await people.workspace_id(org, "other")
    await owner.execute("INSERT INTO call_limits VALUES ('workspace', $1, $2, 100)", here, org)
    await owner.execute("INSERT INTO rate_limits VALUES ('org', $1, $1, 10, 60)", org)
    await owner.execute("INSERT INTO concurrency_limits VALUES ('org', $1, $1, 5)", org)
    for field, body in (
        ("scopes", {"scopes": ["admin"]}),
        ("scopes", {"scopes": ["calls", "batches"]}),
        ("scopes", {"scopes": ["usage:read"]}),
        ("workspace_id", {"workspace_id": str(other)}),
        ("user_id", {"user_id": str(await people.user_id(org, admin))}),
        ("limit", {"limit": 101}),
        ("rate", {"rate": "11/1m"}),
        ("rate", {"rate": "1/5s"}),
        ("concurrency", {"concurrency": 6}),
    ):
        asked: dict[str, Any] = {"workspace_id": str(here), **body}
        assert (await make(node, editor, 403, **asked))["field"] == field, body
    viewer = await people.workspace_member(org, here, "viewer")
    await make(node, viewer, 403, workspace_id=str(here))
    local = await people.workspace_member(org, here, "owner")  # who does not set its limit
    refused = await make(node, local, 403, workspace_id=str(here), scopes=["calls", "batches"])
    assert refused["field"] == "scopes"
    nobody = await people.member(org, "editor")  # of the org, and in no workspace
    await make(node, nobody, 403, workspace_id=str(here))
    await make(node, nobody, 403)
    assert await owner.fetchval("SELECT count(*) FROM tokens") == 0

    widest: dict[str, Any] = {"limit": 100, "rate": "10/1m", "concurrency": 5}
    made = await make(node, editor, workspace_id=str(here), **widest)
    for field, change in (
        ("limit", {"limit": 101}),
        ("scopes", {"scopes": ["calls", "usage:read"]}),
        ("rate", {"rate": "11/1m"}),
    ):
        refused = await patch(node, editor, made["id"], **change)
        assert (refused.status, refused.json["field"]) == (403, field)
    mine = await make(
        node, admin, workspace_id=str(here), scopes=["batches", "usage:read"], limit=1000
    )
    assert (await patch(node, admin, mine["id"], scopes=["calls"])).status == 403
    assert (await make(node, admin, 400, workspace_id=str(here), scopes=["x"]))["field"] == "scopes"
    assert (await make(node, admin, 400))["field"] == "workspace_id"  # there are two


async def test_another_orgs_token_is_as_absent_as_one_that_never_was(
    node: Node, people: People, editor: Person
) -> None:
    made = await make(node, editor)
    elsewhere = await people.member(await people.org("other"), "owner")
    for method, tail, body in (
        ("GET", "", None),
        ("PATCH", "", {"name": "mine"}),
        ("POST", "/revoke", None),
    ):
        asked = {} if body is None else {"json": body}
        told = []
        for token_id in (made["id"], str(uuid.uuid4())):
            answer = await node.call(method, f"{PATH}/{token_id}{tail}", by=elsewhere, **asked)
            assert answer.status == 404
            told.append({k: v for k, v in answer.json.items() if k != "request_id"})
        assert told[0] == told[1]
    assert (await node.call("GET", PATH, by=elsewhere)).json["data"] == []
    workspace = made["workspace_id"]
    await make(node, elsewhere, 404, workspace_id=workspace)


async def test_a_list_has_what_its_asker_may_see_in_pages(
    node: Node, people: People, org: uuid.UUID, admin: Person, editor: Person
) -> None:
    workspace = await people.workspace_id(org)
    colleague = await people.workspace_member(org, workspace, "editor")
    lead = await people.workspace_member(org, workspace, "admin")
    mine = [(await make(node, editor, name=f"mine {n}"))["id"] for n in range(5)]
    theirs = [(await make(node, colleague))["id"] for _ in range(2)]

    async def listed(person: Person, query: str = "") -> list[str]:
        found: list[str] = []
        after = ""
        while True:
            answer = await node.call("GET", f"{PATH}?limit=2{query}{after}", by=person)
            assert answer.status == 200, answer.content
            found += [one["id"] for one in answer.json["data"]]
            if answer.json["next"] is None:
                return found
            after = f"&after={answer.json['next']}"

    assert await listed(editor) == mine[::-1]
    assert await listed(colleague) == theirs[::-1]
    assert await listed(admin) == [*theirs[::-1], *mine[::-1]]
    assert await listed(lead) == [*theirs[::-1], *mine[::-1]]
    user = await people.user_id(org, editor)
    assert await listed(admin, f"&user_id={user}") == mine[::-1]
    await node.call("POST", f"{PATH}/{mine[0]}/revoke", by=editor)
    assert await listed(admin, "&state=revoked") == [mine[0]]
    assert (await node.call("GET", f"{PATH}/{theirs[0]}", by=editor)).status == 403
    for wrong in ("limit=0", "limit=201", "after=x", "after=WyJ4Il0", "state=dead", "user_id=1"):
        answer = await node.call("GET", f"{PATH}?{wrong}", by=admin)
        assert (answer.status, answer.json["field"]) == (400, wrong.partition("=")[0])


async def test_a_change_is_told_to_gateways_and_lowered_by_whose_it_is(
    node: Node, people: People, org: uuid.UUID, admin: Person, owner: asyncpg.Connection
) -> None:
    person = await people.member(org, "editor")  # may make none here
    workspace = await people.workspace_id(org)
    given: dict[str, Any] = {
        "user_id": str(await people.user_id(org, person)),
        "workspace_id": str(workspace),
    }
    assert (await make(node, admin, 409, **given))["field"] == "user_id"
    await people.workspace_member(org, workspace, "viewer", person)
    made = await make(node, admin, **given, limit=100, models=["gpt-*", "o*"], expires="10d")
    assert made["created_by"] == str(await people.user_id(org, admin))

    lowered = await patch(node, person, made["id"], limit=50, models=["gpt-*"], expires="5d")
    assert lowered.status == 200, lowered.content
    assert (lowered.json["limit"], lowered.json["models"]) == (50, ["gpt-*"])
    assert lowered.json["receipt"]["workers"] == []
    assert lowered.json["receipt"]["ordinal"] > 0
    for field, change in (
        ("limit", {"limit": 51}),
        ("limit", {"limit": "none"}),
        ("models", {"models": None}),
        ("models", {"models": ["gpt-5"]}),
        ("expires", {"expires": "6d"}),
    ):
        refused = await patch(node, person, made["id"], **change)
        assert (refused.status, refused.json["field"]) == (403, field)
    assert (await patch(node, admin, made["id"], limit="none", models=None)).json["limit"] is None
    renamed = await patch(node, person, made["id"], name="renamed")
    assert (renamed.json["name"], renamed.json["receipt"]) == ("renamed", None)
    for far in (
        {"expires": "90d"},
        {"expires": "999999999d"},
        {"expires_at": "9999-12-31T23:59:59-23:59"},
    ):
        late = await patch(node, admin, made["id"], **far)
        assert late.status == 400, late.content
        assert "rotate" in late.json["detail"]
    entries = await owner.fetch(
        "SELECT action, before, after FROM audit_log WHERE org_id = $1 ORDER BY ordinal", org
    )
    assert [one["action"] for one in entries] == ["token.create", *["token.update"] * 3]
    assert '"limit": 50' in entries[1]["after"]


async def test_a_change_of_what_was_changed_meanwhile_is_refused(
    node: Node, editor: Person
) -> None:
    made = await make(node, editor)
    path = f"{PATH}/{made['id']}"
    tag = (await node.call("GET", path, by=editor)).headers["etag"]
    first = await node.call("PATCH", path, by=editor, json={"name": "a"}, headers={"if-match": tag})
    late = await node.call("PATCH", path, by=editor, json={"name": "b"}, headers={"if-match": tag})
    assert (first.status, late.status) == (200, 412)
    assert (await node.call("GET", path, by=editor)).json["name"] == "a"


async def test_a_revocation_has_a_receipt_and_is_told_again(
    node: Node, editor: Person, owner: asyncpg.Connection
) -> None:
    made = await make(node, editor)
    first = await node.call("POST", f"{PATH}/{made['id']}/revoke", by=editor)
    again = await node.call("POST", f"{PATH}/{made['id']}/revoke", by=editor)
    assert (first.status, again.status) == (200, 200), first.content
    assert first.json["token_id"] == made["id"]
    assert first.json["workers"] == []
    for same in ("ordinal", "committed_at"):
        assert first.json[same] == again.json[same]
    assert again.json["streams_cut"] == 0
    gone = await patch(node, editor, made["id"], name="again")
    assert (gone.status, gone.json["code"]) == (409, "token_revoked")
    actions = await owner.fetch("SELECT action FROM audit_log ORDER BY ordinal")
    assert [row["action"] for row in actions] == ["token.create", "token.revoke"]
    (listed,) = await list_tokens(owner)
    assert listed["state"] == "revoked"


async def test_revocations_that_wait_for_a_worker_keep_nobody_elses_request_waiting(
    node: Node, admin: Person, owner: asyncpg.Connection
) -> None:
    tokens = [(await make(node, admin))["id"] for _ in range(POOL_CONNECTIONS_MAX + 2)]
    silent = await worker(owner, heartbeat_ago=1)
    async with asyncio.TaskGroup() as tasks:
        waiting = [
            tasks.create_task(node.call("POST", f"{PATH}/{one}/revoke", by=admin)) for one in tokens
        ]
        while await owner.fetchval(  # noqa: ASYNC110 - it is in the database
            "SELECT count(*) FROM tokens WHERE revoked_at IS NULL"
        ):
            await asyncio.sleep(0.01)
        began = time.monotonic()
        answer = await node.call("GET", "/api/v1/me", by=admin)
        took = time.monotonic() - began
        assert not any(one.done() for one in waiting), "this was after the waits"
    assert answer.status == 200
    assert took < CONFIRMATION_SECONDS_MAX / 2
    for one in waiting:
        (part,) = one.result().json["workers"]
        assert (part["worker_id"], part["state"]) == (silent, "pending")
