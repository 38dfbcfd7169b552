"""Ends and limits by API on a running gateway: what a receipt says is what callers meet."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.conftest import Database
from tests.control_plane.conftest import Node, People, Person
from tests.gateway.test_app import Running, running

PATH = "/api/v1/tokens"
LET_IN = (404, "no_route")  # there is no vendor
REVOKED = (401, "token_revoked")


@pytest.fixture
async def org(people: People) -> uuid.UUID:
    return await people.org()  # type: ignore[no-any-return]


@pytest.fixture
async def admin(people: People, org: uuid.UUID) -> Person:
    return await people.member(org, "admin")


@pytest.fixture
async def gateway(database: Database, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(database.gateway_url, tmp_path / "journal") as run:
        await run.ready()
        yield run


async def make(node: Node, person: Person, **body: Any) -> Any:
    answer = await node.call("POST", PATH, by=person, json=body)
    assert answer.status == 201, answer.content
    return answer.json


def confirmed(receipt: Any) -> bool:
    return [one["state"] for one in receipt["workers"]] == ["confirmed"]


async def test_what_a_receipt_confirms_holds(node: Node, admin: Person, gateway: Running) -> None:
    made = await make(node, admin)
    child = (await node.call("POST", f"{PATH}/{made['id']}/children", by=admin)).json
    assert [await gateway.call(one["token"]) for one in (made, child)] == [LET_IN] * 2
    began = time.monotonic()
    answer = await node.call("POST", f"{PATH}/{made['id']}/revoke", by=admin)
    assert time.monotonic() - began < 2
    assert confirmed(answer.json)
    assert [await gateway.call(one["token"]) for one in (made, child)] == [REVOKED] * 2


async def test_all_of_an_org_end_on_a_gateway_in_one_go(
    node: Node, people: People, org: uuid.UUID, admin: Person, gateway: Running
) -> None:
    mine = [await make(node, admin) for _ in range(20)]
    stranger = await people.member(await people.org("other"), "owner")
    theirs = await make(node, stranger)
    calls = [gateway.call(one["token"]) for one in (*mine, theirs)]
    assert set(await asyncio.gather(*calls)) == {LET_IN}
    answer = await node.call("POST", f"{PATH}/revoke-all", by=admin)
    assert answer.json["revoked"] == 20
    assert confirmed(answer.json["receipt"])
    found = await asyncio.gather(*(gateway.call(one["token"]) for one in mine))
    assert set(found) == {REVOKED}
    assert await gateway.call(theirs["token"]) == LET_IN
    assert await gateway.call((await make(node, admin))["token"]) == LET_IN


async def test_a_list_that_is_changed_holds_at_once(
    node: Node, admin: Person, gateway: Running, owner: asyncpg.Connection
) -> None:
    await owner.execute(
        "INSERT INTO vendors (name, kind, base_url, is_private, is_simulator, sealed_key) "
        "VALUES ('openai', 'openai', 'http://127.0.0.1:9/v1', true, true, '')"
    )
    made = await make(node, admin, vendors=["openai"])
    async with asyncio.timeout(10):
        while await gateway.call(made["token"]) == LET_IN:  # noqa: ASYNC110 - it loads the vendor
            await asyncio.sleep(0.01)
    assert (await gateway.call(made["token"]))[1] == "vendor_unreachable"
    path = f"{PATH}/{made['id']}"
    for change, expected in (
        ({"vendors": ["anthropic"]}, (403, "vendor_not_allowed")),
        ({"vendors": None}, (502, "vendor_unreachable")),
        ({"models": ["none-*"]}, (403, "model_not_allowed")),
        ({"models": None, "addresses": ["192.0.2.0/24"]}, (403, "address_not_allowed")),
    ):
        answer = await node.call("PATCH", path, by=admin, json=change)
        assert confirmed(answer.json["receipt"]), answer.content
        assert await gateway.call(made["token"]) == expected


async def test_whoever_shows_a_token_ends_it_on_the_gateway(
    node: Node, admin: Person, gateway: Running
) -> None:
    made = await make(node, admin)
    assert await gateway.call(made["token"]) == LET_IN
    await node.call("POST", f"{PATH}/revoke", json={"token": made["token"]})
    async with asyncio.timeout(1):
        while (found := await gateway.call(made["token"])) == LET_IN:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert found == REVOKED


async def test_a_limit_that_is_lowered_holds_once_its_receipt_is_there(
    node: Node, org: uuid.UUID, admin: Person, gateway: Running, owner: asyncpg.Connection
) -> None:
    await owner.execute(
        "INSERT INTO vendors (name, kind, base_url, is_private, is_simulator, sealed_key) "
        "VALUES ('openai', 'openai', 'http://127.0.0.1:9/v1', true, true, '')"
    )
    made = await make(node, admin)
    async with asyncio.timeout(10):
        while await gateway.call(made["token"]) == LET_IN:  # noqa: ASYNC110 - it loads the vendor
            await asyncio.sleep(0.01)
    limits = f"/api/v1/limits/org/{org}"
    answer = await node.call("PUT", limits, by=admin, json={"rate": "2/1h"})
    assert confirmed(answer.json["receipt"])
    found = [(await gateway.call(made["token"]))[1] for _ in range(3)]
    assert found == ["vendor_unreachable", "vendor_unreachable", "rate_window"]
    answer = await node.call("DELETE", limits, by=admin)
    assert confirmed(answer.json["receipt"])
    assert (await gateway.call(made["token"]))[1] == "vendor_unreachable"
