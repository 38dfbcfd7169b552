"""One process that keeps one worker per core: it holds their sockets and outlives them.

The supervisor opens one listening socket for each worker on the same port (SO_REUSEPORT) and keeps
it for as long as it lives. So a worker that dies loses no connection that waits to be accepted: the
next one on that socket takes it. Workers hear of the supervisor, and it of them, over a socket pair
each (`worker_link.py`); whoever finds it at its end knows that the other is gone.

It has no database and sees no token, so there is little that could kill it. When something does,
its workers drain by themselves, and whoever started it starts it again.
"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import Any, Final

import msgspec
import orjson

from gateway import ops
from gateway.limits import UNSENT_BYTES_MAX
from gateway.log import Log
from gateway.metrics import MachineMetrics, Series
from gateway.worker_link import (
    DRAIN,
    FDS_VARIABLE,
    LINE_BYTES_MAX,
    METRICS,
    NUMBER_VARIABLE,
    Report,
    State,
    encode_ask,
    read_line,
)

BACKLOG: Final = 512  # connections that wait to be accepted, a worker
POLL_SECONDS: Final = 2.0  # between two looks at the workers and their metrics
SCRAPE_SECONDS_MAX: Final = 1.0  # that a scrape waits for workers to tell theirs
UNANSWERED_NOT_READY: Final = 3  # polls without an answer: not ready any more
UNANSWERED_MAX: Final = 30  # then its loop is stuck, and it is killed
RESTART_SECONDS: Final = (0.0, 0.25, 1.0, 2.0, 5.0)  # before each start that follows a failed one
DRAIN_MARGIN_SECONDS: Final = 10.0  # beyond the workers' own deadline, then they are killed
EXIT_SECONDS_MAX: Final = 5.0  # for a process that has closed its line
PORT_WAIT_SECONDS_MAX: Final = 10.0  # for workers of a killed supervisor to leave the port
PORT_LOOK_SECONDS: Final = 0.1

_PARENT_PIPE: Final = "KAIXU_PARENT_PIPE"  # "1": stdin is a pipe from whoever must not die first
_STDIN: Final = 0
_STDERR: Final = 2  # also where workers' stdout goes
_WORKER_KIND: Final = "worker"
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class PortTaken(OSError):
    """Someone else listens there; the message names the address."""


class _Worker:
    """One place on the machine: its socket, and the process that is there now, if one is."""

    def __init__(self, number: int, listener: socket.socket) -> None:
        self.number = number
        self.listener = listener
        self.process: Process | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.state: State | None = None
        self.was_ready = False
        self.starts = 0
        self.unanswered = 0
        self.told_metrics = asyncio.Event()

    @property
    def name(self) -> str:
        return f"{_WORKER_KIND} {self.number}"

    @property
    def process_name(self) -> str:
        """A name that no other process on this machine has had."""
        return f"{self.number}.{self.starts}"

    def not_ready(self) -> list[str]:
        if self.process is None:
            return [f"{self.name}: not running"]
        if self.state is None:
            return [f"{self.name}: starting"]
        if self.unanswered >= UNANSWERED_NOT_READY:
            return [f"{self.name}: does not answer"]
        return [f"{self.name}: {what}" for what in self.state.not_ready]

    def ask(self, what: str) -> None:
        if self.writer is not None and not self.writer.is_closing():
            self.writer.write(encode_ask(what))

    def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()


class Supervisor:
    """One machine's gateway."""

    def __init__(
        self,
        *,
        command: Sequence[str],
        environ: Mapping[str, str],
        host: str,
        port: int,
        ops_host: str,
        ops_port: int,
        workers: int,
        drain_timeout_seconds: float,
        log: Log,
        announce: Callable[[bytes], None],
    ) -> None:
        """`command` starts a worker; `announce` gets one line when all are ready."""
        self._command = command
        self._environ = {name: text for name, text in environ.items() if name != _PARENT_PIPE}
        self._parent_pipe = environ.get(_PARENT_PIPE) == "1"
        self._host, self._port = host, port
        self._ops_host, self._ops_port = ops_host, ops_port
        self._workers_number = workers
        self._drain_timeout_seconds = drain_timeout_seconds
        self._log = log
        self._announce = announce
        self._workers: list[_Worker] = []
        self._metrics = MachineMetrics()
        self._restarts = 0
        self._urls: dict[str, str] = {}
        self._announced = False
        self._last_not_ready: list[str] = []
        self._stopping = asyncio.Event()
        self._killing = asyncio.Event()
        self._parent_gone = False

    # the machine, for the ops listener

    def not_ready(self) -> list[str]:
        """Return what is not ready, over all workers."""
        reasons = ["draining"] if self._stopping.is_set() else []
        for worker in self._workers:
            reasons += worker.not_ready()
        return reasons

    def workers(self) -> list[tuple[str, int]]:
        """Return the workers that run, by the ids under which the database knows them."""
        return [
            (worker.state.worker_id, worker.process.pid)
            for worker in self._workers
            if worker.process is not None and worker.state is not None
        ]

    async def exposition(self) -> bytes:
        """Return all metrics; a worker that does not answer in time counts as it was last."""
        asked = [worker for worker in self._workers if worker.writer is not None]
        for worker in asked:
            worker.told_metrics.clear()
            worker.ask(METRICS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SCRAPE_SECONDS_MAX):
                for worker in asked:
                    await worker.told_metrics.wait()
        ready = sum(not worker.not_ready() for worker in self._workers)
        self._metrics.update(
            "supervisor",
            {
                "kaixu_worker_restarts": [Series((), self._restarts)],
                "kaixu_workers_ready": [Series((), ready)],
            },
        )
        return self._metrics.exposition()

    # life

    async def run(self) -> None:
        """Keep the workers until a signal ends it. Raises PortTaken, and OSError for an address."""
        async with AsyncExitStack() as stack:
            stack.enter_context(self._hearing_signals())
            listeners = await open_listeners(self._host, self._port, self._workers_number)
            for listener in listeners:
                stack.enter_context(listener)
            open_ops = await stack.enter_async_context(AsyncExitStack())
            ops_socket = open_ops.enter_context(open_ops_socket(self._ops_host, self._ops_port))
            self._urls = {
                "gateway_url": url_of(listeners[0]),
                "ops_url": url_of(ops_socket),
            }
            self._workers = [_Worker(number, listener) for number, listener in enumerate(listeners)]
            await open_ops.enter_async_context(
                ops.listening(ops.make_app(self), ops_socket, self._log)
            )
            self._log.info("supervisor started", pid=os.getpid(), **self._urls)
            async with asyncio.TaskGroup() as tasks:
                keepers = [tasks.create_task(self._keep(worker)) for worker in self._workers]
                poll = tasks.create_task(self._poll())
                await self._stopping.wait()
                if self._parent_gone:  # the next supervisor wants the port before the drain ends
                    tasks.create_task(open_ops.aclose())
                await self._drain(keepers)
                poll.cancel()
        self._log.info("supervisor stopped", pid=os.getpid())

    @contextmanager
    def _hearing_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self.stop)
        if self._parent_pipe:
            loop.add_reader(_STDIN, self._on_parent)
        try:
            yield
        finally:
            for number in _STOP_SIGNALS:
                loop.remove_signal_handler(number)
            if self._parent_pipe:
                loop.remove_reader(_STDIN)

    def _on_parent(self) -> None:
        try:
            if os.read(_STDIN, 1024):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        asyncio.get_running_loop().remove_reader(_STDIN)
        if not self._stopping.is_set():
            self._parent_gone = True
            self.stop()

    def stop(self) -> None:
        """Drain and end; a second time: now."""
        if self._stopping.is_set():
            self._killing.set()
        self._stopping.set()

    async def _drain(self, keepers: Sequence["asyncio.Task[None]"]) -> None:
        """Let workers finish what they have begun, for so long."""
        self._log.info("supervisor draining", timeout_seconds=self._drain_timeout_seconds)
        for worker in self._workers:
            # The workers' own copies are the last ones now: with them the port is closed.
            worker.listener.close()
            worker.ask(DRAIN)
        seconds = self._drain_timeout_seconds + DRAIN_MARGIN_SECONDS
        killing = asyncio.get_running_loop().create_task(self._killing.wait())
        drained = asyncio.gather(*keepers)
        ends: list[asyncio.Future[Any]] = [killing, drained]
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        killing.cancel()
        for worker in self._workers:
            if worker.process is not None:
                self._log.warning("worker killed", worker=worker.number, reason="drain timeout")
                worker.kill()
        await drained

    # one worker

    async def _keep(self, worker: _Worker) -> None:
        """Have a process at this place until the end."""
        failures = 0
        while not self._stopping.is_set():
            try:
                await self._run_process(worker)
            except OSError as error:  # no memory, no file descriptors: later there may be
                self._log.error("worker not started", error=error, worker=worker.number)
            if self._stopping.is_set():
                return
            failures = 0 if worker.was_ready else failures + 1
            self._restarts += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    RESTART_SECONDS[min(failures, len(RESTART_SECONDS) - 1)]
                ):
                    await self._stopping.wait()

    async def _run_process(self, worker: _Worker) -> None:
        """Start a process, follow it, and return when it has ended."""
        worker.starts += 1
        worker.was_ready, worker.state, worker.unanswered = False, None, 0
        with ExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.enter_context(theirs)
            stack.enter_context(ours)
            fds = (worker.listener.fileno(), theirs.fileno())
            worker.process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=DEVNULL,
                stdout=_STDERR,
                env={
                    **self._environ,
                    FDS_VARIABLE: f"{fds[0]},{fds[1]}",
                    NUMBER_VARIABLE: str(worker.number),
                },
                pass_fds=fds,
            )
            theirs.close()
            self._log.info("worker started", worker=worker.number, pid=worker.process.pid)
            try:
                await self._follow(worker, worker.process, ours)
            finally:
                worker.kill()  # only if following it failed
                code = await worker.process.wait()
                self._log.info(
                    "worker ended", worker=worker.number, pid=worker.process.pid, exit_code=code
                )
                self._metrics.retire(worker.process_name)
                worker.process = worker.state = None
                worker.told_metrics.set()
                self._look()

    async def _follow(self, worker: _Worker, process: Process, channel: socket.socket) -> None:
        """Read what a worker tells until it ends."""
        reader, worker.writer = await asyncio.open_unix_connection(
            sock=channel, limit=LINE_BYTES_MAX
        )
        try:
            if self._stopping.is_set():
                worker.ask(DRAIN)
            while line := await read_line(reader):
                worker.unanswered = 0
                try:
                    report = msgspec.json.decode(line, type=Report)
                except msgspec.MsgspecError as error:
                    self._log.error("worker talks nonsense", error=error, worker=worker.number)
                    return
                self._take(worker, report)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_SECONDS_MAX):
                    await process.wait()
        finally:
            worker.writer.close()
            worker.writer = None

    def _take(self, worker: _Worker, report: Report) -> None:
        if report.metrics is not None:
            self._metrics.update(worker.process_name, report.metrics)
            worker.told_metrics.set()
        if report.state is not None:
            worker.state = report.state
            worker.was_ready = worker.was_ready or not report.state.not_ready
            self._look()

    async def _poll(self) -> None:
        """Ask for metrics now and then; kill a worker whose loop is stuck."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            for worker in self._workers:
                if worker.process is None:
                    continue
                worker.unanswered += 1
                worker.ask(METRICS)
                if worker.unanswered > UNANSWERED_MAX:
                    self._log.error("worker killed", worker=worker.number, reason="stuck")
                    worker.kill()
            self._look()

    def _look(self) -> None:
        """Tell what changed about being ready."""
        reasons = self.not_ready()
        if reasons == self._last_not_ready and (reasons or self._announced):
            return
        self._last_not_ready = reasons
        if reasons:
            self._log.info("not ready", reasons=reasons)
            return
        self._log.info("ready")
        if not self._announced:
            self._announced = True
            self._announce(orjson.dumps({**self._urls, "supervisor_pid": os.getpid()}) + b"\n")


async def open_listeners(host: str, port: int, number: int) -> list[socket.socket]:
    """Return so many sockets that listen on the same port; 0: a free one.

    Waits a moment for workers of an earlier supervisor to leave the port. Raises PortTaken, and
    OSError where the address is none of this machine.
    """
    family, address = resolve(host, port)
    if port:
        await _wait_for_port(family, address)
    with ExitStack() as stack:
        listeners: list[socket.socket] = []
        for _ in range(number):
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Its connections inherit it. What is on its way to a client who reads is not counted.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
            if listeners:
                address = (address[0], listeners[0].getsockname()[1])
            listener.bind(address)
            listeners.append(listener)
        for listener in listeners:
            listener.listen(BACKLOG)
            listener.setblocking(False)
        stack.pop_all()
        return listeners


async def _wait_for_port(family: int, address: tuple[str, int]) -> None:
    """Return once nobody listens there. SO_REUSEPORT alone would share the port with them."""
    looks = int(PORT_WAIT_SECONDS_MAX / PORT_LOOK_SECONDS)
    for look in range(looks):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                if look == looks - 1:
                    raise PortTaken(f"{address[0]} port {address[1]} is taken") from error
        await asyncio.sleep(PORT_LOOK_SECONDS)


def open_ops_socket(host: str, port: int) -> socket.socket:
    """Return the socket of the ops listener. Raises PortTaken, OSError."""
    family, address = resolve(host, port)
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise PortTaken(f"{host} port {port} can't be listened on: {error.strerror}") from error
    sock.setblocking(False)
    return sock


def resolve(host: str, port: int) -> tuple[int, tuple[str, int]]:
    """Return family and address to listen on. Raises OSError for a name that has none."""
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return family, (str(address[0]), port)


def url_of(listener: socket.socket) -> str:
    """Return the URL under which this machine reaches a listener."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")  # noqa: PLR2004
    return f"http://[{address}]:{port}" if ":" in str(address) else f"http://{address}:{port}"


def announce_on_stdout(line: bytes) -> None:
    """Write the one line that belongs on stdout; nobody may be reading it."""
    with contextlib.suppress(OSError):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
