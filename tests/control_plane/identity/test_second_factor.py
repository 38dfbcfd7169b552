import asyncio
import uuid

import asyncpg
import pyotp
import pytest

from control_plane.errors import Forbidden
from control_plane.identity.authenticate import find_actor
from control_plane.identity.passwords import PasswordHash
from control_plane.identity.second_factor import reseal_all, seed_place
from control_plane.identity.session_keys import SessionClaims
from control_plane.secrets import make_control_key, parse_control_keys
from control_plane.server_settings import ServerSettings
from tests.control_plane.conftest import CONTROL_KEY, Node, started
from tests.control_plane.identity.accounts import (
    PASSWORD,
    Account,
    is_open,
    registered,
    sign_in,
)

STEP = 30


async def now_of(owner: asyncpg.Connection) -> float:
    """The database's time: codes go by it."""
    return float(await owner.fetchval("SELECT extract(epoch FROM clock_timestamp())"))


async def code_of(owner: asyncpg.Connection, account: Account, *, steps: int = 0) -> str:
    return pyotp.TOTP(account.seed).at(await now_of(owner) + steps * STEP)


async def protected(node: Node, owner: asyncpg.Connection) -> tuple[Account, list[str]]:
    """Somebody with a second factor, whose codes so far count as not taken; the recovery codes."""
    account = await registered(node)
    enrolled = await node.call("POST", "/api/v1/me/totp", by=account.person)
    assert enrolled.status == 201, enrolled.content
    account.seed = enrolled.json["secret"]
    body = {"code": await code_of(owner, account)}
    answer = await node.call("POST", "/api/v1/me/totp/confirm", by=account.person, json=body)
    assert answer.status == 200, answer.content
    account.goes_on(answer.json["session"])
    await owner.execute("UPDATE accounts SET totp_last_step = NULL")
    return account, answer.json["recovery_codes"]


async def test_signing_in_takes_a_code_from_then_on(node: Node, owner: asyncpg.Connection) -> None:
    account, _ = await protected(node, owner)

    without = await sign_in(node, account.email)
    assert (without.status, without.json["code"]) == (401, "totp_required")
    assert (await sign_in(node, account.email, totp="")).json["code"] == "totp_required"
    wrong_password = await sign_in(node, account.email, "not this one", totp="000000")
    assert wrong_password.json["code"] == "bad_credentials", "the password is looked at first"
    right = await sign_in(node, account.email, totp=await code_of(owner, account))
    assert right.status == 201
    methods = await owner.fetchval(
        "SELECT methods FROM sessions WHERE id = $1", uuid.UUID(right.json["session_id"])
    )
    assert methods == ["pwd", "otp", "mfa"]


async def test_a_change_of_the_second_factor_ends_every_session(
    node: Node, owner: asyncpg.Connection, server_settings: ServerSettings
) -> None:
    before = await registered(node)
    other = (await sign_in(node, before.email)).json["access_token"]
    enrolled = await node.call("POST", "/api/v1/me/totp", by=before.person)
    before.seed = enrolled.json["secret"]
    body = {"code": await code_of(owner, before)}
    answer = await node.call("POST", "/api/v1/me/totp/confirm", by=before.person, json=body)
    async with started(server_settings) as second:
        assert not await is_open(second, before)
        assert not await is_open(second, before, other)
        before.goes_on(answer.json["session"])
        assert await is_open(second, before)
        disabled = await second.call("DELETE", "/api/v1/me/totp", by=before.person)
        assert disabled.status == 200
        assert not await is_open(node, before)
        assert await is_open(node, before, disabled.json["access_token"])
    assert (await sign_in(node, before.email)).status == 201
    assert await owner.fetchval("SELECT count(*) FROM recovery_codes") == 0
    await node.services.outbox.drained()
    assert "second factor is on" in node.mails[-1].subject


