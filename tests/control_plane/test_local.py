import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import psutil
import pytest

from control_plane.database import DatabasePlace
from control_plane.errors import BadArgument, Refused
from control_plane.local import run_up
from control_plane.local_facts import Ready, UpOptions
from control_plane.local_plane import COMMAND as CONTROL_PLANE
from control_plane.machine import load_machine
from control_plane.processes import ProcessFailed
from gateway.auth.token import digest, generate
from gateway.vendors.seal import keygen
from gateway.vendors.vault import Vault, load_vendors
from tests.conftest import Database

STUB = Path(__file__).with_name("stub_gateway.py")
STUB_CONTROL = Path(__file__).with_name("stub_control_plane.py")
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
        self.control_starts_file = folder / "control-starts"
        self.control_plane: tuple[str, ...] | None = None  # None: a stub

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
            control_plane=self.control_plane
            or (sys.executable, str(STUB_CONTROL), str(self.control_starts_file)),
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

    def control_starts(self) -> list[dict[str, str]]:
        """Return the environments with which the control plane was started."""
        return [json.loads(line) for line in self.control_starts_file.read_text().splitlines()]


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


async def simulator_port(ready: Ready) -> int:
    simulated = (await vendors(ready.database_url))["openai"]
    return int(simulated["base_url"].split(":")[2].split("/")[0])


async def test_the_first_start_sets_everything_up_and_the_second_finds_it(up: Up) -> None:
    async with up.running({"OPENAI_API_KEY": "sk-canary"}) as first:
        document = first.document()
        assert first.token is not None
        assert first.simulated == ("anthropic", "gemini")
        assert document["simulator_tally"] == str(up.folder / "data/simulator/tally.jsonl")
        assert document["admin_url"] == "http://127.0.0.1:18081"
        assert document["owner_email"] == "owner@localhost"
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
        assert second.document()["owner_password"] is None
        assert second.database_url == first.database_url
        assert not (await vendors(second.database_url))["openai"]["is_simulator"]


async def test_a_simulator_whose_port_a_connection_has_by_now_takes_another(up: Up) -> None:
    async with up.running() as first:
        before = await simulator_port(first)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with socket.create_connection(address, source_address=("127.0.0.1", before)):
            async with up.running() as second:
                after = await simulator_port(second)
                assert after != before
                _, writer = await asyncio.open_connection("127.0.0.1", after)
                writer.close()
                await writer.wait_closed()


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
        _, writer = await asyncio.open_connection("127.0.0.1", await simulator_port(ready))
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
        assert two.admin_url is None, "it can't read what the first one's control plane keeps"
    assert any("control plane does not run here" in note for note in up.notes)
    key = (up.folder / "one" / "control.key").read_text().strip()
    given = {"KAIXU_VAULT_KEY": pair.private, "KAIXU_CONTROL_KEY": key}
    async with up.running(given, url=url, name="two") as two:
        assert two.admin_url is not None
        assert two.owner is None
    first, second, _ = up.starts()
    assert first["KAIXU_MACHINE"] != second["KAIXU_MACHINE"]
    assert first["KAIXU_VAULT_KEY"] == pair.private
    for environment in (first, second):
        gateway = await asyncpg.connect(environment["KAIXU_GATEWAY_DATABASE_URL"])
        await gateway.close()

    # A machine without the vault key may share simulators, but no keys that it can't open.
    async with up.running(url=url, name="three"):
        assert "KAIXU_VAULT_KEY_FILE" not in up.starts()[3]
    with pytest.raises(Refused) as refused:
        await run_up(
            up.options({"GEMINI_API_KEY": "key"}, url, "three"), announce=print, note=print
        )
    assert refused.value.code == "no_vault_key"
    owner = await asyncpg.connect(url)
    urls = [e["KAIXU_GATEWAY_DATABASE_URL"] for e in up.starts()]
    roles = {url.split("//")[1].split(":")[0] for url in urls}
    roles |= {role.replace("kaixu_gateway", "kaixu_control") for role in roles}
    for role in roles:
        await owner.execute(f"DROP ROLE {role}")
    await owner.close()


