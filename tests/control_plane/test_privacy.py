import asyncio
import json
import uuid

import asyncpg

from control_plane.audit_log import Origin, record
from control_plane.audit_verification import verify
from control_plane.server_settings import ServerSettings
from tests.conftest import Seed
from tests.control_plane.billing.test_feed import append
from tests.control_plane.conftest import Node, People, Person, started

EMAIL = "ada.lovelace+work@example.com"
NAME = "Ada Q. Lovelace"
AGENT = "Canary-Browser/1.0"
ADDRESS = "198.51.100.77"


async def dump(owner: asyncpg.Connection) -> str:
    """Return every row of every table as text; what is bytes, as characters too."""
    tables = await owner.fetch(
        "SELECT c.oid::regclass::text AS name FROM pg_class AS c "
        "WHERE c.relkind IN ('r', 'm') AND c.relnamespace = 'public'::regnamespace"
    )
    texts = []
    for table in tables:
        rows = await owner.fetch(f"SELECT * FROM {table['name']}")  # noqa: S608 - our own names
        texts += [str(dict(row)) for row in rows]
    return "\n".join(texts)


async def live(
    people: People, owner: asyncpg.Connection, org: uuid.UUID, seed: Seed, role: str = "editor"
) -> Person:
    """Return a person who has left traces everywhere."""
    person = await people.member(org, role, await people.person(EMAIL, name=NAME))
    user_id = await people.user_id(org, person)
    workspace_id = await people.workspace_id(org)
    await people.workspace_member(org, workspace_id, "editor", person)
    await owner.execute(
        "UPDATE sessions SET user_agent = $1, address = $2 WHERE account_id = $3",
        AGENT, ADDRESS, person.account_id,
    )  # fmt: skip
    await owner.execute("UPDATE users SET name = $1 WHERE id = $2", NAME, user_id)
    await owner.execute(
        "INSERT INTO tokens (id, digest, hint, name, org_id, workspace_id, user_id, expires_at) "
        "VALUES (gen_random_uuid(), sha256('x'), 'kxg_…abcd', $1, $2, $3, $4, "
        "now() + interval '1 d')",
        f"laptop of {NAME}", org, workspace_id, user_id,
    )  # fmt: skip
    await owner.execute(
        "INSERT INTO invitations (id, org_id, digest, email, email_key, role, invited_by, "
        "expires_at, accepted_at) VALUES (gen_random_uuid(), $1, sha256('i'), $2, $2, 'viewer', "
        "$3, now(), now())",
        org, EMAIL, user_id,
    )  # fmt: skip
    await owner.execute(
        "INSERT INTO mailed_links (digest, purpose, account_id, email_key, expires_at) "
        "VALUES (sha256('m'), 'verify_email', $1, $2, now())",
        person.account_id, EMAIL,
    )  # fmt: skip
    colleague = await people.member(org, "admin")
    await owner.execute(
        "INSERT INTO idempotency_keys (account_id, route, key, request_digest, status, answer) "
        "VALUES ($1, 'POST /x', 'k', sha256('r'), 200, convert_to($2, 'UTF8'))",
        colleague.account_id, json.dumps({"email": EMAIL}),
    )  # fmt: skip
    own = Origin(actor_kind="account", actor_id=person.account_id, address=ADDRESS)
    other = Origin(actor_kind="account", actor_id=colleague.account_id, address="192.0.2.1")
    async with owner.transaction():
        await record(
            owner, own, "vendor.create", org_id=org, target_kind="vendor", target_id="openai",
            after={"kind": "openai"},
        )  # fmt: skip
        await record(
            owner, other, "member.invite", org_id=org, target_kind="invitation", target_id="1",
            after={"email": EMAIL.title(), "role": "viewer"},
        )  # fmt: skip
        await record(
            owner, other, "member.rename", org_id=org, target_kind="user", target_id=str(user_id),
            before={"name": "Ada"}, after={"name": NAME},
        )  # fmt: skip
        await record(
            owner, own, "account.sign_in", org_id=None, target_kind="account",
            target_id=str(person.account_id),
        )  # fmt: skip
    await append(owner, seed, 3, org_id=str(org), user_id=str(user_id), input_tokens=7)
    return person


