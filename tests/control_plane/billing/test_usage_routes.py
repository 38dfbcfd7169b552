import json
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from control_plane.billing import usage_routes
from control_plane.billing.feed import COLUMNS
from gateway.auth.token import digest, generate
from gateway.ids import IdMaker
from tests.control_plane.conftest import Node, People, Person
from tests.control_plane.world import OTHER_OWNER, World, make_world, unthrottle

IDS = IdMaker(time.time)
MONTH = f"{datetime.now(UTC):%Y-%m}"


@dataclass(kw_only=True)
class Ledger:
    """Appends events of members of the two orgs."""

    owner: asyncpg.Connection
    world: World

    async def append(self, who: str, count: int = 1, **changes: Any) -> list[str]:
        """Append calls of a member in the org's workspace; return their ids."""
        is_other = who == OTHER_OWNER
        world = self.world
        row = {
            "time": datetime.now(UTC).isoformat(),
            "month": MONTH,
            "org_id": str(world.other_org if is_other else world.org),
            "workspace_id": str(world.other_workspace if is_other else world.workspace),
            "user_id": str(await world.user_id(who)),
            "token_id": str(uuid.UUID(int=hash(who) % 2**64)),
            "vendor": "openai",
            "endpoint": "chat/completions",
            "client_format": "openai",
            "model_requested": "fast",
            "model_served": "gpt-5",
            "status": "complete",
            "counted": True,
            "usage_source": "vendor",
            "input_tokens": 10,
            "output_tokens": 5,
            "vendor_usage": {"prompt_tokens": 10},
            **changes,
        }
        ids = [IDS.new() for _ in range(count)]
        rows = [{**row, "id": one, "call_id": one} for one in ids]
        await self.owner.execute("SELECT ledger_append($1)", json.dumps(rows))
        return ids


@pytest.fixture
async def ledger(owner: asyncpg.Connection, people: People) -> Ledger:
    await unthrottle(owner)
    return Ledger(owner=owner, world=await make_world(owner, people))


async def events_of(node: Node, by: Person, **query: Any) -> dict[str, Any]:
    answer = await node.call("GET", "/api/v1/usage/events", by=by, params=query)
    assert answer.status == 200, answer.content
    told: dict[str, Any] = answer.json
    return told


async def calls_of(node: Node, by: Person) -> int:
    answer = await node.call("GET", "/api/v1/usage", by=by)
    assert answer.status == 200, answer.content
    return sum(row["calls"] for row in answer.json["rows"])


async def test_a_member_sees_its_own_usage_and_more_where_the_role_says_so(
    node: Node, ledger: Ledger, people: People
) -> None:
    world = ledger.world
    elsewhere = str(
        await ledger.owner.fetchval(
            "INSERT INTO workspaces (org_id, name) VALUES ($1, 'elsewhere') RETURNING id", world.org
        )
    )
    await ledger.append("org editor", 1)
    await ledger.append("org viewer", 2)
    await ledger.append("org viewer", 4, workspace_id=elsewhere)
    await ledger.append(OTHER_OWNER, 8)
    seen = {
        "org owner": 7, "org admin": 7,
        "workspace owner": 3, "workspace admin": 3,  # what is in their workspace
        "org editor": 1, "org viewer": 6,  # their own, wherever it is
        "workspace editor": 0, "workspace viewer": 0,
        OTHER_OWNER: 8,
    }  # fmt: skip
    for who, calls in seen.items():
        by = world.who[who]
        events = (await events_of(node, by))["data"]
        assert (await calls_of(node, by), len(events)) == (calls, calls), who


async def test_events_come_each_once_in_order_while_the_ledger_grows(
    node: Node, ledger: Ledger
) -> None:
    by = ledger.world.who["org owner"]
    empty = await events_of(node, by)
    assert (empty["data"], empty["next"], empty["more"]) == ([], None, False)
    appended: list[str] = []
    read: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    for _ in range(4):
        appended += await ledger.append("org viewer", 3)
        await ledger.append(OTHER_OWNER, 2)  # of these nothing is to be seen, but a gap
        page = await events_of(node, by, limit="2", **after)
        assert page["more"] is True
        assert page["next"] == page["data"][-1]["cursor"]
        read += page["data"]
        after = {"after": page["next"]}
    while (page := await events_of(node, by, limit="2", **after))["data"]:
        read += page["data"]
        after = {"after": page["next"]}
    assert [event["id"] for event in read] == appended
    assert page["next"] == after["after"], "the place to go on from stays"
    assert page["more"] is False
    assert datetime.fromisoformat(page["sealed_through"]) <= datetime.now(UTC)
    assert tuple(read[0]) == COLUMNS
    assert read[0]["vendor_usage"] == {"prompt_tokens": 10}


async def test_a_report_adds_up_what_the_events_say(node: Node, ledger: Ledger) -> None:
    by = ledger.world.who["org admin"]
    await ledger.append("org viewer", 2, reasoning_tokens=1)
    await ledger.append("org editor", 1, vendor="claude", model_served=None, counted=False)
    await ledger.append("org editor", 1, usage_source="none", input_tokens=None, output_tokens=None)
    labels = {
        "token": "token_id", "user": "user_id", "workspace": "workspace_id", "vendor": "vendor",
        "model": "model", "day": "day", "hour": "hour",
    }  # fmt: skip
    for grouping, label in labels.items():
        answer = await node.call(
            "GET", "/api/v1/usage", by=by, params={"by": grouping, "month": MONTH}
        )
        report = answer.json
        assert (report["month"], report["by"], report["truncated"]) == (MONTH, grouping, False)
        rows = report["rows"]
        assert all(row[label] for row in rows)
        assert sum(row["calls"] for row in rows) == 4
        assert sum(row["counted"] for row in rows) == 3
        assert sum(row["usage_unknown"] for row in rows) == 1
        assert sum(row["input_tokens"] for row in rows) == 30
        assert sum(row["reasoning_tokens"] or 0 for row in rows) == 2
    users = await node.call("GET", "/api/v1/usage", by=by, params={"by": "user"})
    names = {ledger.world.who[who].email for who in ("org viewer", "org editor")}
    assert {row["name"] for row in users.json["rows"]} == names
    earlier = await node.call("GET", "/api/v1/usage", by=by, params={"month": "2020-02"})
    assert earlier.json["rows"] == []


