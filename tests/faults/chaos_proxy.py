"""A TCP proxy that misbehaves on demand: it stands between one machine and its database."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from enum import Enum, auto
from typing import Final

from tests.faults.tcp import READ_BYTES, Ended, serving

CONNECT_SECONDS_MAX: Final = 5.0


class Mode(Enum):
    """What becomes of bytes, and of new connections."""

    PASS = auto()
    SLOW = auto()  # each piece waits
    STALL = auto()  # nothing moves until it passes again; nothing is lost
    CUT = auto()  # all connections are reset, new ones too
    HALF_DEAD = auto()  # new connections are taken and never answered, old ones fall silent


class _Pair:
    """One connection through the proxy.

    `dead`: whatever comes is swallowed, for ever, and the end of one side not told to the other
    before the way is `open_again`.
    """

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.dead = False
        self.open_again = asyncio.Event()

    def reset(self) -> None:
        for writer in (self.client, self.server):
            if writer is not None:
                writer.transport.abort()


class ChaosProxy:
    """Listens on a port of its own and passes on to `target`, as its mode allows."""

    def __init__(self, target: Callable[[], tuple[str, int]], *, chance: random.Random) -> None:
        """`target` gives host and port for each new connection; `chance` picks what stalls."""
        self._target = target
        self._chance = chance
        self._mode = Mode.PASS
        self._moving = asyncio.Event()
        self._moving.set()
        self._delay_seconds = 0.0
        self._stall_share = 0.0
        self._stall_seconds = 0.0
        self._pairs: set[_Pair] = set()
        self.port = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["ChaosProxy"]:
        """Listen for as long as the context lasts."""
        async with serving(self._serve) as self.port:
            yield self

    # what it can be told to do

    def heal(self) -> None:
        """Pass everything on, as if nothing had been; what fell silent stays silent to its end."""
        self._mode = Mode.PASS
        self._moving.set()
        for pair in self._pairs:
            pair.open_again.set()

    def slow(self, *, delay_seconds: float, stall_share: float, stall_seconds: float) -> None:
        """Delay each piece; of so many of them longer."""
        self._mode = Mode.SLOW
        self._delay_seconds = delay_seconds
        self._stall_share = stall_share
        self._stall_seconds = stall_seconds

    def stall(self) -> None:
        """Hold all bytes back until it heals."""
        self._mode = Mode.STALL
        self._moving.clear()

    def cut(self) -> None:
        """Reset every connection, and every new one until it heals."""
        self._mode = Mode.CUT
        self._moving.set()
        for pair in list(self._pairs):
            pair.reset()

    def silence(self) -> None:
        """Let the connections that are open fall silent for ever; new ones pass."""
        for pair in self._pairs:
            pair.dead = True

    def die_half(self) -> None:
        """Take new connections and never answer; those that are open fall silent for ever."""
        self._mode = Mode.HALF_DEAD
        self.silence()

    # how

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        pair = _Pair(client)
        self._pairs.add(pair)
        try:
            if self._mode is Mode.CUT:
                return
            pair.dead = self._mode is Mode.HALF_DEAD
            host, port = self._target()
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                server_reader, pair.server = await asyncio.open_connection(host, port)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(pair, reader, pair.server))
                tasks.create_task(self._pump(pair, server_reader, client))
        except* (OSError, TimeoutError, Ended):
            pass  # one side is gone: so is the other
        finally:
            self._pairs.discard(pair)
            pair.reset()

    async def _pump(
        self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while piece := await reader.read(READ_BYTES):
            if self._mode is Mode.SLOW:
                stalls = self._chance.random() < self._stall_share
                await asyncio.sleep(self._stall_seconds if stalls else self._delay_seconds)
            await self._moving.wait()
            if not pair.dead:
                writer.write(piece)
                await writer.drain()
        if pair.dead:
            await pair.open_again.wait()  # until then not even an end is told
        raise Ended
