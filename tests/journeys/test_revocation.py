"""A revoked token's streams end at once, and the receipt proves it."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import pytest

from tests.journeys.client import (
    FORMATS,
    Answer,
    call,
    check_refusal,
    check_stream_error,
    last_event,
    send,
)
from tests.journeys.product import Product

pytestmark = pytest.mark.journey

LAST_BYTE_SECONDS_MAX: Final = 0.25
RECEIPT_MILLISECONDS_MAX: Final = 500
MODEL: Final = "sim-slow-100000x20"  # far longer than the test
SECONDS_MAX: Final = 600.0


@dataclass(kw_only=True)
class Stream:
    """A token of its own and the stream that it holds open."""

    format: str
    token: str
    token_id: str
    begun: asyncio.Event
    answer: "asyncio.Task[Answer]"


def percentile(values: list[float], part: float) -> float:
    """Return the value that `part` of all values don't exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


@pytest.mark.parametrize("number", [20, pytest.param(200, marks=pytest.mark.slow)])
async def test_a_revocation_ends_streams_at_once_and_says_so(product: Product, number: int) -> None:
    made = [await asyncio.to_thread(product.new_token, "--name", "cut") for _ in range(number)]
    workers = {worker["id"] for worker in product.wait_until_ready()["workers"]}
    assert len(workers) == 2

    delays: list[float] = []
    took: list[float] = []
    async with asyncio.TaskGroup() as group:
        streams = []
        for at, (token, token_id) in enumerate(made):
            wire = FORMATS[at % len(FORMATS)]
            begun = asyncio.Event()
            request = call(wire, token=token, model=MODEL, stream=True)
            sending = send(product.url, request, begun=begun, seconds=SECONDS_MAX)
            streams.append(
                Stream(
                    format=wire,
                    token=token,
                    token_id=token_id,
                    begun=begun,
                    answer=group.create_task(sending),
                )
            )
        async with asyncio.timeout(60):
            await asyncio.gather(*(stream.begun.wait() for stream in streams))
        for stream in streams:
            receipt = await product.kaixu_aside("token", "revoke", stream.token_id)
            async with asyncio.timeout(5):
                answer = await asyncio.shield(stream.answer)
            check_receipt(receipt, stream.token_id, workers)
            check_stream_error(stream.format, answer)
            if stream.format == "openai":
                assert last_event(answer.body)[1]["error"]["code"] == "token_revoked"
            committed_at = datetime.fromisoformat(receipt["committed_at"]).timestamp()
            delays.append(answer.last_byte_at - committed_at)
            took.append(receipt["took_ms"])
            refused = await send(
                product.url, call(stream.format, token=stream.token, model="m", stream=True)
            )
            check_refusal(stream.format, refused, status=401, reason="token_revoked")

    p99, receipt_p99 = percentile(delays, 0.99), percentile(took, 0.99)
    print(
        f"\n{number} revocations: last byte after the commit p50 "
        f"{percentile(delays, 0.5) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, max "
        f"{max(delays) * 1000:.0f} ms; receipt p99 {receipt_p99:.0f} ms"
    )
    assert p99 < LAST_BYTE_SECONDS_MAX
    assert receipt_p99 < RECEIPT_MILLISECONDS_MAX
    for stream in streams:
        row = product.event_of(token_id=stream.token_id)
        assert row["status"] == "revoked"
        assert row["usage_source"] in {"partial", "none"}


def check_receipt(receipt: dict[str, Any], token_id: str, workers: set[str]) -> None:
    assert receipt["token_id"] == token_id
    assert receipt["complete"] is True, receipt
    assert receipt["streams_cut"] == 1
    assert {worker["worker_id"] for worker in receipt["workers"]} == workers
    assert all(worker["state"] == "confirmed" for worker in receipt["workers"])
    assert sum(worker["streams_cut"] for worker in receipt["workers"]) == 1


async def test_revoking_again_cuts_nothing(product: Product) -> None:
    _, token_id = product.new_token()
    assert (await product.kaixu_aside("token", "revoke", token_id))["streams_cut"] == 0
    again = await product.kaixu_aside("token", "revoke", token_id)
    assert (again["streams_cut"], again["token_id"]) == (0, token_id)
