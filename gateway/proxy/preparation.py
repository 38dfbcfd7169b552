"""What a request turns into: which vendor it goes to, and the bytes that go up.

Reads the fields of a body that decide, holds them against what the caller may do, and makes the
few edits. It opens no record and spends no unit: what is refused here costs nobody anything.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from gateway.auth.authenticate import carried_digest, token_candidates
from gateway.auth.caller import Caller
from gateway.errors import (
    BodyInvalid,
    ModelNotAllowed,
    NoRoute,
    RequestInvalid,
    UnsupportedBody,
    VendorNotAllowed,
)
from gateway.proxy.body import DecidingFields
from gateway.proxy.call_plan import CallPlan
from gateway.proxy.endpoints import Endpoint, Match
from gateway.proxy.errand import as_a_task
from gateway.proxy.exchange import Exchange
from gateway.proxy.headers import (
    asks_for_part,
    passed_up,
    upstream_lines,
    upstream_query,
    without_ranges,
)
from gateway.proxy.long_texts import outside_long_texts
from gateway.proxy.request_body import Fields, check_models_of_path, read_fields, renamed
from gateway.proxy.resumable_uploads import (
    BegunUpload,
    UploadTickets,
    object_id_of,
    upload_id_of,
)
from gateway.proxy.routing import Route, RoutingTable, Target
from gateway.proxy.side_models import AGENT, side_models
from gateway.proxy.stored_answer import StoredFacts
from gateway.proxy.stored_objects import Named, named_objects
from gateway.proxy.stored_owners import Holding
from gateway.proxy.stored_requests import Owners, StoredRequests, facts_of, metered_endpoint
from gateway.proxy.stored_uploads import (
    Upload,
    check_resumed,
    read_form,
    read_gemini_upload,
)
from gateway.proxy.vendor_credentials import credential_lines
from gateway.vendors import gemini

HOOK_SECONDS_MAX: Final = 1.0  # for whoever looks at calls before they go

_BODILESS: Final = (b"DELETE", b"GET", b"HEAD")
_GEMINI_MODELS: Final = "models/"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFacts:
    """What a hook is told about a call; never its body's text, which comes beside it."""

    call_id: str
    caller: Caller
    endpoint: str
    vendor: str
    model: str | None
    stream: bool


BeforeCall = Callable[[CallFacts, bytes], Awaitable[None]]


# One of each of these is made for every call, at a quarter of what a dataclass costs.
class Sent(msgspec.Struct, kw_only=True, eq=False):
    """What goes up in place of the client's body."""

    body: bytes
    asked_usage: bool  # the gateway asked for the usage event
    drop_content_encoding: bool

    __repr__ = object.__repr__  # bodies are nobody's to read


class Request(msgspec.Struct, kw_only=True, eq=False):
    """What goes to a vendor, and to which."""

    endpoint: Endpoint
    path: str  # as the client named it, but for an alias in it
    target: Target
    model: str | None  # as the client named it
    stream: bool
    sent: Sent
    stored: StoredFacts | None = None  # what it has to do with stored objects


class _Ask(msgspec.Struct, kw_only=True, eq=False):
    """A request on its way to becoming one for a vendor."""

    exchange: Exchange
    plan: CallPlan
    match: Match
    caller: Caller
    call_id: str
    body: bytes
    held_at: Target | None = None  # the vendor that holds what the path names
    holding: Holding | None = None

    @property
    def endpoint(self) -> Endpoint:
        return self.match.endpoint

    @property
    def vendor(self) -> str | None:
        """The vendor that it has to go to, None where the model decides or any will do."""
        return self.match.vendor if self.held_at is None else self.held_at.name

    __repr__ = object.__repr__  # bodies are nobody's to read


