import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from gateway.log import Log
from gateway.proxy.route_loader import RouteLoader
from gateway.vendors.vault import Vault

ADD = (
    "INSERT INTO vendors (name, kind, base_url, is_private, is_simulator, sealed_key) "
    "VALUES ($1, $2, 'http://127.0.0.1:1/v1', true, $3, $4)"
)


class Rig:
    """A loader, what it logs, and a step each time it has a new table or gives up for a while."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.loaded: asyncio.Queue[None] = asyncio.Queue()
        self.failed: asyncio.Queue[None] = asyncio.Queue()
        self.lines: list[bytes] = []
        self.loader = RouteLoader(
            pool,
            Vault(),
            allowed_hosts=None,
            log=Log(self.write, now=lambda: 0.0),
            on_loaded=lambda: self.loaded.put_nowait(None),
            sleep=self.sleep,
        )

    def write(self, line: bytes) -> bool:
        self.lines.append(line)
        return True

    async def sleep(self, seconds: float) -> None:
        self.failed.put_nowait(None)
        await asyncio.sleep(seconds / 10)

    def names(self) -> list[str]:
        return [target.name for target in self.loader.table().targets]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.loader.run())
            yield
            task.cancel()


@pytest.fixture
def rig(gateway_pool: asyncpg.Pool) -> Rig:
    return Rig(gateway_pool)


async def test_vendors_and_aliases_are_loaded_at_the_start_and_when_told(
    rig: Rig, owner: asyncpg.Connection
) -> None:
    assert not rig.loader.loaded.is_set()
    assert rig.names() == []
    await owner.execute(ADD, "one", "openai", True, b"")
    await owner.execute("INSERT INTO aliases (name, vendor_name, model) VALUES ('a', 'one', 'm')")
    async with rig.running():
        await rig.loaded.get()
        assert rig.loader.loaded.is_set()
        assert rig.names() == ["one"]
        assert rig.loader.table().aliases == {"a": ("one", "m")}
        await owner.execute(ADD, "two", "anthropic", True, b"")
        rig.loader.reload()
        await rig.loaded.get()
        assert rig.names() == ["one", "two"]


async def test_a_table_that_can_t_be_loaded_leaves_the_one_before(
    rig: Rig, owner: asyncpg.Connection
) -> None:
    await owner.execute(ADD, "one", "openai", True, b"")
    async with rig.running():
        await rig.loaded.get()
        await owner.execute("REVOKE SELECT ON vendors FROM kaixu_gateway")
        rig.loader.reload()
        await rig.failed.get()
        assert rig.names() == ["one"]
        await owner.execute("GRANT SELECT ON vendors TO kaixu_gateway")
        await owner.execute(ADD, "two", "openai", True, b"")
        await rig.loaded.get()
        assert rig.names() == ["one", "two"]


async def test_a_vendor_that_can_t_be_called_is_there_with_its_problem_and_logged(
    rig: Rig, owner: asyncpg.Connection
) -> None:
    await owner.execute(ADD, "sealed", "openai", False, b"\x01 sealed to nobody")
    await owner.execute(ADD, "later", "kind-of-a-later-release", True, b"")
    await rig.loader.load()
    assert rig.names() == ["sealed"]
    assert rig.loader.table().targets[0].problem
    assert [b'"sealed"' in line or b'"later"' in line for line in rig.lines] == [True, True]
