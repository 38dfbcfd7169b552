"""Our gateway, started by its own command, with everything on; and the count of its ledger.

`kaixu up` on a folder of its own: the embedded PostgreSQL, tokens in it, a vendor whose key is
sealed, an alias for the model; on the token a monthly limit, a rate window and a cap on open calls.
What is counted as the gateway's is all of `kaixu up` except PostgreSQL.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import asyncpg

from benchmarks.processes import RigError, last_lines, move, read_line, started
from benchmarks.systems import VENDOR_KEY, Around, Running
from benchmarks.workloads import ALIAS_PREFIX, DISTINCT_TOKENS, VENDOR_PREFIX, Workload
from gateway.auth.token import digest, generate, hint
from gateway.ids import IdMaker
from gateway.sql import load_queries

KAIXU: Final = Path(sys.executable).with_name("kaixu")
START_SECONDS_MAX: Final = 180.0  # the first start makes a database
COMMAND_SECONDS_MAX: Final = 120.0
LEDGER_SECONDS_MAX: Final = 60.0  # a busy run's rows are still on their way to the database
# Limits that are kept and never reached.
CALLS_A_MONTH: Final = 1_000_000_000
CALLS_A_WINDOW: Final = 100_000_000
WINDOW_SECONDS: Final = 60
OPEN_CALLS: Final = 1_000_000
VENDOR_NAME: Final = "openai"  # the default for its format

_QUERIES: Final = load_queries(__package__, "ours.sql")
_COUNT_CALLS = _QUERIES["count_calls"]
_ADD_TOKENS = _QUERIES["add_tokens"]
_FILL_TOKENS = _QUERIES["fill_tokens"]
_SETTLE = _QUERIES["settle"]

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How ours is set up.

    `program`: what stands before the arguments of `kaixu`; `has_month`, `has_permits`: whether the
    token has a monthly limit, and a rate window and a cap on open calls. `settings`: more of the
    gateway's environment.
    """

    program: tuple[str, ...] = (str(KAIXU),)
    workers: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)
    has_month: bool = True
    has_permits: bool = True

    def limits(self) -> tuple[str, ...]:
        """Return the options of `kaixu token create`."""
        month = ("--limit", str(CALLS_A_MONTH))
        window = ("--rate", f"{CALLS_A_WINDOW}/{WINDOW_SECONDS}s")
        cap = ("--concurrency", str(OPEN_CALLS))
        return (*(month if self.has_month else ()), *((*window, *cap) if self.has_permits else ()))


class Ours:
    """Our gateway; its data outlives the starts of one run."""

    name = "ours"
    notes: tuple[str, ...] = ()
    rewrites = False
    streams_most: Mapping[str, int] = MappingProxyType({})
    speaks = (
        "tokens in the database, checksum, monthly limit, rate window, cap on open calls, journal "
        "with group sync, metering, ledger, metrics, header policy, alias and usage splices"
    )

    def __init__(self, setup: Setup | None = None) -> None:
        """Take what is installed beside this Python, with everything on."""
        self._setup = setup or Setup()
        shown = subprocess.run([KAIXU, "--version"], capture_output=True, text=True, check=True)
        self.version = shown.stdout.split()[-1]

    @contextlib.contextmanager
    def start(self, workload: Workload, around: Around) -> Iterator[Running]:
        """Start it anew; see System."""
        with self.up(around, name="tls" if workload.by_tls else "plain") as product:
            yield product.ready(workload, around)

    @contextlib.contextmanager
    def start_with_store(
        self, workload: Workload, around: Around, *, tokens: int
    ) -> Iterator[Running]:
        """Start it with so many tokens in its store, some of which call."""
        with self.up(around, name=f"store-{tokens}") as product:
            product.keep_vendor(workload, around)
            callers = product.fill(tokens)
            product.settle()
            yield product.running(headers=(), tokens=callers)

    @contextlib.contextmanager
    def up(self, around: Around, *, name: str) -> Iterator["Product"]:
        """Run `kaixu up`."""
        folder = around.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log"
        setup = self._setup
        environment = {
            "PATH": os.defpath,
            "HOME": str(folder),
            "LC_ALL": "C.UTF-8",
            "SSL_CERT_FILE": str(around.vendor.authority),
            **setup.settings,
        }
        ports = ("--port", "0", "--ops-port", "0", "--admin-port", "0")
        command = [
            *setup.program, "up", "--json", "--data", str(folder / "data"),
            "--workers", str(setup.workers), *ports,
        ]  # fmt: skip
        with started(
            command,
            log=log,
            environment=environment,
            cpus=around.placement.system,
            folder=folder,
            stop_signal=signal.SIGINT,
        ) as process:
            try:
                line = read_line(process, what="kaixu up", seconds=START_SECONDS_MAX)
            except RigError as error:
                raise RigError(f"{error}: {last_lines(log)}") from error
            product = Product(
                json.loads(line), process.pid, folder=folder, environment=environment, setup=setup
            )
            move([product.postgres], around.placement.others)
            yield product


