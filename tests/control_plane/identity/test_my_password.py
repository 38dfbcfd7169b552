import asyncio

import asyncpg
import pytest

from control_plane.identity.passwords import PasswordHash
from control_plane.server_settings import ServerSettings
from tests.control_plane.conftest import Answer, Node, started
from tests.control_plane.identity.accounts import (
    PASSWORD,
    Account,
    is_open,
    last_link,
    new_email,
    registered,
    sign_in,
    token_of,
)
from tests.control_plane.identity.test_second_factor import code_of, protected

NEW = "another lonely password"


async def change(node: Node, account: Account, **fields: str) -> Answer:
    body = {"current_password": account.password, "new_password": NEW, **fields}
    return await node.call("PUT", "/api/v1/me/password", by=account.person, json=body)


async def ask(node: Node, email: str, **headers: str) -> Answer:
    path = "/api/v1/password/reset-request"
    return await node.call("POST", path, json={"email": email}, headers=headers)


async def reset(node: Node, token: str, password: str = NEW) -> Answer:
    body = {"token": token, "password": password}
    return await node.call("POST", "/api/v1/password/reset", json=body)


@pytest.fixture
async def account(node: Node) -> Account:
    return await registered(node)


async def test_another_password_ends_every_session_on_every_node(
    node: Node, account: Account, server_settings: ServerSettings
) -> None:
    other = (await sign_in(node, account.email)).json["access_token"]
    async with started(server_settings) as second:
        answer = await change(node, account)
        assert answer.status == 200
        assert not await is_open(second, account)
        assert not await is_open(second, account, other)
        assert await is_open(second, account, answer.json["access_token"])
        assert (await sign_in(second, account.email)).status == 401
        assert (await sign_in(second, account.email, NEW)).status == 201
    await node.services.outbox.drained()
    assert "password was changed" in node.mails[-1].subject


async def test_a_second_factor_that_was_proven_just_before_is_not_asked_for_again(
    node: Node, owner: asyncpg.Connection
) -> None:
    account, _ = await protected(node, owner)
    answer = await change(node, account)
    assert answer.status == 200
    methods = await owner.fetchval("SELECT methods FROM sessions WHERE ended_at IS NULL")
    assert sorted(methods) == ["mfa", "otp", "pwd"]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"current_password": "not this one"}, 401),
        ({"new_password": "password"}, 400),
        ({"new_password": "short"}, 400),
    ],
)
async def test_a_password_is_not_changed_without_the_old_one_nor_to_a_bad_one(
    node: Node, account: Account, fields: dict[str, str], status: int
) -> None:
    assert (await change(node, account, **fields)).status == status
    assert await is_open(node, account)


async def test_a_link_gives_another_password_once_and_ends_every_session(
    node: Node, account: Account, owner: asyncpg.Connection
) -> None:
    assert (await ask(node, account.email.upper())).status == 202
    token = await last_link(node)
    assert token.encode() not in await owner.fetchval("SELECT digest FROM mailed_links")

    answers = await asyncio.gather(*(reset(node, token) for _ in range(4)))

    assert sorted(answer.status for answer in answers) == [204, 400, 400, 400]
    assert not await is_open(node, account)
    assert (await sign_in(node, account.email)).status == 401
    assert (await sign_in(node, account.email, NEW)).status == 201


async def test_a_second_factor_outlasts_a_reset(node: Node, owner: asyncpg.Connection) -> None:
    account, _ = await protected(node, owner)
    await ask(node, account.email)
    assert (await reset(node, await last_link(node))).status == 204
    without = await sign_in(node, account.email, NEW)
    assert (without.status, without.json["code"]) == (401, "totp_required")
    code = await code_of(owner, account)
    assert (await sign_in(node, account.email, NEW, totp=code)).status == 201


async def test_only_the_last_link_is_good_and_only_for_half_an_hour(
    node: Node, account: Account, owner: asyncpg.Connection
) -> None:
    await ask(node, account.email)
    first = await last_link(node)
    await ask(node, account.email)
    second = await last_link(node)
    assert (await reset(node, first)).status == 400
    life = await owner.fetchval(
        "SELECT expires_at - created_at FROM mailed_links WHERE used_at IS NULL"
    )
    assert round(life.total_seconds()) == 30 * 60
    await owner.execute("UPDATE mailed_links SET expires_at = now()")
    answer = await reset(node, second)
    assert (answer.status, answer.json["code"]) == (400, "link_invalid")


