import time
from datetime import UTC, datetime, timedelta

import asyncpg
import jwt
import pytest

from control_plane.identity.session_keys import SESSION_LIFE
from control_plane.server_settings import ServerSettings
from tests.control_plane.conftest import Node, People, started
from tests.control_plane.identity.accounts import (
    PASSWORD,
    Account,
    is_open,
    registered,
    sign_in,
)


@pytest.fixture
async def account(node: Node) -> Account:
    return await registered(node)


async def test_who_signs_in_has_a_session_for_two_weeks(node: Node, account: Account) -> None:
    answer = await sign_in(node, account.email, totp="")

    assert answer.status == 201
    expires = datetime.fromisoformat(answer.json["expires_at"])
    assert abs(expires - datetime.now(UTC) - SESSION_LIFE) < timedelta(minutes=1)
    assert answer.headers["cache-control"] == "no-store"
    claims = jwt.decode(answer.json["access_token"], options={"verify_signature": False})
    assert set(claims) == {"iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp"}
    assert claims["exp"] == int(expires.timestamp())


async def test_sign_out_ends_this_session_on_every_node(
    node: Node, account: Account, server_settings: ServerSettings
) -> None:
    other = Account(email=account.email)
    other.goes_on((await sign_in(node, account.email)).json)
    async with started(server_settings) as second:
        answer = await node.call("DELETE", "/api/v1/sessions/current", by=account.person)
        assert answer.status == 204
        assert not await is_open(second, account)
        assert await is_open(second, other)


async def test_sessions_are_listed_and_ended(node: Node, account: Account) -> None:
    mine = [(await sign_in(node, account.email)).json for _ in range(3)]
    listed = (await node.call("GET", "/api/v1/sessions?limit=2", by=account.person)).json
    assert [one["id"] for one in listed["data"]] == [mine[2]["session_id"], mine[1]["session_id"]]
    rest = await node.call(
        "GET", f"/api/v1/sessions?limit=2&after={listed['next']}", by=account.person
    )
    assert [one["id"] for one in rest.json["data"]] == [
        mine[0]["session_id"],
        str(account.session_id),
    ]
    assert [one["current"] for one in rest.json["data"]] == [False, True]
    assert rest.json["next"] is None

    path = f"/api/v1/sessions/{mine[0]['session_id']}"
    assert (await node.call("DELETE", path, by=account.person)).status == 204
    assert (await node.call("DELETE", path, by=account.person)).status == 404
    assert not await is_open(node, account, mine[0]["access_token"])

    ended = await node.call("DELETE", "/api/v1/sessions", by=account.person)
    assert ended.json == {"ended": 2}
    assert not await is_open(node, account, mine[1]["access_token"])
    assert await is_open(node, account)


async def test_a_session_of_somebody_else_is_as_good_as_none(
    node: Node, account: Account, people: People
) -> None:
    stranger = await people.person()
    answer = await node.call("DELETE", f"/api/v1/sessions/{account.session_id}", by=stranger)
    assert answer.status == 404
    assert await is_open(node, account)


@pytest.mark.parametrize("after", ["x", "WzFd", "WyJhIiwiYiJd"])
async def test_a_cursor_that_is_none_is_refused(node: Node, account: Account, after: str) -> None:
    answer = await node.call("GET", f"/api/v1/sessions?after={after}", by=account.person)
    assert (answer.status, answer.json["field"]) == (400, "after")


async def test_a_disabled_account_is_out_at_once_and_stays_out(
    node: Node, account: Account, owner: asyncpg.Connection
) -> None:
    await owner.execute("UPDATE accounts SET disabled_at = now()")
    assert not await is_open(node, account)
    answer = await sign_in(node, account.email)
    assert (answer.status, answer.json["code"]) == (401, "bad_credentials")


async def test_an_account_without_a_password_is_refused_as_any(
    node: Node, account: Account, owner: asyncpg.Connection
) -> None:
    await owner.execute("UPDATE accounts SET password_hash = NULL, password_key = NULL")
    answer = await sign_in(node, account.email)
    assert (answer.status, answer.json["code"]) == (401, "bad_credentials")


