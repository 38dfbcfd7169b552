"""One worker, put together: resources, background loops, the listener; and how it ends.

The only module that knows every part. It opens what there is to open, runs each loop in one group
(a loop that dies stops the process, so that no worker goes on deaf to revocations), and answers
calls until it is told to drain. Then it finishes what has begun, ships its rows and hands back what
it holds. A worker that ends in any other way leaves that to whoever finds its journal.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Any, Final

import asyncpg

from gateway.auth.authenticate import Authenticator
from gateway.auth.caller import Caller
from gateway.auth.feed import Feed
from gateway.auth.feed_connection import FeedLost, mark_ended
from gateway.auth.recent_changes import Change
from gateway.auth.token_store import Found, TokenStore
from gateway.client_address import client_address
from gateway.clock import DatabaseClock
from gateway.connect_guard import ConnectGuard
from gateway.database_role import check_role
from gateway.errors import DatabaseAway, Draining, GatewayError
from gateway.ids import IdMaker
from gateway.log import Log
from gateway.memory import find_trim
from gateway.metering.allowance import Allowances
from gateway.metering.allowance_store import AllowanceStore
from gateway.metering.journal import Journal
from gateway.metering.journal_files import read_boot_id
from gateway.metering.journal_recovery import Findings, orphans
from gateway.metering.ledger import Housekeeping, Ledger, LedgerAway, LedgerEvents
from gateway.metering.permit_store import PermitStore
from gateway.metering.permits import Permits
from gateway.metrics import Metrics
from gateway.proxy.address_window import AddressWindow
from gateway.proxy.call_record import RecordKeeper
from gateway.proxy.calls import Calls
from gateway.proxy.lane import Lane
from gateway.proxy.live_calls import LiveCalls
from gateway.proxy.model_list import ModelDirectory
from gateway.proxy.model_refresh import ModelRefresh
from gateway.proxy.refusal_log import RefusalLog
from gateway.proxy.relay import RelayTimes
from gateway.proxy.resumable_uploads import UploadTickets
from gateway.proxy.route_loader import RouteLoader
from gateway.proxy.routing import Origin
from gateway.proxy.stored_owners import StoredOwners
from gateway.proxy.upstream import UpstreamPool, make_dial
from gateway.proxy.vendor_credentials import TokenKeeper
from gateway.schema import SchemaTooOld, check_schema
from gateway.settings import Settings
from gateway.sql import DATABASE_FAULTS
from gateway.vendors.vault import Vault
from gateway.vendors.vault_keys import VaultKeySource
from gateway.worker_link import State, SupervisorLink, WorkerContext

POOL_CONNECTIONS_MAX: Final = 4  # to the database, beside the feed's own
CONNECT_SECONDS_MAX: Final = 5.0
COMMAND_SECONDS_MAX: Final = 30.0
IDLE_DATABASE_SECONDS: Final = 300.0
BACKLOG: Final = 512

TICK_SECONDS: Final = 1.0  # deadlines are looked at so often
STATE_SECONDS: Final = 0.1  # whether this worker is ready is looked at so often
POOL_SWEEP_TICKS: Final = 5
RECOVERY_SECONDS: Final = 5.0
MODELS_SECONDS: Final = 300.0
TRIM_SECONDS: Final = 30.0
PRUNE_SECONDS: Final = 3600.0
PERMITS_PRUNE_SECONDS: Final = 60.0  # one row for each address and slot, at the most

READY_WAIT_SECONDS_MAX: Final = 2.0  # connections wait so long for a new worker, then get a 503
LISTENER_LINGER_SECONDS: Final = 0.1  # who has connected when the drain begins is accepted still
JOURNAL_FAULT_SECONDS: Final = 5.0  # not ready for so long after the disk failed
CUT_SECONDS_MAX: Final = 1.0  # for cut calls to write their last event
UNSENT_LOOK_SECONDS: Final = 0.05  # whether slow clients have their answers is looked at so often
SHIP_SECONDS_MAX: Final = 5.0  # for the last rows; what is left is the next worker's
END_SECONDS_MAX: Final = 2.0  # for telling the database that this worker has ended


async def serve(settings: Settings, context: WorkerContext, *, log: Log) -> None:
    """Answer calls on the context's listener until told to drain.

    Raises what a background loop died of; open calls are then left as they are, for the recovery
    of the journal, and the process has to end at once.
    """
    async with AsyncExitStack() as stack:
        pool = await _open_pool(settings, context)
        stack.callback(pool.terminate)
        await Worker(settings, context, pool=pool, log=log).run()


class Worker:
    """The parts of one worker, and its life."""

    def __init__(
        self, settings: Settings, context: WorkerContext, *, pool: asyncpg.Pool, log: Log
    ) -> None:
        """Make the parts; nothing runs yet. Raises OSError where there can be no journal."""
        self._loop = loop = asyncio.get_running_loop()
        self._settings = settings
        self._context = context
        self._pool = pool
        self._log = log
        self._draining = asyncio.Event()
        self._drained_by = 0.0
        self._models_stale = asyncio.Event()
        self._journal_fault_at = float("-inf")
        self._heartbeat_sent = float("-inf")  # boot-time seconds
        self._listening = False
        self._server: asyncio.Server | None = None

        ids = IdMaker(time.time)
        self._id = ids.new()
        self._clock = clock = DatabaseClock()
        self._metrics = Metrics(version=version("kaixu-gateway"))
        self._boot_id = read_boot_id()
        self._journal = Journal.create(
            settings.journal_dir,
            worker_id=self._id,
            boot_id=self._boot_id,
            keep_bytes=settings.journal_keep_bytes,
            on_fault=self._on_journal_fault,
        )
        self._ledger = Ledger(
            pool,
            events=LedgerEvents(
                on_appended=self._metrics.ledger_added,
                on_rejected=self._on_rejected,
                on_away=lambda cause: log.warning("ledger away", cause=cause),
                on_recovered=self._on_recovered,
                on_housekeeping=self._on_housekeeping,
                on_lost=self._on_ledger_lost,
            ),
        )
        self._allowance_store = AllowanceStore(pool)
        self._allowances = Allowances(
            store=self._allowance_store,
            worker_id=self._id,
            log=self._journal,
            clock=clock,
            new_id=ids.new,
            now=loop.time,
        )
        self._permit_store = PermitStore(pool)
        self._permits = Permits(
            store=self._permit_store, worker_id=self._id, clock=clock, now=loop.time
        )
        self._live = LiveCalls(
            on_cut_failed=lambda error: self._log.error("cut failed", error=error),
            calls_per_org_max=settings.calls_per_org,
        )
        self._tokens = TokenStore(pool)
        vault = Vault(settings.vault_keys)
        self._routes = RouteLoader(
            pool,
            vault,
            keys=VaultKeySource(path=settings.vault_key_file, command=settings.vault_key_command),
            allowed_hosts=settings.vendor_hosts,
            log=log,
            on_loaded=self._on_routes_loaded,
        )
        self._feed = Feed(
            connect=lambda: _connect_feed(settings, context),
            worker_id=self._id,
            machine=settings.machine,
            pid=os.getpid(),
            lease_seconds=settings.lease_seconds,
            offline_grace_seconds=settings.offline_stream_grace_seconds,
            clock=clock,
            on_changes=self._on_changes,
            on_reset=self._on_reset,
            on_recall=self._on_recall,
            reload_vendors=self._routes.reload,
            vendors_loaded=lambda: self._routes.loaded_generation,
            on_stale_streams=self._on_stale_streams,
            unshipped_since=self._journal.unshipped_since,
            ledger_place=lambda: self._ledger.place,
            on_ledger_lost=self._ledger.start_over,
            on_lag=self._metrics.revocation_held,
            on_heartbeat=self._on_heartbeat,
            on_lost=lambda problem: log.warning("feed lost", problem=problem),
        )
        self._authenticator = Authenticator(
            find=self._find,
            clock=clock,
            applied=lambda: self._feed.applied,
            touched_since=self._feed.touched_since,
        )
        self._upstream = UpstreamPool(
            make_dial(*_guarded(settings.vendor_hosts, loop), _tls()), now=loop.time
        )
        self._token_keeper = TokenKeeper(self._upstream, now=time.time, log=log)
        models = ModelDirectory()
        self._model_refresh = ModelRefresh(models, self._upstream)
        self._refusals = RefusalLog(pool, worker_id=self._id, now=time.time)
        self._owners = StoredOwners(
            pool,
            now=loop.time,
            on_trouble=lambda problem: log.warning("stored ids wait", problem=problem),
        )
        self._calls = Calls(
            authenticator=self._authenticator,
            permits=self._permits,
            allowances=self._allowances,
            records=RecordKeeper(
                log=self._journal,
                clock=clock,
                now=time.monotonic,
                on_closed=self._metrics.call_finished,
            ),
            routing=self._routes.table,
            models=models,
            pool=self._upstream,
            live=self._live,
            lease_holds=self._feed.lease_holds,
            new_id=ids.new,
            metrics=self._metrics,
            on_refusal=self._on_refusal,
            on_defect=lambda call_id, error: self._log.error(
                "call failed", error=error, call_id=call_id
            ),
            times=RelayTimes(
                first_byte_seconds=settings.first_byte_seconds,
                idle_seconds=settings.idle_seconds,
                total_seconds=settings.stream_total_seconds,
            ),
            loop=loop,
            cors_origins=settings.cors_origins,
            client_address=lambda exchange: client_address(
                peer=exchange.address,
                forwarded_for=[
                    value.decode("latin-1")
                    for name, value in exchange.headers
                    if name == b"x-forwarded-for"
                ],
                trusted=settings.trusted_proxies,
            ),
            address_window=_address_window(settings),
            credential_ready=self._token_keeper.ready,
            owners=self._owners,
            upload_tickets=UploadTickets(lambda: vault.derived(b"upload tickets")),
        )
        self._lane = Lane(
            self._calls.handle,
            self._calls.refuse,
            loop=loop,
            connections_max=settings.connections_per_worker,
            connections_per_address_max=settings.connections_per_address,
            hosts=settings.hosts,
            on_connections=self._metrics.set_connections_open,
            on_protocol_error=lambda: self._metrics.client_error("protocol"),
            on_defect=lambda error: self._log.error("connection failed", error=error),
        )
        self._link = SupervisorLink(
            context.channel,
            snapshot=self._metrics.snapshot,
            on_drain=self.drain,
            on_supervisor_gone=self._on_supervisor_gone,
        )
        self._metrics.watch("kaixu_streams_open", lambda: self._calls.streams_open)
        self._metrics.watch("kaixu_ledger_lag_seconds", self._ledger_lag_seconds)
        self._metrics.watch("kaixu_lease_remaining_seconds", self._lease_remaining_seconds)

    # life

    async def run(self) -> None:
        """Run until drained."""
        self._log.info("worker started", worker_id=self._id, pid=os.getpid())
        self._loop.add_signal_handler(signal.SIGTERM, self.drain)
        async with asyncio.TaskGroup() as tasks:
            link = tasks.create_task(self._link.run())
            feed = tasks.create_task(self._feed.run())
            journal = tasks.create_task(self._journal.run())
            ledger = tasks.create_task(self._ledger.run(self._journal))
            allowances = tasks.create_task(self._allowances.run())
            permits = tasks.create_task(self._permits.run())
            others = [
                tasks.create_task(loop)
                for loop in (
                    self._routes.run(),
                    self._refresh_models(),
                    self._token_keeper.run(),
                    self._recover(),
                    self._ledger.run_housekeeping(),
                    self._refusals.run(),
                    self._owners.run(),
                    self._every(PRUNE_SECONDS, self._refusals.prune),
                    self._every(PERMITS_PRUNE_SECONDS, self._prune_permits),
                    self._every(PRUNE_SECONDS, self._owners.prune),
                    self._tick(),
                    self._trim_memory(),
                    self._tell_state(),
                )
            ]
            await self._open()
            await self._draining.wait()
            await self._finish_calls()
            await _end(others)
            await self._authenticator.close()
            await _end([allowances, permits])
            await self._permits.close()
            await self._allowances.close()
            await _end([ledger])
            await self._ship_rest()
            await _end([feed])
            await self._end_worker()
            await _end([journal])
            self._journal.close()
            self._upstream.close()
            self._log.info("worker drained", worker_id=self._id)
            await _end([link])

    def drain(self) -> None:
        """Take no new calls, finish what has begun, and end."""
        if not self._draining.is_set():
            self._drained_by = self._loop.time() + self._settings.drain_timeout_seconds
            self._draining.set()

    def _on_supervisor_gone(self) -> None:
        """Leave the port at once: the next supervisor wants it whole."""
        if not self._draining.is_set():
            self._log.warning("supervisor gone")
        self._close_listener()
        self.drain()

    async def _open(self) -> None:
        """Accept connections, a moment after the start at the latest: the queue must not wait."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_WAIT_SECONDS_MAX):
                await self._feed.ready.wait()
                await self._routes.loaded.wait()
        gc.collect()
        gc.freeze()  # what the start has made stays: no collection looks at it again
        if not self._draining.is_set():
            self._server = await self._loop.create_server(
                self._lane.protocol, sock=self._context.listener, backlog=BACKLOG
            )
        self._listening = True

    def _close_listener(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._context.listener.close()

    async def _finish_calls(self) -> None:
        """Let open calls end by themselves, for so long; then cut them."""
        await asyncio.sleep(LISTENER_LINGER_SECONDS)
        self._close_listener()
        self._lane.drain()
        await self._calls_ended(by=self._drained_by)
        self._calls.draining = True
        cut = self._live.cut_all(Draining)
        if cut:
            self._log.warning("calls cut", calls=cut, reason="drain timeout")
            await self._calls_ended(by=self._loop.time() + CUT_SECONDS_MAX)
        await self._answers_taken(by=max(self._drained_by, self._loop.time() + CUT_SECONDS_MAX))
        self._lane.abort_all()
        await self._calls_ended(by=self._loop.time() + CUT_SECONDS_MAX)

    async def _calls_ended(self, *, by: float) -> None:
        await self._lane.ended(by=by)

    async def _answers_taken(self, *, by: float) -> None:
        """Let slow clients take what is left of answers: a call ends when all is written."""
        while self._lane.unsent_bytes() and self._loop.time() < by:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(UNSENT_LOOK_SECONDS)

    async def _ship_rest(self) -> None:
        try:
            async with asyncio.timeout(SHIP_SECONDS_MAX):
                await self._ledger.ship(self._journal)
                await self._refusals.write_some()
                await self._owners.write_rest()
        except (LedgerAway, TimeoutError) as error:
            self._log.warning("rows left in the journal", problem=str(error))

    async def _end_worker(self) -> None:
        try:
            async with asyncio.timeout(END_SECONDS_MAX):
                await self._feed.end()
        except (FeedLost, TimeoutError) as error:
            self._log.warning("end of worker not told", problem=str(error))

    # readiness

    def _missing(self) -> list[str]:
        """Return what calls could not do without."""
        missing = []
        if not self._feed.lease_holds():
            missing.append("database")
        if not self._routes.loaded.is_set():
            missing.append("vendors")
        if self._routes.is_sealed:
            missing.append("vault")
        if self._loop.time() - self._journal_fault_at < JOURNAL_FAULT_SECONDS:
            missing.append("journal")
        return missing

    async def _tell_state(self) -> None:
        while True:
            missing = self._missing()
            if self._draining.is_set():
                missing.append("draining")
            elif not self._listening:
                missing.append("listener")
            self._link.tell_state(State(worker_id=self._id, not_ready=tuple(missing)))
            await asyncio.sleep(STATE_SECONDS)

    # what the parts tell each other

    async def _find(self, digest: bytes) -> Found:
        """Look a token up; the first blocks of its allowances come along."""
        block_ids = self._allowances.prepare()
        try:
            found = await self._tokens.find(digest, worker_id=self._id, block_ids=block_ids)
            self._allowances.adopt(found.grants, asked=block_ids)
        finally:
            self._allowances.forget(block_ids)  # but for those adopted
        return found

    def _on_changes(self, changes: Sequence[Change]) -> Mapping[int, int]:
        """Apply changes; return how many streams were cut for which."""
        cuts: dict[int, int] = {}
        for change in changes:
            if change.subject_id is not None:
                self._authenticator.evict(change.kind, change.subject_id)
                if change.effect == "dead":
                    cuts[change.ordinal] = self._live.cut(change.kind, change.subject_id)
                elif change.effect == "limit":
                    self._allowances.forget_spent(change.kind, change.subject_id)
                    self._allowances.recall(change.kind, change.subject_id)
                    self._permits.limit_changed(change.kind, change.subject_id)
        return cuts

    def _on_routes_loaded(self) -> None:
        self._token_keeper.adopt(self._routes.everything())
        self._models_stale.set()
        self._feed.look_again()

    def _on_recall(self, kind: str, subject: str) -> None:
        """Hand units of a month back, or permits: their kinds differ."""
        self._allowances.recall(kind, subject)
        self._permits.recall(kind, subject)

    async def _on_reset(self) -> None:
        """Start over: the database is not the one it was, and may have lost what it had."""
        self._authenticator.forget_all()
        self._allowances.reset()
        self._permits.reset()
        await self._pool.expire_connections()  # none may still talk to the one it was
        self._metrics.feed_reset()
        self._log.warning("feed reset")
        for token_id in await self._tokens.find_ended(self._live.token_ids()):
            self._live.cut("token", token_id)
        self._ledger.start_over()

    def _on_stale_streams(self) -> None:
        cut = self._live.cut_all(DatabaseAway)
        self._log.warning("calls cut", calls=cut, reason="database away")

    def _on_heartbeat(self, seconds: float) -> None:
        now = self._clock.boottime()
        if now - self._heartbeat_sent > self._settings.lease_seconds:
            self._permits.reset()  # others may have seen this worker's lease end
        self._heartbeat_sent = now - seconds

    def _on_refusal(self, error: GatewayError, caller: Caller | None) -> None:
        if error.reason == "journal_full":
            self._metrics.journal_full()
        self._refusals.note(
            error.reason,
            org_id=None if caller is None else caller.org_id,
            token_id=None if caller is None else caller.token_id,
            limit_kind=error.limit_kind,
        )

    def _on_journal_fault(self, word: str) -> None:
        self._journal_fault_at = self._loop.time()
        self._log.warning("journal fault", fault=word)

    def _on_rejected(self, sqlstate: str, message: str) -> None:
        self._metrics.ledger_rejected()
        self._log.error("row rejected", sqlstate=sqlstate, cause=message)

    def _on_recovered(self, worker_id: str, findings: Findings) -> None:
        self._log.info(
            "journal recovered",
            of_worker=worker_id,
            interrupted=len(findings.interrupted),
            blocks=len(findings.used),
            damaged=findings.damaged,
        )

    def _on_ledger_lost(self) -> None:
        self._log.warning("rows shipped again", problem="the database may have lost some")
        self._journal.reship()

    def _on_housekeeping(self, found: Housekeeping) -> None:
        if found.strays or found.rejected:
            self._log.warning("ledger needs a look", strays=found.strays, rejected=found.rejected)

    def _ledger_lag_seconds(self) -> float | None:
        since = self._journal.unshipped_since()
        if since is None:
            return 0.0
        return max(0.0, self._clock.latest() - since) if self._clock.is_known else None

    def _lease_remaining_seconds(self) -> float:
        end = self._heartbeat_sent + self._settings.lease_seconds
        return max(0.0, end - self._clock.boottime())

    # background

    async def _tick(self) -> None:
        """Look at deadlines, for ever."""
        ticks = 0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            ticks += 1
            await self._calls.sweep()
            await self._lane.sweep()
            if ticks % POOL_SWEEP_TICKS == 0:
                self._upstream.sweep()

    async def _trim_memory(self) -> None:
        """Give back what a flood has left, for ever."""
        trim = find_trim()
        while True:
            await asyncio.sleep(TRIM_SECONDS)
            trim()

    async def _refresh_models(self) -> None:
        """Ask vendors for their lists: when there is a new table, and now and then."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MODELS_SECONDS):
                    await self._models_stale.wait()
            self._models_stale.clear()
            await self._model_refresh.refresh(self._routes.everything())

    async def _recover(self) -> None:
        """Finish the journals of workers that are gone, for ever."""
        while True:
            try:
                await self._ledger.recover(
                    orphans(self._settings.journal_dir, boot_id=self._boot_id),
                    settle=self._allowance_store.settle,
                    end_worker=lambda worker_id: mark_ended(
                        self._pool, worker_id, unshipped_since=None
                    ),
                    keep_in=self._journal,
                )
            except (LedgerAway, DatabaseAway, *DATABASE_FAULTS) as error:
                self._log.warning("recovery put off", problem=f"{type(error).__name__}: {error}")
            await asyncio.sleep(RECOVERY_SECONDS)

    async def _prune_permits(self) -> None:
        with contextlib.suppress(DatabaseAway):  # a minute later will do
            await self._permit_store.prune()

    async def _every(self, seconds: float, act: Callable[[], Awaitable[Any]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await act()


async def _end(tasks: Sequence["asyncio.Task[None]"]) -> None:
    """Cancel loops and wait until they are gone; what they die of is the group's to tell."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _open_pool(settings: Settings, context: WorkerContext) -> asyncpg.Pool:
    """Return the pool of database connections. It connects when used, not before."""
    pool = asyncpg.create_pool(
        settings.gateway_database_url,
        min_size=0,
        max_size=POOL_CONNECTIONS_MAX,
        max_inactive_connection_lifetime=IDLE_DATABASE_SECONDS,
        timeout=CONNECT_SECONDS_MAX,
        command_timeout=COMMAND_SECONDS_MAX,
        server_settings=_session(settings, context, "calls"),
    )
    await pool
    return pool


async def _connect_feed(settings: Settings, context: WorkerContext) -> asyncpg.Connection:
    """Return the feed's connection. Without it there is no lease, and so no call."""
    connection = await asyncpg.connect(
        settings.feed_database_url,
        timeout=CONNECT_SECONDS_MAX,
        server_settings=_session(settings, context, "feed"),
    )
    try:
        if settings.is_production:
            await check_role(connection)  # the supervisor does, if the database is there by then
        await check_schema(connection)
    except BaseException as error:
        connection.terminate()
        if isinstance(error, SchemaTooOld):
            raise FeedLost(str(error)) from error
        raise
    return connection


def _session(settings: Settings, context: WorkerContext, use: str) -> dict[str, str]:
    """Return what a session asks of the server: bounds, so that a stopped gateway holds nothing."""
    return {
        "application_name": f"kaixu {settings.machine}/{context.number} {use}"[:63],
        "statement_timeout": "30s",
        "idle_in_transaction_session_timeout": "30s",
        "lock_timeout": "20s",
    }


def _guarded(
    allowed_hosts: frozenset[str] | None, loop: asyncio.AbstractEventLoop
) -> tuple[Callable[[Origin], Awaitable[list[str]]], Callable[[Origin, str], None]]:
    """Return how vendors' names are resolved, and which peers are refused."""
    guards = {
        allow_private: ConnectGuard(allow_private=allow_private, allowed_hosts=allowed_hosts)
        for allow_private in (False, True)
    }

    async def look_up(host: str, port: int) -> list[str]:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    async def resolve(origin: Origin) -> list[str]:
        guard = guards[origin.allow_private]
        return await guard.allowed_addresses(origin.host, origin.port, look_up)

    def check_peer(origin: Origin, address: str) -> None:
        guards[origin.allow_private].check_peer(address)

    return resolve, check_peer


def _address_window(settings: Settings) -> AddressWindow | None:
    rate = settings.rate_per_address
    return None if rate is None else AddressWindow(calls=rate[0], window_seconds=rate[1])


def _tls() -> ssl.SSLContext:
    """Return how vendors are talked to: certificates checked, TLS 1.2 or newer, HTTP/1.1."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