async def usage(owner: asyncpg.Connection) -> list[asyncpg.Record]:
    return list(
        await owner.fetch(
            "SELECT org_id, user_id, token_id, calls, input_tokens FROM usage_hourly "
            "ORDER BY 1, 2, 3"
        )
    )


async def test_who_is_forgotten_is_nowhere_and_what_they_used_still_is(
    node: Node, people: People, owner: asyncpg.Connection, seed: Seed
) -> None:
    org = await people.org()
    person = await live(people, owner, org, seed)
    used, user_id = await usage(owner), await people.user_id(org, person)
    before = await dump(owner)
    for trace in (EMAIL, NAME, AGENT, ADDRESS, EMAIL.title()):
        assert trace in before

    answer = await node.call("DELETE", "/api/v1/me", by=person)

    assert (answer.status, answer.json["erased"]) == (200, True), answer.content
    assert answer.json["receipt"]["workers"] == []
    after = await dump(owner)
    for trace in (EMAIL, EMAIL.title(), NAME, AGENT, ADDRESS):
        assert trace not in after, after[after.index(trace) - 300 :][:400]
        assert trace.encode().hex() not in after
    assert await usage(owner) == used
    assert used[0]["input_tokens"] == 21
    verified = await verify(owner)
    assert verified["ok"], verified
    assert [chain["erased"] for chain in verified["chains"]] == [1, 3]
    kept = await owner.fetchrow("SELECT * FROM audit_log WHERE action = 'vendor.create'")
    assert kept is not None
    assert (kept["actor_id"], kept["after"]) == (person.account_id, '{"kind": "openai"}')
    assert (await node.call("GET", "/api/v1/me", by=person)).status == 401
    token = await owner.fetchrow("SELECT * FROM tokens WHERE user_id = $1", user_id)
    assert token is not None
    assert token["revoked_at"] is not None


