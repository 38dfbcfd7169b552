"""The product as an operator runs it: `kaixu up` in a process, and the commands beside it."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil
from prometheus_client.parser import text_string_to_metric_families

KAIXU: Final = Path(sys.executable).with_name("kaixu")
SIMULATOR: Final = (sys.executable, "-m", "gateway.vendors.simulator")
PROJECT: Final = Path(__file__).resolve().parents[2]

START_SECONDS_MAX: Final = 90.0
STOP_SECONDS_MAX: Final = 60.0
COMMAND_SECONDS_MAX: Final = 60.0
VISIBLE_SECONDS_MAX: Final = 20.0  # a closed call's row is due within 1 s; the machine is busy
POLL_SECONDS: Final = 0.05

Row = dict[str, Any]
T = TypeVar("T")


def clean_environment(home: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a fresh machine, with nothing of the test run's in it."""
    return {"PATH": os.defpath, "HOME": str(home), "LC_ALL": "C.UTF-8", **more}


class CommandFailed(AssertionError):
    """A command exited with another code than 0."""

    def __init__(self, arguments: Sequence[str], code: int, stderr: str) -> None:
        super().__init__(f"kaixu {' '.join(arguments)}: exit {code}\n{stderr}")
        self.code = code
        self.stderr = stderr


def eventually(look: Callable[[], T | None], *, seconds: float, what: str) -> T:
    """Return the first true result of `look`; fail where none comes in time."""
    deadline = time.monotonic() + seconds
    while not (result := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"Not within {seconds} s: {what}")
        time.sleep(POLL_SECONDS)
    return result


def mistyped(token: str) -> str:
    """Return a token as somebody gets it who copies it badly."""
    return token[:-1] + ("0" if token[-1] != "0" else "1")


