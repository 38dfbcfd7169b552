import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.gateway.proxy.rig import DEADLINE_SECONDS, Rig


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    async with running(made, made.vendor.serve):
        yield made


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def running(made: Rig, serve: Serve) -> AsyncIterator[None]:
    """Run a rig's gateway before a vendor that answers all three formats."""
    loop = asyncio.get_running_loop()
    vendor = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.vendor.port = vendor.sockets[0].getsockname()[1]
    server = await loop.create_server(made.lane.protocol, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    made.targets = [
        made.target("openai", path="/v1"),
        made.target("anthropic"),
        made.target("gemini"),
    ]
    try:
        yield
    finally:
        server.close()
        vendor.close()
        made.lane.abort_all()
        made.pool.close()
        await asyncio.gather(*made.lane.tasks, return_exceptions=True)
        await made.vendor.ended()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while made.lane.connections:  # noqa: ASYNC110 - the last ones say nothing
                await asyncio.sleep(0)
    assert made.defects == []
    assert made.metrics.open == 0
    assert made.live.count == 0