class Product:
    """A running `kaixu up`, and its database as the owner sees it."""

    def __init__(
        self, facts: Row, pid: int, *, folder: Path, environment: dict[str, str], setup: Setup
    ) -> None:
        """`facts` is the line that it said when it was ready."""
        self._setup = setup
        self._facts = facts
        self._pid = pid
        self._folder = folder
        self._environment = environment
        self.ops_url: str = facts["ops_url"]
        self._data = Path(facts["data_dir"])
        self.journal = self._data / "journal"
        (found,) = self._data.glob("postgresql-*/cluster/postmaster.pid")
        self.postgres = int(found.read_text().split()[0])

    def ready(self, workload: Workload, around: Around) -> Running:
        """Make it ready for a workload whose calls have one token."""
        self.keep_vendor(workload, around)
        token = self.token()
        self.settle()
        return self.running(headers=(f"Authorization: Bearer {token}",))

    def running(self, *, headers: tuple[str, ...], tokens: Path | None = None) -> Running:
        """Return how it is measured."""
        before = self.count()

        def check(calls: int) -> None:
            self._check(before, calls)

        return Running(
            port=int(self._facts["gateway_url"].rstrip("/").rpartition(":")[2]),
            roots=(self._pid,),
            headers=headers,
            database=(self.postgres,),
            tokens=tokens,
            check=check,
        )

    # ------------------------------------------------------------------------------ what it knows

    def kaixu(self, *arguments: str, stdin: str = "") -> Any:  # noqa: ANN401 - a JSON document
        """Run a command; return its document. Raises RigError."""
        done = subprocess.run(
            [str(KAIXU), *arguments, "--data", str(self._data), "--json"],
            input=stdin,
            capture_output=True,
            text=True,
            env=self._environment,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
        if done.returncode != 0:
            raise RigError(f"kaixu {' '.join(arguments)}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def keep_vendor(self, workload: Workload, around: Around) -> None:
        """Make the bench vendor the default, in the simulator's place, and name its models."""
        url = f"{around.vendor.origin(workload)}/v1"
        present = {row["name"]: row["base_url"] for row in self.kaixu("vendor", "list")}
        if present.get(VENDOR_NAME) != url:
            self.kaixu(
                "vendor", "add", VENDOR_NAME, "--kind", "openai", "--base-url", url,
                "--key-file", "-", "--private", "--default", "--replace",
                stdin=VENDOR_KEY,
            )  # fmt: skip
        known = {row["name"] for row in self.kaixu("alias", "list")}
        for answer in workload.answers:
            if ALIAS_PREFIX + answer not in known:
                target = f"{VENDOR_NAME}/{VENDOR_PREFIX}{answer}"
                self.kaixu("alias", "set", ALIAS_PREFIX + answer, target)

    def token(self) -> str:
        """Return a token with the set-up's limits, made once for this folder."""
        limits = self._setup.limits()
        path = self._folder / "-".join(["token", *(one[2:] for one in limits[::2])])
        if not path.exists():
            made = self.kaixu("token", "create", *limits)
            path.touch(mode=0o600)
            path.write_text(made["token"])
        return path.read_text()

    def fill(self, tokens: int) -> Path:
        """Put `tokens` into the store, once; return a file with new ones that call.

        New callers each time: the first call of each is a miss.
        """
        callers = [generate() for _ in range(min(tokens, DISTINCT_TOKENS))]
        asyncio.run(self._fill(callers, tokens))
        path = self._folder / "callers"
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text("".join(f"{one}\n" for one in callers))
        return path

    async def _fill(self, callers: list[str], tokens: int) -> None:
        ids = IdMaker(time.time)
        connection = await asyncpg.connect(self._facts["database_url"])
        try:
            await connection.execute(
                _ADD_TOKENS,
                [ids.new() for _ in callers],
                [digest(one) for one in callers],
                [hint(one) for one in callers],
                CALLS_A_MONTH,
                CALLS_A_WINDOW,
                WINDOW_SECONDS,
                OPEN_CALLS,
                timeout=COMMAND_SECONDS_MAX,
            )
            await connection.execute(
                _FILL_TOKENS, tokens, secrets.token_hex(8), timeout=10 * COMMAND_SECONDS_MAX
            )
        finally:
            await connection.close()

    def settle(self) -> None:
        """Let the database finish what came before the measurement."""
        asyncio.run(self._settle())

    async def _settle(self) -> None:
        connection = await asyncpg.connect(self._facts["database_url"])
        try:
            await connection.execute(_SETTLE, timeout=COMMAND_SECONDS_MAX)
        finally:
            await connection.close()

    # --------------------------------------------------------------------------------- its ledger

    def count(self) -> dict[str, int]:
        """Return what `count_calls` counts."""
        return asyncio.run(self._count_async())

    async def _count_async(self) -> dict[str, int]:
        connection = await asyncpg.connect(self._facts["database_url"])
        try:
            row = await connection.fetchrow(_COUNT_CALLS, timeout=COMMAND_SECONDS_MAX)
        finally:
            await connection.close()
        assert row is not None
        return dict(row)

    def added(self, before: Mapping[str, int], rows: int) -> dict[str, int]:
        """Return by how much the counts have grown, once there are so many rows more."""
        deadline = time.monotonic() + LEDGER_SECONDS_MAX
        while True:
            after = self.count()
            found = {name: count - before[name] for name, count in after.items()}
            if found["rows"] >= rows or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def _check(self, before: Mapping[str, int], calls: int) -> None:
        """Raise RigError unless the ledger got `calls` whole rows more, and no other."""
        added = self.added(before, calls)
        found = {name: added[name] for name in ("rows", "whole")}
        if found != {"rows": calls, "whole": calls}:
            raise RigError(
                f"{calls} calls were made, {found['rows']} are in the ledger, "
                f"{found['whole']} of them complete and with the vendor's usage"
            )


def remove_data(folder: Path) -> None:
    """Remove what earlier runs left; PostgreSQL's files are another user's where we are root."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