class Preparation:
    """Prepares every request of one worker."""

    def __init__(
        self,
        *,
        routing: Callable[[Caller | None], RoutingTable],
        owners: Owners,
        before_call: BeforeCall | None = None,
        upload_tickets: UploadTickets,
    ) -> None:
        """Everything is handed in.

        `routing` gives a caller's table, `owners` know who made what is stored, `before_call` may
        refuse a call, or look at it; `upload_tickets` stand for tokens in the addresses of uploads.
        """
        self._upload_tickets = upload_tickets
        self._routing = routing
        self._stored = StoredRequests(owners, routing=routing)
        self._before_call = before_call

    async def prepare(
        self, exchange: Exchange, match: Match, *, plan: CallPlan, caller: Caller, call_id: str
    ) -> Request:
        """Return what goes to whom. The client's body is held by nothing else from here on.

        Raises GatewayError for whatever is wrong with the request itself.
        """
        held_at: Target | None = None
        holding: Holding | None = None
        upload_id: str | None = None
        if exchange.query and match.is_resumable:
            upload_id = upload_id_of(exchange.query)
        if upload_id is not None:
            match = replace(match, object_id=object_id_of(upload_id))
        if match.object_id is not None:
            held_at, holding = await self._stored.locate(match, match.object_id, caller=caller)
            match = replace(match, endpoint=metered_endpoint(match.endpoint, holding))
        body = await exchange.read_body(org_id=caller.org_id)
        ask = _Ask(
            exchange=exchange,
            plan=plan,
            match=match,
            caller=caller,
            call_id=call_id,
            body=body,
            held_at=held_at,
            holding=holding,
        )
        if match.endpoint.body == "upload":
            request = await self._upload(ask)
        elif match.endpoint.body == "none" or (not body and match.endpoint.model_in == "none"):
            request = await self._bodiless(ask)
        else:
            request = await self._decided(ask)
        if caller.has_vendor_list and not caller.may_call_vendor(request.target.name):
            raise VendorNotAllowed
        if self._before_call is not None:
            facts = CallFacts(
                call_id=call_id,
                caller=caller,
                endpoint=match.endpoint.name,
                vendor=request.target.name,
                model=request.model,
                stream=request.stream,
            )
            await as_a_task()  # the hook has a deadline
            async with asyncio.timeout(HOOK_SECONDS_MAX):
                await self._before_call(facts, body)
        return request

    async def _decided(self, ask: _Ask) -> Request:
        """Prepare a request whose body decides: fields of JSON, or of a form."""
        match, caller = ask.match, ask.caller
        endpoint = match.endpoint
        fields = read_fields(
            ask.body,
            endpoint=endpoint,
            content_types=ask.plan.content_types,
            content_encoding=ask.plan.content_encoding,
            model_required=_has_to_name_model(endpoint, caller),
        )
        if endpoint.wire is gemini.FORMAT and asks_for_part(ask.exchange.query):
            raise RequestInvalid(
                "The gateway has to read the whole answer: leave out 'fields', 'callback' and any "
                "'alt' but json and sse."
            )
        model = None if fields.model is None else _plain_model(fields.model, endpoint)
        if match.model_in_path is not None:
            check_models_of_path(fields, match.model_in_path, endpoint=endpoint)
            model = match.model_in_path
        if caller.has_model_list:
            if model is not None and not caller.may_use(model):
                raise ModelNotAllowed(param="model")
            _check_other_models(fields, endpoint=endpoint, caller=caller)
        named: tuple[Named, ...] = ()
        stored: StoredFacts | None = None
        vendor = ask.vendor
        if isinstance(fields, DecidingFields):
            named = named_objects(
                fields.text,
                items_in=endpoint.items_in,
                places=outside_long_texts(fields.text, fields.members),
            )
            stored = facts_of(
                endpoint, object_id=match.object_id, holding=ask.holding, fields=fields
            )
            if endpoint.stored is not None and endpoint.stored.is_batch:
                vendor = await self._stored.batch_vendor(match, fields, named, caller=caller)
        table = self._routing(caller)
        route = table.route(wire_name=endpoint.routed_by, vendor=vendor, model=model)
        target, path = route.targets[0], _path(match, route)
        if target.signer is not None and target.signer.refuses(path):
            raise NoRoute("The gateway does not call that project or location.")
        if named:
            await self._stored.check_named(named, caller=caller, target=target)
        stream = fields.stream if fields.says_stream else endpoint.streams_by_default
        stream = stream or endpoint.always_streams
        stream = stream or (endpoint.has_stream_format and fields.streams_events)
        sent = _edited(
            ask.body,
            fields,
            route=route,
            match=match,
            stream=stream,
            is_compressed=ask.plan.content_encoding is not None,
        )
        return Request(
            endpoint=endpoint,
            path=path,
            target=target,
            model=model,
            stream=stream,
            sent=sent,
            stored=stored,
        )

    async def _bodiless(self, ask: _Ask) -> Request:
        """Prepare a request whose path says all.

        SDKs send a body with some that are about stored objects; it goes nowhere.
        """
        endpoint = ask.endpoint
        if ask.body and endpoint.stored is None:
            raise BodyInvalid("This endpoint takes no body.")
        if endpoint.lists_models and ask.caller.has_model_list:
            raise ModelNotAllowed
        stored = facts_of(endpoint, object_id=ask.match.object_id, holding=ask.holding)
        table = self._routing(ask.caller)
        route = table.route(wire_name=endpoint.routed_by, vendor=ask.vendor, model=None)
        target = route.targets[0]
        if endpoint.stored is not None and endpoint.stored.lists is not None:
            await self._stored.check_cursors(ask.exchange.query, caller=ask.caller, target=target)
        return Request(
            endpoint=endpoint,
            path=ask.match.path,
            target=target,
            model=None,
            stream=False,
            sent=Sent(body=b"", asked_usage=False, drop_content_encoding=False),
            stored=stored,
        )

    async def _upload(self, ask: _Ask) -> Request:
        """Prepare a request that uploads a file: its bytes pass as they are."""
        endpoint = ask.endpoint
        upload = _read_upload(ask)
        if ask.caller.has_model_list and not all(
            model is not None and ask.caller.may_use(model) for model in upload.models
        ):
            raise ModelNotAllowed(param="model")
        table = self._routing(ask.caller)
        route = table.route(wire_name=endpoint.routed_by, vendor=ask.vendor, model=None)
        target = route.targets[0]
        await self._stored.check_named(upload.named, caller=ask.caller, target=target)
        stored = facts_of(endpoint, is_batch_input=upload.is_batch_input)
        if upload.begins:
            assert stored is not None
            stored = replace(stored, begins_upload=self._begun(ask, target))
        return Request(
            endpoint=endpoint,
            path=ask.match.path,
            target=target,
            model=None,
            stream=False,
            sent=Sent(body=ask.body, asked_usage=False, drop_content_encoding=False),
            stored=stored,
        )

    def _begun(self, ask: _Ask, target: Target) -> BegunUpload:
        exchange = ask.exchange
        return BegunUpload(
            vendor=target.base,
            root=_called_at(exchange) + exchange.path.removesuffix(ask.match.path),
            digest=carried_digest(token_candidates(exchange.headers, exchange.query)),
            tickets=self._upload_tickets,
        )


