"""Receipts for all that makes a token worthless: who holds it, how many streams were cut."""

import asyncio
import time
from typing import Any, Final

import asyncpg
import pytest

from control_plane.tenancy.receipts import change_of, wait_for_receipt
from tests.journeys.client import Answer, call, check_refusal, check_stream_error, send
from tests.journeys.product import Product, Simulator

pytestmark = pytest.mark.journey

STREAMS: Final = 4
# By the tables: what the statement is about, which of them a token has, and what undoes it.
ENDINGS: Final = {
    "user disabled": ("users", "user_id", "disabled_at"),
    "workspace archived": ("workspaces", "workspace_id", "archived_at"),
    "org suspended": ("orgs", "org_id", "suspended_at"),
}


async def ended(connection: asyncpg.Connection, ending: str, token_id: str) -> dict[str, Any]:
    """Do it to what a token has, and return its receipt."""
    began = time.monotonic()
    table, reference, column = ENDINGS[ending]
    xact = await connection.fetchval(
        f"UPDATE {table} SET {column} = clock_timestamp() "  # noqa: S608 - of ENDINGS
        f"WHERE id = (SELECT {reference} FROM tokens WHERE id = $1) "
        "RETURNING pg_current_xact_id()::text",
        token_id,
    )
    change = await change_of(connection, xact)
    return await wait_for_receipt(connection, change, is_embedded=True, began=began)


async def streams(product: Product, token: str) -> list["asyncio.Task[Answer]"]:
    """Open streams that never end by themselves; return once each has begun."""
    tasks, begun = [], []
    for number in range(STREAMS):
        event = asyncio.Event()
        format_name = ("openai", "anthropic")[number % 2]
        request = call(format_name, token=token, model="sim-slow-2000-50", stream=True)
        tasks.append(asyncio.ensure_future(send(product.url, request, begun=event)))
        begun.append(event.wait())
    async with asyncio.timeout(30):
        await asyncio.gather(*begun)
    return tasks


@pytest.mark.parametrize("ending", ENDINGS)
async def test_whoever_a_token_depends_on_ends_it_with_a_receipt(
    product: Product, ending: str
) -> None:
    token, token_id = product.new_token()
    table, _, column = ENDINGS[ending]
    connection = await asyncpg.connect(product.facts["database_url"])
    try:
        open_streams = await streams(product, token)
        receipt = await ended(connection, ending, token_id)
        assert receipt["complete"] is True
        assert receipt["streams_cut"] == STREAMS
        assert {worker["state"] for worker in receipt["workers"]} == {"confirmed"}
        assert len(receipt["workers"]) == len(product.worker_pids())
        for number, answer in enumerate(await asyncio.gather(*open_streams)):
            check_stream_error(("openai", "anthropic")[number % 2], answer)
        request = call("openai", token=token, model="m", stream=False)
        refusal = await send(product.url, request)
        check_refusal("openai", refusal, status=401, reason="token_revoked")
    finally:
        await connection.execute(f"UPDATE {table} SET {column} = NULL")  # noqa: S608 - of ENDINGS
        await connection.close()
    async with asyncio.timeout(10):
        while True:
            if (await send(product.url, request)).status == 200:
                return
            await asyncio.sleep(0.02)


async def test_a_lowered_limit_holds_in_every_worker_by_its_receipt(product: Product) -> None:
    token, token_id = product.new_token("--limit", "100")
    request = call("openai", token=token, model="m", stream=False, words=1)
    assert (await send(product.url, request)).status == 200
    told = await product.kaixu_aside("limit", "set", f"token:{token_id}", "--limit", "1")
    assert told["limit"] == 1
    assert told["receipt"]["complete"] is True
    answers = await asyncio.gather(*(send(product.url, request) for _ in range(8)))
    for answer in answers:
        check_refusal("openai", answer, status=429, reason="monthly_limit")


async def test_a_removed_vendor_gets_no_call_after_its_receipt(
    product: Product, simulator: Simulator
) -> None:
    product.add_vendor("leaving", kind="openai", base_url=f"{simulator.url}/v1", key="a-key-of-it")
    request = call(
        "openai", token=product.token, model="m", stream=False, words=1, prefix="/leaving"
    )
    assert (await send(product.url, request)).status == 200
    told = await product.kaixu_aside("vendor", "remove", "leaving")
    assert told["receipt"]["complete"] is True
    assert {worker["state"] for worker in told["receipt"]["workers"]} == {"confirmed"}
    answers = await asyncio.gather(*(send(product.url, request) for _ in range(16)))
    assert {(answer.status, answer.reason) for answer in answers} == {(404, "no_route")}
