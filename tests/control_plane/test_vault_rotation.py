"""Rotating the vault key: whatever happens in the middle, no vendor key is lost."""

import asyncio
import errno
import os
import signal
import stat
import uuid
from pathlib import Path

import asyncpg
import pytest

from control_plane.database import DatabasePlace
from control_plane.errors import Refused
from control_plane.vault_rotation import add_key, rotate
from gateway.connect_guard import check_base_url
from gateway.vendors.seal import KeyPair, info, keygen, public_of, seal
from gateway.vendors.vault import Vault, load_vendors
from tests.conftest import Database
from tests.journeys.product import KAIXU

BASE_URL = "https://api.example.com/v1"
VENDOR_KEY = b"a-vendor-key"
WAIT_SECONDS_MAX = 20.0
NOBODY = 65534
REGISTERING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'vendors'::regclass"


class Installation:
    """A key file, and the database whose vendor keys are sealed to what is in it."""

    def __init__(self, folder: Path, database: Database, owner: asyncpg.Connection) -> None:
        self.path = folder / "vault.key"
        self.place = DatabasePlace(data_dir=folder, url=database.owner_url)
        self.environment: dict[str, str] = {}
        self._owner = owner

    def write(self, *pairs: KeyPair) -> None:
        self.path.write_text("".join(f"{pair.private}\n" for pair in pairs))

    def texts(self) -> list[str]:
        return self.path.read_text().split()

    async def add_vendor(self, name: str, pair: KeyPair) -> None:
        vendor_id = str(uuid.uuid4())
        origin = check_base_url(BASE_URL, allow_private=False).origin
        await self._owner.execute(
            "INSERT INTO vendors (id, name, kind, base_url, sealed_key) "
            "VALUES ($1, $2, 'openai', $3, $4)",
            vendor_id, name, BASE_URL,
            seal(pair.public, info(vendor_id, None, "openai", origin, 1), VENDOR_KEY),
        )  # fmt: skip

    async def opened(self, keys: list[str]) -> list[bytes]:
        return [vendor.key for vendor in await load_vendors(self._owner, Vault(keys))]


@pytest.fixture
def installation(tmp_path: Path, database: Database, owner: asyncpg.Connection) -> Installation:
    return Installation(tmp_path, database, owner)


OLD, FOREIGN = keygen(), keygen()


async def test_after_an_interrupted_rotation_the_next_one_loses_no_vendor_key(
    installation: Installation,
) -> None:
    installation.write(OLD)
    await installation.add_vendor("one", OLD)
    interrupted = add_key(installation.path)  # and its process is killed
    told = await rotate(installation.place, installation.environment)
    assert (told["resealed"], told["failed"]) == (1, [])
    current, previous = installation.texts()
    assert [public_of(current), public_of(previous)] == [told["public_key"], interrupted]
    assert await installation.opened([current]) == [VENDOR_KEY]


async def test_a_key_that_something_is_sealed_to_does_not_go(installation: Installation) -> None:
    """What can't be sealed to the present key may be sealed to the one before it."""
    present = keygen()
    installation.write(present, OLD)
    await installation.add_vendor("one", OLD)
    await installation.add_vendor("lost", FOREIGN)
    told = await rotate(installation.place, installation.environment)
    assert [one["name"] for one in told["failed"]] == ["lost"]
    assert installation.texts() == [present.private, OLD.private]
    assert await installation.opened([present.private]) == [VENDOR_KEY, b""]


async def test_of_two_rotations_at_once_one_is_refused(installation: Installation) -> None:
    installation.write(OLD)
    await installation.add_vendor("one", OLD)
    first, second = await asyncio.gather(
        *(rotate(installation.place, installation.environment) for _ in range(2)),
        return_exceptions=True,
    )
    assert isinstance(first, dict)
    assert isinstance(second, Refused)
    assert second.code == "already_running"
    assert [public_of(key) for key in installation.texts()] == [first["public_key"], OLD.public]
    assert await installation.opened(installation.texts()[:1]) == [VENDOR_KEY]


async def test_a_killed_rotation_whose_child_still_seals_is_not_overtaken(
    installation: Installation, database: Database, owner: asyncpg.Connection
) -> None:
    installation.write(OLD)
    await installation.add_vendor("one", OLD)
    configurer = await asyncpg.connect(database.owner_url)
    held = configurer.transaction()
    await held.start()
    await configurer.execute("LOCK TABLE vendors IN SHARE ROW EXCLUSIVE MODE")
    process = await asyncio.create_subprocess_exec(
        KAIXU, "vault", "rotate", "--data", installation.path.parent,
        env={**installation.environment, "KAIXU_DATABASE_URL": database.owner_url},
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while not await owner.fetchval(REGISTERING):  # noqa: ASYNC110 - another process's wait
            await asyncio.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    with pytest.raises(Refused, match="already"):
        await rotate(installation.place, installation.environment)
    await held.rollback()
    await configurer.close()
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while True:
            try:
                told = await rotate(installation.place, installation.environment)
            except Refused:  # the child has yet to end
                await asyncio.sleep(0.02)
            else:
                assert told["failed"] == []
                break
    assert await installation.opened(installation.texts()[:1]) == [VENDOR_KEY]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_gateways_own_user_can_read_the_new_key_file(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    path.write_text(OLD.private)
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o440)
    add_key(path)
    status = path.stat()
    owner = (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
    assert owner == (NOBODY, NOBODY, 0o440)
    assert len(path.read_text().split()) == 2


def test_who_can_t_give_the_file_to_its_owner_is_refused_and_the_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    path = tmp_path / "vault.key"
    path.write_text(OLD.private)
    monkeypatch.setattr(os, "fchmod", forbidden)
    with pytest.raises(Refused, match="same owner"):
        add_key(path)
    assert path.read_text() == OLD.private
    assert list(tmp_path.iterdir()) == [path]
