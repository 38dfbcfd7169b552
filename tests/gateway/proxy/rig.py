"""A lane and its calls for real, with a vendor whose every byte a test writes."""

import asyncio
import contextlib
import json
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gateway.auth.caller import Caller
from gateway.auth.token import digest as digest_of
from gateway.clock import DatabaseClock
from gateway.connect_guard import check_base_url
from gateway.errors import GatewayError, MonthlyLimitReached, TokenInvalid
from gateway.ids import IdMaker
from gateway.metering.usage import Usage
from gateway.permit_limit import PermitLimit
from gateway.proxy.call_record import RecordKeeper
from gateway.proxy.call_row import ClosePart, Purpose
from gateway.proxy.calls import Calls
from gateway.proxy.lane import Lane
from gateway.proxy.live_calls import LiveCalls
from gateway.proxy.model_list import ModelDirectory
from gateway.proxy.relay import RelayTimes
from gateway.proxy.resumable_uploads import UploadTickets
from gateway.proxy.routing import RoutingTable, Target
from gateway.proxy.stored_calls import StoredRecords
from gateway.proxy.stored_ids import Stored
from gateway.proxy.stored_owners import Holding
from gateway.proxy.upstream import UpstreamPool, make_dial
from gateway.vendors.registry import KINDS

DEADLINE_SECONDS = 5.0
TOKEN = "kxg_only-here-a-token"
KEY = b"vendor-key-0123456789"

Script = Callable[[bytes, bytes, asyncio.StreamWriter], Awaitable[None]]


class StayOpen(Exception):
    """Raised by a script that says nothing more and keeps the connection."""


