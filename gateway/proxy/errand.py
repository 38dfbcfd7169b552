"""Runs the coroutine that answers a request: by plain calls, without a task, while it can.

A call waits for the rest of its body and for its answer. Both come on connections of this loop, and
whoever brings them tells the `News`: the coroutine runs on then and there. No task is made for it,
no future, and nothing is put on the loop's list, which together cost as much as all that a small
call does besides.

Where a coroutine waits for anything else, an asyncio task takes it over, to its end. Before that
there is no current task, which `asyncio.timeout` asks for: it has to stand behind `as_a_task()`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, Protocol, TypeVar

Told = TypeVar("Told")


class News(Generic[Told]):
    """Something that one coroutine waits for, told once by a plain call."""

    __slots__ = ("_error", "_told", "is_told", "on_told")

    def __init__(self) -> None:
        self.is_told = False
        self._told: Told | None = None
        self._error: BaseException | None = None
        self.on_told: Callable[[], None] | None = None  # runs on who waits, if anyone does

    def tell(self, what: Told) -> None:
        """Tell it, and run who waits for it."""
        self.is_told = True
        self._told = what
        on_told, self.on_told = self.on_told, None
        if on_told is not None:
            on_told()

    def fail(self, error: BaseException) -> None:
        """Have it raise this for who waits for it."""
        self.is_told = True
        self._error = error
        on_told, self.on_told = self.on_told, None
        if on_told is not None:
            on_told()

    def __await__(self) -> Generator[Any, None, Told]:
        if not self.is_told:
            yield self
        if self._error is not None:
            raise self._error
        return self._told  # type: ignore[return-value]


def as_a_task() -> Awaitable[None]:
    """Return what a coroutine awaits to be run by an asyncio task from there on."""
    return asyncio.sleep(0)


class Owner(Protocol):
    """Who has an errand run."""

    loop: asyncio.AbstractEventLoop

    def on_ended(self, errand: "Errand", error: Exception | None) -> None:
        """It is over; `error` is what it raised."""


class Errand:
    """One coroutine under way."""

    __slots__ = ("_is_taken_over", "_news", "_owner", "_task", "coroutine", "is_cancelled")

    def __init__(self, coroutine: Coroutine[Any, None, None], owner: Owner) -> None:
        """`owner` hears of the end."""
        self.coroutine = coroutine
        self._owner = owner
        self._news: News[Any] | None = None  # that it waits for
        self._task: asyncio.Task[None] | None = None  # that has taken it over
        self._is_taken_over = False
        self.is_cancelled = False  # it is told so where it waits next

    def run(self, error: BaseException | None = None) -> None:
        """Run to where it waits; what it waits for runs it on."""
        self._news = None
        try:
            awaited = self.coroutine.send(None) if error is None else self.coroutine.throw(error)
        except (StopIteration, asyncio.CancelledError):
            self._owner.on_ended(self, None)
            return
        except Exception as raised:  # noqa: BLE001 - the owner tells it
            self._owner.on_ended(self, raised)
            return
        if type(awaited) is News:
            self._news = awaited
            awaited.on_told = self.run
        else:
            self._task = self._owner.loop.create_task(self._taken_over(awaited))
            return
        if self.is_cancelled:
            self.is_cancelled = False
            self.cancel()

    def cancel(self) -> None:
        """Raise CancelledError where it waits."""
        if self._task is not None and self._is_taken_over:
            self._task.cancel()
        elif self._news is not None:
            self._news.on_told = None
            self.run(asyncio.CancelledError())
        else:
            self.is_cancelled = True

    async def _taken_over(self, awaited: object) -> None:
        """Run on as a task, from where it waits for `awaited`."""
        error: Exception | None = None
        self._is_taken_over = True  # a task that is cancelled before it begins never does
        try:
            await _Rest(self, awaited)
        except asyncio.CancelledError:
            pass
        except Exception as raised:  # noqa: BLE001 - the owner tells it
            error = raised
        self._owner.on_ended(self, error)


class _Rest:
    """What is left of a coroutine that was begun elsewhere, for a task to await."""

    def __init__(self, errand: Errand, awaited: object) -> None:
        self._errand = errand
        self._awaited = awaited

    def __await__(self) -> Generator[Any, None, None]:
        coroutine, awaited = self._errand.coroutine, self._awaited
        raised: BaseException | None = None
        while True:
            try:
                if self._errand.is_cancelled:
                    self._errand.is_cancelled = False
                    raise asyncio.CancelledError  # noqa: TRY301 - as if it had been cancelled there
                if isinstance(awaited, News):
                    yield from self._told(awaited)
                else:
                    yield awaited
            except BaseException as error:  # noqa: BLE001 - it is the coroutine's
                raised = error
            try:
                awaited = coroutine.send(None) if raised is None else coroutine.throw(raised)
            except StopIteration:
                return
            raised = None

    def _told(self, news: News[Any]) -> Generator[Any, None, None]:
        """Wait as tasks do."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_told() -> None:
            if not future.done():
                future.set_result(None)

        news.on_told = on_told
        yield from future