@pytest.mark.parametrize(
    ("change", "hours", "status"),
    [
        ("UPDATE users SET role = 'viewer'", 23, 200),
        ("UPDATE users SET role = 'editor'", 25, 401),
        ("UPDATE users SET role = 'admin'", 7, 200),
        ("UPDATE users SET role = 'admin'", 9, 401),
        ("UPDATE users SET role = 'owner'", 9, 401),
        ("UPDATE users SET role = 'owner', disabled_at = now()", 9, 200),
        (
            "WITH a AS (UPDATE accounts SET is_operator = true) UPDATE users SET role = 'viewer'",
            9,
            401,
        ),
    ],
)
async def test_a_session_that_is_not_used_is_over(  # noqa: PLR0917 - fixtures
    node: Node, account: Account, owner: asyncpg.Connection, change: str, hours: int, status: int
) -> None:
    await owner.execute(change)
    await owner.execute(
        "UPDATE sessions SET last_seen_at = now() - make_interval(hours => $1)", hours
    )
    assert (await node.call("GET", "/api/v1/me", by=account.person)).status == status


async def test_a_session_is_over_after_two_weeks_however_much_it_is_used(
    node: Node, account: Account, owner: asyncpg.Connection
) -> None:
    await owner.execute("UPDATE sessions SET expires_at = now()")
    assert not await is_open(node, account)


async def test_an_account_has_a_bounded_number_of_sessions(
    node: Node, account: Account, owner: asyncpg.Connection
) -> None:
    await owner.execute(
        """
        INSERT INTO sessions (id, account_id, expires_at, methods, last_seen_at)
        SELECT gen_random_uuid(), $1, now() + interval '1 day', '{pwd}',
            now() - make_interval(secs => i)
        FROM generate_series(1, 110) AS i
        """,
        account.account_id,
    )
    assert (await sign_in(node, account.email)).status == 201
    assert await owner.fetchval("SELECT count(*) FROM sessions WHERE ended_at IS NULL") == 100
    assert await is_open(node, account)


async def test_sessions_that_were_over_long_ago_are_forgotten(
    node: Node, account: Account, owner: asyncpg.Connection
) -> None:
    await owner.execute(
        """
        INSERT INTO sessions (id, account_id, expires_at, methods, ended_at)
        SELECT gen_random_uuid(), $1, now() - make_interval(days => days), '{pwd}', ended_at
        FROM (VALUES (91, NULL), (89, NULL), (0, now() - interval '91 days')) AS s (days, ended_at)
        """,
        account.account_id,
    )
    assert (await sign_in(node, account.email)).status == 201
    assert await owner.fetchval("SELECT count(*) FROM sessions") == 3


async def test_what_is_dangerous_takes_a_fresh_proof(
    node: Node, account: Account, owner: asyncpg.Connection
) -> None:
    await owner.execute("UPDATE sessions SET authenticated_at = now() - interval '11 minutes'")
    refused = await node.call("POST", "/api/v1/me/totp", by=account.person)
    assert (refused.status, refused.json["code"]) == (403, "reauthentication_required")

    path = "/api/v1/sessions/current/reauthenticate"
    wrong = await node.call("POST", path, by=account.person, json={"password": "not this one"})
    assert wrong.status == 401
    right = await node.call("POST", path, by=account.person, json={"password": PASSWORD})
    assert right.status == 200
    proven = datetime.fromisoformat(right.json["authenticated_at"]).timestamp()
    assert abs(proven - time.time()) < 60
    assert (await node.call("POST", "/api/v1/me/totp", by=account.person)).status == 201


async def test_an_older_hash_is_renewed_when_its_owner_signs_in(
    server_settings: ServerSettings, owner: asyncpg.Connection
) -> None:
    async with started(server_settings, password_cost=4) as before:
        account = await registered(before)
    async with started(server_settings, password_cost=5) as after:
        assert (await sign_in(after, account.email, "not this one")).status == 401
        assert (await sign_in(after, account.email)).status == 201
        kept = await owner.fetchval("SELECT password_hash FROM accounts")
        assert kept.startswith("$2b$05$")
        assert await is_open(after, account), "the password is the same: sessions go on"
        assert (await sign_in(after, account.email)).status == 201
