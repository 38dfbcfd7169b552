import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.auth.caller import Caller
from gateway.connect_guard import check_base_url
from gateway.log import Log
from gateway.proxy.route_loader import RouteLoader
from gateway.vendors.seal import KeyPair, info, keygen, seal
from gateway.vendors.vault import OpenedVendor, Vault, load_vendors
from gateway.vendors.vault_keys import VaultKeySource

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


async def test_a_load_holds_what_was_asked_for_before_it_began_and_no_more(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def read_slowly(*args: Any, **settings: Any) -> list[OpenedVendor]:
        vendors = await load_vendors(*args, **settings)
        reading.set()
        await go_on.wait()
        return vendors

    monkeypatch.setattr("gateway.proxy.route_loader.load_vendors", read_slowly)
    first = rig.loader.reload()
    async with rig.running():
        await reading.wait()
        second = rig.loader.reload()
        assert rig.loader.loaded_generation < first < second
        go_on.set()
        await rig.loaded.get()
        assert rig.loader.loaded_generation == first
        await rig.loaded.get()
        assert rig.loader.loaded_generation == second


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
        await owner.execute(ADD, "two", "openai", True, b"")
        await owner.execute("GRANT SELECT ON vendors TO kaixu_gateway")
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


OLD, NEW = keygen(), keygen()
VENDOR_KEY = b"a-vendor-key"


async def add_sealed(
    owner: asyncpg.Connection, pair: KeyPair, *, version: int = 1, name: str = "sealed"
) -> str:
    vendor_id = str(uuid.uuid4())
    sealed = seal(pair.public, info_for(vendor_id, version), VENDOR_KEY)
    await owner.execute(
        "INSERT INTO vendors (id, name, kind, base_url, sealed_key, key_version) "
        "VALUES ($1, $4, 'openai', 'https://api.example.com/v1', $2, $3)",
        vendor_id, sealed, version, name,
    )  # fmt: skip
    return vendor_id


def info_for(vendor_id: str, version: int) -> bytes:
    origin = check_base_url("https://api.example.com/v1", allow_private=False).origin
    return info(vendor_id, None, "openai", origin, version)


def with_keys(rig: Rig, path: Path, *pairs: KeyPair) -> None:
    path.write_text("".join(f"{pair.private}\n" for pair in pairs))
    rig.loader._keys = VaultKeySource(path=path)


def problems(rig: Rig) -> list[str | None]:
    return [target.problem for target in rig.loader.table().targets]


async def test_without_a_vault_key_a_gateway_is_sealed_until_it_can_be_read(
    rig: Rig, owner: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.proxy.route_loader.VAULT_KEY_SECONDS", 0.05)
    path = tmp_path / "vault.key"
    rig.loader._keys = VaultKeySource(path=path)
    await add_sealed(owner, OLD)
    async with rig.running():
        await rig.loaded.get()
        assert rig.loader.is_sealed
        assert b"vault keys not read" in b"".join(rig.lines)
        with_keys(rig, path, OLD)
        await rig.loaded.get()
    assert (rig.loader.is_sealed, problems(rig)) == (False, [None])


async def test_a_gateway_with_vendors_that_need_no_vault_key_is_not_sealed(
    rig: Rig, owner: asyncpg.Connection
) -> None:
    await owner.execute(ADD, "openai", "openai", True, b"")
    await rig.loader.load()
    assert not rig.loader.is_sealed


async def test_a_key_sealed_to_another_is_opened_with_what_the_file_has_by_then(
    rig: Rig, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    path = tmp_path / "vault.key"
    with_keys(rig, path, OLD)
    vendor_id = await add_sealed(owner, OLD)
    async with rig.running():
        await rig.loaded.get()
        with_keys(rig, path, NEW, OLD)
        rotated = seal(NEW.public, info_for(vendor_id, 2), b"another-key")
        await owner.execute("UPDATE vendors SET sealed_key = $1, key_version = 2", rotated)
        rig.loader.reload()
        for _ in ("as it can be without the key", "with it"):
            await rig.loaded.get()
    [target] = rig.loader.table().targets
    assert (target.key, target.problem) == (b"another-key", None)


async def test_a_command_that_hangs_keeps_no_change_of_vendors_waiting(
    rig: Rig, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    with_keys(rig, tmp_path / "vault.key", OLD)
    await add_sealed(owner, OLD)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with rig.running():
        await rig.loaded.get()
        rig.loader._keys = VaultKeySource(command=("cat", str(pipe)))
        await add_sealed(owner, NEW, name="lacks its vault key")
        rig.loader.reload()
        await rig.loaded.get()
        await owner.execute(ADD, "two", "openai", True, b"")
        rig.loader.reload()
        await rig.loaded.get()
        assert rig.names() == ["sealed", "lacks its vault key", "two"]
        assert [problem is None for problem in problems(rig)] == [True, False, True]
        await asyncio.to_thread(pipe.write_text, f"{NEW.private}\n{OLD.private}\n")
        await rig.loaded.get()
        assert problems(rig) == [None, None, None]


async def test_until_the_new_vault_key_is_here_the_same_vendor_key_is_used(
    rig: Rig, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    with_keys(rig, tmp_path / "vault.key", OLD)
    vendor_id = await add_sealed(owner, OLD)
    await rig.loader.load()
    resealed = seal(NEW.public, info_for(vendor_id, 1), VENDOR_KEY)
    await owner.execute("UPDATE vendors SET sealed_key = $1", resealed)
    await rig.loader.load()
    [target] = rig.loader.table().targets
    assert (target.key, target.problem) == (VENDOR_KEY, None)


async def test_another_version_of_a_vendor_key_is_never_replaced_by_the_one_before(
    rig: Rig, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    with_keys(rig, tmp_path / "vault.key", OLD)
    vendor_id = await add_sealed(owner, OLD)
    await rig.loader.load()
    rotated = seal(NEW.public, info_for(vendor_id, 2), b"another-key")
    await owner.execute("UPDATE vendors SET sealed_key = $1, key_version = 2", rotated)
    await rig.loader.load()
    [target] = rig.loader.table().targets
    assert target.key == b""
    assert target.problem is not None


def caller(org_id: str, *scopes: str) -> Caller:
    return Caller(
        token_id="t", parent_id=None, org_id=org_id, workspace_id="w", user_id="u",
        scopes=frozenset({"calls", *scopes}), models=None, expires_at=0.0, limits=(),
    )  # fmt: skip


async def test_orgs_have_tables_of_their_own_only_where_they_have_something_of_their_own(
    rig: Rig, owner: asyncpg.Connection
) -> None:
    orgs = [
        str(await owner.fetchval("INSERT INTO orgs (name) VALUES ($1) RETURNING id", name))
        for name in ("acme", "umbrella", "initech")
    ]
    await owner.execute(ADD, "shared", "openai", True, b"")
    for name, org_id, is_disabled in (
        ("mine", orgs[0], False), ("shared", orgs[0], False), ("off", orgs[0], True),
        ("theirs", orgs[1], False), ("shared", orgs[1], True),
    ):  # fmt: skip
        await owner.execute(
            "INSERT INTO vendors (name, org_id, kind, base_url, is_private, is_simulator, "
            "sealed_key, disabled_at) VALUES ($1, $2, 'openai', 'http://127.0.0.1:2/v1', true, "
            "true, '', CASE WHEN $3 THEN now() END)",
            name, org_id, is_disabled,
        )  # fmt: skip
    await owner.execute("INSERT INTO org_aliases VALUES ($1, 'fast', 'mine', 'm')", orgs[0])
    await rig.loader.load()
    tables = [rig.loader.table(caller(org_id)) for org_id in orgs]
    ports = [{t.name: t.base.port for t in table.targets} for table in tables]
    assert ports == [{"mine": 2, "shared": 2}, {"theirs": 2}, {"shared": 1}]
    assert [table.aliases for table in tables] == [{"fast": ("mine", "m")}, {}, {}]
    assert tables[2] is rig.loader.table()
    assert len(rig.loader.everything().targets) == 4

    off = await owner.fetchval("SELECT id::text FROM vendors WHERE name = 'off'")
    tested = [
        [one.name for one in rig.loader.table(caller(org, f"vendor_test:{off}")).targets]
        for org in orgs
    ]
    assert tested == [["off"], [], []]
