"""A monthly limit is never exceeded, and is used to its last unit."""

import asyncio
import json
import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import aiohttp
import asyncpg
import pytest

from tests.journeys.client import FORMATS, Answer, call, check_refusal, send
from tests.journeys.product import Product, Row

pytestmark = pytest.mark.journey

LIMIT: Final = 500
CALLS: Final = 2_000
EACH_WORKER_MIN: Final = 50
WIDE_WORKERS: Final = 16
SECONDS_MAX: Final = 120.0


async def race(product: Product, token: str, *, model: str, calls: int) -> list[Answer]:
    """Make calls in all formats at once, each with a session of its own."""

    async def one(number: int) -> Answer:
        request = call(
            FORMATS[number % len(FORMATS)],
            token=token,
            model=model,
            stream=number % 2 == 0,
            words=3,
            session_id=f"{model}/{number}",
        )
        return await send(product.url, request, seconds=SECONDS_MAX)

    return list(await asyncio.gather(*map(one, range(calls))))


def check_limit_refusal(format_name: str, answer: Answer) -> None:
    check_refusal(format_name, answer, status=429, reason="monthly_limit")
    assert answer.headers["x-kaixu-limit"] == str(LIMIT)
    assert answer.headers["x-kaixu-remaining"] == "0"
    assert answer.headers["x-should-retry"] == "false"
    reset = datetime.fromisoformat(answer.headers["x-kaixu-reset"])
    assert reset > datetime.now(UTC)
    assert (reset.day, reset.hour, reset.minute) == (1, 0, 0)
    assert int(answer.headers["retry-after"]) > 0


def reached(product: Product, model: str) -> int:
    """Return how many calls of a model the vendor has seen."""
    return sum(line["model"] == model for line in product.tallied())


async def units_by_worker(product: Product, token_id: str) -> dict[str, int]:
    """Return how many units each worker used, once all blocks are settled."""
    connection = await asyncpg.connect(product.facts["database_url"])
    try:
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                rows = await connection.fetch(
                    "SELECT worker_id, sum(used) AS used, bool_and(settled_at IS NOT NULL) AS done"
                    " FROM blocks WHERE subject_id = $1 GROUP BY worker_id",
                    token_id,
                )
                if rows and all(row["done"] for row in rows):
                    return {str(row["worker_id"]): int(row["used"]) for row in rows}
                await asyncio.sleep(0.2)
    finally:
        await connection.close()


async def test_two_workers_admit_exactly_the_limit(product: Product) -> None:
    token, token_id = product.new_token("--limit", str(LIMIT), "--name", "race")
    model = "limit-race"
    answers = await race(product, token, model=model, calls=CALLS)

    statuses = Counter(answer.status for answer in answers)
    assert statuses == {200: LIMIT, 429: CALLS - LIMIT}, statuses
    for number, answer in enumerate(answers):
        if answer.status == 429:
            check_limit_refusal(FORMATS[number % len(FORMATS)], answer)
        else:
            assert answer.is_whole
    assert reached(product, model) == LIMIT
    rows = await asyncio.to_thread(product.events_of, count=LIMIT, token_id=token_id)
    assert all(row["counted"] and row["status"] == "complete" for row in rows)
    assert len({row["call_id"] for row in rows}) == LIMIT

    used = await units_by_worker(product, token_id)
    print(f"\nunits by worker: {sorted(used.values())}")
    assert len(used) == 2
    assert min(used.values()) >= EACH_WORKER_MIN
    assert sum(used.values()) == LIMIT

    usage = await product.kaixu_aside("usage", "--by", "token")
    (row,) = [row for row in usage["rows"] if row["token_id"] == token_id]
    assert (row["calls"], row["counted"]) == (LIMIT, LIMIT)


async def test_a_killed_worker_never_adds_a_unit_and_loses_only_its_open_calls(
    start: Callable[..., Product],
) -> None:
    product = start()
    token, token_id = product.new_token("--limit", str(LIMIT))
    model = "sim-slow-3x100"
    chance = random.Random(4)
    victim = chance.choice(product.worker_pids())

    async def kill_midway() -> None:
        async with asyncio.timeout(SECONDS_MAX):
            while reached(product, model) < LIMIT // 4:  # noqa: ASYNC110 - another process tells it
                await asyncio.sleep(0.01)
        os.kill(victim, signal.SIGKILL)

    _, answers = await asyncio.gather(kill_midway(), race(product, token, model=model, calls=CALLS))
    assert reached(product, model) <= LIMIT
    assert {answer.status for answer in answers} <= {0, 200, 429, 503}
    assert any(answer.broke for answer in answers)
    await asyncio.to_thread(product.wait_until_ready)

    # What the dead worker held comes back with its journal; then all of it can be used.
    async with asyncio.timeout(SECONDS_MAX):
        refused_in_turn = 0
        while refused_in_turn < 3:
            after = "limit-after-kill"
            request = call("openai", token=token, model=after, stream=False, words=1)
            answer = await send(product.url, request)
            assert answer.status in {200, 429}
            if answer.status == 429:
                refused_in_turn += 1
                await asyncio.sleep(1.5)  # "exhausted" is remembered for 1 s
            else:
                refused_in_turn = 0
    rows = await asyncio.to_thread(settled_rows, product, token_id)
    tallied = reached(product, model) + reached(product, "limit-after-kill")
    interrupted = [row for row in rows if row["status"] == "interrupted"]
    print(f"\n{len(rows)} rows, {tallied} calls at the vendor, {len(interrupted)} interrupted")
    assert tallied <= LIMIT
    assert len(rows) == LIMIT, "every unit is a row: of a call, or of one open at the kill"
    assert tallied >= LIMIT - len(interrupted)
    assert len(interrupted) <= sum(1 for answer in answers if answer.broke)


def settled_rows(product: Product, token_id: str) -> list[Row]:
    """Return the first rows of a token's calls: corrections are about a call that has one."""
    rows = [row for row in product.events() if row["token_id"] == token_id]
    return [row for row in rows if row["corrects"] is None]


@pytest.fixture(scope="module")
def wide() -> Iterator[Product]:
    """A machine with many workers, each of which holds units that another one may need."""
    folder = Path(tempfile.mkdtemp(prefix="kaixu-journey-"))
    started = Product.start(folder / "data", workers=WIDE_WORKERS)
    yield started
    started.destroy()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("limit", [1, 7, 100, 500])
async def test_one_client_may_use_what_many_workers_hold_to_the_last_unit(
    wide: Product, limit: int
) -> None:
    token, _ = wide.new_token("--limit", str(limit))
    request = call("openai", token=token, model=f"wide-{limit}", stream=False, words=1)
    warm = min(2 * WIDE_WORKERS, limit // 2)  # connections of their own spread over the workers
    answers = await asyncio.gather(*(send(wide.url, request) for _ in range(warm)))
    assert {answer.status for answer in answers} <= {200}
    body = json.dumps(request.body)
    headers = {"content-type": "application/json", **request.headers}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as client:
        for number in range(warm, limit + 1):
            async with client.post(wide.url + request.path, data=body, headers=headers) as answer:
                assert answer.status == (200 if number < limit else 429), f"call {number + 1}"
                await answer.read()
