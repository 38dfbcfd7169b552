"""A large answer through a client that reads slowly: memory stays bounded, usage is right."""

import asyncio
import json
import socket
import time
from typing import Final

import psutil
import pytest

from tests.journeys.client import Answer, call, taken_apart
from tests.journeys.product import Product

pytestmark = pytest.mark.journey

MEGABYTE: Final = 1_000_000
READ_BYTES: Final = 64 * 1024
BYTES_PER_SECOND: Final = 8 * MEGABYTE
GROWTH_BYTES_MAX: Final = 24 * MEGABYTE  # of all workers together


async def read_slowly(product: Product, request_bytes: bytes) -> bytes:
    """Send a request and read its answer no faster than BYTES_PER_SECOND."""
    plug = socket.socket()
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_BYTES)
    plug.setblocking(False)
    host, port = product.url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    await loop.sock_connect(plug, (host, int(port)))
    raw = bytearray()
    began = time.monotonic()
    try:
        await loop.sock_sendall(plug, request_bytes)
        while piece := await loop.sock_recv(plug, READ_BYTES):
            raw += piece
            ahead = len(raw) / BYTES_PER_SECOND - (time.monotonic() - began)
            if ahead > 0:
                await asyncio.sleep(ahead)
    finally:
        plug.close()
    return bytes(raw)


def resident_bytes(product: Product) -> int:
    """Return the memory of all workers."""
    return sum(psutil.Process(pid).memory_info().rss for pid in product.worker_pids())


@pytest.mark.parametrize("megabytes", [20, pytest.param(100, marks=pytest.mark.slow)])
async def test_a_big_stream_does_not_fill_memory(product: Product, megabytes: int) -> None:
    model = f"sim-big-{megabytes}"
    request = call("openai", token=product.token, model=model, stream=True, session_id=model)
    body = json.dumps(request.body).encode()
    lines = {
        "host": "gateway",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **request.headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    before = resident_bytes(product)
    peak = before
    reading = read_slowly(product, f"POST {request.path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    async with asyncio.timeout(megabytes + 60), asyncio.TaskGroup() as group:
        task = group.create_task(reading)
        while not task.done():
            peak = max(peak, await asyncio.to_thread(resident_bytes, product))
            await asyncio.wait([task], timeout=0.1)
    answer: Answer = taken_apart(task.result())
    assert answer.is_whole, answer.broke
    assert len(answer.body) > megabytes * MEGABYTE
    print(
        f"\n{len(answer.body) / MEGABYTE:.0f} MB through a slow client: workers' memory grew by "
        f"{(peak - before) / MEGABYTE:.1f} MB from {before / MEGABYTE:.0f} MB"
    )
    assert peak - before < GROWTH_BYTES_MAX

    row = product.event_of(session_id=model, call_id=answer.headers["x-kaixu-call-id"])
    ids = {line["id"]: line for line in product.tally() if line.get("done")}
    usage = ids[row["vendor_request_id"]]["usage"]
    assert row["usage_source"] == "vendor"
    assert (row["input_tokens"], row["output_tokens"]) == (
        (usage["input_tokens"], usage["output_tokens"])
    )
    assert row["bytes_down"] == len(answer.body)