async def test_a_report_with_more_rows_than_are_told_says_so(
    node: Node, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_routes, "REPORT_ROWS_MAX", 2)
    for count in (1, 3, 2):
        await ledger.append("org viewer", count, vendor=f"v{count}")
    by = ledger.world.who["org owner"]
    answer = await node.call("GET", "/api/v1/usage", by=by, params={"by": "vendor"})
    assert [row["vendor"] for row in answer.json["rows"]] == ["v3", "v2"]
    assert answer.json["truncated"] is True


async def test_a_cursor_of_another_ledger_or_of_another_org_is_gone(
    node: Node, ledger: Ledger
) -> None:
    world = ledger.world
    await ledger.append("org viewer", 2)
    await ledger.append(OTHER_OWNER, 1)
    mine = await events_of(node, world.who["org owner"])
    theirs = await events_of(node, world.who[OTHER_OWNER])
    path = "/api/v1/usage/events"
    answer = await node.call(
        "GET", path, by=world.who["org owner"], params={"after": theirs["next"]}
    )
    assert (answer.status, answer.json["code"]) == (410, "cursor_gone")
    await ledger.owner.execute("UPDATE ledger_head SET ledger_id = gen_random_uuid()")
    answer = await node.call("GET", path, by=world.who["org owner"], params={"after": mine["next"]})
    assert (answer.status, answer.json["code"], answer.json["field"]) == (
        410, "cursor_gone", "after",
    )  # fmt: skip
    assert "Read again without one" in answer.json["detail"]
    answer = await node.call("GET", path, by=world.who["org owner"], params={"after": "nonsense"})
    assert (answer.status, answer.json["field"]) == (400, "after")


async def test_a_token_with_the_scope_for_it_reads_what_all_of_its_org_used(
    node: Node, ledger: Ledger, owner: asyncpg.Connection
) -> None:
    world = ledger.world
    await ledger.append("org viewer", 2)
    await ledger.append(OTHER_OWNER, 1)
    token = await world.token(world.org, world.workspace, world.bystander)
    headers = {"authorization": f"Bearer {token}"}
    path = "/api/v1/usage/events"

    async def asked(**query: str) -> tuple[int, int]:
        answer = await node.call("GET", path, headers=headers, params=query)
        return answer.status, len(answer.json.get("data", ()))

    async def changed(what: str, *values: object) -> tuple[int, int]:
        await owner.execute(f"UPDATE tokens SET {what} WHERE digest = $1", digest(token), *values)  # noqa: S608 - the test's own
        return await asked()

    assert await asked() == (403, 0)
    assert await changed("scopes = '{calls,usage:read}'") == (200, 2)
    assert await asked(org=str(world.org)) == (200, 2)
    assert await asked(org=str(world.other_org)) == (404, 0)
    for other in ("/api/v1/tokens", "/api/v1/me", "/api/v1/vendors"):
        assert (await node.call("GET", other, headers=headers)).status == 401
    assert await changed("addresses = '{203.0.113.0/24}'") == (401, 0)
    assert await changed("addresses = '{127.0.0.0/8}'") == (200, 2)
    assert await changed("expires_at = now() - interval '1 second'") == (401, 0)
    assert await changed("expires_at = now() + interval '1 day'") == (200, 2)
    await owner.execute("UPDATE orgs SET suspended_at = now() WHERE id = $1", world.org)
    assert await asked() == (401, 0)
    await owner.execute("UPDATE orgs SET suspended_at = NULL WHERE id = $1", world.org)
    old = token
    token = generate()
    await owner.execute(
        "INSERT INTO retired_digests (digest, token_id, org_id, until) "
        "SELECT digest, id, org_id, now() + interval '1 hour' FROM tokens WHERE digest = $1",
        digest(old),
    )
    await owner.execute(
        "UPDATE tokens SET digest = $2 WHERE digest = $1", digest(old), digest(token)
    )
    assert await asked() == (200, 2), "the old secret, in its time of grace"
    headers = {"authorization": f"Bearer {token}"}
    assert await asked() == (200, 2)
    assert await changed("revoked_at = now()") == (401, 0)
    headers = {"authorization": f"Bearer {generate()}"}
    assert await asked() == (401, 0)


async def test_a_page_of_a_small_org_reads_no_other_orgs_events(ledger: Ledger) -> None:
    await ledger.append(OTHER_OWNER, 3_000)
    await ledger.append("org viewer", 3)
    await ledger.owner.execute("ANALYZE usage_events")
    plan = await ledger.owner.fetchval(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM usage_feed "
        "WHERE org_id = $1 AND ordinal > 0 ORDER BY ordinal LIMIT 101",
        ledger.world.org,
    )
    (told,) = json.loads(plan)
    read = told["Plan"]["Shared Hit Blocks"] + told["Plan"]["Shared Read Blocks"]
    assert read < 40, "3,000 events of another org take hundreds of blocks"
