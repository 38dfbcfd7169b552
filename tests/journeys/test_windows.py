"""Sliding windows over two machines on one database."""

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest

from tests.journeys.client import Answer, call, check_refusal, send
from tests.journeys.product import Product

pytestmark = pytest.mark.journey

CALLS: Final = 60
WINDOW_SECONDS: Final = 5
OFFERED: Final = 10  # times the limit
OVER_MAX: Final = 0.02
MODEL: Final = "windows"


@pytest.fixture
def machines(start: Callable[..., Product], folder: Path) -> Iterator[tuple[Product, Product]]:
    """Two machines, the second on the first one's database."""
    first = start()
    second = Product.start(
        folder / "second" / "data",
        environment={
            "KAIXU_DATABASE_URL": first.facts["database_url"],
            "KAIXU_VAULT_KEY_FILE": str(first.data_dir / "vault.key"),
            "KAIXU_MACHINE": "second",
        },
    )
    yield first, second
    second.destroy()


def most_in_a_window(times: list[float], window_seconds: float) -> int:
    """Return how many of these lie in the fullest window."""
    most = start = 0
    for end, at in enumerate(times):
        while times[start] <= at - window_seconds:
            start += 1
        most = max(most, end - start + 1)
    return most


async def test_ten_times_the_limit_on_two_machines_puts_no_call_too_many_into_a_window(
    machines: tuple[Product, Product],
) -> None:
    first, _ = machines
    token, _ = first.new_token("--rate", f"{CALLS}/{WINDOW_SECONDS}s")
    answers: list[tuple[float, Answer]] = []
    until = time.monotonic() + 2 * WINDOW_SECONDS
    pause = 40 / (OFFERED * CALLS / WINDOW_SECONDS)

    async def client(product: Product) -> None:
        while time.monotonic() < until:
            request = call("openai", token=token, model=MODEL, stream=False, words=1)
            answers.append((time.monotonic(), await send(product.url, request)))
            await asyncio.sleep(pause)

    async with asyncio.TaskGroup() as group:
        for number in range(40):
            group.create_task(client(machines[number % 2]))
    refused = [answer for _, answer in answers if answer.status != 200]
    assert len(answers) > 3 * 2 * CALLS, "much more was offered than may pass"
    for answer in refused[:: max(1, len(refused) // 50)]:
        check_refusal("openai", answer, status=429, reason="rate_window")
        assert answer.headers["x-kaixu-limit"] == str(CALLS)
        assert 1 <= int(answer.headers["retry-after"]) <= WINDOW_SECONDS + 1
    rows = [row for row in await asyncio.to_thread(first.events) if row["model_requested"] == MODEL]
    admitted = len(answers) - len(refused)
    assert len(rows) == admitted
    times = sorted(datetime.fromisoformat(row["time"]).timestamp() for row in rows)
    most = most_in_a_window(times, WINDOW_SECONDS)
    print(f"{len(answers)} offered, {admitted} admitted, {most} of {CALLS} in a window")
    assert most <= CALLS * (1 + OVER_MAX)
    assert admitted >= 1.5 * CALLS, "most of both windows can be used"
