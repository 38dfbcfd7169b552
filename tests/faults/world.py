"""What faults happen to: machines, one PostgreSQL behind proxies, and a vendor with a tally."""

import asyncio
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

from control_plane import machine as machines_of
from control_plane.files import write_private
from control_plane.migrate import migrate
from control_plane.postgres import EmbeddedPostgres, wheel_binaries
from control_plane.tenancy.tokens import NewToken, create_token, revoke_token
from control_plane.tenancy.vendors import NewVendor, add_vendor, register_public_key
from gateway.auth.token import generate
from gateway.ids import IdMaker
from gateway.vendors.seal import keygen
from tests.faults.chaos_proxy import ChaosProxy
from tests.faults.faulty_libc import FaultyLibc, with_faulty_postgres
from tests.faults.machine import Machine
from tests.faults.results import digest_of_code
from tests.faults.standby import Standby
from tests.journeys.product import Simulator

Row = dict[str, Any]

BASE_PATHS: Final = {"openai": "/v1", "anthropic": "", "gemini": ""}
WORKERS: Final = 2
POSTGRES_GONE_SECONDS_MAX: Final = 30.0
LOOK_SECONDS: Final = 0.01
MONTH_ENDS_SECONDS: Final = 120.0  # where the month ends soon: after so long


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How its machines are set: shorter than a real machine's, so that each limit is reached."""

    machines: int = 2
    lease_seconds: float = 3.0
    grace_seconds: float = 3.0
    first_byte_seconds: float = 4.0
    idle_seconds: float = 4.0
    drain_seconds: float = 20.0
    standby: bool = False
    standby_is_synchronous: bool = True
    faulty_libc: bool = False  # clocks can be set, and disks can fail to sync
    month_ends_soon: bool = False  # by the database's clock

    def environment(self) -> dict[str, str]:
        """Return what machines have in their environment for it."""
        return {
            "KAIXU_LEASE": f"{self.lease_seconds}s",
            "KAIXU_OFFLINE_STREAM_GRACE": f"{self.grace_seconds}s",
            "KAIXU_FIRST_BYTE": f"{self.first_byte_seconds}s",
            "KAIXU_IDLE": f"{self.idle_seconds}s",
            "KAIXU_DRAIN_TIMEOUT": f"{self.drain_seconds}s",
        }


@dataclass(kw_only=True)
class Token:
    """A token of a trial's own."""

    id: str
    text: str = field(repr=False)
    limit: int | None


