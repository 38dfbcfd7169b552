"""One measurement: a system started anew, a workload on it, what everybody used meanwhile."""

import json
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Latency, latency_of, read_samples
from benchmarks.install import Programs
from benchmarks.processes import (
    MachineTime,
    Placement,
    RigError,
    cpu_seconds,
    crowd_percent,
    last_lines,
    machine_time,
    memory_bytes,
    pinned,
    read_line,
    started,
    steal_percent,
)
from benchmarks.systems import LOOPBACK, Running, VendorAddress
from benchmarks.workloads import MICROSECONDS, Workload

ASK_SECONDS_MAX: Final = 10.0  # the vendor, how many connections it has accepted
LOAD_SECONDS_MAX: Final = 300.0  # of one run of the load client
FIRST_CALLS: Final = 64  # before memory is taken: lazy parts of a system have loaded then
# As a share of one core; the calls' rate when latency is taken.
LATENCY_LOAD: Final = 1 / 3
LATENCY_CONNECTIONS: Final = 32
KEPT_UP: Final = 0.9  # of the calls that were due in the window; below it latency is a queue's
OUT_OF_PACE: Final = 0.1  # who is late sends events together, and saves on each
KIB: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one system did in one round of one workload. CPU times are µs per unit.

    `error`: why it is not to be counted. `added` and `added_first_byte` are over what the vendor
    takes without anybody between. None: not taken.
    """

    workload: str
    system: str
    round: int
    error: str | None = None
    note: str | None = None  # why a part of it was not taken
    cpu_us: float | None = None
    database_us: float | None = None
    vendor_us: float | None = None
    load_us: float | None = None
    per_second: float | None = None
    calls_per_second: float | None = None  # at which latency was taken
    latency: Latency | None = None
    added: Latency | None = None
    first_byte_us: float | None = None  # the median
    added_first_byte_us: float | None = None
    memory_per_stream_kib: float | None = None
    memory_mib: float | None = None  # with the load on
    steal_percent: float = 0.0
    crowd_percent: float = 0.0  # of all CPU time, used by processes that are no part of this
    streams: int | None = None
    vendor_connections: int | None = None  # that the system opened to the vendor for its calls
    ledger_calls: int | None = None  # that the rig found in the ledger, all that were made
    miss_cpu_us: float | None = None
    miss_database_us: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """CPU seconds of everybody, and the machine's ticks."""

    system: float
    database: float
    vendor: float
    load: float
    machine: MachineTime


@dataclass(slots=True, kw_only=True)
class Load:
    """What a run of the load client told."""

    facts: dict[str, Any]
    before: Used
    after: Used
    memory: int
    latencies: Latency | None
    first_bytes: Latency | None

    @property
    def calls_sent(self) -> int:
        """All calls, those before and after the window included."""
        return int(self.facts["calls_sent"])

    @property
    def seconds(self) -> float:
        """The window's length."""
        return float(self.facts["seconds"])

    def count(self, unit: str) -> int:
        """Return how many calls or events ended in the window."""
        return int(self.facts["calls" if unit == "call" else "events"])

    def keeps_up(self, rate: float) -> bool:
        """Return whether calls were answered as fast as the clock sent them."""
        return self.count("call") >= KEPT_UP * rate * self.seconds

    @property
    def crowd_percent(self) -> float:
        """Return the share of all CPU time that others than we used in the window."""
        parts = ("system", "database", "vendor", "load")
        used = sum(getattr(self.after, one) - getattr(self.before, one) for one in parts)
        return crowd_percent(self.before.machine, self.after.machine, used_seconds=used)

    def per_unit(self, who: str, unit: str) -> float:
        """Return the CPU µs that `who` used for each call or event."""
        used = getattr(self.after, who) - getattr(self.before, who)
        return float(used) * MICROSECONDS / max(self.count(unit), 1)


