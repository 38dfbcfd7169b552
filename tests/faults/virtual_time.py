"""An event loop whose time passes only when nothing is left to do, so that hours take a moment."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Inline(ThreadPoolExecutor):
    """Runs what belongs in a thread at once: a seeded run has one order of things."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - it is the future's to raise
            future.set_exception(error)
        return future


class VirtualLoop(asyncio.SelectorEventLoop):
    """Seconds since it was made; a sleep takes none of ours."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual = 0.0
        self.set_default_executor(Inline(max_workers=1))

    def time(self) -> float:
        return self._virtual

    def _run_once(self) -> None:
        if not self._ready:  # type: ignore[attr-defined]
            scheduled = self._scheduled  # type: ignore[attr-defined]
            assert scheduled or self._stopping, "nothing will ever happen"  # type: ignore[attr-defined]
            if scheduled:
                self._virtual = max(self._virtual, scheduled[0].when())
        super()._run_once()  # type: ignore[misc]
