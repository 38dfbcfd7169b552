"""What a call costs inside of a worker, without sockets: `python -m benchmarks.call_path [a|b|c]`.

The parts of a worker that lie on the path of a call, wired as `gateway.app` does: lane, calls, a
cached token, held units, a journal on disk, metrics, connections to the vendor. Only the transports
are stand-ins, and the background (ledger, feed) is left out. Prints how many functions a call makes
(or an event of `c`), which nobody else on the machine can change; the CPU time of a loop of calls,
the best of many; and where in the code that time goes, by samples.
"""

import argparse
import asyncio
import cProfile
import gc
import pstats
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, Final, cast

import uvloop

from benchmarks.workloads import (
    FAST_STREAMS,
    IDE,
    MICROSECONDS,
    SMALL,
    VENDOR_PREFIX,
    Workload,
)
from gateway.auth.authenticate import Authenticator
from gateway.auth.caller import Caller
from gateway.auth.token import generate
from gateway.auth.token_store import Found
from gateway.clock import DatabaseClock
from gateway.connect_guard import check_base_url
from gateway.ids import IdMaker
from gateway.metering.held_blocks import Block, HeldBlocks, Limits
from gateway.metering.journal import Journal
from gateway.metrics import Metrics
from gateway.permit_limit import PermitLimit
from gateway.proxy.call_record import RecordKeeper
from gateway.proxy.calls import Calls
from gateway.proxy.client_connection import ClientConnection
from gateway.proxy.lane import Lane
from gateway.proxy.live_calls import LiveCalls
from gateway.proxy.model_list import ModelDirectory
from gateway.proxy.relay import RelayTimes
from gateway.proxy.routing import Origin, RoutingTable, Target
from gateway.proxy.stored_ids import Stored
from gateway.proxy.stored_owners import Holding
from gateway.proxy.upstream import UpstreamConnection, UpstreamPool
from gateway.vendors.registry import KINDS

WORKLOADS: Final[Mapping[str, Workload]] = MappingProxyType(
    {one.name: one for one in (SMALL, IDE, FAST_STREAMS)}
)
CALLS: Final = 100  # in one go
GOES: Final = 60  # of which the fastest counts
SAMPLE_SECONDS: Final = 0.001
EVENTS: Final = 200  # of a stream, each in a read of its own
ROWS: Final = 40

_LIMIT: Final = ("token", "token-1")
_VENDOR: Final = "openai"
_KEY: Final = b"sk-benchmark-vendor"


class Socket:
    """Takes what is written, in place of a transport."""

    def __init__(self) -> None:
        self.taken = 0

    def get_extra_info(self, _: str) -> tuple[str, int]:
        """Return where the other end is."""
        return "127.0.0.1", 1

    def set_write_buffer_limits(self, **_: int) -> None:
        """Nothing ever waits."""

    def get_write_buffer_size(self) -> int:
        """Return that nothing waits."""
        return 0

    def is_closing(self) -> bool:
        """Return that it is open."""
        return False

    def write(self, data: bytes) -> None:
        """Take it."""
        self.taken += len(data)

    def writelines(self, parts: Sequence[bytes]) -> None:
        """Take them."""
        self.taken += sum(map(len, parts))

    def abort(self) -> None:
        """Let go."""


class Units:
    """A block that is never used up."""

    def __init__(self, clock: DatabaseClock, now: Callable[[], float]) -> None:
        held = HeldBlocks(clock=clock, now=now, on_low=lambda _: None)
        held.add(Block("block-1", _LIMIT, amount=1 << 40, begins=0.0, ends=float("inf")))
        self.take = held.take
        self.put_back = held.put_back

    def known_spent(self, limits: Limits) -> None:
        """Never."""

    async def refill(self, limits: Limits) -> None:
        """Never needed."""


class NoPermits:
    """The caller has no windows."""

    def take(self, _: Sequence[PermitLimit]) -> bool:
        """Return that there are some."""
        return True

    def release(self, limits: Sequence[PermitLimit]) -> None:
        """None were taken."""

    async def refill(self, limits: Sequence[PermitLimit]) -> None:
        """Never needed."""