@dataclass(kw_only=True)
class Bench:
    """The vendor, and runs of the load client."""

    programs: Programs
    placement: Placement
    folder: Path
    vendor: VendorAddress
    vendor_pid: int
    _asked: int = 0

    def connections(self, *, by_tls: bool) -> int:
        """Return how many connections the vendor has accepted, these questions not counted."""
        url = f"http://{LOOPBACK}:{self.vendor.port}/connections"
        with urllib.request.urlopen(url, timeout=ASK_SECONDS_MAX) as answer:
            told = json.loads(answer.read())
        self._asked += 1
        return int(told["tls"] if by_tls else told["plain"] - self._asked)

    def body_file(self, workload: Workload) -> Path:
        """Return a file with the workload's body."""
        path = self.folder / f"body-{workload.name}"
        path.write_bytes(workload.body())
        return path

    def direct(self) -> Running:
        """Return the vendor as if it were a system: what there is without one."""
        return Running(port=self.vendor.port, roots=())

    def run(
        self,
        workload: Workload,
        running: Running,
        *,
        rewrites: bool = False,
        rate: float = 0.0,
        requests: int = 0,
    ) -> Load:
        """Put a load on a system. Raises RigError where an answer is not what the vendor sent."""
        latencies, first_bytes = self.folder / "latencies", self.folder / "first-bytes"
        command = [
            str(self.programs.load), "--port", str(running.port), "--path", running.path,
            "--answer", workload.answer, "--body", str(self.body_file(workload)),
            "--connections", str(workload.connections),
            "--ramp", f"{workload.ramp_seconds:.3f}", "--warmup", f"{workload.warm_seconds:.3f}",
            "--seconds", f"{workload.seconds:.3f}", "--rate", f"{rate:.3f}",
            "--requests", str(requests),
            "--latencies", str(latencies), "--first-bytes", str(first_bytes),
        ]  # fmt: skip
        for header in running.headers:
            command += ["--header", header]
        if running.tokens is not None:
            command += ["--tokens", str(running.tokens)]
        if rewrites:
            command.append("--loose")
        if workload.asks_usage:
            command.append("--usage")
        with self._load(command) as process:
            _expect(process, "begin")
            before = self._used(running, process.pid)
            _expect(process, "end")
            after = self._used(running, process.pid)
            memory = memory_bytes(running.roots, without=running.database)
            line = read_line(process, what="the load client", seconds=LOAD_SECONDS_MAX)
        facts = json.loads(line)
        errors = {name: count for name, count in facts["errors"].items() if count}
        if errors:
            status = facts["first_bad_status"]
            told = ", ".join(f"{count} {name}" for name, count in errors.items())
            raise RigError(f"wrong answers: {told}{f' (status {status})' if status else ''}")
        return Load(
            facts=facts,
            before=before,
            after=after,
            memory=memory,
            latencies=latency_of(read_samples(latencies)),
            first_bytes=latency_of(read_samples(first_bytes)),
        )

    @contextmanager
    def _load(self, command: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
        log = self.folder / "load.log"
        log.unlink(missing_ok=True)
        with log.open("w") as errors, pinned(self.placement.others):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield process
            process.wait(LOAD_SECONDS_MAX)
        except RigError as error:
            raise RigError(f"{error}: {last_lines(log)}") from error
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def _used(self, running: Running, load_pid: int) -> Used:
        return Used(
            system=cpu_seconds(running.roots, without=running.database),
            database=cpu_seconds(running.database),
            vendor=cpu_seconds([self.vendor_pid]),
            load=cpu_seconds([load_pid]),
            machine=machine_time(),
        )


@contextmanager
def opened_bench(
    programs: Programs,
    *,
    placement: Placement,
    folder: Path,
    certificate: tuple[Path, Path, Path],
) -> Iterator[Bench]:
    """Run the vendor; `certificate` is (authority, chain, key)."""
    authority, chain, key = certificate
    command = [str(programs.vendor)]
    if programs.has_tls:
        command += ["--cert", str(chain), "--key", str(key)]
    log = folder / "vendor.log"
    with started(command, log=log, environment={}, cpus=placement.others, folder=folder) as process:
        facts = json.loads(read_line(process, what="the vendor", seconds=10))
        address = VendorAddress(port=facts["port"], tls_port=facts["tls_port"], authority=authority)
        yield Bench(
            programs=programs,
            placement=placement,
            folder=folder,
            vendor=address,
            vendor_pid=process.pid,
        )


def _expect(process: "subprocess.Popen[str]", word: str) -> None:
    line = read_line(process, what="the load client", seconds=LOAD_SECONDS_MAX).strip()
    if line != word:
        raise RigError(f"the load client said {line!r} in place of {word!r}")


# ------------------------------------------------------------------------------- one measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Direct:
    """What the vendor takes by itself, in the same round."""

    latency: Latency | None
    first_byte: Latency | None


def measure_direct(bench: Bench, workload: Workload, *, rate: float) -> Direct:
    """Take the latencies without a system, by calls at `rate` or by the workload's streams."""
    told = bench.run(
        by_clock(workload) if workload.by_clock else replace(workload, by_tls=False),
        bench.direct(),
        rate=rate,
    )
    return Direct(latency=told.latencies, first_byte=told.first_bytes)


def by_clock(workload: Workload) -> Workload:
    """Return the run that takes a workload's latency."""
    return replace(
        workload,
        connections=LATENCY_CONNECTIONS,
        warm_seconds=min(workload.warm_seconds, 1.0),
    )


def measure(
    bench: Bench,
    workload: Workload,
    running: Running,
    *,
    system: str,
    number: int,
    rewrites: bool,
    rate_most: float | None,
    direct: Callable[[float], Direct],
) -> Measurement:
    """Measure a running system.

    `rate_most`: calls a second at which latency is taken, or a third of what the system can do
    where that is less; None: just that. `direct` gives the vendor's latencies at such a rate.
    Raises RigError where the system garbles, drops or refuses, or calls are not in the ledger.
    """
    unit = workload.unit
    made = 0
    if workload.is_stream:  # their memory is counted from a process that has served some calls
        first = workload.first_calls()
        made += bench.run(first, running, rewrites=rewrites, requests=FIRST_CALLS).calls_sent
    memory = memory_bytes(running.roots, without=running.database)
    connections = bench.connections(by_tls=workload.by_tls)
    load = bench.run(workload, running, rewrites=rewrites)
    connections = bench.connections(by_tls=workload.by_tls) - connections
    made += load.calls_sent
    cpu_us, per_second = load.per_unit("system", unit), load.count(unit) / load.seconds
    measured = Measurement(
        workload=workload.name,
        system=system,
        round=number,
        cpu_us=cpu_us,
        database_us=load.per_unit("database", unit) if running.database else None,
        vendor_us=load.per_unit("vendor", unit),
        load_us=load.per_unit("load", unit),
        per_second=per_second,
        memory_mib=load.memory / KIB**2,
        vendor_connections=connections,
        steal_percent=steal_percent(load.before.machine, load.after.machine),
        crowd_percent=load.crowd_percent,
        latency=load.latencies if workload.is_stream else None,
        first_byte_us=load.first_bytes.p50 if load.first_bytes and workload.is_stream else None,
    )
    alone = Direct(latency=None, first_byte=None)
    pace = workload.events_per_second
    if pace is not None and abs(per_second / pace - 1) > OUT_OF_PACE:
        told = f"{per_second:,.0f} events a second in place of {pace:,.0f}"
        measured = replace(measured, note=f"not in pace, so no fair figure: {told}")
    if workload.by_clock:
        own = LATENCY_LOAD * MICROSECONDS / max(cpu_us, 1.0)
        rate = own if rate_most is None else min(own, rate_most)
        timed = bench.run(by_clock(workload), running, rewrites=rewrites, rate=rate)
        made += timed.calls_sent
        if timed.keeps_up(rate):
            measured = replace(measured, calls_per_second=rate, latency=timed.latencies)
            alone = direct(rate)
        else:
            note = f"latency not taken: could not keep up with {rate:.0f} calls a second"
            measured = replace(measured, note=note)
    elif workload.is_stream:
        measured = replace(
            measured,
            streams=workload.connections,
            memory_per_stream_kib=(load.memory - memory) / workload.connections / KIB,
        )
        alone = direct(0.0)
    if running.check is not None:
        running.check(made)
        measured = replace(measured, ledger_calls=made)
    return _with_added(measured, alone)


def _with_added(measured: Measurement, alone: Direct) -> Measurement:
    added = None
    if measured.latency is not None and alone.latency is not None:
        added = measured.latency.minus(alone.latency)
    first = None
    if measured.first_byte_us is not None and alone.first_byte is not None:
        first = measured.first_byte_us - alone.first_byte.p50
    return replace(measured, added=added, added_first_byte_us=first)


def measure_store(
    bench: Bench, workload: Workload, running: Running, *, system: str, number: int, callers: int
) -> Measurement:
    """Measure calls with many tokens: each one's first call is a miss and is told apart."""
    missed = bench.run(workload, running, requests=callers)
    hit = bench.run(workload, running)
    assert running.check is not None
    running.check(missed.calls_sent + hit.calls_sent)
    return Measurement(
        workload=workload.name,
        system=system,
        round=number,
        cpu_us=hit.per_unit("system", "call"),
        database_us=hit.per_unit("database", "call"),
        vendor_us=hit.per_unit("vendor", "call"),
        load_us=hit.per_unit("load", "call"),
        per_second=hit.count("call") / hit.seconds,
        memory_mib=hit.memory / KIB**2,
        steal_percent=steal_percent(hit.before.machine, hit.after.machine),
        crowd_percent=hit.crowd_percent,
        ledger_calls=missed.calls_sent + hit.calls_sent,
        miss_cpu_us=missed.per_unit("system", "call"),
        miss_database_us=missed.per_unit("database", "call"),
    )