async def test_a_bad_password_does_not_use_the_link_up(node: Node, account: Account) -> None:
    await ask(node, account.email)
    token = await last_link(node)
    assert (await reset(node, token, "password")).json["code"] == "password_common"
    assert (await reset(node, token)).status == 204


async def test_a_link_is_void_once_the_account_has_another_address(
    node: Node, account: Account, owner: asyncpg.Connection
) -> None:
    await ask(node, account.email)
    token = await last_link(node)
    await owner.execute("UPDATE accounts SET email = 'b@example.com', email_key = 'b@example.com'")
    assert (await reset(node, token)).status == 400


async def test_nobody_learns_whether_there_is_an_account(
    node: Node, account: Account, owner: asyncpg.Connection
) -> None:
    unknown = await ask(node, new_email())
    known = await ask(node, account.email)
    assert (unknown.status, unknown.content) == (known.status, known.content)
    await node.services.outbox.drained()
    assert [mail.to for mail in node.mails[1:]] == [account.email]

    await owner.execute("UPDATE accounts SET disabled_at = now()")
    await ask(node, account.email)
    await node.services.outbox.drained()
    assert len(node.mails) == 2, "a disabled account gets no mail"


async def test_a_link_leads_to_the_configured_origin_whatever_the_host(
    node: Node, account: Account
) -> None:
    await ask(node, account.email, host="evil.example", **{"x-forwarded-host": "evil.example"})
    await node.services.outbox.drained()
    link = node.mails[-1].link
    assert link is not None
    assert link.startswith("http://127.0.0.1:8081/reset-password#token=")


async def test_the_address_changes_when_its_mailbox_says_so(
    node: Node, account: Account, owner: asyncpg.Connection
) -> None:
    wanted = new_email()
    answer = await node.call("POST", "/api/v1/me/email", by=account.person, json={"email": wanted})
    assert answer.status == 202
    await node.services.outbox.drained()
    told, asked = sorted(node.mails[1:], key=lambda mail: mail.link is not None)
    assert (told.to, asked.to) == (account.email, wanted)
    assert (await sign_in(node, wanted)).status == 401

    body = {"token": token_of(asked.link)}
    answers = [await node.call("POST", "/api/v1/email/confirm", json=body) for _ in range(2)]
    assert [one.status for one in answers] == [204, 400]
    await node.services.outbox.drained()
    assert node.mails[-1].to == account.email
    assert wanted in node.mails[-1].text
    assert (await sign_in(node, account.email)).status == 401
    assert (await sign_in(node, wanted)).status == 201
    entry = await owner.fetchrow(
        "SELECT before, after FROM audit_log WHERE action = 'account.change_email'"
    )
    assert entry is not None
    assert (account.email in entry["before"], wanted in entry["after"]) == (True, True)


async def test_an_address_of_somebody_else_is_not_taken_and_not_told(
    node: Node, account: Account
) -> None:
    other = await registered(node)
    await node.services.outbox.drained()
    before = len(node.mails)
    body = {"email": other.email}
    answer = await node.call("POST", "/api/v1/me/email", by=account.person, json=body)
    assert answer.status == 202
    await node.services.outbox.drained()
    assert [mail.to for mail in node.mails[before:]] == [account.email]


async def test_a_password_is_the_one_of_the_account_not_of_its_address(
    node: Node, account: Account
) -> None:
    assert account.password == PASSWORD
    stranger = await registered(node, password=NEW)
    assert (await sign_in(node, stranger.email)).status == 401


async def test_a_session_that_a_reset_ends_does_not_change_the_password_afterwards(
    node: Node, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask(node, account.email)
    token = await last_link(node)
    passwords = node.services.passwords
    hash_it = passwords.hash

    async def reset_meanwhile(password: str) -> PasswordHash:
        if password == "the thief's password":
            assert (await reset(node, token)).status == 204
        return await hash_it(password)

    monkeypatch.setattr(passwords, "hash", reset_meanwhile)
    assert (await change(node, account, new_password="the thief's password")).status == 401
    assert (await sign_in(node, account.email, NEW)).status == 201