class World:
    """One database, one vendor, some machines. `chance` decides what proxies decide."""

    def __init__(
        self, folder: Path, *, settings: Settings, owner_url: str, postgres: EmbeddedPostgres
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.machines: list[Machine] = []
        self.outages: list[tuple[float, float]] = []  # of the database, Unix seconds
        self.code = digest_of_code()
        self.standby: Standby | None = None
        self._primary_url = self._owner_url = owner_url
        self.database_libc: FaultyLibc | None = None
        self._postgres = postgres
        self._ids = IdMaker(time.time)
        self._tally_file = folder / "tally.jsonl"
        self._tally_at = 0
        self._tally: dict[str, list[Row]] = {}  # by session
        self._tally_by_id: dict[str, Row] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, *, settings: Settings, chance: random.Random) -> AsyncIterator["World"]:
        """Start everything, and leave nothing behind."""
        folder = Path(tempfile.mkdtemp(prefix="kaixu-faults-"))
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            binaries, libc = wheel_binaries(), None
            if settings.faulty_libc:
                libc, binaries = _faulty(binaries, folder=folder)
                if settings.month_ends_soon:
                    libc.ahead_seconds = seconds_to_next_month() - MONTH_ENDS_SECONDS
            # Processes end here, machines don't: what the kernel was handed outlives them.
            postgres = EmbeddedPostgres(folder, binaries=binaries, settings={"fsync": "off"})
            stack.callback(postgres.stop)
            owner_url = await asyncio.to_thread(postgres.start)
            world = cls(folder, settings=settings, owner_url=owner_url, postgres=postgres)
            world.database_libc = libc
            stack.callback(world.start_postgres_again)  # or it could not be stopped
            simulator = Simulator(world._tally_file)
            stack.callback(simulator.stop)
            vault_key = await world._prepare(simulator.url)
            if settings.standby:
                world.standby = Standby(postgres, owner_url=owner_url)
                await asyncio.to_thread(world.standby.start)
                stack.callback(world.standby.stop)
                if settings.standby_is_synchronous:
                    await world.standby.follow()
            for number in range(settings.machines):
                machine = await world._machine(f"m{number}", vault_key, stack, chance)
                world.machines.append(machine)
            async with asyncio.TaskGroup() as tasks:
                for machine in world.machines:
                    tasks.create_task(machine.start())
            yield world

    async def _prepare(self, simulator_url: str) -> Path:
        """Make schema and vendors; return the file with the vault's key."""
        path = self.folder / "vault.key"
        pair = keygen()
        write_private(path, pair.private + "\n")
        async with self.owner() as owner:
            await migrate(owner)
            await register_public_key(owner, pair.public)
            for name, base in BASE_PATHS.items():
                vendor = NewVendor(
                    name=name, kind=name, base_url=simulator_url + base, key="", is_private=True,
                    is_simulator=True,
                )  # fmt: skip
                await add_vendor(owner, vendor)
        return path

    async def _machine(
        self,
        name: str,
        vault_key: Path,
        stack: contextlib.AsyncExitStack,
        chance: random.Random,
    ) -> Machine:
        login = machines_of.Machine(
            name=name, password=secrets.token_hex(16), control_password=secrets.token_hex(16)
        ).gateway
        async with self.owner() as owner:
            await machines_of.keep_role(owner, login)
        port = self._port()
        url = machines_of.with_login(self._owner_url, user=login.role, password=login.password)
        pool, feed = [
            await stack.enter_async_context(
                ChaosProxy(
                    lambda: ("127.0.0.1", self._port()), chance=random.Random(chance.random())
                ).listening()
            )
            for _ in range(2)
        ]
        folder = self.folder / name
        folder.mkdir()
        libc = FaultyLibc(folder / "libc") if self.settings.faulty_libc else None
        machine = Machine(
            name=name,
            folder=folder,
            libc=libc,
            environment={
                **({} if libc is None else libc.environment()),
                **self.settings.environment(),
                "KAIXU_MACHINE": name,
                "KAIXU_WORKERS": str(WORKERS),
                "KAIXU_PORT": "0",
                "KAIXU_OPS_PORT": "0",
                "KAIXU_VAULT_KEY_FILE": str(vault_key),
                "KAIXU_GATEWAY_DATABASE_URL": url.replace(f":{port}/", f":{pool.port}/"),
                "KAIXU_FEED_DATABASE_URL": url.replace(f":{port}/", f":{feed.port}/"),
            },
            pool=pool,
            feed=feed,
        )
        machine.make_disk()
        stack.callback(machine.drop_disk)
        stack.callback(machine.destroy)
        return machine

    # ----------------------------------------------------------------------------- database

    @property
    def database_ahead(self) -> float:
        """By how many seconds the database's clock is ahead of ours."""
        return 0.0 if self.database_libc is None else self.database_libc.ahead_seconds

    @contextlib.asynccontextmanager
    async def owner(self) -> AsyncIterator[asyncpg.Connection]:
        """Give a connection as the owner, around all proxies."""
        connection = await asyncpg.connect(self._owner_url)
        try:
            yield connection
        finally:
            await connection.close(timeout=5)

    async def end_postgres(self, how: signal.Signals) -> None:
        """End PostgreSQL: SIGINT fast, SIGQUIT immediately, SIGKILL the postmaster."""
        pid = self._postgres.pid
        assert pid is not None
        self.outages.append((time.time(), float("inf")))
        os.kill(pid, how)
        async with asyncio.timeout(POSTGRES_GONE_SECONDS_MAX):
            while self._postgres.pid is not None:  # noqa: ASYNC110 - another process
                await asyncio.sleep(LOOK_SECONDS)

    async def start_postgres(self) -> None:
        """Start it again, on the same port."""
        await asyncio.to_thread(self.start_postgres_again)
        began, _ = self.outages.pop()
        self.outages.append((began, time.time()))

    def start_postgres_again(self) -> None:
        """Do so blockingly; nothing where it runs."""
        if self._postgres.start() != self._primary_url:
            raise AssertionError("PostgreSQL's port was taken meanwhile")

    async def fail_over(self) -> None:
        """Have the standby take over from a PostgreSQL that has ended, and machines find it."""
        assert self.standby is not None
        await asyncio.to_thread(self.standby.promote)
        self._owner_url = self.standby.owner_url
        began, _ = self.outages.pop()
        self.outages.append((began, time.time()))

    def _port(self) -> int:
        port = urlsplit(self._owner_url).port
        assert port is not None
        return port

    async def end_sessions(self) -> None:
        """End every session of the gateways."""
        async with self.owner() as owner:
            await owner.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE 'kaixu %'"
            )

    # ------------------------------------------------------------------------------- tokens

    async def token(self, *, limit: int | None = None) -> Token:
        """Make a token."""
        new = NewToken(text=generate(), name="fault", life=timedelta(days=1), limit=limit)
        async with self.owner() as owner:
            made = await create_token(owner, new, ids=self._ids)
        return Token(id=str(made["id"]), text=new.text, limit=limit)

    async def revoke(self, token: Token) -> dict[str, Any]:
        """Revoke a token; return the receipt."""
        async with self.owner() as owner:
            return await revoke_token(owner, token.id, is_embedded=False)

    async def recall(self, token: Token) -> None:
        """Call the blocks of a token back from everyone."""
        async with self.owner() as owner:
            await owner.execute("SELECT pg_notify('kaixu_recall', $1)", f"token:{token.id}")

    # --------------------------------------------------------------------------- what is told

    def tallied(self, prefix: str) -> dict[str, list[Row]]:
        """Return the vendor's calls by session, of the sessions that begin so.

        A call that was answered whole has its usage under `usage`.
        """
        with self._tally_file.open("rb") as file:
            file.seek(self._tally_at)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._tally_at += len(whole + newline)
        for text in whole.splitlines():
            line = json.loads(text)
            if "path" in line:
                self._tally.setdefault(line["session_id"] or "", []).append(line)
                self._tally_by_id[line["id"]] = line
            elif line["id"] in self._tally_by_id:
                self._tally_by_id[line["id"]].update(usage=line.get("usage"), left="left" in line)
        return {name: calls for name, calls in self._tally.items() if name.startswith(prefix)}

    def forget(self, prefix: str) -> None:
        """Drop what was told of these sessions."""
        for name in self.tallied(prefix):
            for line in self._tally.pop(name):
                del self._tally_by_id[line["id"]]

    @property
    def kills(self) -> list[tuple[float, float]]:
        """From when to when gateway processes were killed, Unix seconds."""
        return [span for machine in self.machines for span in machine.kills]

    @property
    def killed(self) -> int:
        """How many gateway processes were killed."""
        return sum(machine.killed for machine in self.machines)


def seconds_to_next_month() -> float:
    """Return how long this month goes on, in UTC."""
    now = datetime.now(UTC)
    next_month = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    return (next_month - now).total_seconds()


def _faulty(binaries: Path, *, folder: Path) -> tuple[FaultyLibc, Path]:
    """Return the C library of a server, and the binaries that start it with that one."""
    EmbeddedPostgres(folder, binaries=binaries)._prepare_folder()  # its user gets there
    shared = folder / "database"
    libc = FaultyLibc(shared)
    return libc, with_faulty_postgres(binaries, libc=libc, folder=shared)
