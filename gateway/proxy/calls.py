"""One call, told in order: who, may they, where, record, forward, relay, close.

Whatever can refuse a call comes before its first byte goes to a vendor. From there on it has a row,
whatever happens: taking its unit, opening its record and writing to the vendor are one step of the
loop. The answer's way back is `relay.py`; how bytes reach clients is `lane.py`.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Final

import msgspec

from gateway.auth.authenticate import token_candidates
from gateway.auth.caller import Caller
from gateway.errors import (
    ClientAddressNotAllowed,
    DatabaseAway,
    Draining,
    GatewayError,
    ScopeNotAllowed,
    TokenMissing,
    VendorBroke,
)
from gateway.limits import SWEPT_AT_ONCE
from gateway.permit_limit import PermitLimit
from gateway.proxy.address_window import AddressWindow
from gateway.proxy.call_parts import (
    Allowances,
    Authenticator,
    CallMetrics,
    CredentialReady,
    Limits,
    OnDefect,
    OnRefusal,
    Permits,
)
from gateway.proxy.call_plan import CallPlan, plan_of
from gateway.proxy.call_record import CallRecord, RecordKeeper, Status
from gateway.proxy.cloud_paths import find, guess_wire
from gateway.proxy.endpoints import Match, in_format
from gateway.proxy.errand import as_a_task
from gateway.proxy.error_responses import error_response
from gateway.proxy.exchange import Exchange
from gateway.proxy.held_relay import HeldRelay
from gateway.proxy.live_calls import LiveCalls
from gateway.proxy.model_list import ModelDirectory
from gateway.proxy.preparation import (
    BeforeCall,
    Preparation,
    Request,
    header_of,
    request_head,
)
from gateway.proxy.relay import Outcome, Relay, RelayTimes
from gateway.proxy.resumable_uploads import UploadTickets
from gateway.proxy.routing import RoutingTable, Target
from gateway.proxy.stored_answer import StoredAnswer
from gateway.proxy.stored_calls import StoredCalls, StoredRecords, relay_class
from gateway.proxy.upstream import UpstreamConnection, UpstreamPool

ATTEMPTS_MAX: Final = 2  # the second only when a reused connection died before any byte

_HEALTHY: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-content-type-options: nosniff\r\n\r\n"

# A page may send what its SDK sends: the token in it is what counts.
_PREFLIGHT: Final = (
    b"HTTP/1.1 204 No Content\r\naccess-control-allow-methods: GET, POST, PUT, PATCH, DELETE\r\n"
    b"access-control-allow-headers: *, authorization\r\naccess-control-max-age: 600\r\n\r\n"
)


class Call(msgspec.Struct, eq=False):
    """A call from its authentication to its end; what is cut when its token is revoked."""

    id: str
    caller: Caller
    exchange: Exchange
    plan: CallPlan
    started: float
    relay: Relay | None = None
    permits: tuple[PermitLimit, ...] = ()  # that it holds
    cut_by: GatewayError | None = None

    def cut(self, error: GatewayError) -> None:
        """End the call now, wherever it is."""
        if self.cut_by is not None:
            return
        self.cut_by = error
        if self.relay is not None:
            is_about_token = error.status == HTTPStatus.UNAUTHORIZED
            self.relay.cut(Status.REVOKED if is_about_token else Status.DEADLINE, error)
        elif self.exchange.errand is not None:
            self.exchange.errand.cancel()


class Calls:
    """Answers every request of one worker."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        permits: Permits,
        allowances: Allowances,
        records: RecordKeeper,
        routing: Callable[[Caller | None], RoutingTable],
        models: ModelDirectory,
        pool: UpstreamPool,
        live: LiveCalls,
        lease_holds: Callable[[], bool],
        new_id: Callable[[], str],
        metrics: CallMetrics,
        on_refusal: OnRefusal,
        on_defect: OnDefect,
        times: RelayTimes,
        loop: asyncio.AbstractEventLoop,
        cors_origins: Collection[str] = (),
        address_window: AddressWindow | None = None,
        owners: StoredRecords,
        before_call: BeforeCall | None = None,
        credential_ready: CredentialReady | None = None,
        upload_tickets: UploadTickets | None = None,
        wall_clock: Callable[[], float] = time.time,
        client_address: Callable[[Exchange], str] = lambda exchange: exchange.address,
    ) -> None:
        """Everything is handed in.

        `address_window`: how many calls may come from an address; None: as many as like.
        `credential_ready` waits for what a vendor's credential has to ask for, `wall_clock` gives
        the Unix seconds that signatures are made with.
        `cors_origins` are the web origins whose pages may call, `routing` gives a caller's table,
        `lease_holds` says whether this worker may admit calls, `on_defect(call_id, exception)` is
        told of what must not happen, `owners` know who made what vendors store. `upload_tickets`
        stand for tokens in the addresses of uploads; None: nothing does. `client_address` says
        where a request comes from, to tokens that have a list of networks.
        """
        self._authenticator = authenticator
        self._permits = permits
        self._address_window = address_window
        self._allowances = allowances
        self._records = records
        self._routing = routing
        self._models = models
        self._pool = pool
        self._live = live
        self._lease_holds = lease_holds
        self._new_id = new_id
        self._metrics = metrics
        self._on_refusal = on_refusal
        self._on_defect = on_defect
        self._times = times
        self._loop = loop
        self._cors_origins = frozenset(origin.encode() for origin in cors_origins)
        self._credential_ready = credential_ready
        self._wall_clock = wall_clock
        self._client_address = client_address
        self._stored = StoredCalls(owners)
        self._upload_tickets = upload_tickets or UploadTickets()
        self._preparation = Preparation(
            routing=routing,
            owners=owners,
            before_call=before_call,
            upload_tickets=self._upload_tickets,
        )
        self._relays: set[Relay] = set()
        self.draining = False

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request. Never raises but CancelledError, when the client is gone."""
        call_id = self._new_id()
        started = self._records.now()
        call: Call | None = None
        try:
            if self._cors_origins and self._is_preflight(exchange):
                exchange.respond(_PREFLIGHT)
                return
            plan = exchange.plan or self._plan(exchange)
            if plan is None:
                exchange.respond(_HEALTHY)
                return
            caller = self._known_caller(exchange, plan) or await self._who(exchange, plan)
            exchange.remember_head(plan)
            call = Call(call_id, caller, exchange, plan, started)
            self._live.register(call)
            while limits := self._permit(call):
                await self._permits.refill(limits)
            match = plan.match if plan.match.vendor is None else self._in_format(plan.match, caller)
            if match.endpoint.is_own and caller.tests_vendor is None:
                self._answer_models(call, match)
            else:
                request = await self._preparation.prepare(
                    exchange, match, plan=plan, caller=caller, call_id=call_id
                )
                await self._dispatch(call, request)
        except GatewayError as error:
            self.refuse(exchange, error, call_id=call_id, caller=call.caller if call else None)
        except asyncio.CancelledError:
            if call is None or call.cut_by is None or exchange.answered:
                raise
            self.refuse(exchange, call.cut_by, call_id=call_id, caller=call.caller)
        except Exception as error:  # noqa: BLE001 - one call's defect is not another's
            self._on_defect(call_id, error)
            if exchange.started:
                exchange.abort()
            else:
                self.refuse(
                    exchange, GatewayError(), call_id=call_id, caller=call.caller if call else None
                )
        finally:
            self._end(exchange, call)

    def _end(self, exchange: Exchange, call: Call | None) -> None:
        if call is not None:
            self._live.unregister(call)
            if call.permits:
                self._permits.release(call.permits)
        if not exchange.answered:
            exchange.release_body()

    def refuse(
        self,
        exchange: Exchange,
        error: GatewayError,
        *,
        call_id: str | None = None,
        caller: Caller | None = None,
    ) -> None:
        """Answer with an error, in the shape of the client's format."""
        self._metrics.refused(error.reason)
        self._on_refusal(error, caller)
        wire = guess_wire(exchange.path, exchange.headers)
        exchange.respond(
            error_response(
                error,
                wire=wire,
                call_id=call_id or self._new_id(),
                head_only=exchange.is_head,
                keep_alive=exchange.keep_alive and exchange.body_whole,
            )
        )

    @property
    def streams_open(self) -> int:
        """How many calls are being answered."""
        return len(self._relays)

    async def sweep(self) -> None:
        """Cut what is over a deadline, letting others run in between; call about once a second."""
        for number, relay in enumerate(list(self._relays), 1):
            relay.check_deadlines(self._loop.time())
            if number % SWEPT_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _is_preflight(self, exchange: Exchange) -> bool:
        """Let pages of configured origins read answers; return whether one only asks if it may."""
        origin = header_of(exchange, b"origin")
        if origin not in self._cors_origins:
            return False
        exchange.cors_origin = origin
        return exchange.method == b"OPTIONS" and (
            header_of(exchange, b"access-control-request-method") is not None
        )

    # who

    def _plan(self, exchange: Exchange) -> CallPlan | None:
        """Return what the head asks for; None for the one question that needs no token."""
        if exchange.path == "/" and exchange.method in (b"HEAD", b"GET"):
            return None
        match = find(exchange.path, method=exchange.method, headers=exchange.headers)
        exchange.plan = plan_of(match, exchange.headers, exchange.query)
        return exchange.plan

    def _in_format(self, match: Match, caller: Caller | None) -> Match:
        """Return what a vendor's path means there; the caller's org may have one of its own.

        It is read as found, and not as another vendor of this name would read it.
        """
        named = None if match.vendor is None else self._routing(caller).target(match.vendor)
        return match if named is None else in_format(match, named.kind.wire.name)

    def _known_caller(self, exchange: Exchange, plan: CallPlan) -> Caller | None:
        """Return the caller if that takes no waiting; also whether this worker admits any."""
        if self.draining:
            raise Draining
        if not self._lease_holds():
            raise DatabaseAway
        caller = None if plan.digest is None else self._authenticator.find_cached(plan.digest)
        if caller is not None:
            self._check_caller(caller, exchange)
        return caller

    async def _who(self, exchange: Exchange, plan: CallPlan) -> Caller:
        """Return a caller that is not known yet."""
        candidates = token_candidates(exchange.headers, exchange.query)
        if candidates:
            caller = await self._authenticator.authenticate(candidates, exchange.address)
        else:
            is_resumable = self._in_format(plan.match, None).is_resumable
            digest = self._upload_tickets.open(exchange.query) if is_resumable else None
            if digest is None:
                raise TokenMissing
            caller = await self._authenticator.authenticate_digest(digest, exchange.address)
        self._check_caller(caller, exchange)
        return caller

    def _check_caller(self, caller: Caller, exchange: Exchange) -> None:
        """Raise what keeps a token from being used for calls, or from this address."""
        if not caller.may_call:
            raise ScopeNotAllowed
        if caller.has_address_list and not caller.may_call_from(self._client_address(exchange)):
            raise ClientAddressNotAllowed

    def _permit(self, call: Call) -> tuple[PermitLimit, ...]:
        """Let the call begin, if its windows and caps on open calls do; else return those.

        What is refused later stays in the windows: they are there against floods of any calls.
        """
        limits = call.caller.permits
        if self._address_window is not None:
            limits = (*limits, self._address_window.limit(call.exchange.address))
        if limits and not self._permits.take(limits):
            return limits
        call.permits = limits
        return ()

    def _answer_models(self, call: Call, match: Match) -> None:
        exchange = call.exchange
        wire, table = match.endpoint.wire, self._routing(call.caller)
        if match.model_in_path is None:
            answer = self._models.list_body(
                wire=wire,
                vendor=match.vendor,
                table=table,
                may_use=call.caller.may_use,
                may_call=call.caller.may_call_vendor,
                query=exchange.query,
            )
        else:
            answer = self._models.model_body(
                match.model_in_path,
                wire=wire,
                vendor=match.vendor,
                table=table,
                may_use=call.caller.may_use,
                may_call=call.caller.may_call_vendor,
            )
        head = (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"cache-control: no-store\r\nx-content-type-options: nosniff\r\n"
            b"x-kaixu-call-id: %b\r\n\r\n" % (len(answer), call.id.encode())
        )
        exchange.respond(head if exchange.is_head else head + answer)

    # where, and on

    async def _dispatch(self, call: Call, request: Request) -> None:
        """Send the request and see its answer through; once more if no byte of one ever came."""
        limits = call.caller.limits if request.endpoint.counts else ()
        previous: str | None = None
        for attempt in range(1, ATTEMPTS_MAX + 1):
            if limits and attempt == 1:
                self._allowances.known_spent(limits)
            target = request.target
            if self._credential_ready is not None and target.signer is not None:
                await self._credential_ready(target)
            warm = self._pool.take_idle(target.origin) if attempt == 1 else None
            connection = warm or await self._connect(target)
            try:
                attempt_id = call.id if attempt == 1 else self._new_id()
                blocks = self._allowances.take(limits) if limits else ()
                while blocks is None:
                    await self._refill(limits, attempt=attempt)
                    if not connection.is_open:
                        warm = self._pool.take_idle(target.origin)
                        connection = warm or await self._connect(target)
                    blocks = self._allowances.take(limits)
            except BaseException:
                self._pool.put_back(connection)
                raise
            relay = self._send(
                call,
                request,
                connection,
                limits=limits,
                blocks=blocks,
                attempt=attempt,
                attempt_id=attempt_id,
                retry_of=previous,
            )
            self._relays.add(relay)
            try:
                outcome = await relay.outcome
            except asyncio.CancelledError:
                relay.on_client_gone()
                raise
            finally:
                self._relays.discard(relay)
                call.relay = None
            if outcome is Outcome.ANSWERED:
                return
            if outcome is Outcome.HELD:
                assert isinstance(relay, HeldRelay)
                await self._stored.pass_on(relay, request, caller=call.caller, call_id=call.id)
                return
            if outcome is Outcome.REFUSED:
                raise relay.error or VendorBroke()
            previous = attempt_id
        raise VendorBroke

    async def _refill(self, limits: Limits, *, attempt: int) -> None:
        """Return when it is worth taking units; a second attempt waits for none."""
        if attempt > 1:
            raise VendorBroke
        await self._allowances.refill(limits)

    def _check_admitted(self, call: Call) -> None:
        """Raise what keeps a call from going out by now."""
        if call.cut_by is not None:  # between two attempts, when there was nothing to cut
            raise call.cut_by
        if not self._lease_holds():
            raise DatabaseAway

    async def _connect(self, target: Target) -> UpstreamConnection:
        await as_a_task()  # connecting has a deadline
        try:
            return await self._pool.connect(target.origin)
        except GatewayError as error:
            self._metrics.vendor_error(target.name, error.reason)
            raise

    def _send(
        self,
        call: Call,
        request: Request,
        connection: UpstreamConnection,
        *,
        limits: Limits,
        blocks: tuple[str, ...],
        attempt: int,
        attempt_id: str,
        retry_of: str | None,
    ) -> Relay:
        """Open the record and write to the vendor. Nothing waits in here: it is one step."""
        exchange = call.exchange
        try:
            record = CallRecord(self._records)
            stored: StoredAnswer | None = None
            make_relay = Relay
            if request.stored is not None:
                stored = self._stored.watch(
                    request.stored, request.target, caller=call.caller, call_id=call.id
                )
                make_relay = relay_class(stored)
            relay = make_relay(
                exchange,
                request,
                record,
                call_id=call.id,
                may_retry=connection.reused and attempt < ATTEMPTS_MAX,
                times=self._times,
                loop=self._loop,
                stored=stored,
            )
            self._check_admitted(call)
            head = request_head(exchange, request, plan=call.plan, now=self._wall_clock())
            record.open(
                attempt_id=attempt_id,
                call_id=call.id,
                attempt=attempt,
                retry_of=retry_of,
                vendor=request.target.name,
                endpoint_name=request.endpoint.name,
                purpose=call.plan.purpose(
                    caller=call.caller,
                    vendor=request.target.name,
                    endpoint=request.endpoint,
                    model=request.model,
                    stream=request.stream,
                ),
                block_ids=blocks,
                started=call.started,
            )
        except BaseException:  # a defect too: nothing was sent
            self._allowances.put_back(limits, blocks)
            self._pool.put_back(connection)
            raise
        call.relay = relay
        try:
            relay.dispatch(connection, head)
        except Exception as error:  # noqa: BLE001 - whoever waits for this call hears of it
            relay.on_defect(error)
        return relay