async def test_a_code_is_taken_once_even_by_many_at_once_on_two_nodes(
    node: Node, owner: asyncpg.Connection, server_settings: ServerSettings
) -> None:
    account, _ = await protected(node, owner)
    code = await code_of(owner, account)
    async with started(server_settings) as second:
        answers = await asyncio.gather(
            *(sign_in(one, account.email, totp=code) for one in (node, second, node, second))
        )
        assert sorted(answer.status for answer in answers) == [201, 401, 401, 401]
        before = await sign_in(second, account.email, totp=await code_of(owner, account, steps=-1))
        assert before.status in {401, 429}, "none that is older than one that was taken"


@pytest.mark.parametrize("steps", [-2, 3])
async def test_a_code_of_another_time_is_wrong(
    node: Node, owner: asyncpg.Connection, steps: int
) -> None:
    account, _ = await protected(node, owner)
    # A step may end between here and there; exactly which are taken is shown with a clock's help.
    answer = await sign_in(node, account.email, totp=await code_of(owner, account, steps=steps))
    assert (answer.status, answer.json["code"]) == (401, "bad_code")


async def test_after_five_wrong_codes_only_waiting_helps(
    node: Node, owner: asyncpg.Connection
) -> None:
    account, _ = await protected(node, owner)
    right = {await code_of(owner, account, steps=steps) for steps in (-1, 0, 1, 2)}
    wrong = next(code for code in map(str, range(100_000, 100_010)) if code not in right)
    for _ in range(5):
        assert (await sign_in(node, account.email, totp=wrong)).status == 401
    refused = await sign_in(node, account.email, totp=await code_of(owner, account))
    assert refused.status == 429
    assert 0 < int(refused.headers["retry-after"]) <= 15 * 60

    # The window moves on by itself: nobody has to unlock anything.
    await owner.execute(
        """
        UPDATE throttle
        SET admitted = ARRAY(SELECT at - interval '15 minutes' FROM unnest(admitted) AS at)
        """
    )
    again = await sign_in(node, account.email, totp=await code_of(owner, account))
    assert again.status == 201


async def test_right_codes_are_not_counted(node: Node, owner: asyncpg.Connection) -> None:
    account, _ = await protected(node, owner)
    for _ in range(7):
        await owner.execute("UPDATE accounts SET totp_last_step = NULL")
        answer = await sign_in(node, account.email, totp=await code_of(owner, account))
        assert answer.status == 201


async def test_a_recovery_code_stands_in_once_even_for_many_at_once(
    node: Node, owner: asyncpg.Connection
) -> None:
    account, codes = await protected(node, owner)
    answers = await asyncio.gather(
        *(sign_in(node, account.email, totp=codes[0].lower()) for _ in range(4))
    )
    assert sorted(answer.status for answer in answers) == [201, 401, 401, 401]
    kept = await owner.fetch("SELECT digest FROM recovery_codes")
    assert len(kept) == 10
    assert not [row for row in kept if codes[1].encode() in row["digest"]]

    stranger, _ = await protected(node, owner)
    assert (await sign_in(node, stranger.email, totp=codes[1])).status == 401


async def test_new_recovery_codes_void_the_old_ones(node: Node, owner: asyncpg.Connection) -> None:
    account, old = await protected(node, owner)
    answer = await node.call("POST", "/api/v1/me/recovery-codes", by=account.person)
    assert answer.status == 201
    assert (await sign_in(node, account.email, totp=old[0])).status == 401
    new = answer.json["recovery_codes"]
    assert (await sign_in(node, account.email, totp=new[0])).status == 201


async def test_what_is_told_once_is_not_told_again_under_the_same_key(
    node: Node, owner: asyncpg.Connection
) -> None:
    account = await registered(node)
    headers = {"idempotency-key": "one"}
    first = await node.call("POST", "/api/v1/me/totp", by=account.person, headers=headers)
    second = await node.call("POST", "/api/v1/me/totp", by=account.person, headers=headers)
    assert second.json == {"secret": None, "otpauth_url": None}
    kept = await owner.fetchval("SELECT answer FROM idempotency_keys")
    assert first.json["secret"].encode() not in kept