class NothingStored:
    """No call has to do with stored objects."""

    def note(self, _: Iterable[Stored], *, caller: Caller, vendor_id: str, call_id: str) -> None:
        """Never."""

    async def find(
        self, _: Collection[str], *, org_id: str, vendor_ids: Collection[str]
    ) -> Mapping[str, Holding]:
        """Return nothing."""
        del org_id, vendor_ids
        return {}

    async def find_listed(
        self, _: Collection[str], *, org_id: str, vendor_id: str
    ) -> Mapping[str, Holding]:
        """Return nothing."""
        del org_id, vendor_id
        return {}


class CallPath:
    """One client's connection, one vendor's, and all that lies between."""

    def __init__(self, workload: Workload, folder: Path) -> None:
        """The journal goes into `folder`. Begin with `open`."""
        loop = asyncio.get_running_loop()
        clock = DatabaseClock()
        now = clock.boottime()
        clock.observe(sent=now, received=now, database_time=time.time())
        ids = IdMaker(time.time)
        metrics = Metrics(version="0")
        token = generate()
        self._dialled: asyncio.Future[UpstreamConnection] = loop.create_future()
        self._socket = Socket()
        self._pool = UpstreamPool(self._dial, now=loop.time)
        self.journal = Journal.create(folder, worker_id=ids.new(), boot_id="boot")
        table = RoutingTable(
            [_target()], {workload.model: (_VENDOR, VENDOR_PREFIX + workload.answer)}
        )
        calls = Calls(
            authenticator=Authenticator(
                find=_find, clock=clock, applied=lambda: 1, touched_since=lambda *_: False
            ),
            permits=NoPermits(),
            allowances=Units(clock, loop.time),
            records=RecordKeeper(
                log=self.journal, clock=clock, now=time.monotonic, on_closed=metrics.call_finished
            ),
            routing=lambda _: table,
            models=ModelDirectory(),
            pool=self._pool,
            live=LiveCalls(on_cut_failed=_raise),
            lease_holds=lambda: True,
            new_id=ids.new,
            metrics=metrics,
            on_refusal=lambda error, _: _raise(error),
            on_defect=lambda _, error: _raise(error),
            times=RelayTimes(),
            loop=loop,
            owners=NothingStored(),
        )
        lane = Lane(calls.handle, calls.refuse, loop=loop)
        self._client: ClientConnection = lane.protocol()
        self._client.connection_made(cast("asyncio.Transport", self._socket))
        body = workload.body()
        self._request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer %b\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (token.encode(), len(body), body)
        )
        self._reads = _reads(workload)

    async def _dial(
        self, origin: Origin, protocol: Callable[[], UpstreamConnection]
    ) -> UpstreamConnection:
        del origin
        vendor = protocol()
        vendor.connection_made(cast("asyncio.Transport", Socket()))
        self._dialled.set_result(vendor)
        return vendor

    async def open(self) -> None:
        """Make the first call, which looks its token up and connects."""
        self._client.data_received(self._request)
        vendor = await self._dialled
        await asyncio.sleep(0)  # the call is dispatched in between
        self._answer(vendor)
        assert self._socket.taken > len(self._reads[-1]), "the first call failed"
        await asyncio.sleep(0)  # it was a task, which ends by now: the next one waits for no other

    async def call(self) -> None:
        """Make a call; the next one comes in another round of the loop."""
        self._client.data_received(self._request)
        self._answer(self._dialled.result())
        await asyncio.sleep(0)

    def _answer(self, vendor: UpstreamConnection) -> None:
        for read in self._reads:
            vendor.get_buffer(-1)[: len(read)] = read
            vendor.buffer_updated(len(read))


async def _find(_: bytes) -> Found:
    caller = Caller(
        token_id=_LIMIT[1],
        parent_id=None,
        org_id="org-1",
        workspace_id="workspace-1",
        user_id="user-1",
        scopes=frozenset({"calls"}),
        models=None,
        expires_at=float("inf"),
        limits=(_LIMIT,),
    )
    return Found(caller=caller, why=None, subjects=caller.subjects, head=1, grants=())


def _target() -> Target:
    kind = KINDS["openai"]
    return Target(
        vendor_id="0193",
        name=_VENDOR,
        kind=kind,
        base=check_base_url("http://127.0.0.1:80/v1", allow_private=True),
        is_private=True,
        is_default=True,
        models=None,
        asks_usage=True,
        account_headers=False,
        is_simulator=False,
        credential=kind.credential_header(_KEY),
        key=_KEY,
    )


