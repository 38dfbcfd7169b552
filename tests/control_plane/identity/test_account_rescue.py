import json
from typing import Any

import asyncpg
import pytest

from control_plane.errors import NotFound
from control_plane.identity.account_rescue import list_accounts, reset_account
from control_plane.identity.first_owner import make_first_owner
from tests.control_plane.conftest import Node
from tests.control_plane.identity.accounts import is_open, last_link, registered, sign_in
from tests.control_plane.identity.test_my_password import ask, reset
from tests.control_plane.identity.test_second_factor import protected


async def rescue(node: Node, owner: asyncpg.Connection, email: str, **more: bool) -> dict[str, Any]:
    keys = node.services.control_keys
    return await reset_account(owner, email, keys=keys, forget_totp=more.get("forget_totp", False))


async def test_who_is_rescued_has_a_new_password_and_no_session(
    node: Node, owner: asyncpg.Connection
) -> None:
    account = await registered(node)
    await ask(node, account.email)
    link = await last_link(node)

    told = await rescue(node, owner, account.email.upper())

    assert told["sessions_ended"] == 1
    assert not await is_open(node, account)
    assert (await sign_in(node, account.email)).status == 401
    assert (await reset(node, link)).status == 400, "links that were mailed before are void"
    assert (await sign_in(node, account.email, told["password"])).status == 201
    entry = await owner.fetchrow("SELECT * FROM audit_log WHERE action = 'account.reset'")
    assert entry is not None
    assert entry["actor_kind"] == "operator"
    assert told["password"] not in str(dict(entry))


async def test_the_second_factor_goes_only_when_it_is_said(
    node: Node, owner: asyncpg.Connection
) -> None:
    account, _ = await protected(node, owner)
    told = await rescue(node, owner, account.email)
    assert (await sign_in(node, account.email, told["password"])).json["code"] == "totp_required"
    told = await rescue(node, owner, account.email, forget_totp=True)
    assert told["totp_forgotten"]
    assert (await sign_in(node, account.email, told["password"])).status == 201


async def test_nobody_else_is_rescued(node: Node, owner: asyncpg.Connection) -> None:
    account = await registered(node)
    with pytest.raises(NotFound):
        await rescue(node, owner, "nobody@example.com")
    await owner.execute("UPDATE accounts SET disabled_at = now()")
    with pytest.raises(NotFound):
        await rescue(node, owner, account.email)


async def test_accounts_are_listed_without_what_lets_anyone_in(
    node: Node, owner: asyncpg.Connection
) -> None:
    account, _ = await protected(node, owner)
    (row,) = await list_accounts(owner)
    assert (row["email"], row["totp"], row["is_operator"]) == (account.email, True, False)
    assert not [name for name in row if "password" in name or "sealed" in name]


async def test_there_is_one_first_owner(node: Node, owner: asyncpg.Connection) -> None:
    keys = node.services.control_keys
    first = await make_first_owner(owner, keys=keys, email="Ada@example.com")
    assert first is not None
    assert first.password not in repr(first)
    assert await make_first_owner(owner, keys=keys, email="b@example.com") is None
    members = await owner.fetch("SELECT name, role, account_id IS NOT NULL AS has FROM users")
    assert [tuple(row) for row in members] == [("operator", "owner", True)]
    entry = await owner.fetchrow("SELECT org_id, after FROM audit_log")
    assert entry is not None
    assert entry["org_id"] == await owner.fetchval("SELECT id FROM orgs")
    assert json.loads(entry["after"])["role"] == "owner"
