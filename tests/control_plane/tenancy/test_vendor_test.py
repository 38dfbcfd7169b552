"""The test button, through a gateway that runs."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from control_plane.server_settings import ServerSettings
from control_plane.tenancy.vendors import register_public_key
from gateway.vendors.seal import keygen
from tests.conftest import Database
from tests.control_plane.conftest import Node, People, started
from tests.gateway.test_app import running

PAIR = keygen()
KEY = "sk-canary-0123456789"
MODELS = {"data": [{"id": "model-a"}, {"id": "model-b"}]}


class FakeVendor:
    """Answers each request alike, and keeps its head."""

    def __init__(self) -> None:
        self.status, self.document = 200, dict[str, Any](MODELS)
        self.heads: list[str] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
                body = json.dumps(self.document).encode()
                writer.write(
                    b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                    % (self.status, len(body))
                    + body
                )
        writer.close()


@pytest.fixture
async def vendor() -> AsyncIterator[FakeVendor]:
    made = FakeVendor()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    async with server:
        yield made


@pytest.fixture
async def gatewayed(
    database: Database, owner: asyncpg.Connection, server_settings: ServerSettings, tmp_path: Path
) -> AsyncIterator[Node]:
    """A control plane that knows where a gateway runs."""
    await register_public_key(owner, PAIR.public)
    async with running(database.gateway_url, tmp_path, KAIXU_VAULT_KEY=PAIR.private) as gateway:
        await gateway.ready()
        async with started(replace(server_settings, gateway_url=gateway.url)) as node:
            yield node


async def test_a_disabled_vendor_is_tested_by_a_call_that_is_in_the_ledger(
    gatewayed: Node, people: People, owner: asyncpg.Connection, vendor: FakeVendor
) -> None:
    org = await people.org()
    operator = await people.member(org, "admin", await people.person(is_operator=True))
    body = {
        "kind": "openai", "base_url": f"http://127.0.0.1:{vendor.port}/v1", "private": True,
        "key": KEY, "disabled": True,
    }  # fmt: skip
    made = await gatewayed.call("PUT", "/api/v1/vendors/mine", by=operator, json=body)
    assert made.status == 200, made.content

    tested = await gatewayed.call("POST", "/api/v1/vendors/mine/test", by=operator)

    assert tested.status == 200, tested.content
    assert (tested.json["ok"], tested.json["models"]) == (True, ["model-a", "model-b"])
    assert tested.json["latency_ms"] > 0
    [head] = vendor.heads
    assert head.startswith("GET /v1/models ")
    assert f"authorization: bearer {KEY}" in head.lower()
    async with asyncio.timeout(10):
        while True:
            row = await owner.fetchrow(
                "SELECT * FROM usage_events WHERE call_id::text = $1", tested.json["call_id"]
            )
            if row is not None:
                break
            await asyncio.sleep(0.02)
    assert (row["vendor"], row["org_id"], row["counted"]) == ("mine", org, False)
    assert await owner.fetchval("SELECT count(*) FROM tokens") == 0

    vendor.status, vendor.document = 401, {"error": {"message": f"bad key {KEY}"}}
    refused = await gatewayed.call("POST", "/api/v1/vendors/mine/test", by=operator)
    assert (refused.json["ok"], refused.json["status"], refused.json["reason"]) == (
        False, 502, "vendor_key",
    )  # fmt: skip
    assert KEY.encode() not in refused.content
    vendor.status, vendor.document = 500, {"error": f"down, said {KEY}"}
    down = await gatewayed.call("POST", "/api/v1/vendors/mine/test", by=operator)
    assert (down.json["ok"], down.json["status"]) == (False, 500)
    assert KEY.encode() not in down.content
    assert not [line for line in gatewayed.lines if KEY.encode() in line]


async def test_a_vendor_of_the_operators_is_tested_for_the_first_org(
    gatewayed: Node, people: People, owner: asyncpg.Connection, vendor: FakeVendor
) -> None:
    operator = await people.person(is_operator=True)
    body = {
        "kind": "openai", "base_url": f"http://127.0.0.1:{vendor.port}/v1", "private": True,
        "key": KEY,
    }  # fmt: skip
    path = "/api/v1/operator/vendors/shared"
    assert (await gatewayed.call("PUT", path, by=operator, json=body)).status == 200
    tested = await gatewayed.call("POST", f"{path}/test", by=operator)
    assert (tested.status, tested.json["ok"]) == (200, True), tested.content
    # An org tests its own only.
    admin = await people.member(await people.org(), "admin")
    assert (await gatewayed.call("POST", "/api/v1/vendors/shared/test", by=admin)).status == 404


async def test_a_gateway_that_is_not_there_is_told(
    server_settings: ServerSettings, people: People, owner: asyncpg.Connection
) -> None:
    await register_public_key(owner, PAIR.public)
    admin = await people.member(await people.org(), "admin")
    async with started(replace(server_settings, gateway_url="http://127.0.0.1:1")) as node:
        await node.call("PUT", "/api/v1/vendors/openai", by=admin, json={"key": KEY})
        tested = await node.call("POST", "/api/v1/vendors/openai/test", by=admin)
        assert (tested.status, tested.json["reason"]) == (200, "gateway_unreachable")
        azure = {"kind": "azure", "base_url": "https://acme.openai.azure.com", "key": KEY}
        allowed = replace(server_settings, org_vendor_origins=("https://*.openai.azure.com",))
        async with started(allowed) as other:
            made = await other.call("PUT", "/api/v1/vendors/azure", by=admin, json=azure)
            assert made.status == 200, made.content
        untestable = await node.call("POST", "/api/v1/vendors/azure/test", by=admin)
        assert (untestable.status, untestable.json["code"]) == (409, "no_test")
    assert await owner.fetchval("SELECT count(*) FROM tokens") == 0


async def test_the_token_of_a_test_is_nobodys_to_keep(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    await register_public_key(owner, PAIR.public)
    org = await people.org()
    admin = await people.member(org, "admin")
    body = {"key": KEY, "disabled": True}
    assert (await node.call("PUT", "/api/v1/vendors/openai", by=admin, json=body)).status == 200
    token_id = uuid.uuid4()
    async with owner.transaction():
        await owner.execute(
            "SELECT set_config('app.org_id', $1, true), set_config('app.account_id', $2, true)",
            str(org),
            str(admin.account_id),
        )
        begun = await owner.fetch(
            "SELECT * FROM begin_vendor_test($1, $2, '', 'openai')", token_id, bytes(32)
        )
        assert len(begun) == 1

    path = f"/api/v1/tokens/{token_id}"
    asked = [
        await node.call("GET", path, by=admin),
        await node.call("PATCH", path, by=admin, json={"expires": "10d"}),
        await node.call("POST", f"{path}/rotate", by=admin, json={"expires": "10d"}),
        await node.call("POST", f"{path}/children", by=admin, json={}),
        await node.call("POST", f"{path}/revoke", by=admin),
    ]

    assert [answer.status for answer in asked] == [404] * 5
    listed = await node.call("GET", "/api/v1/tokens", by=admin)
    assert listed.json["data"] == []
    await owner.execute("SELECT end_vendor_test($1)", token_id)
    assert await owner.fetchval("SELECT count(*) FROM tokens") == 0
