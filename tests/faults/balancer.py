"""A TCP balancer that follows /readyz, as machines have one in front of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final
from urllib.parse import urlsplit

from tests.faults.machine import Machine
from tests.faults.tcp import READ_BYTES, Ended, serving

LOOK_SECONDS: Final = 0.1
CONNECT_TRIES_MAX: Final = 40
CONNECT_PAUSE_SECONDS: Final = 0.05


class Balancer:
    """Gives each connection to the ready machine with the fewest; who refuses it is passed over."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._machines = machines
        self._ready: dict[str, bool] = {}
        self._open: dict[str, int] = dict.fromkeys((machine.name for machine in machines), 0)
        self.url = ""

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["Balancer"]:
        """Listen for as long as the context lasts."""
        await self._look()
        async with serving(self._serve) as port, asyncio.TaskGroup() as tasks:
            self.url = f"http://127.0.0.1:{port}"
            looking = tasks.create_task(self._follow())
            try:
                yield self
            finally:
                looking.cancel()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._look()

    async def _look(self) -> None:
        for machine in self._machines:
            self._ready[machine.name] = await machine.is_ready()

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            name, server_reader, server = await self._connect()
        except ConnectionError:
            client.transport.abort()
            return
        self._open[name] += 1
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pump(reader, server))
                tasks.create_task(_pump(server_reader, client))
        except* (ConnectionError, Ended):
            pass
        finally:
            self._open[name] -= 1
            for writer in (client, server):
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                writer.close()

    async def _connect(self) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in range(CONNECT_TRIES_MAX):
            ready = [machine for machine in self._machines if self._ready.get(machine.name)]
            for machine in sorted(ready, key=lambda machine: self._open[machine.name]):
                url = urlsplit(machine.url)
                try:
                    opened = await asyncio.open_connection(url.hostname, url.port)
                except OSError:
                    self._ready[machine.name] = False
                    continue
                return machine.name, *opened
            await asyncio.sleep(CONNECT_PAUSE_SECONDS)
        raise ConnectionError("no machine is ready")


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(READ_BYTES):
        writer.write(piece)
        await writer.drain()
    raise Ended