async def test_nothing_is_confirmed_that_was_not_enrolled_and_nothing_twice(
    node: Node, owner: asyncpg.Connection
) -> None:
    account = await registered(node)

    async def confirm(code: str) -> int:
        body = {"code": code}
        path = "/api/v1/me/totp/confirm"
        return (await node.call("POST", path, by=account.person, json=body)).status

    assert await confirm("000000") == 409
    assert (await node.call("DELETE", "/api/v1/me/totp", by=account.person)).status == 409
    renew = await node.call("POST", "/api/v1/me/recovery-codes", by=account.person)
    assert renew.status == 409
    account, _ = await protected(node, owner)
    assert (await node.call("POST", "/api/v1/me/totp", by=account.person)).status == 409
    assert await confirm(await code_of(owner, account)) == 409


async def test_proving_it_again_takes_a_code_too(node: Node, owner: asyncpg.Connection) -> None:
    account, codes = await protected(node, owner)
    path = "/api/v1/sessions/current/reauthenticate"
    without = await node.call("POST", path, by=account.person, json={"password": PASSWORD})
    assert (without.status, without.json["code"]) == (401, "totp_required")
    body = {"password": PASSWORD, "totp": codes[0]}
    assert (await node.call("POST", path, by=account.person, json=body)).status == 200


async def test_an_org_that_asks_for_it_lets_nobody_in_without(
    node: Node, owner: asyncpg.Connection
) -> None:
    account = await registered(node)
    await owner.execute("UPDATE orgs SET requires_totp = true")
    me = await node.call("GET", "/api/v1/me", by=account.person)
    assert me.status == 200, "or nobody could enable it"
    org_id = uuid.UUID(me.json["orgs"][0]["id"])

    async def role_of(one: Account, org: uuid.UUID) -> str | None:
        claims = SessionClaims(session_id=one.session_id, account_id=one.account_id)
        async with node.services.database.transaction(
            org_id=org, account_id=one.account_id
        ) as connection:
            actor = await find_actor(connection, claims, org_id=org)
        return None if actor.membership is None else actor.membership.role

    with pytest.raises(Forbidden) as refused:
        await role_of(account, org_id)
    assert refused.value.code == "totp_required"
    other, _ = await protected(node, owner)
    me = await node.call("GET", "/api/v1/me", by=other.person)
    assert await role_of(other, uuid.UUID(me.json["orgs"][0]["id"])) == "owner"


async def test_the_seed_is_sealed_and_sealed_anew_when_the_key_changes(
    node: Node, owner: asyncpg.Connection
) -> None:
    account, _ = await protected(node, owner)
    sealed = await owner.fetchval("SELECT totp_sealed FROM accounts")
    assert account.seed.encode() not in sealed
    seed = node.services.control_keys.open(sealed, seed_place(account.account_id))

    key = make_control_key()
    both, new = parse_control_keys(f"{key} {CONTROL_KEY}"), parse_control_keys(key)
    assert await reseal_all(owner, new) == (0, 1), "what has no key stays as it is"
    assert await reseal_all(owner, both) == (1, 0)
    assert await reseal_all(owner, both) == (0, 0)
    resealed = await owner.fetchval("SELECT totp_sealed FROM accounts")
    assert new.open(resealed, seed_place(account.account_id)) == seed


async def test_who_signs_in_without_a_code_as_the_second_factor_is_enabled_stays_outside(
    node: Node, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await registered(node)
    enrolled = await node.call("POST", "/api/v1/me/totp", by=account.person)
    account.seed = enrolled.json["secret"]
    passwords = node.services.passwords
    check = passwords.check

    async def enable_meanwhile(password: str, stored: PasswordHash | None) -> bool:
        body = {"code": await code_of(owner, account)}
        path = "/api/v1/me/totp/confirm"
        answer = await node.call("POST", path, by=account.person, json=body)
        assert answer.status == 200, answer.content
        return await check(password, stored)

    monkeypatch.setattr(passwords, "check", enable_meanwhile)
    assert (await sign_in(node, account.email)).status == 401