def request_head(exchange: Exchange, request: Request, *, plan: CallPlan, now: float) -> bytes:
    """Return the request line and headers that go to the vendor; `now` is when it is signed.

    `plan` is that of the exchange's head.

    Raises VendorKeyRefused.
    """
    target = request.target
    path = target.kind.target_path(target.base.path, request.path)
    query = upstream_query(exchange.query) if exchange.query else b""
    use, sent = request.endpoint.stored, request.sent
    is_retrieval = use is not None and use.retrieves
    if is_retrieval or sent.drop_content_encoding:
        lines = passed_up(
            without_ranges(exchange.headers) if is_retrieval else exchange.headers,
            account_headers=target.account_headers,
            stream=request.stream,
            drop_content_encoding=sent.drop_content_encoding,
        )
    else:
        lines = plan.passed.get((target.account_headers, request.stream)) or plan.lines_up(
            exchange.headers, account_headers=target.account_headers, stream=request.stream
        )
    body_length = None if exchange.method in _BODILESS else len(sent.body)
    headers = upstream_lines(target, lines, body_length=body_length)
    if target.signer is not None:
        headers += credential_lines(
            target,
            method=exchange.method,
            path=path,
            query=query.decode("ascii"),
            headers=headers,
            body=request.sent.body,
            now=now,
        )
    asked = path.encode("ascii")
    if query:
        asked += b"?" + query
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (exchange.method, asked, headers)


def header_of(exchange: Exchange, wanted: bytes) -> bytes | None:
    """Return the first value of a header, or None; `wanted` is in lower case."""
    for name, value in exchange.headers:
        if name == wanted:
            return value
    return None


