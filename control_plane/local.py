"""`kaixu up`: everything on one machine, started in order, kept running, stopped in order.

PostgreSQL (embedded, unless there is one), migrations, keys, vendors, the simulator, the gateway,
the control plane. The last three are processes of their own: each plane with its own login to the
database and an environment that has nothing that it does not need.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

from control_plane.audit_log import SYSTEM
from control_plane.database import connected
from control_plane.errors import BadArgument, ControlError, DatabaseUnreachable, Refused
from control_plane.files import make_private, write_private
from control_plane.identity.first_owner import (
    EMAIL_DEFAULT,
    EMAIL_SETTING,
    FirstOwner,
    has_account,
    make_first_owner,
)
from control_plane.local_facts import Ready, UpOptions
from control_plane.local_plane import (
    control_environment,
    control_keys,
    has_control_key,
    keep_secrets,
)
from control_plane.local_simulator import Simulator, find_simulator
from control_plane.machine import Login, Machine, held, keep_role, load_machine, with_login
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
CONTROL_STOP_SECONDS: Final = 15.0  # its requests get 10
WATCH_SECONDS: Final = 1.0  # between two looks whether PostgreSQL runs

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
    "KAIXU_ENV",
    "KAIXU_FIRST_BYTE",
    "KAIXU_HOSTS",
    "KAIXU_IDLE",
    "KAIXU_JOURNAL_KEEP_BYTES",
    "KAIXU_LEASE",
    "KAIXU_MACHINE",
    "KAIXU_OFFLINE_STREAM_GRACE",
    "KAIXU_OPS_HOST",
    "KAIXU_STREAM_TOTAL",
    "KAIXU_TRUSTED_PROXIES",
    "KAIXU_VENDOR_HOSTS",
)


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
        if len(asked) == 1 and not up.is_ending:
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
        with held(options.place.data_dir):
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
        self._admin_port = options.admin_port
        self.is_ending = False  # what was started is being stopped

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
        async with contextlib.AsyncExitStack() as opened:
            try:
                await self._run(opened, keys, gate_token, drain_seconds)
            finally:
                self.is_ending = True

    async def _run(
        self,
        opened: contextlib.AsyncExitStack,
        keys: Mapping[str, str | None],
        gate_token: str | None,
        drain_seconds: float,
    ) -> None:
        machine = load_machine(self._data_dir)
        postgres, url = self._open_database(opened)
        async with connected(url, migrated=False) as owner:
            await migrate(owner)
            gateway_login = await self._gateway_login(owner, machine, url)
            control_login = await self._login(
                owner, machine.control, url, setting="KAIXU_CONTROL_DATABASE_URL"
            )
            vault = await self._vault(owner, has_keys=any(keys.values()))
            simulator = await self._open_simulator(owner, opened, keys)
            await self._keep_vendors(owner, keys, simulator)
            is_first = not await any_token_exists(owner)
            if gate_token and not await keep_service_token(owner, gate_token, ids=self._ids):
                self._note("KAIXU_GATE_TOKEN was revoked, and stays so.")
            vendors = await list_vendors(owner)
            has_key = has_control_key(self._data_dir, self._environment)
            knows_secrets = has_key or not await has_account(owner)

        environment = {**gateway_login, **vault}
        gateway = self._gateway(machine, environment)
        self._processes.append(gateway)
        opened.push_async_callback(gateway.stop, seconds_max=drain_seconds + DRAIN_MARGIN_SECONDS)
        planes = [gateway]
        if knows_secrets:
            secrets = keep_secrets(self._data_dir, self._environment)
            planes.append(self._control_plane(control_login, secrets))
            self._processes.append(planes[1])
            opened.push_async_callback(planes[1].stop, seconds_max=CONTROL_STOP_SECONDS)
            first_owner = self._first_owner(url, secrets)
            said, owner_made = await self._ready(planes, first_owner)
        else:
            self._note(
                "The control plane does not run here: the key of its secrets is another "
                "machine's. Name that in KAIXU_CONTROL_KEY_FILE, and JWT_SECRET_FILE."
            )
            said, owner_made = await self._ready(planes, None)
        facts = said[0]
        admin_url = said[1]["admin_url"] if len(said) > 1 else None
        self._ops_port = urlsplit(facts["ops_url"]).port or self._ops_port
        if admin_url is not None:
            self._admin_port = urlsplit(admin_url).port or self._admin_port
        token = await self._first_token(url) if is_first else None
        tally = simulator.tally if simulator is not None else None
        self._announce(
            Ready(
                gateway_url=facts["gateway_url"],
                ops_url=facts["ops_url"],
                admin_url=admin_url,
                data_dir=str(self._data_dir),
                database_url=url,
                supervisor_pid=facts["supervisor_pid"],
                simulator_tally=None if tally is None else str(tally),
                token=token,
                owner=owner_made,
                simulated=tuple(row["name"] for row in vendors if row["is_simulator"]),
            )
        )
        await self._keep(planes, simulator, postgres, url)

    async def _ready(
        self,
        planes: Sequence[KeptProcess],
        first_owner: Coroutine[Any, Any, FirstOwner | None] | None,
    ) -> tuple[list[dict[str, Any]], FirstOwner | None]:
        """Start the planes; return what they say, and the first owner, made meanwhile.

        At once, unless the gateway takes any free port, which the control plane has to know of.
        Raises ControlError, OSError: the first, whichever that is.
        """
        knows_port = self._port != 0

        async def start_gateway(gateway: KeptProcess) -> dict[str, Any]:
            facts = await gateway.start()
            self._port = urlsplit(facts["gateway_url"]).port or self._port
            return facts

        try:
            async with asyncio.TaskGroup() as group:
                made = None if first_owner is None else group.create_task(first_owner)
                said = [group.create_task(start_gateway(planes[0]))]
                if not knows_port:
                    await asyncio.wait(said)
                said += [group.create_task(plane.start()) for plane in planes[1:]]
        except* (ControlError, OSError) as failed:
            raise failed.exceptions[0] from failed
        return [one.result() for one in said], None if made is None else made.result()

    async def _keep(
        self,
        planes: Sequence[KeptProcess],
        simulator: Simulator | None,
        postgres: EmbeddedPostgres | None,
        url: str,
    ) -> None:
        try:
            async with asyncio.TaskGroup() as kept:
                for plane in planes:
                    kept.create_task(plane.keep())
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
        named = await self._login(owner, machine.gateway, url, setting="KAIXU_GATEWAY_DATABASE_URL")
        feed = read_secret(self._environment, "KAIXU_FEED_DATABASE_URL") or named
        return {"KAIXU_GATEWAY_DATABASE_URL": named, "KAIXU_FEED_DATABASE_URL": feed}

    async def _login(
        self, owner: asyncpg.Connection, login: Login, url: str, *, setting: str
    ) -> str:
        """Return a plane's URL: the operator's, or with a role of this machine's own."""
        named = read_secret(self._environment, setting)
        if named is not None:
            return named
        try:
            await keep_role(owner, login)
        except asyncpg.InsufficientPrivilegeError as error:
            raise Refused(
                "The owner of this database may not make roles: give it CREATEROLE, or name a "
                f"login of its own in {setting}."
            ) from error
        return with_login(url, user=login.role, password=login.password)

    async def _first_owner(self, url: str, secrets: Mapping[str, str]) -> FirstOwner | None:
        email = self._environment.get(EMAIL_SETTING) or EMAIL_DEFAULT
        async with connected(url, migrated=True) as owner:
            return await make_first_owner(owner, keys=control_keys(secrets), email=email)

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
        simulator: Simulator | None,
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
    ) -> Simulator | None:
        simulator = await find_simulator(
            owner,
            keys=keys,
            data_dir=self._data_dir,
            is_embedded=self._place.is_embedded,
            environment=self._environment,
            note=self._note,
        )
        if simulator is not None and simulator.process is not None:
            self._processes.append(simulator.process)
            opened.push_async_callback(simulator.process.stop, seconds_max=SIMULATOR_STOP_SECONDS)
            simulator.port = (await simulator.process.start())["port"]
        return simulator

    # ---------------------------------------------------------------------------------- planes

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

    def _control_plane(self, database_url: str, secrets: Mapping[str, str]) -> KeptProcess:
        def start() -> tuple[Sequence[str], dict[str, str]]:
            return self._options.control_plane, control_environment(
                self._environment,
                secrets,
                database_url=database_url,
                port=self._admin_port,
                gateway_url=f"http://{_dialled(self._options.host)}:{self._port}",
                is_embedded=self._place.is_embedded,
            )

        return KeptProcess(
            "control plane",
            start,
            note=self._note,
            ready_seconds_max=READY_SECONDS_MAX,
            dies_with_us=True,
        )


def _dialled(host: str) -> str:
    """Return the host that what is bound to one is reached by from here, as URLs have it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - it is not bound
    return f"[{host}]" if ":" in host else host


def _drain_seconds(text: str) -> float:
    if text == "0":
        return 0.0
    try:
        return parse_duration(text, field="KAIXU_DRAIN_TIMEOUT").total_seconds()
    except ControlError:
        return DRAIN_SECONDS_DEFAULT  # in another form, or faulty: the gateway says so