def _raise(error: BaseException) -> None:
    raise error


def _reads(workload: Workload) -> list[bytes]:
    """Return what the vendor's connection reads, read by read; much as `answers.h` has it."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nx-request-id: bench\r\n"
    usage = b'{"prompt_tokens":123,"completion_tokens":200,"total_tokens":323}'
    about = b'{"id":"chatcmpl-bench","object":"chat.completion.chunk","model":"bench","choices":['
    if not workload.is_stream:
        body = about + b'{"index":0,"message":{"role":"assistant","content":"@"},'
        body += b'"finish_reason":"stop"}],"usage":%b}' % usage
        body = body.replace(b"@", b"x" * (int(workload.answer[1:]) - len(body) + 1))
        length = b"Content-Length: %d\r\n\r\n" % len(body)
        return [head % b"application/json" + length + body]
    text = b'{"index":0,"delta":{"content":"tokens come one by one as a model says them"}}]}'
    events = [b"data: %b%b\n\n" % (about, text)] * EVENTS
    events.append(b'data: %b{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n' % about)
    events.append(b'data: %b],"usage":%b}\n\n' % (about, usage))
    reads = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
    reads[0] = head % b"text/event-stream" + b"Transfer-Encoding: chunked\r\n\r\n" + reads[0]
    reads.append(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    return reads


# ------------------------------------------------------------------------------------ measuring


class Samples:
    """In which functions the time goes, by looking now and then."""

    def __init__(self) -> None:
        self.own: Counter[str] = Counter()
        self.with_callees: Counter[str] = Counter()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Look every SAMPLE_SECONDS of CPU time."""
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, SAMPLE_SECONDS, SAMPLE_SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _look(self, _: int, frame: FrameType | None) -> None:
        if frame is not None:
            self.own[_place(frame)] += 1
        seen = set()
        while frame is not None and frame.f_code.co_filename != __file__:
            seen.add(_place(frame))
            frame = frame.f_back
        self.with_callees.update(seen)


def _place(frame: FrameType) -> str:
    code = frame.f_code
    return f"{'/'.join(Path(code.co_filename).parts[-3:])} {code.co_name}"


async def functions(run: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Return how many functions in Python, and how many built-in ones, a call makes."""
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(CALLS):
        await run()
    profiler.disable()
    python = builtin = 0
    stats: Any = pstats.Stats(profiler)
    for (file, _, _), (_, calls, *_) in stats.stats.items():
        if file == "~":
            builtin += calls
        else:
            python += calls
    return python / CALLS, builtin / CALLS


async def measure(workload: Workload, folder: Path) -> str:
    """Return what is to be printed."""
    path = CallPath(workload, folder)
    await path.open()
    for _ in range(CALLS):
        await path.call()
    gc.collect()
    gc.freeze()
    units = EVENTS if workload.is_stream else 1
    python, builtin = await functions(path.call)
    samples = Samples()
    best = float("inf")
    with samples.taken():
        for _ in range(GOES):
            began = time.process_time()
            for _ in range(CALLS):
                await path.call()
            best = min(best, (time.process_time() - began) / CALLS * MICROSECONDS)
            await path.journal.step()
            path.journal.shipped(path.journal.read_unshipped(rows_max=CALLS, bytes_max=1 << 20))
    path.journal.close()
    told = f"{python / units:.1f} Python functions, {builtin / units:.1f} built-in ones"
    lines = [f"({workload.name}) a {workload.unit}: {told}, {best / units:.1f} CPU µs"]
    lines.append("µs with callees, own")
    share = best / units / max(1, sum(samples.own.values()))
    for place, looks in samples.with_callees.most_common(ROWS):
        lines.append(f"{looks * share:8.1f} {samples.own[place] * share:8.1f}  {place}")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.call_path", description=__doc__)
    parser.add_argument("workload", nargs="?", default=SMALL.name, choices=sorted(WORKLOADS))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        told = uvloop.run(measure(WORKLOADS[options.workload], Path(folder)))
    sys.stdout.write(told)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