async def test_the_first_owner_signs_in_and_runs_the_installation(up: Up) -> None:
    up.control_plane = CONTROL_PLANE
    async with up.running() as ready, aiohttp.ClientSession() as client:
        assert ready.owner is not None
        body = {"email": ready.owner.email, "password": ready.owner.password}
        async with client.post(f"{ready.admin_url}/api/v1/sessions", json=body) as answer:
            assert answer.status == 201
            session = await answer.json()
        headers = {"authorization": f"Bearer {session['access_token']}"}
        async with client.get(f"{ready.admin_url}/api/v1/me", headers=headers) as answer:
            me = await answer.json()
        assert me["is_operator"]
        assert [(org["name"], org["role"]) for org in me["orgs"]] == [("default", "owner")]
        kept = [up.folder / "data" / name for name in ("jwt.secret", "control.key")]
        assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
        lines = [" ".join(child.cmdline()) for child in children()]
        secrets = [path.read_text().strip() for path in kept] + [ready.owner.password]
        assert not [secret for secret in secrets for line in lines if secret in line]
        assert ready.owner.password not in repr(ready)

    async with up.running() as again, aiohttp.ClientSession() as client:
        assert again.owner is None
        async with client.get(f"{again.admin_url}/api/v1/me", headers=headers) as answer:
            assert answer.status == 200, "sessions outlive a restart"


async def test_neither_plane_sees_what_is_the_others(up: Up) -> None:
    given = {
        "OPENAI_API_KEY": "sk-canary",
        "JWT_SECRET": "a secret of the operator's own, 48 characters long",
        "KAIXU_SIGNUP": "closed",
        "KAIXU_SMTP_URL": "smtp://user:canary@mail.example.com",
        "SECRET_OF_SOMEBODY": "canary",
    }
    async with up.running(given) as ready:
        (control,), (gateway,) = up.control_starts(), up.starts()
        assert set(control) & {"OPENAI_API_KEY", "SECRET_OF_SOMEBODY"} == set()
        assert not [name for name in control if "VAULT" in name or "GATEWAY_DATABASE" in name]
        assert not [name for name in gateway if "CONTROL" in name or "JWT" in name]
        assert "KAIXU_SMTP_URL" not in gateway
        assert control["JWT_SECRET"] == given["JWT_SECRET"]
        assert control["KAIXU_CONTROL_KEY_FILE"] == str(up.folder / "data" / "control.key")
        assert not (up.folder / "data" / "jwt.secret").exists()
        assert (control["KAIXU_SIGNUP"], control["KAIXU_DATABASE_EMBEDDED"]) == ("closed", "1")

        connection = await asyncpg.connect(control["KAIXU_CONTROL_DATABASE_URL"])
        assert await connection.fetchval("SELECT is_operator FROM accounts")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("SELECT * FROM ledger_rejected")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("DELETE FROM audit_log")
        await connection.close()
        assert ready.database_url not in str({**control, **gateway})


async def test_a_control_plane_that_is_killed_is_started_again_where_it_was(up: Up) -> None:
    async with up.running():
        control = next(one for one in children() if str(STUB_CONTROL) in one.cmdline())
        control.kill()
        await eventually(lambda: len(up.control_starts()) == 2)
        assert up.control_starts()[1]["KAIXU_ADMIN_PORT"] == "18081"
    assert any("control plane has ended (signal 9)" in note for note in up.notes)


async def test_a_machine_of_a_release_without_a_control_plane_gets_a_login_for_it(
    folder: Path,
) -> None:
    (folder / "machine.json").write_text('{"name": "box-1", "password": "p"}')
    first, second = load_machine(folder), load_machine(folder)
    assert (first.name, first.password) == ("box-1", "p")
    assert first.control_password == second.control_password
    assert (first.gateway.role, first.control.role) == (
        "kaixu_gateway_box_1",
        "kaixu_control_box_1",
    )


async def test_a_control_key_that_is_damaged_is_told(up: Up) -> None:
    (up.folder / "data").mkdir()
    (up.folder / "data" / "control.key").write_text("short")
    with pytest.raises(Refused, match="control key"):
        await run_up(up.options({}), announce=print, note=print)
    assert not children()
