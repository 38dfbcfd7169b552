"""`kaixu up`: everything on one machine, started in order, kept running, stopped in order.

PostgreSQL (embedded, unless there is one), migrations, keys, vendors, the simulator, the gateway.
The simulator and the gateway are processes of their own: the gateway with its own login to the
database and an environment that has nothing that it does not need.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

from control_plane.audit_log import SYSTEM
from control_plane.database import DatabasePlace, connected
from control_plane.errors import BadArgument, ControlError, DatabaseUnreachable, Refused
from control_plane.files import make_private, write_private
from control_plane.machine import Machine, keep_role, load_machine, with_login
from control_plane.migrate import migrate
from control_plane.postgres import EmbeddedPostgres, wheel_binaries
from control_plane.processes import KeptProcess, reduced
from control_plane.settings import TOKEN_LIFE_DEFAULT, parse_duration, read_secret
from control_plane.tenancy.tokens import (
    NewToken,
    any_token_exists,
    create_token,
    keep_service_token,
)
from control_plane.tenancy.vendors import (
    NewVendor,
    add_vendor,
    list_vendors,
    public_keys,
    register_public_key,
    rotate_vendor,
)
from gateway.auth.token import generate
from gateway.ids import IdMaker
from gateway.vendors.registry import KINDS
from gateway.vendors.seal import KeyTextInvalid, keygen, public_of

READY_SECONDS_MAX: Final = 60.0  # each process, until it says that it is ready
DRAIN_SECONDS_DEFAULT: Final = 120.0
DRAIN_MARGIN_SECONDS: Final = 15.0  # that a gateway gets beyond its own drain timeout
SIMULATOR_STOP_SECONDS: Final = 5.0
WATCH_SECONDS: Final = 1.0  # between two looks whether PostgreSQL runs
CONNECT_SECONDS: Final = 1.0  # to another machine's simulator

# Vendors that come by themselves: name and kind, and the variable with the key.
VENDOR_KEYS: Final = (
    ("openai", "OPENAI_API_KEY"),
    ("anthropic", "ANTHROPIC_API_KEY"),
    ("gemini", "GEMINI_API_KEY"),
)
SIMULATOR_PATHS: Final[Mapping[str, str]] = {"openai": "/v1", "anthropic": "", "gemini": ""}

# Settings of the gateway's own that pass through.
GATEWAY_SETTINGS: Final = (
    "KAIXU_CALLS_PER_ORG",
    "KAIXU_CONNECTIONS_PER_ADDRESS",
    "KAIXU_RATE_PER_ADDRESS",
    "KAIXU_CONNECTIONS_PER_WORKER",
    "KAIXU_CORS_ORIGINS",
    "KAIXU_DRAIN_TIMEOUT",
    "KAIXU_FIRST_BYTE",
    "KAIXU_HOSTS",
    "KAIXU_IDLE",
    "KAIXU_JOURNAL_KEEP_BYTES",
    "KAIXU_LEASE",
    "KAIXU_MACHINE",
    "KAIXU_OFFLINE_STREAM_GRACE",
    "KAIXU_OPS_HOST",
    "KAIXU_STREAM_TOTAL",
    "KAIXU_VENDOR_HOSTS",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """How to run. A port 0 is any free one; `workers` None: one for each core."""

    place: DatabasePlace
    host: str
    port: int
    ops_port: int
    workers: int | None
    environment: Mapping[str, str] = field(repr=False)
    gateway: tuple[str, ...] = (sys.executable, "-P", "-m", "gateway")  # how it is started


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What runs now. `simulated` are the vendors that the simulator stands in for."""

    gateway_url: str
    ops_url: str
    data_dir: str
    database_url: str = field(repr=False)
    supervisor_pid: int
    simulator_tally: str | None
    token: str | None = field(repr=False)
    simulated: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return the line that scripts read."""
        return {
            "gateway_url": self.gateway_url,
            "ops_url": self.ops_url,
            "admin_url": None,
            "data_dir": self.data_dir,
            "database_url": self.database_url,
            "supervisor_pid": self.supervisor_pid,
            "simulator_tally": self.simulator_tally,
            "token": self.token,
            "owner_email": None,
            "owner_password": None,
        }


async def run_up(
    options: UpOptions, *, announce: Callable[[Ready], None], note: Callable[[str], None]
) -> None:
    """Run everything until SIGINT or SIGTERM; a second one hurries. Raises ControlError.

    The end of its terminal is an end too, unless it was started to outlive that (`nohup`).
    """
    work = asyncio.current_task()
    assert work is not None
    up = _Up(options, announce=announce, note=note)
    asked: list[int] = []

    def stop(number: int) -> None:
        asked.append(number)
        if len(asked) == 1:
            work.cancel()
        else:
            up.hurry()

    loop = asyncio.get_running_loop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, stop, number)
    try:
        with _alone(options.place.data_dir):
            await up.run()
    except asyncio.CancelledError:
        if not asked:
            raise
        work.uncancel()
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


class _Up:
    """One run."""

    def __init__(
        self,
        options: UpOptions,
        *,
        announce: Callable[[Ready], None],
        note: Callable[[str], None],
    ) -> None:
        self._options = options
        self._place = options.place
        self._data_dir = options.place.data_dir
        self._environment = options.environment
        self._announce = announce
        self._note = note
        self._processes: list[KeptProcess] = []
        self._ids = IdMaker(time.time)
        self._port, self._ops_port = options.port, options.ops_port

    def hurry(self) -> None:
        """Wait for no stream any more."""
        for process in self._processes:
            process.kill()

    async def run(self) -> None:
        """Start everything and keep it running, until cancelled; then stop everything."""
        keys = {name: read_secret(self._environment, key) for name, key in VENDOR_KEYS}
        gate_token = read_secret(self._environment, "KAIXU_GATE_TOKEN")
        drain_text = self._environment.get("KAIXU_DRAIN_TIMEOUT") or f"{DRAIN_SECONDS_DEFAULT:.0f}s"
        drain_seconds = _drain_seconds(drain_text)
        machine = load_machine(self._data_dir)
        async with contextlib.AsyncExitStack() as opened:
            postgres, url = self._open_database(opened)
            async with connected(url, migrated=False) as owner:
                await migrate(owner)
                gateway_login = await self._gateway_login(owner, machine, url)
                vault = await self._vault(owner, has_keys=any(keys.values()))
                simulator = await self._open_simulator(owner, opened, keys)
                await self._keep_vendors(owner, keys, simulator)
                is_first = not await any_token_exists(owner)
                if gate_token and not await keep_service_token(owner, gate_token, ids=self._ids):
                    self._note("KAIXU_GATE_TOKEN was revoked, and stays so.")
                vendors = await list_vendors(owner)

            environment = {**gateway_login, **vault}
            gateway = self._gateway(machine, environment)
            self._processes.append(gateway)
            opened.push_async_callback(
                gateway.stop, seconds_max=drain_seconds + DRAIN_MARGIN_SECONDS
            )
            facts = await gateway.start()
            self._port = urlsplit(facts["gateway_url"]).port or self._port
            self._ops_port = urlsplit(facts["ops_url"]).port or self._ops_port
            token = await self._first_token(url) if is_first else None
            tally = simulator.tally if simulator is not None else None
            self._announce(
                Ready(
                    gateway_url=facts["gateway_url"],
                    ops_url=facts["ops_url"],
                    data_dir=str(self._data_dir),
                    database_url=url,
                    supervisor_pid=facts["supervisor_pid"],
                    simulator_tally=None if tally is None else str(tally),
                    token=token,
                    simulated=tuple(row["name"] for row in vendors if row["is_simulator"]),
                )
            )
            await self._keep(gateway, simulator, postgres, url)

    async def _keep(
        self,
        gateway: KeptProcess,
        simulator: "_Simulator | None",
        postgres: EmbeddedPostgres | None,
        url: str,
    ) -> None:
        try:
            async with asyncio.TaskGroup() as kept:
                kept.create_task(gateway.keep())
                if simulator is not None and simulator.process is not None:
                    kept.create_task(simulator.process.keep())
                if postgres is not None:
                    kept.create_task(self._watch(postgres, url))
        except* ControlError as group:
            raise group.exceptions[0] from group

    # -------------------------------------------------------------------------------- database

    def _open_database(
        self, opened: contextlib.AsyncExitStack
    ) -> tuple[EmbeddedPostgres | None, str]:
        if self._place.url is not None:
            return None, self._place.url
        postgres = EmbeddedPostgres(self._data_dir, binaries=wheel_binaries())
        url = postgres.start()
        opened.callback(postgres.stop)
        return postgres, url

    async def _watch(self, postgres: EmbeddedPostgres, url: str) -> None:
        """Start PostgreSQL again when it was killed."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if postgres.pid is not None:
                continue
            self._note("PostgreSQL has ended; it is started again.")
            try:
                started = postgres.start()
            except DatabaseUnreachable as error:
                self._note(error.message)
                continue
            if started != url:
                raise DatabaseUnreachable("PostgreSQL's port is taken: start again.")

    async def _gateway_login(
        self, owner: asyncpg.Connection, machine: Machine, url: str
    ) -> dict[str, str]:
        """Return the gateway's URLs: the operator's, or with a role of this machine's own."""
        named = read_secret(self._environment, "KAIXU_GATEWAY_DATABASE_URL")
        if named is None:
            try:
                await keep_role(owner, machine)
            except asyncpg.InsufficientPrivilegeError as error:
                raise Refused(
                    "The owner of this database may not make roles: give it CREATEROLE, or name "
                    "the gateway's own login in KAIXU_GATEWAY_DATABASE_URL."
                ) from error
            named = with_login(url, user=machine.role, password=machine.password)
        feed = read_secret(self._environment, "KAIXU_FEED_DATABASE_URL") or named
        return {"KAIXU_GATEWAY_DATABASE_URL": named, "KAIXU_FEED_DATABASE_URL": feed}

    async def _first_token(self, url: str) -> str:
        async with connected(url, migrated=True) as owner:
            token = NewToken(text=generate(), life=TOKEN_LIFE_DEFAULT, name="first")
            await create_token(owner, token, ids=self._ids)
        return token.text

    # -------------------------------------------------------------------------- keys and vendors

    async def _vault(self, owner: asyncpg.Connection, *, has_keys: bool) -> dict[str, str]:
        """Return how the gateway finds its private key: the operator's, or the data folder's."""
        private = read_secret(self._environment, "KAIXU_VAULT_KEY")
        path = self._data_dir / "vault.key"
        if private is not None:
            try:
                await register_public_key(owner, public_of(private.split()[0]))
            except KeyTextInvalid as error:
                raise BadArgument(str(error), field="KAIXU_VAULT_KEY") from error
            names = ("KAIXU_VAULT_KEY", "KAIXU_VAULT_KEY_FILE")
            return {n: self._environment[n] for n in names if self._environment.get(n)}
        if command := self._environment.get("KAIXU_VAULT_KEY_COMMAND"):
            # Its public key is registered by `kaixu vault reseal`: what opens is not for us to see.
            return {"KAIXU_VAULT_KEY_COMMAND": command}
        if not path.exists():
            if await public_keys(owner):  # other machines' gateways have the key to them
                is_sealed = any(not row["is_simulator"] for row in await list_vendors(owner))
                if is_sealed or has_keys:
                    raise Refused(
                        "This database's vendor keys are sealed to a key that this machine does "
                        "not have: name it in KAIXU_VAULT_KEY_FILE.",
                        field="KAIXU_VAULT_KEY_FILE",
                        code="no_vault_key",
                    )
                return {}
            write_private(path, keygen().private + "\n")
        try:
            public = public_of(path.read_text(encoding="ascii").split()[0])
        except (KeyTextInvalid, ValueError, IndexError) as error:
            raise Refused(f"{path} holds no vault key: put it back from your backup.") from error
        await register_public_key(owner, public)
        return {"KAIXU_VAULT_KEY_FILE": str(path)}

    async def _keep_vendors(
        self,
        owner: asyncpg.Connection,
        keys: Mapping[str, str | None],
        simulator: "_Simulator | None",
    ) -> None:
        present = {row["name"]: row for row in await list_vendors(owner)}
        for name, key in keys.items():
            row = present.get(name)
            if key is not None and row is not None and not row["is_simulator"]:
                await rotate_vendor(owner, name, key, origin=SYSTEM)
            elif key is not None:
                base_url = KINDS[name].default_base_url
                vendor = NewVendor(name=name, kind=name, base_url=base_url, key=key)
                await add_vendor(owner, vendor, origin=SYSTEM)
            elif simulator is not None and (row is None or row["is_simulator"]):
                base_url = f"http://127.0.0.1:{simulator.port}{SIMULATOR_PATHS[name]}"
                if row is None or row["base_url"] != base_url:
                    await add_vendor(
                        owner,
                        NewVendor(
                            name=name, kind=name, base_url=base_url, key="", is_private=True,
                            is_simulator=True,
                        ),
                        origin=SYSTEM,
                    )  # fmt: skip

    async def _open_simulator(
        self,
        owner: asyncpg.Connection,
        opened: contextlib.AsyncExitStack,
        keys: Mapping[str, str | None],
    ) -> "_Simulator | None":
        """Start the simulator where some vendor needs it, on the port where the vendors expect it.

        Machines that share a database and are one (a trial) share the simulator of the first.
        """
        present = {row["name"]: row for row in await list_vendors(owner)}
        needs = [
            n for n in keys if keys[n] is None and (n not in present or present[n]["is_simulator"])
        ]
        simulated = [row for row in present.values() if row["is_simulator"]]
        if not needs and not simulated:
            return None
        port = urlsplit(simulated[0]["base_url"]).port or 0 if simulated else 0
        if port and await _is_listening(port):
            if not self._place.is_embedded:
                return _Simulator(port=port)
            port = 0
        folder = self._data_dir / "simulator"
        make_private(folder)
        simulator = _Simulator(port=port, tally=folder / "tally.jsonl")
        simulator.process = KeptProcess(
            "simulator",
            lambda: (simulator.command(), reduced(self._environment)),
            note=self._note,
            ready_seconds_max=READY_SECONDS_MAX,
            dies_with_us=True,
        )
        self._processes.append(simulator.process)
        opened.push_async_callback(simulator.process.stop, seconds_max=SIMULATOR_STOP_SECONDS)
        simulator.port = (await simulator.process.start())["port"]
        return simulator

    # --------------------------------------------------------------------------------- gateway

    def _gateway(self, machine: Machine, secret: Mapping[str, str]) -> KeptProcess:
        journal = self._data_dir / "journal"
        make_private(journal)
        settings = {
            name: self._environment[name]
            for name in GATEWAY_SETTINGS
            if self._environment.get(name)
        }

        def start() -> tuple[Sequence[str], dict[str, str]]:
            environment = {
                **reduced(self._environment),
                "KAIXU_MACHINE": machine.name,
                **settings,
                **secret,
                "KAIXU_JOURNAL_DIR": str(journal),
                "KAIXU_HOST": self._options.host,
                "KAIXU_PORT": str(self._port),
                "KAIXU_OPS_PORT": str(self._ops_port),
                "KAIXU_PARENT_PIPE": "1",
            }
            if self._options.workers is not None:
                environment["KAIXU_WORKERS"] = str(self._options.workers)
            return self._options.gateway, environment

        return KeptProcess(
            "gateway",
            start,
            note=self._note,
            ready_seconds_max=READY_SECONDS_MAX,
            dies_with_us=False,
        )


