"""What a vendor stores, through the whole product: found again by any worker, metered once."""

import json
from typing import Any

import pytest

from tests.journeys.client import Answer, fetch
from tests.journeys.product import Product

pytestmark = pytest.mark.journey


async def ask(
    product: Product, method: str, path: str, body: object = None, *, session_id: str
) -> Answer:
    headers = {"authorization": f"Bearer {product.token}", "x-session-id": session_id}
    if body is not None:
        headers["content-type"] = "application/json"
    raw = b"" if body is None else json.dumps(body).encode()
    return await fetch(product.url + path, method=method, headers=headers, body=raw)


def totals(rows: list[dict[str, Any]]) -> tuple[int, int]:
    inputs = sum(row["input_tokens"] or 0 for row in rows)
    return inputs, sum(row["output_tokens"] or 0 for row in rows)


async def test_a_background_response_is_found_by_every_worker_and_metered_once(
    product: Product,
) -> None:
    session_id = "stored-background"
    body = {"model": "gpt-5-mini", "input": "one two three", "background": True}
    begun = await ask(product, "POST", "/v1/responses", body, session_id=session_id)
    assert begun.status == 200
    path = f"/v1/responses/{begun.json()['id']}"
    for _ in range(6):  # on connections of their own: both workers
        again = await ask(product, "GET", path, session_id=session_id)
        assert (again.status, again.json()["status"]) == (200, "completed")
    rows = product.events_of(count=7, session_id=session_id)
    assert totals(rows) == (3, 20)
    first, *fetched = sorted(rows, key=lambda row: str(row["time"]))
    assert (first["usage_source"], first["flags"], first["counted"]) == ("none", ["deferred"], True)
    flags = [row["flags"] for row in fetched]
    assert sorted(flags) == [["deferred"], *[["metered_before"]] * 5]
    assert not any(row["counted"] for row in fetched)


async def test_a_response_that_was_metered_is_not_metered_again(product: Product) -> None:
    session_id = "stored-again"
    body = {"model": "gpt-5-mini", "input": "one two three"}
    made = await ask(product, "POST", "/v1/responses", body, session_id=session_id)
    await ask(product, "GET", f"/v1/responses/{made.json()['id']}", session_id=session_id)
    rows = product.events_of(count=2, session_id=session_id)
    assert totals(rows) == (3, 20)


async def test_owners_outlive_the_gateway(product: Product) -> None:
    session_id = "stored-kill"
    body = {"model": "gpt-5-mini", "input": "one two three"}
    made = await ask(product, "POST", "/v1/responses", body, session_id=session_id)
    assert made.status == 200
    path = f"/v1/responses/{made.json()['id']}"
    for _ in range(6):  # the other worker has it from the database
        assert (await ask(product, "GET", path, session_id=session_id)).status == 200
    product.kill_gateway()
    product.wait_until_ready()
    assert (await ask(product, "GET", path, session_id=session_id)).status == 200


async def test_an_upload_ends_with_the_token_that_began_it(product: Product) -> None:
    token, token_id = product.new_token("--name", "uploads")
    begin = {
        "x-goog-api-key": token,
        "x-goog-upload-protocol": "resumable",
        "x-goog-upload-command": "start",
    }
    path = "/upload/v1beta/files"
    begun = await fetch(product.url + path, method="POST", headers=begin, body=b"{}")
    address = begun.headers["x-goog-upload-url"]
    assert address.startswith(product.url + path)
    assert token not in address

    async def send(offset: int) -> Answer:  # as SDKs do that send no key to the address
        more = {"x-goog-upload-command": "upload", "x-goog-upload-offset": str(offset)}
        return await fetch(address, method="POST", headers=more, body=b"words")

    for number in range(4):  # whichever worker it comes to
        assert (await send(5 * number)).status == 200
    await product.kaixu_aside("token", "revoke", token_id)
    refused = await send(20)
    assert (refused.status, refused.reason) == (401, "token_revoked")
