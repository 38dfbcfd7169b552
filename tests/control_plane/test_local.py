import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from control_plane.database import DatabasePlace
from control_plane.errors import BadArgument, Refused
from control_plane.local import Ready, UpOptions, run_up
from control_plane.processes import ProcessFailed
from gateway.auth.token import digest, generate
from gateway.vendors.seal import keygen
from gateway.vendors.vault import Vault, load_vendors
from tests.conftest import Database

STUB = Path(__file__).with_name("stub_gateway.py")
BASE = {"PATH": os.defpath, "HOME": "/nowhere"}
READY_SECONDS_MAX = 60


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="kaixu-up-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


class Up:
    """`kaixu up` within the test's process, with a stub for the gateway."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self.starts_file = folder / "starts"

    def options(
        self, environment: Mapping[str, str], url: str | None = None, name: str = "data"
    ) -> UpOptions:
        return UpOptions(
            place=DatabasePlace(data_dir=self.folder / name, url=url),
            host="127.0.0.1",
            port=0,
            ops_port=0,
            workers=2,
            environment={**BASE, **environment},
            gateway=(sys.executable, str(STUB), str(self.starts_file)),
        )

    @asynccontextmanager
    async def running(
        self, environment: Mapping[str, str] | None = None, *, url: str | None = None,
        name: str = "data",
    ) -> AsyncIterator[Ready]:  # fmt: skip
        ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        options = self.options(environment or {}, url, name)
        async with asyncio.TaskGroup() as group:
            up = group.create_task(
                run_up(options, announce=ready.set_result, note=self.notes.append)
            )
            up.add_done_callback(lambda _: ready.cancel())  # it failed: nothing will be ready
            try:
                yield await asyncio.wait_for(ready, READY_SECONDS_MAX)
            finally:
                if not up.done():
                    os.kill(os.getpid(), signal.SIGINT)

    def starts(self) -> list[dict[str, str]]:
        """Return the environments with which the gateway was started."""
        return [json.loads(line) for line in self.starts_file.read_text().splitlines()]


@pytest.fixture
def up(folder: Path) -> Up:
    return Up(folder)


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


async def eventually(look: Callable[[], Any]) -> Any:
    for _ in range(1000):
        if result := look():
            return result
        await asyncio.sleep(0.02)
    raise AssertionError("Not in time")


async def vendors(url: str) -> dict[str, asyncpg.Record]:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("SELECT * FROM vendors WHERE removed_at IS NULL")
    await connection.close()
    return {row["name"]: row for row in rows}


async def test_the_first_start_sets_everything_up_and_the_second_finds_it(up: Up) -> None:
    async with up.running({"OPENAI_API_KEY": "sk-canary"}) as first:
        document = first.document()
        assert first.token is not None
        assert first.simulated == ("anthropic", "gemini")
        assert document["simulator_tally"] == str(up.folder / "data/simulator/tally.jsonl")
        assert (document["admin_url"], document["owner_email"]) == (None, None)
        connection = await asyncpg.connect(first.database_url)
        assert await connection.fetchval("SELECT digest FROM tokens") == digest(first.token)
        key = (up.folder / "data" / "vault.key").read_text().strip()
        opened = {one.name: one for one in await load_vendors(connection, Vault([key]))}
        await connection.close()
        assert opened["openai"].key == b"sk-canary"
        assert opened["gemini"].is_simulator
        assert not any(one.problem for one in opened.values())

        (environment,) = up.starts()
        gateway = await asyncpg.connect(environment["KAIXU_GATEWAY_DATABASE_URL"])
        assert await gateway.fetchval("SHOW statement_timeout") == "5s"
        assert await gateway.fetchval("SELECT count(*) FROM tokens") == 1
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await gateway.execute("UPDATE tokens SET revoked_at = NULL")
        await gateway.close()

        lines = [" ".join(child.cmdline()) for child in children()]
        secrets = ["sk-canary", key, first.token, first.database_url.split(":")[2].split("@")[0]]
        assert not [secret for secret in secrets for line in lines if secret in line]
    assert not children()
    assert not list(up.folder.glob("data/postgresql-*/cluster/postmaster.pid"))

    async with up.running() as second:
        assert second.token is None
        assert second.database_url == first.database_url
        assert not (await vendors(second.database_url))["openai"]["is_simulator"]


async def test_the_gateway_gets_what_it_needs_and_nothing_else(up: Up) -> None:
    given = {
        "OPENAI_API_KEY": "sk-canary",
        "KAIXU_LEASE": "5s",
        "KAIXU_GATE_TOKEN": generate(),
        "SECRET_OF_SOMEBODY": "canary",
    }
    async with up.running(given):
        (environment,) = up.starts()
    wanted = {
        "KAIXU_LEASE": "5s",
        "KAIXU_PORT": "0",
        "KAIXU_WORKERS": "2",
        "KAIXU_PARENT_PIPE": "1",
        "KAIXU_VAULT_KEY_FILE": str(up.folder / "data" / "vault.key"),
    }
    assert wanted.items() <= environment.items()
    assert not {"OPENAI_API_KEY", "KAIXU_GATE_TOKEN", "SECRET_OF_SOMEBODY"} & set(environment)
    assert "KAIXU_DATABASE_URL" not in environment


async def test_what_is_killed_is_started_again_where_it_was(up: Up) -> None:
    async with up.running() as ready:
        simulator = next(one for one in children() if "gateway.vendors.simulator" in one.cmdline())
        os.kill(ready.supervisor_pid, signal.SIGKILL)
        simulator.kill()
        await eventually(lambda: len(up.starts()) == 2)
        assert up.starts()[1]["KAIXU_PORT"] == "18080"
        await eventually(
            lambda: [c for c in children() if "gateway.vendors.simulator" in c.cmdline()]
        )
        (file,) = up.folder.glob("data/postgresql-*/cluster/postmaster.pid")
        killed = int(file.read_text().split()[0])
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: file.exists() and int(file.read_text().split()[0]) != killed)
        await eventually(lambda: file.read_text().rstrip().endswith("ready"))
        simulated = (await vendors(ready.database_url))["openai"]
        port = int(simulated["base_url"].split(":")[2].split("/")[0])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()
    assert any("gateway has ended (signal 9)" in note for note in up.notes)


async def test_the_end_of_its_terminal_leaves_nothing_running(up: Up) -> None:
    async with up.running():
        (file,) = up.folder.glob("data/postgresql-*/cluster/postmaster.pid")
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(lambda: not children() and not file.exists())


async def test_a_folder_that_is_in_use_is_refused(up: Up) -> None:
    kaixu = Path(sys.executable).with_name("kaixu")
    async with up.running():
        second = await asyncio.create_subprocess_exec(
            kaixu, "up", "--data", up.folder / "data", "--json", stderr=subprocess.PIPE
        )
        _, stderr = await second.communicate()
    error = json.loads(stderr)["error"]
    assert (second.returncode, error["code"]) == (1, "already_running")
    assert f"process {os.getpid()}" in error["message"]


async def test_a_gateway_that_does_not_start_is_told(up: Up) -> None:
    up.starts_file = Path("/nowhere/starts")
    with pytest.raises(ProcessFailed, match="exit code 1"):
        await run_up(up.options({}), announce=print, note=print)
    assert not children()


async def test_a_gate_token_is_registered_and_a_malformed_one_refused(up: Up) -> None:
    token = generate()
    async with up.running({"KAIXU_GATE_TOKEN": token}) as ready:
        connection = await asyncpg.connect(ready.database_url)
        digests = {row["digest"] for row in await connection.fetch("SELECT digest FROM tokens")}
        await connection.close()
    assert ready.token is not None
    assert digests == {digest(token), digest(ready.token)}
    with pytest.raises(BadArgument) as refused:
        await run_up(up.options({"KAIXU_GATE_TOKEN": "kxg_x"}), announce=print, note=print)
    assert refused.value.field == "KAIXU_GATE_TOKEN"


async def test_machines_that_share_a_database_have_logins_of_their_own(
    up: Up, database: Database
) -> None:
    url = database.owner_url
    pair = keygen()
    async with up.running({"KAIXU_VAULT_KEY": pair.private}, url=url, name="one") as one:
        assert one.database_url == url
        assert one.token is not None
    async with up.running({"KAIXU_VAULT_KEY": pair.private}, url=url, name="two") as two:
        assert two.token is None
    first, second = up.starts()
    assert first["KAIXU_MACHINE"] != second["KAIXU_MACHINE"]
    assert first["KAIXU_VAULT_KEY"] == pair.private
    for environment in (first, second):
        gateway = await asyncpg.connect(environment["KAIXU_GATEWAY_DATABASE_URL"])
        await gateway.close()

    # A machine without the vault key may share simulators, but no keys that it can't open.
    async with up.running(url=url, name="three"):
        assert "KAIXU_VAULT_KEY_FILE" not in up.starts()[2]
    with pytest.raises(Refused) as refused:
        await run_up(
            up.options({"GEMINI_API_KEY": "key"}, url, "three"), announce=print, note=print
        )
    assert refused.value.code == "no_vault_key"
    owner = await asyncpg.connect(url)
    roles = [e["KAIXU_GATEWAY_DATABASE_URL"].split("//")[1].split(":")[0] for e in up.starts()]
    for role in roles:
        await owner.execute(f"DROP ROLE {role}")
    await owner.close()
