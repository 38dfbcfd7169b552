import asyncio
import uuid
from dataclasses import replace

import asyncpg
import pytest

from control_plane.server_settings import ServerSettings
from tests.control_plane.conftest import Node, started
from tests.control_plane.identity.accounts import (
    PASSWORD,
    last_link,
    new_email,
    registered,
    sign_in,
    sign_up,
    verify,
)


async def test_who_signs_up_and_uses_the_link_owns_an_org_with_a_workspace(
    node: Node, owner: asyncpg.Connection
) -> None:
    account = await registered(node, email="Ada@Example.com", name="Ada", org_name="Engines")

    me = (await node.call("GET", "/api/v1/me", by=account.person)).json
    assert (me["email"], me["name"], me["email_verified"]) == ("Ada@Example.com", "Ada", True)
    assert [(org["name"], org["role"]) for org in me["orgs"]] == [("Engines", "owner")]
    org_id = uuid.UUID(me["orgs"][0]["id"])
    find = "SELECT name FROM workspaces WHERE org_id = $1"
    assert await owner.fetchval(find, org_id) == "default"
    actions = await owner.fetch("SELECT org_id, action FROM audit_log ORDER BY at")
    assert [(row["action"], row["org_id"]) for row in actions] == [
        ("session.open", None),
        ("account.create", None),
        ("org.create", org_id),
        ("member.create", org_id),
    ]
    assert await owner.fetchval("SELECT count(*) FROM signups") == 0
    assert (await sign_in(node, "ada@example.COM")).status == 201


async def test_nobody_signs_in_before_the_address_is_confirmed(node: Node) -> None:
    email = new_email()
    await sign_up(node, email=email)

    refused = await sign_in(node, email)
    unknown = await sign_in(node, new_email())

    assert refused.status == unknown.status == 401
    assert refused.json["code"] == unknown.json["code"] == "bad_credentials"


async def test_a_known_address_gets_the_same_answer_and_another_mail(
    node: Node, owner: asyncpg.Connection
) -> None:
    account = await registered(node)
    known = await sign_up(node, email=account.email.upper())
    unknown = await sign_up(node)

    assert known.status == unknown.status == 202
    assert known.content == unknown.content
    await node.services.outbox.drained()
    by_address = {mail.to: mail for mail in node.mails[1:]}
    assert by_address[account.email].link is None
    assert "already" in by_address[account.email].subject
    assert await owner.fetchval("SELECT count(*) FROM accounts") == 1


async def test_a_link_takes_the_password_that_was_chosen_with_it(
    node: Node, owner: asyncpg.Connection
) -> None:
    """Who signs up with somebody else's address has nothing of it, even if they click the link."""
    await sign_up(node)
    token = await last_link(node)

    assert (await verify(node, token, "the one of somebody else")).status == 401
    assert await owner.fetchval("SELECT count(*) FROM accounts") == 0
    assert (await verify(node, token)).status == 201


async def test_a_link_works_once_even_for_many_at_once(
    node: Node, owner: asyncpg.Connection
) -> None:
    await sign_up(node)
    token = await last_link(node)

    answers = await asyncio.gather(*(verify(node, token) for _ in range(5)))

    assert sorted(answer.status for answer in answers) == [201, 400, 400, 400, 400]
    assert await owner.fetchval("SELECT count(*) FROM accounts") == 1
    assert await owner.fetchval("SELECT count(*) FROM orgs WHERE name = 'acme'") == 1


async def test_a_link_that_is_too_old_or_was_never_sent_is_refused(
    node: Node, owner: asyncpg.Connection
) -> None:
    await sign_up(node)
    token = await last_link(node)
    await owner.execute("UPDATE signups SET expires_at = now()")

    for one in (token, "x" * 43, "x", "x" * 42 + "é"):
        answer = await verify(node, one)
        assert (answer.status, answer.json["code"]) == (400, "link_invalid")


async def test_a_link_that_is_sent_again_voids_the_one_before(node: Node) -> None:
    email = new_email()
    await sign_up(node, email=email)
    first = await last_link(node)
    answer = await node.call("POST", "/api/v1/email/resend", json={"email": email.upper()})
    assert answer.status == 202
    second = await last_link(node)

    assert first != second
    assert (await verify(node, first)).status == 400
    assert (await verify(node, second)).status == 201

    answer = await node.call("POST", "/api/v1/email/resend", json={"email": email})
    await node.services.outbox.drained()
    assert answer.status == 202
    assert len(node.mails) == 2, "whoever has an account gets no link for one"


async def test_of_two_who_sign_up_with_one_address_the_mailbox_decides(node: Node) -> None:
    email = new_email()
    await sign_up(node, email=email, password="of an impostor")
    await sign_up(node, email=email)
    await node.services.outbox.drained()
    impostors, own = (mail.link for mail in node.mails)
    assert impostors is not None
    assert own is not None

    assert (await verify(node, own.partition("=")[2])).status == 201
    assert (await verify(node, impostors.partition("=")[2], "of an impostor")).status == 400
    assert (await sign_in(node, email, "of an impostor")).status == 401
    assert (await sign_in(node, email)).status == 201


@pytest.mark.parametrize(
    ("fields", "at_fault"),
    [
        ({"email": "nobody"}, "email"),
        ({"email": "a@b@c.example"}, "email"),
        ({"email": "a@exa mple.com"}, "email"),
        ({"email": "a@example.com\r\nBcc: b@example.com"}, "email"),
        ({"email": "ä@example.com"}, "email"),
        ({"email": "a" * 250 + "@example.com"}, "email"),
        ({"password": "short"}, "password"),
        ({"password": "password123"}, "password"),
        ({"password": "PassWord123"}, "password"),
        ({"password": "x" * 1025}, "password"),
        ({"password": "é" * 1000}, "password"),
        ({"email": "engines@example.com", "password": "engines@example.com"}, "password"),
        ({"org_name": ""}, "org_name"),
        ({"org_name": "  "}, "org_name"),
        ({"org_name": "a\r\nb"}, "org_name"),
        ({"name": "a\x1b[2J"}, "name"),
        ({"role": "owner"}, "role"),
        ({"is_operator": True}, "is_operator"),
    ],
)
async def test_what_no_account_can_have_is_refused(
    node: Node, fields: dict[str, object], at_fault: str
) -> None:
    answer = await sign_up(node, **fields)
    assert answer.status == 400
    assert answer.json["field"] == at_fault


async def test_signing_up_can_be_closed(server_settings: ServerSettings) -> None:
    async with started(replace(server_settings, signup_is_open=False)) as node:
        answer = await sign_up(node)
        assert (answer.status, answer.json["code"]) == (403, "signup_closed")


async def test_one_mailbox_gets_few_mails_by_one_client(node: Node) -> None:
    email = new_email()
    await sign_up(node, email=email)
    for _ in range(8):
        answer = await node.call("POST", "/api/v1/email/resend", json={"email": email})
        assert answer.status == 202
    await node.services.outbox.drained()
    assert len(node.mails) == 5


async def test_nothing_of_a_password_is_kept_or_told(node: Node, owner: asyncpg.Connection) -> None:
    await registered(node)
    kept = await owner.fetchrow("SELECT * FROM accounts")
    assert kept is not None
    assert PASSWORD not in str(dict(kept))
    assert not [line for line in node.lines if PASSWORD.encode() in line]
    assert PASSWORD not in repr(node.services)
