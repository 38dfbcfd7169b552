import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from gateway.proxy.errand import Errand, News, as_a_task

DEADLINE_SECONDS = 5.0


class Owner:
    """Has errands run, and knows how they ended."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()
        self.error: Exception | None = None

    def run(self, coroutine: Coroutine[Any, None, None]) -> Errand:
        errand = Errand(coroutine, self)
        errand.run()
        return errand

    def on_ended(self, errand: Errand, error: Exception | None) -> None:
        assert not self.ended.is_set(), "an errand ends once"
        self.ended.set()
        self.error = error

    async def end(self) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.ended.wait()


async def test_what_waits_for_news_alone_is_run_by_who_tells_it() -> None:
    owner, news, heard = Owner(), News[int](), list[object]()

    async def waits() -> None:
        heard.append(asyncio.current_task() is me)
        heard.append(await news)

    me = asyncio.current_task()
    owner.run(waits())
    assert heard == [True]
    news.tell(7)
    assert heard == [True, 7]
    assert owner.ended.is_set()


async def test_news_that_was_told_before_is_not_waited_for() -> None:
    owner, news, heard = Owner(), News[int](), list[int]()
    news.tell(7)

    async def waits() -> None:
        heard.append(await news)

    owner.run(waits())
    assert heard == [7]


async def test_bad_news_is_raised_where_it_is_waited_for() -> None:
    owner, news = Owner(), News[int]()

    async def waits() -> None:
        await news

    owner.run(waits())
    news.fail(error := ValueError())
    assert owner.error is error


async def test_a_task_takes_over_what_waits_for_anything_else() -> None:
    owner, news, heard = Owner(), News[int](), list[object]()
    future: asyncio.Future[str] = owner.loop.create_future()

    async def waits() -> None:
        heard.append(await future)
        async with asyncio.timeout(DEADLINE_SECONDS):
            heard.append(await news)
        heard.append(asyncio.current_task() is not me)

    me = asyncio.current_task()
    owner.run(waits())
    future.set_result("of a future")
    while not heard:  # noqa: ASYNC110 - a list tells nobody
        await asyncio.sleep(0)
    news.tell(7)
    await owner.end()
    assert heard == ["of a future", 7, True]


async def test_a_deadline_may_stand_behind_as_a_task() -> None:
    owner = Owner()

    async def waits() -> None:
        await as_a_task()
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    owner.run(waits())
    await owner.end()
    assert isinstance(owner.error, TimeoutError)


@pytest.mark.parametrize(
    "moment", ["by news", "before the task", "in the task", "in task, by news"]
)
async def test_an_errand_is_cancelled_wherever_it_waits(moment: str) -> None:
    owner, heard = Owner(), list[str]()

    async def waits() -> None:
        try:
            if moment != "by news":
                await as_a_task()
            if moment == "in the task":
                heard.append("there")
                await asyncio.Event().wait()
            heard.append("there")
            await News[int]()
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    errand = owner.run(waits())
    if moment == "before the task":
        errand.cancel()
    else:
        while not heard:  # noqa: ASYNC110 - a list tells nobody
            await asyncio.sleep(0)
        errand.cancel()
    await owner.end()
    assert heard[-1] == "cancelled"
    assert owner.error is None


async def test_an_errand_that_is_cancelled_while_it_runs_hears_of_it_where_it_waits_next() -> None:
    owner, news, heard = Owner(), News[int](), list[str]()
    errands: list[Errand] = []

    async def waits() -> None:
        await news
        errands[0].cancel()
        heard.append("ran on")
        try:
            await News[int]()
        except asyncio.CancelledError:
            heard.append("cancelled")

    errands.append(owner.run(waits()))
    news.tell(1)
    assert heard == ["ran on", "cancelled"]
    assert owner.ended.is_set()


async def test_one_who_was_told_after_its_cancellation_is_not_run_on() -> None:
    owner, news = Owner(), News[int]()

    async def waits() -> None:
        await news

    errand = owner.run(waits())
    errand.cancel()
    news.tell(1)
    await owner.end()