@dataclass(slots=True, kw_only=True)
class _Simulator:
    """The simulator; `process` and `tally` are None where it is another `up`'s."""

    port: int
    tally: Path | None = None
    process: KeptProcess | None = None

    def command(self) -> list[str]:
        """Return how it is started; on the same port again once it has one."""
        start = [sys.executable, "-P", "-m", "gateway.vendors.simulator"]
        return [*start, "--port", str(self.port), "--tally", str(self.tally)]


@contextlib.contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Hold the data folder. Raises Refused where another `up` does."""
    try:
        make_private(data_dir)
        lock = os.open(data_dir / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise BadArgument(f"{data_dir} can't be used: {error.strerror}.", field="data") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise Refused(
                f"`kaixu up` runs on {data_dir} already (process {holder}).",
                field="data",
                code="already_running",
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


async def _is_listening(port: int) -> bool:
    def connect() -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=CONNECT_SECONDS),
        ):
            return True
        return False

    return await asyncio.to_thread(connect)


def _drain_seconds(text: str) -> float:
    if text == "0":
        return 0.0
    try:
        return parse_duration(text, field="KAIXU_DRAIN_TIMEOUT").total_seconds()
    except ControlError:
        return DRAIN_SECONDS_DEFAULT  # in another form, or faulty: the gateway says so