def _called_at(exchange: Exchange) -> str:
    """Return scheme and host by which the client called the gateway.

    The scheme is what a proxy in front says: it goes into nothing but this client's own answer.
    """
    host = header_of(exchange, b"host")
    if host is None:
        raise RequestInvalid("An upload in several requests needs a Host to come back to.")
    said = header_of(exchange, b"x-forwarded-proto") or b""
    scheme = "https" if said.partition(b",")[0].strip().lower() == b"https" else "http"
    return f"{scheme}://{host.decode('ascii')}"


def _read_upload(ask: _Ask) -> Upload:
    """Return what is known of a file that is uploaded. Raises GatewayError."""
    exchange = ask.exchange
    if header_of(exchange, b"content-encoding") is not None:
        raise UnsupportedBody("The gateway takes files as they are, without a content encoding.")
    content_types = [value for name, value in exchange.headers if name == b"content-type"]
    if len(content_types) > 1:
        raise RequestInvalid("The request has two content types.")
    content_type = content_types[0].decode("latin-1").strip() if content_types else ""
    if ask.endpoint.wire is not gemini.FORMAT:
        return read_form(ask.body, content_type)
    if ask.holding is not None:
        check_resumed(headers=exchange.headers, query=exchange.query)
        return Upload()
    return read_gemini_upload(
        ask.body, content_type=content_type, headers=exchange.headers, query=exchange.query
    )


def _plain_model(model: str, endpoint: Endpoint) -> str:
    """Return a model's name as it stands in patterns and aliases."""
    return model.removeprefix(_GEMINI_MODELS) if endpoint.wire is gemini.FORMAT else model


def _check_other_models(fields: Fields, *, endpoint: Endpoint, caller: Caller) -> None:
    """Raise ModelNotAllowed where a body names one beside its own that is not on the list.

    Raises BodyInvalid where it names an agent neither, if that could stand in a model's place.
    """
    if fields.further_models is None or not all(map(caller.may_use, fields.further_models)):
        raise ModelNotAllowed(param="models")
    names_agent = False
    if isinstance(fields, DecidingFields):
        for param, model in side_models(fields):
            if model is None or not caller.may_use(_plain_model(model, endpoint)):
                raise ModelNotAllowed(param=param)
            names_agent = names_agent or param == AGENT
    if fields.model is None and _may_name_agent(endpoint) and not names_agent:
        raise BodyInvalid("The request body has neither 'model' nor 'agent'.", param="model")


def _has_to_name_model(endpoint: Endpoint, caller: Caller) -> bool:
    """Return whether a body needs a model: a vendor's default may not be on the token's list."""
    if endpoint.model_in != "body":
        return False
    if not endpoint.has_default_model:
        return True
    return caller.has_model_list and not _may_name_agent(endpoint)


def _may_name_agent(endpoint: Endpoint) -> bool:
    """Return whether an agent may be named in place of a model: by the Interactions API."""
    is_in_body = endpoint.model_in == "body" and endpoint.has_default_model
    return is_in_body and endpoint.wire is gemini.FORMAT


def _edited(
    body: bytes,
    fields: Fields,
    *,
    route: Route,
    match: Match,
    stream: bool,
    is_compressed: bool,
) -> Sent:
    """Return the body as it goes up: the client's own bytes, but for an alias and the usage."""
    endpoint = match.endpoint
    asks_usage = (
        stream and endpoint.asks_usage and route.targets[0].asks_usage and not fields.asks_usage
    )
    if route.alias is None and not asks_usage:
        return Sent(body=body, asked_usage=False, drop_content_encoding=False)
    sent = renamed(
        fields,
        endpoint=endpoint,
        model=route.model if route.alias is not None else None,
        model_in_path=match.model_in_path,
        asks_usage=asks_usage,
    )
    if sent is None:
        return Sent(body=body, asked_usage=False, drop_content_encoding=False)
    return Sent(body=sent, asked_usage=asks_usage, drop_content_encoding=is_compressed)


def _path(match: Match, route: Route) -> str:
    if match.endpoint.model_in == "path" and route.alias is not None and route.model is not None:
        return match.path_for(route.model)
    return match.path
