import asyncio
import hashlib
import json
import uuid
from typing import Final

import asyncpg
import pytest

from control_plane.errors import DatabaseUnreachable, Refused
from control_plane.tenancy.vendors import register_public_key
from control_plane.web.idempotency import Unprocessable, once
from gateway.vendors.seal import keygen
from tests.control_plane.conftest import Node, People, Person
from tests.control_plane.identity.accounts import PASSWORD, registered

PATH: Final = "/api/v1/vendors/openai/rotate"
NOTHING: Final = frozenset[str]()


@pytest.fixture
async def admin(node: Node, people: People, owner: asyncpg.Connection) -> Person:
    await register_public_key(owner, keygen().public)
    person = await people.member(await people.org(), "admin")
    made = await node.call("PUT", "/api/v1/vendors/openai", by=person, json={"key": "sk-first"})
    assert made.status == 200
    return person


async def version(owner: asyncpg.Connection) -> int:
    return int(await owner.fetchval("SELECT key_version FROM vendors"))


async def test_a_request_that_comes_twice_is_carried_out_once(
    node: Node, admin: Person, owner: asyncpg.Connection
) -> None:
    headers = {"idempotency-key": "one"}
    first, again = [
        await node.call("POST", PATH, by=admin, json={"key": "sk-second"}, headers=headers)
        for _ in range(2)
    ]
    assert (first.status, again.status, first.content) == (200, 200, again.content)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert await version(owner) == 2
    other = await node.call("POST", PATH, by=admin, json={"key": "sk-third"}, headers=headers)
    assert (other.status, other.json["code"]) == (422, "idempotency_key_reused")
    assert await version(owner) == 2
    kept = await owner.fetchval("SELECT k::text FROM idempotency_keys AS k")
    assert "sk-second" not in kept


async def test_of_requests_at_once_one_is_carried_out(
    node: Node, admin: Person, owner: asyncpg.Connection
) -> None:
    answers = await asyncio.gather(
        *(
            node.call(
                "POST", PATH, by=admin, json={"key": "sk-x"}, headers={"idempotency-key": "k"}
            )
            for _ in range(20)
        )
    )
    assert {one.status for one in answers} <= {200, 409}
    assert any(one.status == 200 for one in answers)
    assert await version(owner) == 2


async def test_a_refusal_may_be_asked_for_again(
    node: Node, admin: Person, owner: asyncpg.Connection
) -> None:
    headers = {"idempotency-key": "k"}
    refused = await node.call(
        "POST", PATH.replace("openai", "groq"), by=admin, json={"key": "x"}, headers=headers
    )
    assert refused.status == 404
    await node.call("PUT", "/api/v1/vendors/groq", by=admin, json={"key": "sk-first"})
    done = await node.call(
        "POST", PATH.replace("openai", "groq"), by=admin, json={"key": "x"}, headers=headers
    )
    assert done.status == 200


@pytest.mark.parametrize("key", ["", "x" * 256, "\u00e9"])
async def test_what_is_no_key_is_refused(node: Node, admin: Person, key: str) -> None:
    answer = await node.call(
        "POST", PATH, by=admin, json={"key": "x"}, headers={"idempotency-key": key}
    )
    assert (answer.status, answer.json["field"]) == (400, "Idempotency-Key")


async def test_a_path_of_any_length_has_its_key(node: Node, admin: Person) -> None:
    path = f"/api/v1/vendors/{'x' * 5_000}/rotate"
    headers = {"idempotency-key": "k"}
    answer = await node.call("POST", path, by=admin, json={"key": "x"}, headers=headers)
    assert answer.status == 404


async def test_what_was_killed_in_the_middle_is_not_done_twice(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    """A process that dies leaves its key reserved: nobody can tell what became of it."""
    account_id = (await people.person()).account_id
    done: list[str] = []
    at_work = asyncio.Event()

    async def work() -> tuple[int, bytes]:
        done.append("once")
        at_work.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def ask(request: bytes = b"{}") -> tuple[tuple[int, bytes], bool]:
        return await once(
            node.services.database, account_id=account_id, route="POST /x", key="k",
            digest=hashlib.sha256(request).digest(), work=work, tells_once=NOTHING,
            may_have_happened=lambda: True,
        )  # fmt: skip

    first = asyncio.ensure_future(ask())  # noqa: TID251 - it is killed below
    await at_work.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(Refused, match="unknown"):
        await ask()
    with pytest.raises(Unprocessable):
        await ask(b'{"other": 1}')
    assert done == ["once"]
    await owner.execute("UPDATE idempotency_keys SET created_at = now() - interval '25 hours'")
    again = asyncio.ensure_future(ask())  # noqa: TID251 - as above
    at_work.clear()
    await at_work.wait()
    again.cancel()
    with pytest.raises(asyncio.CancelledError):
        await again
    assert done == ["once", "once"]


async def test_what_failed_before_it_could_change_anything_may_be_tried_again(
    node: Node, people: People
) -> None:
    account_id: uuid.UUID = (await people.person()).account_id
    fails = [True]

    async def work() -> tuple[int, bytes]:
        if fails:
            fails.pop()
            raise DatabaseUnreachable("away")
        return 200, b"{}"

    async def ask() -> tuple[tuple[int, bytes], bool]:
        return await once(
            node.services.database, account_id=account_id, route="POST /x", key="k",
            digest=bytes(32), work=work, tells_once=NOTHING,
        )  # fmt: skip

    with pytest.raises(DatabaseUnreachable):
        await ask()
    assert await ask() == ((200, b"{}"), False)


async def test_what_is_told_once_is_null_in_what_is_told_again(node: Node, people: People) -> None:
    account_id = (await people.person()).account_id

    async def work() -> tuple[int, bytes]:
        return 201, b'{"id":"1","token":"kxg_secret"}'

    answers = [
        await once(
            node.services.database, account_id=account_id, route="POST /x", key="k",
            digest=bytes(32), work=work, tells_once=frozenset({"token"}),
        )
        for _ in range(2)
    ]  # fmt: skip
    assert answers[0] == ((201, b'{"id":"1","token":"kxg_secret"}'), False)
    assert answers[1] == ((201, b'{"id":"1","token":null}'), True)


async def test_what_is_kept_of_a_request_gives_no_password_away(
    node: Node, owner: asyncpg.Connection
) -> None:
    account = await registered(node)
    body = json.dumps({"password": PASSWORD}).encode()
    headers = {"idempotency-key": "k", "content-type": "application/json"}
    path = "/api/v1/sessions/current/reauthenticate"
    answers = [
        await node.call("POST", path, by=account.person, data=body, headers=headers)
        for _ in range(2)
    ]
    assert [answer.status for answer in answers] == [200, 200]
    assert "idempotency-replayed" in answers[1].headers, "it is known again nevertheless"
    kept = await owner.fetchval("SELECT request_digest FROM idempotency_keys")
    assert kept != hashlib.sha256(body).digest()
