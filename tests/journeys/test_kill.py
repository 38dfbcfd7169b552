"""kill -9 of all gateway processes under load: each call of the vendor's tally has its row."""

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.journeys.client import FORMATS, Answer, call, send
from tests.journeys.product import Product, Row

pytestmark = pytest.mark.journey

CALLERS: Final = 24
MODELS: Final = ("kill-plain", "sim-slow-8x10", "sim-slow-20x15")
SETTLE_SECONDS_MAX: Final = 60.0


@dataclass(kw_only=True)
class Load:
    """Callers that call one after the other until told to stop."""

    product: Product
    token: str
    stopped: bool = False
    answers: dict[str, Answer] = field(default_factory=dict)
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    made: int = 0

    async def caller(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.stopped:
            self.made += 1
            session_id = f"kill/{self.made}"
            began = time.time()
            request = call(
                chance.choice(FORMATS),
                token=self.token,
                model=chance.choice(MODELS),
                stream=chance.random() < 0.7,
                words=chance.randrange(2, 8),
                session_id=session_id,
            )
            answer = await send(self.product.url, request)
            self.answers[session_id] = answer
            self.spans[session_id] = (began, time.time())
            if not answer.status:
                await asyncio.sleep(0.02)  # nobody listens

    async def kill(self, chance: random.Random) -> tuple[float, float]:
        """Kill the gateway at a random moment; return from when to when that went on."""
        await asyncio.sleep(chance.uniform(0.2, 0.8))
        killed, began, ended = await asyncio.to_thread(self.product.kill_gateway)
        assert killed >= 3
        await asyncio.to_thread(self.product.wait_until_ready)
        return began, ended

    def open_during(self, began: float, ended: float) -> set[str]:
        """Return the calls that were open at some moment of a time."""
        spans = self.spans.items()
        return {session for session, (first, last) in spans if first <= ended and last >= began}


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
async def test_every_call_has_exactly_one_row(start: Callable[..., Product], kills: int) -> None:
    product = start()
    load = Load(product=product, token=product.token)
    chance = random.Random(kills)
    async with asyncio.TaskGroup() as group:
        for seed in range(CALLERS):
            group.create_task(load.caller(seed))
        moments = [await load.kill(chance) for _ in range(kills)]
        load.stopped = True
    rows = await settled(product, load)
    check(product, load, rows, [load.open_during(*moment) for moment in moments])


async def settled(product: Product, load: Load) -> dict[str, list[Row]]:
    """Return the calls' first rows by session, once the tally's calls have some and none come."""
    due = {line["session_id"] for line in product.tallied()}
    before: dict[str, list[Row]] = {}
    async with asyncio.timeout(SETTLE_SECONDS_MAX):
        while True:
            rows: defaultdict[str, list[Row]] = defaultdict(list)
            for row in await asyncio.to_thread(product.events):
                if row["session_id"] in load.answers and row["corrects"] is None:
                    rows[row["session_id"]].append(row)
            if due <= set(rows) and rows == before:
                return before
            before = dict(rows)
            await asyncio.sleep(1.0)


def check(
    product: Product, load: Load, rows: dict[str, list[Row]], open_at_kills: list[set[str]]
) -> None:
    tallied = Counter(line["session_id"] for line in product.tallied())
    whole = {session for session, answer in load.answers.items() if answer.is_whole}
    interrupted = {
        session
        for session, of_call in rows.items()
        if any(row["status"] == "interrupted" for row in of_call)
    }
    untallied = {session: of_call for session, of_call in rows.items() if session not in tallied}
    print(
        f"\n{len(open_at_kills)} kills: {load.made} calls, {len(whole)} whole, {len(tallied)} at "
        f"the vendor, {sum(map(len, rows.values()))} rows, {len(interrupted)} interrupted, "
        f"{len(untallied)} never at the vendor"
    )
    assert len(whole) > 20 * len(open_at_kills), "there was no load to speak of"

    for session, number in tallied.items():
        of_call = rows[session]
        unanswered = sum(is_unanswered(row) for row in of_call)
        assert number <= len(of_call) <= number + unanswered, (session, number, of_call)

    for session, of_call in untallied.items():
        for row in of_call:
            if row["status"] != "interrupted":
                assert is_unanswered(row), (session, row)
    for row in (row for of_call in rows.values() for row in of_call):
        if row["status"] == "interrupted":
            assert row["token_id"]
            assert row["endpoint"]
            assert row["model_requested"]
            assert row["usage_source"] in {"none", "partial"}
    assert interrupted <= set().union(*open_at_kills), "interrupted, but open at no kill"
    assert not interrupted & whole, "a client got the whole answer of an interrupted call"
    for session in whole:
        assert [row["status"] for row in rows[session] if not is_unanswered(row)] == ["complete"]


def is_unanswered(row: Row) -> bool:
    """Whether it is an attempt whose connection died before any answer."""
    return row["status"] in {"vendor_error", "vendor_broke"} and row["reason"] == "no_answer"