@dataclass
class ScriptedVendor:
    """Answers each request by the script that a test sets; keeps what it was sent."""

    script: Script
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    serving: set["asyncio.Task[None]"] = field(default_factory=set)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    async def ended(self) -> None:
        """Wait until no connection is served any more: none may be left to the collector."""
        if self.serving:
            _, still = await asyncio.wait(self.serving, timeout=DEADLINE_SECONDS)
            for task in still:
                task.cancel()
            await asyncio.gather(*still, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                body = await reader.readexactly(length)
                self.heads.append(head)
                self.bodies.append(body)
                self.asked.set()
                await self.script(head, body, writer)
                await writer.drain()
        except StayOpen:
            with contextlib.suppress(ConnectionError):
                await reader.read()  # until the gateway closes
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed.set()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class Authenticated:
    """Knows one token."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.known = True

    def find_cached(self, digest: bytes) -> Caller | None:
        return self.caller if self.known and digest == digest_of(TOKEN.encode()) else None

    async def authenticate_digest(self, digest: bytes, address: str) -> Caller:
        if digest != digest_of(TOKEN.encode()):
            raise TokenInvalid
        return self.caller

    async def authenticate(self, candidates: Sequence[bytes], address: str) -> Caller:
        for token in candidates:
            if self.known and token == TOKEN.encode():
                return self.caller
        raise TokenInvalid


class Units:
    """So many calls, in blocks of one."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.taken = 0

    def known_spent(self, limits: tuple[tuple[str, str], ...]) -> None:
        pass

    def take(self, limits: tuple[tuple[str, str], ...]) -> tuple[str, ...] | None:
        if not self.left:
            return None
        self.left -= 1
        self.taken += 1
        return (f"block-{self.taken}",)

    def put_back(self, limits: tuple[tuple[str, str], ...], block_ids: tuple[str, ...]) -> None:
        self.left += len(block_ids)

    async def refill(self, limits: tuple[tuple[str, str], ...]) -> None:
        raise MonthlyLimitReached(headers={"x-kaixu-remaining": "0"})


class Unlimited:
    """Gives every call its permits, and knows which were not handed back."""

    def __init__(self) -> None:
        self.out: list[PermitLimit] = []
        self.refusal: GatewayError | None = None

    def take(self, limits: Sequence[PermitLimit]) -> bool:
        if self.refusal is not None:
            return False
        self.out += limits
        return True

    def release(self, limits: Sequence[PermitLimit]) -> None:
        for limit in limits:
            self.out.remove(limit)

    async def refill(self, limits: Sequence[PermitLimit]) -> None:
        assert self.refusal is not None
        raise self.refusal


# A row leaves out what is not known.
NOTHING_KNOWN = dict.fromkeys(
    ("retry_of", *Purpose.__struct_fields__, *ClosePart.__struct_fields__)
)


def _read_row(row: bytes) -> dict[str, Any]:
    """Return a row with None for what it does not tell."""
    return {**NOTHING_KNOWN, "flags": [], **json.loads(row)}


class Lines:
    """A journal in memory."""

    def __init__(self) -> None:
        self.opened: dict[str, dict[str, Any]] = {}
        self.rows: list[dict[str, Any]] = []
        self.noted: list[dict[str, Any]] = []
        self.closed = asyncio.Event()
        self.full: GatewayError | None = None

    def open_call(
        self, call_id: str, row: bytes, *, admitted: float, block_ids: tuple[str, ...]
    ) -> None:
        if self.full is not None:
            raise self.full
        self.opened[call_id] = {**_read_row(row), "blocks": block_ids}

    def note_end(self, call_id: str, row: bytes) -> None:
        self.noted.append(_read_row(row))

    def close_call(self, call_id: str, row: bytes) -> None:
        assert call_id in self.opened
        assert all(one["id"] != call_id for one in self.rows), "a call was closed twice"
        self.rows.append(_read_row(row))
        self.closed.set()

    async def row(self) -> dict[str, Any]:
        """Wait for the next row."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.closed.wait()
        self.closed.clear()
        return self.rows[-1]


class Counted:
    def __init__(self) -> None:
        self.refusals: list[str] = []
        self.vendor_errors: list[tuple[str, str]] = []
        self.finished: list[Usage] = []

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)

    def vendor_error(self, vendor: str, kind: str) -> None:
        self.vendor_errors.append((vendor, kind))

    def call_finished(self, *, usage: Usage, **facts: object) -> None:
        self.finished.append(usage)


class Owned:
    """Who made what, in memory."""

    def __init__(self) -> None:
        self.holdings: dict[str, Holding] = {}
        self.away: GatewayError | None = None

    def note(
        self, stored: Iterable[Stored], *, caller: Caller, vendor_id: str, call_id: str
    ) -> None:
        for one in stored:
            held = Holding(
                vendor_id=vendor_id,
                org_id=caller.org_id,
                kind=one.kind.value,
                parent_id=one.parent_id,
            )
            self.holdings.setdefault(one.object_id, held)

    async def find(
        self, object_ids: Collection[str], *, org_id: str, vendor_ids: Collection[str]
    ) -> dict[str, Holding]:
        if self.away is not None:
            raise self.away
        return {
            object_id: held
            for object_id, held in self.holdings.items()
            if object_id in object_ids and held.org_id == org_id and held.vendor_id in vendor_ids
        }

    async def find_listed(
        self, object_ids: Collection[str], *, org_id: str, vendor_id: str
    ) -> dict[str, Holding]:
        return await self.find(object_ids, org_id=org_id, vendor_ids=(vendor_id,))


@dataclass
class Answer:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes
    clean: bool  # the framing says that it is whole


def target_at(port: int, kind: str, *, asks_usage: bool = False, path: str = "") -> Target:
    """Return a vendor on this machine."""
    return Target(
        vendor_id=str(uuid.uuid5(uuid.NAMESPACE_DNS, kind)),
        name=kind,
        kind=KINDS[kind],
        base=check_base_url(f"http://127.0.0.1:{port}{path}", allow_private=True),
        is_private=True,
        is_default=True,
        models=None,
        asks_usage=asks_usage,
        account_headers=False,
        is_simulator=False,
        credential=KINDS[kind].credential_header(KEY),
        key=KEY,
    )


class Rig:
    """Everything between one raw client and one scripted vendor."""

    def __init__(self, owners: StoredRecords | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.vendor = ScriptedVendor(script=no_script)
        self.units = Units(left=1_000_000)
        self.permits = Unlimited()
        self.lines = Lines()
        self.metrics = Counted()
        self.defects: list[BaseException] = []
        self.lease = True
        self.times = RelayTimes()
        clock = DatabaseClock()
        now = clock.boottime()
        clock.observe(sent=now, received=now, database_time=1_790_000_000.0)
        self.caller = Caller(
            token_id="token-1",
            parent_id=None,
            org_id="org-1",
            workspace_id="workspace-1",
            user_id="user-1",
            scopes=frozenset({"calls"}),
            models=None,
            expires_at=2e9,
            limits=(("token", "token-1"),),
        )
        self.owned = Owned()
        self.authenticated = Authenticated(self.caller)
        self.live = LiveCalls(on_cut_failed=self.defects.append)
        self.targets: list[Target] = []
        self.aliases: dict[str, tuple[str, str]] = {}
        self.pool = UpstreamPool(
            make_dial(resolve_itself, allow_every_peer, ssl.create_default_context()), now=loop.time
        )
        self.calls = Calls(
            authenticator=self.authenticated,
            permits=self.permits,
            allowances=self.units,
            records=RecordKeeper(
                log=self.lines,
                clock=clock,
                now=time.monotonic,
                on_closed=self.metrics.call_finished,
            ),
            routing=lambda _: RoutingTable(self.targets, self.aliases),
            models=ModelDirectory(),
            pool=self.pool,
            live=self.live,
            lease_holds=lambda: self.lease,
            new_id=IdMaker(lambda: 1_790_000_000.0).new,
            metrics=self.metrics,
            on_refusal=lambda error, caller: None,
            on_defect=lambda call_id, error: self.defects.append(error),
            times=self.times,
            loop=loop,
            cors_origins=("https://ide.example",),
            owners=owners or self.owned,
            upload_tickets=UploadTickets(lambda: (b"a key that all gateways share",)),
        )
        self.lane = Lane(
            self.calls.handle, self.calls.refuse, loop=loop, on_defect=self.defects.append
        )
        self.port = 0

    def target(self, kind: str, *, asks_usage: bool = False, path: str = "") -> Target:
        return target_at(self.vendor.port, kind, asks_usage=asks_usage, path=path)

    def request(
        self,
        path: str,
        body: object = None,
        *,
        method: str = "POST",
        headers: Sequence[str] = (),
        token: str | None = TOKEN,
    ) -> bytes:
        raw = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: gateway",
            *([] if token is None else [f"Authorization: Bearer {token}"]),
            *headers,
        ]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(raw)}"]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw

    @asynccontextmanager
    async def client(self) -> AsyncIterator["RawClient"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield RawClient(reader, writer)
        finally:
            writer.transport.abort()

    async def ask(self, path: str, body: object = None, **options: Any) -> Answer:
        """Send one request on a connection of its own, return the answer."""
        async with self.client() as client:
            client.send(self.request(path, body, **options))
            return await client.answer()


@asynccontextmanager
async def open_rig() -> AsyncIterator[Rig]:
    """Serve a rig; at its end nothing may be open any more, and no defect have been told."""
    made = Rig()
    async with running(made, made.vendor.serve):
        yield made


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def running(made: Rig, serve: Serve) -> AsyncIterator[None]:
    """Run a rig's gateway before a vendor that answers all three formats."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(
        lambda _, about: made.defects.append(about.get("exception", RuntimeError(str(about))))
    )
    vendor = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.vendor.port = vendor.sockets[0].getsockname()[1]
    server = await loop.create_server(made.lane.protocol, "127.0.0.1", 0, backlog=4096)
    made.port = server.sockets[0].getsockname()[1]
    made.targets = [
        made.target("openai", path="/v1"),
        made.target("anthropic"),
        made.target("gemini"),
    ]
    try:
        yield
    finally:
        server.close()
        vendor.close()
        made.lane.abort_all()
        made.pool.close()
        assert await made.lane.ended(by=loop.time() + DEADLINE_SECONDS)
        await made.vendor.ended()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while made.lane.connections:  # noqa: ASYNC110 - the last ones say nothing
                await asyncio.sleep(0)
    assert made.defects == []
    assert made.calls.streams_open == 0
    assert made.live.count == 0


class RawClient:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def leave(self) -> None:
        self.writer.transport.abort()

    async def until(self, text: bytes) -> bytes:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.reader.readuntil(text)

    async def answer(self) -> Answer:
        """Read one answer, its framing removed."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines if line)
            }
            body = bytearray()
            try:
                if "transfer-encoding" in headers:
                    await self._chunks(body)
                else:
                    body += await self.reader.readexactly(int(headers.get("content-length", "0")))
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                body += getattr(error, "partial", b"")
                return Answer(int(first.split()[1]), headers, bytes(body), clean=False)
            return Answer(int(first.split()[1]), headers, bytes(body), clean=True)

    async def _chunks(self, body: bytearray) -> None:
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)


async def no_script(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
    raise AssertionError("the vendor was called")


async def resolve_itself(origin: Any) -> list[str]:
    return [origin.host]


def allow_every_peer(origin: Any, address: str) -> None:
    """The guard has tests of its own."""