def first_line(process: "subprocess.Popen[str]", *, seconds: float) -> str:
    """Return the first line that a process prints; fail where it ends or takes too long."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    line = process.stdout.readline() if ready else ""
    if not line.endswith("\n"):
        raise AssertionError(f"Not ready within {seconds} s (exit code {process.poll()})")
    return line


@dataclass(kw_only=True)
class Product:
    """A started product. `facts` is the line that it printed; `log` takes its stderr."""

    process: "subprocess.Popen[str]"
    facts: dict[str, Any]
    data_dir: Path
    log: Path
    environment: dict[str, str]

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        workers: int = 2,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> "Product":
        """Run `kaixu up` on a folder, new or used; return when it says that it is ready."""
        data_dir.mkdir(parents=True, exist_ok=True)
        log = data_dir.parent / f"{data_dir.name}.log"
        clean = clean_environment(data_dir.parent, environment or {})
        ports = ("--port", "0", "--ops-port", "0", "--admin-port", "0")
        command = [str(KAIXU), "up", "--json", "--data", str(data_dir), *ports]
        with log.open("a") as errors:
            process = subprocess.Popen(
                [*command, "--workers", str(workers), *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=clean,
                cwd=data_dir.parent,
                start_new_session=True,
            )
        product = cls(process=process, facts={}, data_dir=data_dir, log=log, environment=clean)
        try:
            product.facts = json.loads(first_line(process, seconds=START_SECONDS_MAX))
        except BaseException:
            product.destroy()
            print(log.read_text()[-4000:])
            raise
        return product

    @property
    def url(self) -> str:
        return str(self.facts["gateway_url"]).rstrip("/")

    @property
    def ops_url(self) -> str:
        return str(self.facts["ops_url"]).rstrip("/")

    @property
    def token(self) -> str:
        """The token of the first start."""
        return str(self.facts["token"])

    @property
    def tally_file(self) -> Path:
        return Path(self.facts["simulator_tally"])

    # -------------------------------------------------------------------------------- commands

    def run(self, *arguments: str, stdin: str = "") -> str:
        """Run a command on this data folder; return what it printed. Raises CommandFailed."""
        command = [str(KAIXU), *arguments, "--data", str(self.data_dir)]
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
        if done.returncode != 0:
            raise CommandFailed(arguments, done.returncode, done.stderr)
        return done.stdout

    def run_help(self) -> str:
        """Return what `kaixu --help` says."""
        done = subprocess.run(
            [str(KAIXU), "--help"],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=COMMAND_SECONDS_MAX,
            check=True,
        )
        return done.stdout

    def kaixu(self, *arguments: str, stdin: str = "") -> Any:
        """Run a command with --json; return its document."""
        return json.loads(self.run(*arguments, "--json", stdin=stdin))

    async def kaixu_aside(self, *arguments: str, stdin: str = "") -> Any:
        """Run a command while the test's streams go on."""
        return await asyncio.to_thread(self.kaixu, *arguments, stdin=stdin)

    def new_token(self, *options: str) -> tuple[str, str]:
        """Create a token; return its text and its id."""
        made = self.kaixu("token", "create", *options)
        return made["token"], made["id"]

    def add_vendor(
        self, name: str, *, kind: str, base_url: str, key: str, options: Sequence[str] = ()
    ) -> Row:
        """Add a vendor on this machine."""
        fixed = ("--kind", kind, "--base-url", base_url, "--key-file", "-", "--private")
        added: Row = self.kaixu("vendor", "add", name, *fixed, *options, stdin=key)
        return added

    def events(self) -> list[Row]:
        """Return every usage event so far."""
        return [json.loads(line) for line in self.run("usage", "events").splitlines()]

    def events_of(self, *, count: int, **members: object) -> list[Row]:
        """Return the events with these members, once there are `count`; fail on more."""

        def look() -> list[Row] | None:
            rows = [row for row in self.events() if all(row[k] == v for k, v in members.items())]
            return rows if len(rows) >= count else None

        what = f"{count} usage events with {members}"
        rows = eventually(look, seconds=VISIBLE_SECONDS_MAX, what=what)
        assert len(rows) == count, f"{len(rows)} events, not {what}"
        return rows

    def event_of(self, **members: object) -> Row:
        """Return the one event with these members."""
        return self.events_of(count=1, **members)[0]

    def tally(self) -> list[Row]:
        """Return the simulator's own lines; one that is being written is left out."""
        whole, _, _ = self.tally_file.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def tallied(self) -> list[Row]:
        """Return the calls that reached the simulator."""
        return [line for line in self.tally() if "path" in line]

    # ------------------------------------------------------------------------------- processes

    def readiness(self) -> Row | None:
        """Return what /readyz says where it says 200, else None."""
        try:
            with urllib.request.urlopen(  # noqa: S310 - our own
                f"{self.ops_url}/readyz", timeout=5
            ) as answer:
                ready: Row = json.load(answer)
        except (urllib.error.URLError, OSError, ValueError):
            return None
        return ready if ready["ready"] else None

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a metric that have these labels."""
        with urllib.request.urlopen(  # noqa: S310 - our own
            f"{self.ops_url}/metrics", timeout=5
        ) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and sample.labels.items() >= labels.items()
        )

    def wait_until_ready(self, *, seconds: float = START_SECONDS_MAX) -> Row:
        """Return what /readyz says once it says 200."""
        return eventually(self.readiness, seconds=seconds, what="/readyz answers 200")

    def gateway_processes(self) -> list[psutil.Process]:
        """Return the supervisor and its workers, whatever killed and restarted them before."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if "gateway" in process.cmdline():
                    found.append(process)
        return found

    def worker_pids(self) -> list[int]:
        """Return the workers that take calls."""
        return [worker["pid"] for worker in self.wait_until_ready()["workers"]]

    def kill_gateway(self) -> tuple[int, float, float]:
        """Kill every gateway process by SIGKILL, at once; return how many, from when to when."""
        processes = self.gateway_processes()
        began = time.time()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        gone, alive = psutil.wait_procs(processes, timeout=10)
        assert not alive
        return len(gone), began, time.time()

    def stop(self) -> int:
        """Press Ctrl-C; return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=STOP_SECONDS_MAX)

    def destroy(self) -> None:
        """Leave no process behind, whatever happened."""
        if self.process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self.stop()
        with suppress(psutil.Error):
            family = [psutil.Process(self.process.pid)]
            family += family[0].children(recursive=True)
            for process in family:
                with suppress(psutil.Error):
                    process.kill()
        self.process.wait(timeout=STOP_SECONDS_MAX)
        if self.process.stdout is not None:
            self.process.stdout.close()
        for file in self.data_dir.glob("postgresql-*/cluster/postmaster.pid"):
            with suppress(OSError, ValueError, IndexError, psutil.Error):
                server = psutil.Process(int(file.read_text().split()[0]))
                if server.cwd() == str(file.parent.resolve()):
                    server.send_signal(signal.SIGQUIT)
                    server.wait(timeout=STOP_SECONDS_MAX)


class Simulator:
    """A simulated vendor of a test's own, beside the product's."""

    def __init__(self, tally_file: Path) -> None:
        self.tally_file = tally_file
        self.process = subprocess.Popen(
            [*SIMULATOR, "--tally", str(tally_file)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
        )
        line = first_line(self.process, seconds=START_SECONDS_MAX)
        self.url = f"http://127.0.0.1:{json.loads(line)['port']}"

    def tally(self) -> list[Row]:
        """Return its lines."""
        whole, _, _ = self.tally_file.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def stop(self) -> None:
        """Stop it."""
        self.process.terminate()
        self.process.communicate(timeout=STOP_SECONDS_MAX)
