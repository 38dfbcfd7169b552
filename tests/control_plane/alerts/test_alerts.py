"""Alerts: what is told, to whom, and how often."""

import asyncio
import hashlib
import hmac
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from control_plane.alerts.watch import BATCH_MAX, OF_AN_ORG_MAX, TRIES_MAX, AlertWatch, Round
from control_plane.alerts.webhook import WebhookSender
from control_plane.secrets import ControlKeys
from control_plane.server_settings import ServerSettings
from control_plane.web.pages import encode_cursor
from gateway.auth.token import generate
from tests.control_plane.conftest import Node, People, Person, started

PATH = "/api/v1/alerts/subscriptions"


class Receiver:
    """A URL that keeps what it is sent."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.got: list[tuple[dict[str, str], bytes]] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        return web.Response(status=self.status)

    @property
    def told(self) -> list[tuple[str, int]]:
        return [(body["kind"], body["level"]) for _, raw in self.got for body in [json.loads(raw)]]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_post("/hook", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield made
    await runner.cleanup()


@pytest.fixture
def server_settings(
    control_url: str, session_keys: Any, control_keys: ControlKeys
) -> ServerSettings:
    return ServerSettings(
        database_url=control_url,
        session_keys=session_keys,
        control_keys=control_keys,
        private_webhooks=True,
    )


@pytest.fixture
async def org(people: People) -> uuid.UUID:
    return await people.org()  # type: ignore[no-any-return]


@pytest.fixture
async def admin(people: People, org: uuid.UUID) -> Person:
    return await people.member(org, "admin")


def watch_of(node: Node) -> AlertWatch:
    return AlertWatch(
        node.services, mailer=node.services.outbox, sender=WebhookSender(allow_private=True)
    )


async def look(node: Node) -> Round:
    done = await watch_of(node).round()
    await node.services.outbox.drained()
    return done


async def subscribe(node: Node, person: Person, **body: Any) -> Any:
    answer = await node.call("POST", PATH, by=person, json=body)
    assert answer.status == 201, answer.content
    return answer.json


async def spend(owner: asyncpg.Connection, org: uuid.UUID, taken: int, *, out: int = 0) -> None:
    """Let the org have so many units granted, some of them in a block that is out."""
    await owner.execute(
        """
        INSERT INTO allowances VALUES ('org', $1, 'calls', allowance_month(), $2)
        ON CONFLICT (kind, subject_id, unit, month) DO UPDATE SET taken = EXCLUDED.taken
        """,
        org,
        taken,
    )
    await owner.execute("DELETE FROM blocks")
    if out:
        await owner.execute(
            """
            INSERT INTO blocks (id, kind, subject_id, unit, month, worker_id, amount)
            VALUES (gen_random_uuid(), 'org', $1, 'calls', allowance_month(), gen_random_uuid(), $2)
            """,
            org,
            out,
        )


async def token_that_ends(
    owner: asyncpg.Connection, org: uuid.UUID, *, ends_in: str, age: str = "20 days"
) -> None:
    await owner.execute(
        """
        INSERT INTO tokens (id, digest, hint, name, org_id, workspace_id, user_id, created_at,
                            expires_at)
        SELECT gen_random_uuid(), sha256($2::text::bytea), 'kxg_…abcd', 'ci', w.org_id, w.id, u.id,
            now() - $4::text::interval, now() + $3::text::interval
        FROM workspaces AS w JOIN users AS u ON u.org_id = w.org_id WHERE w.org_id = $1
        """,
        org,
        generate(),
        ends_in,
        age,
    )


async def test_a_limit_is_told_at_80_and_at_100_percent_once_a_month(  # noqa: PLR0917 - fixtures
    node: Node,
    people: People,
    owner: asyncpg.Connection,
    org: uuid.UUID,
    admin: Person,
    receiver: Receiver,
) -> None:
    hook = await subscribe(node, admin, channel="webhook", url=receiver.url)
    await subscribe(node, admin, channel="email")
    other = await people.member(await people.org("other"), "owner")
    await subscribe(node, other, channel="email")
    await owner.execute("INSERT INTO call_limits VALUES ('org', $1, $1, 100)", org)

    await spend(owner, org, 79)
    assert await look(node) == Round(led=True)
    await spend(owner, org, 90, out=11)  # 79 are known to be used
    assert (await look(node)).raised == 0
    await spend(owner, org, 90, out=10)
    assert await look(node) == Round(led=True, raised=1, sent=2)
    assert (await look(node)) == Round(led=True)  # once
    await spend(owner, org, 100)
    assert await look(node) == Round(led=True, raised=1, sent=2)

    assert receiver.told == [("limit", 1), ("limit", 2)]
    headers, body = receiver.got[0]
    at, signed = (one.partition("=")[2] for one in headers["x-kaixu-signature"].split(","))
    expected = hmac.new(hook["secret"].encode(), f"{at}.".encode() + body, hashlib.sha256)
    assert signed == expected.hexdigest()
    told = json.loads(body)
    assert told["id"] == headers["x-kaixu-alert-id"]
    assert (told["org_id"], told["subject"]) == (str(org), str(org))
    assert (told["detail"]["used"], told["detail"]["limit"]) == (80, 100)
    assert [mail.to for mail in node.mails] == [admin.email] * 2
    assert "80 of its 100 calls" in node.mails[0].text
    assert not any(hook["secret"].encode() in line for line in node.lines)

    listed = await node.call("GET", "/api/v1/alerts?limit=1", by=admin)
    assert [(one["level"], one["sent"]) for one in listed.json["data"]] == [(2, 2)]
    path = f"/api/v1/alerts?limit=1&after={listed.json['next']}"
    assert [one["level"] for one in (await node.call("GET", path, by=admin)).json["data"]] == [1]
    assert (await node.call("GET", "/api/v1/alerts", by=other)).json["data"] == []
    for moment in ("x", "2026-01-01", "0001-01-01T00:00:00+00:00", "2026-01-01T00:00:00+14:00"):
        cursor = encode_cursor(moment, str(uuid.uuid4()))
        wrong = await node.call("GET", f"/api/v1/alerts?after={cursor}", by=admin)
        assert (wrong.status, wrong.json["field"]) == (400, "after")


async def test_what_is_at_both_levels_at_once_is_told_at_the_higher(
    node: Node, owner: asyncpg.Connection, org: uuid.UUID, admin: Person, receiver: Receiver
) -> None:
    await subscribe(node, admin, channel="webhook", url=receiver.url, kinds=["limit"])
    await owner.execute("INSERT INTO call_limits VALUES ('org', $1, $1, 10)", org)
    await spend(owner, org, 10)
    await token_that_ends(owner, org, ends_in="3 days")
    assert await look(node) == Round(led=True, raised=3, sent=1)
    assert receiver.told == [("limit", 2)]


async def test_a_token_that_ends_is_told_a_week_and_a_day_before(
    node: Node, owner: asyncpg.Connection, org: uuid.UUID, admin: Person
) -> None:
    await subscribe(node, admin, channel="email", kinds=["token_expiring"])
    await token_that_ends(owner, org, ends_in="8 days")
    await token_that_ends(owner, org, ends_in="5 days", age="1 hour")  # made for five days
    await token_that_ends(owner, org, ends_in="30 minutes", age="30 minutes")
    await token_that_ends(owner, org, ends_in="-1 hour")
    assert (await look(node)).raised == 0
    await token_that_ends(owner, org, ends_in="6 days")
    assert await look(node) == Round(led=True, raised=1, sent=1)
    await owner.execute("UPDATE tokens SET revoked_at = now()")
    await token_that_ends(owner, org, ends_in="23 hours")
    assert await look(node) == Round(led=True, raised=2, sent=1)
    subjects = [mail.subject for mail in node.mails]
    assert subjects == [
        "kAIxU: A gateway token ends within 7 days",
        "kAIxU: A gateway token ends within a day",
    ]
    assert "'ci' (kxg_…abcd)" in node.mails[0].text


async def test_a_vendor_that_refuses_our_key_is_told_once_a_day(
    node: Node, owner: asyncpg.Connection, org: uuid.UUID, admin: Person
) -> None:
    await subscribe(node, admin, channel="email")
    refusal = """
        INSERT INTO refusals (at, worker_id, reason, org_id)
        VALUES (clock_timestamp() - interval '20 s', gen_random_uuid(), $1, $2)
    """
    await owner.execute(refusal, "rate_window", org)
    assert (await look(node)).raised == 0
    facts = {
        **dict.fromkeys(("workspace_id", "user_id", "token_id"), str(uuid.uuid4())),
        "time": datetime.now(UTC).isoformat(),
        "month": f"{datetime.now(UTC):%Y-%m}",
        "org_id": str(org),
        "endpoint": "chat/completions",
        "client_format": "openai",
        "status": "vendor_error",
        "counted": True,
        "usage_source": "none",
    }
    rows = [
        {"id": one, "call_id": one, "vendor": vendor, "reason": reason, **facts}
        for vendor, reason in (("groq", "vendor_key"), ("openai", None))
        for one in [node.services.ids.new()]
    ]
    await owner.execute("SELECT ledger_append($1)", json.dumps(rows))
    await owner.execute(refusal, "vendor_key", org)
    assert await look(node) == Round(led=True, raised=1, sent=1)
    await owner.execute(refusal, "vendor_key", org)
    assert (await look(node)).raised == 0
    (mail,) = node.mails
    assert mail.subject == "kAIxU: A vendor refuses the gateway's key"
    assert mail.text.startswith("groq refuses the key")


async def test_a_url_that_fails_is_tried_again_and_given_up_at_last(
    node: Node, owner: asyncpg.Connection, org: uuid.UUID, admin: Person, receiver: Receiver
) -> None:
    await subscribe(node, admin, channel="webhook", url=receiver.url)
    await owner.execute("INSERT INTO call_limits VALUES ('org', $1, $1, 10)", org)
    await spend(owner, org, 10)
    receiver.status = 302
    assert await look(node) == Round(led=True, raised=2, failed=1)
    assert await look(node) == Round(led=True)  # not at once
    now = "UPDATE alert_deliveries SET next_at = now()"
    for _ in range(TRIES_MAX - 1):
        await owner.execute(now)
        assert (await look(node)).failed == 1
    await owner.execute(now)
    assert await look(node) == Round(led=True)
    row = await owner.fetchrow("SELECT state, tries, problem FROM alert_deliveries")
    assert row is not None
    assert tuple(row) == ("failed", TRIES_MAX, "It answered with status 302.")
    assert len({headers["x-kaixu-alert-id"] for headers, _ in receiver.got}) == 1
    listed = await node.call("GET", "/api/v1/alerts", by=admin)
    assert listed.json["data"][0]["failed"] + listed.json["data"][1]["failed"] == 1


async def test_an_org_with_much_to_be_told_of_keeps_no_other_waiting(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    orgs = [await people.org("busy"), await people.org("quiet")]
    for org_id, alerts, minutes in zip(orgs, (3 * BATCH_MAX, 1), (60, 1), strict=True):
        person = await people.member(org_id, "admin")
        made = await subscribe(node, person, channel="email")
        await owner.execute(
            """
            WITH made AS (
                INSERT INTO alerts (org_id, kind, subject_kind, subject, period, level, detail)
                SELECT $1, 'limit', 'token', i::text, '', 1, '{}' FROM generate_series(1, $3) AS i
                RETURNING id
            )
            INSERT INTO alert_deliveries (alert_id, subscription_id, org_id, next_at)
            SELECT id, $2, $1, now() - make_interval(mins => $4) FROM made
            """,
            org_id,
            made["id"],
            alerts,
            minutes,
        )
    take = "SELECT org_id FROM take_alert_deliveries($1, $2)"

    first = [row["org_id"] for row in await owner.fetch(take, BATCH_MAX, OF_AN_ORG_MAX)]
    then = [row["org_id"] for row in await owner.fetch(take, BATCH_MAX, OF_AN_ORG_MAX)]

    assert sorted(first) == sorted([orgs[0]] * OF_AN_ORG_MAX + [orgs[1]])
    assert then == [orgs[0]] * OF_AN_ORG_MAX


async def test_one_node_at_a_time_has_the_watch(
    server_settings: ServerSettings,
    owner: asyncpg.Connection,
    org: uuid.UUID,
    admin: Person,
    receiver: Receiver,
) -> None:
    async with started(server_settings) as one, started(server_settings) as other:
        await subscribe(one, admin, channel="webhook", url=receiver.url)
        await owner.execute("INSERT INTO call_limits VALUES ('org', $1, $1, 10)", org)
        await spend(owner, org, 10)
        rounds = await asyncio.gather(*(watch_of(n).round() for n in (one, other) * 5))
        assert sum(done.raised for done in rounds) == 2
        assert sum(done.sent for done in rounds) == 1
        assert len(receiver.got) == 1
        assert not all(done.led for done in rounds)
        assert (await look(other)).led  # and whoever was first has let it go


async def test_who_may_have_whom_told(
    node: Node, people: People, owner: asyncpg.Connection, org: uuid.UUID, admin: Person
) -> None:
    editor = await people.member(org, "editor")
    assert (await node.call("POST", PATH, by=editor, json={"channel": "email"})).status == 403
    assert (await node.call("GET", PATH, by=editor)).status == 403
    stranger = await people.member(await people.org("other"), "owner")
    theirs = str(await people.user_id(org, admin))
    silent = await people.member(org, "viewer")
    await owner.execute(
        "UPDATE accounts SET email_verified_at = NULL WHERE id = $1", silent.account_id
    )
    for person, status, field, body in (
        (stranger, 404, "user_id", {"channel": "email", "user_id": theirs}),
        (admin, 409, "user_id", {"channel": "email", "user_id": await people.user_id(org, silent)}),
        (admin, 400, "url", {"channel": "email", "url": "https://a.example.com/"}),
        (admin, 400, "url", {"channel": "webhook"}),
        (admin, 400, "url", {"channel": "webhook", "url": "https://169.254.169.254/"}),
        (admin, 400, "user_id", {"channel": "webhook", "user_id": theirs}),
        (admin, 400, "kinds", {"channel": "email", "kinds": []}),
        (admin, 400, "kinds[0]", {"channel": "email", "kinds": ["x"]}),
        (admin, 400, "channel", {"channel": "sms"}),
    ):
        asked = {name: str(v) if isinstance(v, uuid.UUID) else v for name, v in body.items()}
        answer = await node.call("POST", PATH, by=person, json=asked)
        assert (answer.status, answer.json["field"]) == (status, field), answer.content
    key = {"idempotency-key": "one"}
    body = {"channel": "webhook", "url": "https://hooks.example.com/a"}
    first = await node.call("POST", PATH, by=admin, json=body, headers=key)
    again = await node.call("POST", PATH, by=admin, json=body, headers=key)
    assert first.json["secret"].startswith("whsec_")
    assert again.json == {**first.json, "secret": None}
    (row,) = await owner.fetch("SELECT secret_sealed FROM alert_subscriptions")
    assert first.json["secret"].encode() not in row["secret_sealed"]
    listed = await node.call("GET", PATH, by=admin)
    assert listed.json["data"] == [{k: v for k, v in first.json.items() if k != "secret"}]
    path = f"{PATH}/{first.json['id']}"
    assert (await node.call("DELETE", path, by=stranger)).status == 404
    assert (await node.call("DELETE", path, by=admin)).status == 204
    assert (await node.call("DELETE", path, by=admin)).status == 404
    actions = await owner.fetch("SELECT action FROM audit_log ORDER BY ordinal")
    assert [row["action"] for row in actions] == [
        "alert_subscription.create",
        "alert_subscription.delete",
    ]


async def test_private_addresses_are_for_those_who_say_so(
    server_settings: ServerSettings, admin: Person
) -> None:
    async with started(replace(server_settings, private_webhooks=False)) as node:
        body = {"channel": "webhook", "url": "http://127.0.0.1:9/hook"}
        assert (await node.call("POST", PATH, by=admin, json=body)).status == 400