async def test_the_only_owner_of_an_org_stays_until_there_is_another(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    org = await people.org("acme")
    one = await people.member(org, "owner")
    refused = await node.call("DELETE", "/api/v1/me", by=one)
    assert (refused.status, refused.json["code"]) == (409, "last_owner")
    assert "acme" in refused.json["detail"]
    assert (await node.call("GET", "/api/v1/me", by=one)).status == 200
    two = await people.member(org, "owner")
    answers = await asyncio.gather(*(node.call("DELETE", "/api/v1/me", by=p) for p in (one, two)))
    assert sorted(answer.status for answer in answers) == [200, 409]


async def test_who_signed_in_long_ago_proves_themselves_again_first(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    person = await people.person()
    await owner.execute("UPDATE sessions SET authenticated_at = now() - interval '11 minutes'")
    refused = await node.call("DELETE", "/api/v1/me", by=person)
    assert (refused.status, refused.json["code"]) == (403, "reauthentication_required")


async def test_people_are_told_all_that_is_kept_about_them_and_nothing_about_others(
    node: Node, people: People, owner: asyncpg.Connection, seed: Seed
) -> None:
    org = await people.org("acme")
    person = await live(people, owner, org, seed)
    stranger = await people.member(await people.org("umbrella"), "owner")

    answer = await node.call("GET", "/api/v1/me/export", by=person)

    assert answer.status == 200, answer.content
    told = answer.json
    assert told["account"]["email"] == EMAIL
    assert [one["user_agent"] for one in told["sessions"]] == [AGENT]
    assert [(one["org"], one["role"]) for one in told["memberships"]] == [("acme", "editor")]
    assert [one["name"] for one in told["tokens"]] == [f"laptop of {NAME}"]
    assert [(one["calls"], one["input_tokens"]) for one in told["usage"]] == [(3, 21)]
    assert {one["action"] for one in told["audit_log"]} == {
        "vendor.create", "member.rename", "account.sign_in",
    }  # fmt: skip
    assert [one["email"] for one in told["invitations"]] == [EMAIL]
    for secret in ("digest", "password_hash", "totp_sealed", "192.0.2.1", stranger.email):
        assert secret.encode() not in answer.content
    empty = (await node.call("GET", "/api/v1/me/export", by=stranger)).json
    assert (empty["tokens"], empty["usage"], empty["audit_log"]) == ([], [], [])


RETENTION = "/api/v1/operator/retention"


async def test_the_operator_says_how_long_what_is_kept(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    operator = await people.person(is_operator=True)
    first = await node.call("GET", RETENTION, by=operator)
    assert first.json == {
        "refusals_days": 30, "sessions_days": 90, "mailed_links_days": 7, "audit_days": None,
    }  # fmt: skip
    wanted = {**first.json, "audit_days": 400}
    headers = {"if-match": first.headers["etag"]}
    done = await node.call("PUT", RETENTION, by=operator, json=wanted, headers=headers)
    assert (done.status, done.json) == (200, wanted)
    late = await node.call("PUT", RETENTION, by=operator, json=wanted, headers=headers)
    assert late.status == 412
    short = await node.call("PUT", RETENTION, by=operator, json={**wanted, "audit_days": 1})
    assert (short.status, short.json["field"]) == (400, "audit_days")
    person = await people.member(await people.org(), "owner")
    assert (await node.call("GET", RETENTION, by=person)).status == 403
    assert await owner.fetchval("SELECT action FROM audit_log") == "retention.set"


async def test_nodes_start_with_their_sweeper_and_stop_with_it(
    server_settings: ServerSettings,
) -> None:
    async with asyncio.timeout(10), started(server_settings) as node:
        assert (await node.call("GET", "/healthz")).status == 200


async def test_addresses_that_someone_had_are_forgotten_too_and_where_they_came_from_as_nobody(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    former, now = "ada.before@example.com", "ada.now@example.com"
    org = await people.org()
    admin = await people.member(org, "admin")
    person = await people.person(now)
    link = Origin(
        actor_kind="account", actor_id=person.account_id, credential="link", address=ADDRESS
    )
    nobody = Origin(actor_kind="anonymous", address=ADDRESS)
    other = Origin(actor_kind="account", actor_id=admin.account_id)
    await owner.execute(
        "INSERT INTO invitations (id, org_id, digest, email, email_key, role, invited_by, "
        "expires_at, accepted_at) SELECT gen_random_uuid(), $1, sha256('i'), $2, $2, 'viewer', "
        "$3, now(), now()",
        org, former, await people.user_id(org, admin),
    )  # fmt: skip
    async with owner.transaction():
        await record(
            owner, link, "account.change_email", org_id=None, target_kind="account",
            target_id=person.account_id, before={"email": former}, after={"email": now},
        )  # fmt: skip
        await record(
            owner, nobody, "account.request_reset", org_id=None, target_kind="account",
            target_id=person.account_id,
        )  # fmt: skip
        await record(
            owner, other, "invitation.create", org_id=org, target_kind="invitation",
            target_id="1", after={"email": former},
        )  # fmt: skip

    assert (await node.call("DELETE", "/api/v1/me", by=person)).status == 200

    after = await dump(owner)
    for trace in (former, now, ADDRESS):
        assert trace not in after, after[after.index(trace) - 300 :][:400]
    assert (await verify(owner))["ok"]


async def test_what_the_log_says_about_someone_with_a_longer_address_stays(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    person = await people.person("bob@example.co")
    others = ["bob@example.com", "bob@example.co.uk", "big.bob@example.co", "a-bob@example.co"]
    found = [f"of <{person.email}>.", f"{person.email.title()}, gone"]
    async with owner.transaction():
        for text in (*others, *found):
            await record(
                owner, Origin(actor_kind="system"), "vendor.create", org_id=None,
                target_kind="vendor", target_id="openai", after={"name": text},
            )  # fmt: skip

    assert (await node.call("DELETE", "/api/v1/me", by=person)).status == 200

    kept = await owner.fetch(
        "SELECT after::jsonb ->> 'name' AS name FROM audit_log "
        "WHERE action = 'vendor.create' ORDER BY ordinal"
    )
    assert [row["name"] for row in kept] == [*others, None, None]


async def test_who_is_forgotten_holds_up_no_log_that_says_nothing_of_them(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    org = await people.org()
    person = await people.person()
    async with owner.transaction():
        await record(
            owner, Origin(actor_kind="system"), "vendor.create", org_id=org,
            target_kind="vendor", target_id="openai",
        )  # fmt: skip
    async with owner.transaction():
        await owner.execute("SELECT FROM audit_heads WHERE org_id = $1 FOR UPDATE", org)
        async with asyncio.timeout(5):
            assert (await node.call("DELETE", "/api/v1/me", by=person)).status == 200
