"""What a request turns into: which vendor it goes to, and the bytes that go up.

Reads the fields of a body that decide, holds them against what the caller may do, and makes the
few edits. It opens no record and spends no unit: what is refused here costs nobody anything.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from gateway.auth.caller import Caller
from gateway.errors import BodyInvalid, ModelNotAllowed
from gateway.proxy import body as bodies
from gateway.proxy.endpoints import Endpoint, Match
from gateway.proxy.exchange import Exchange
from gateway.proxy.headers import upstream_headers, upstream_query
from gateway.proxy.routing import Route, RoutingTable, Target
from gateway.proxy.stored_objects import check_names_none

HOOK_SECONDS_MAX: Final = 1.0  # for whoever looks at calls before they go


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


@dataclass(slots=True, kw_only=True)
class Sent:
    """What goes up in place of the client's body."""

    body: bytes = field(repr=False)
    asked_usage: bool  # the gateway asked for the usage event
    drop_content_encoding: bool

    def forget(self) -> None:
        """Let the body go: there won't be another attempt."""
        self.body = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What goes to a vendor, and to which."""

    endpoint: Endpoint
    path: str  # as the client named it, but for an alias in it
    target: Target
    model: str | None  # as the client named it
    stream: bool
    sent: Sent


class Preparation:
    """Prepares every request of one worker."""

    def __init__(
        self, *, routing: Callable[[], RoutingTable], before_call: BeforeCall | None = None
    ) -> None:
        """`routing` gives the present table; `before_call` may refuse a call, or look at it."""
        self._routing = routing
        self._before_call = before_call

    async def prepare(
        self, exchange: Exchange, match: Match, *, caller: Caller, call_id: str
    ) -> Request:
        """Return what goes to whom. The client's body is held by nothing else from here on.

        Raises GatewayError for whatever is wrong with the request itself.
        """
        endpoint = match.endpoint
        body = await exchange.read_body(org_id=caller.org_id)
        bodies.check_content_type(header_of(exchange, b"content-type") or b"")
        encoding = header_of(exchange, b"content-encoding")
        fields = bodies.read_deciding_fields(
            body, content_encoding=encoding, model_required=_has_to_name_model(endpoint, caller)
        )
        check_names_none(fields.text, has_items=endpoint.has_items)
        model = fields.model
        if match.model_in_path is not None:
            bodies.check_same_model(fields, match.model_in_path)
            model = match.model_in_path
        if model is not None and not caller.may_use(model):
            raise ModelNotAllowed(param="model")
        if caller.has_model_list and (
            fields.fallback_models is None or not all(map(caller.may_use, fields.fallback_models))
        ):
            raise ModelNotAllowed(param="models")
        if fields.background:
            raise BodyInvalid(
                "An answer that is fetched later can't be metered yet. Leave out 'background'.",
                param="background",
            )
        route = self._routing().route(
            wire_name=endpoint.wire.name, vendor=match.vendor, model=model
        )
        stream = fields.stream if fields.says_stream else endpoint.streams_by_default
        stream = stream or endpoint.always_streams
        sent = _edited(
            body,
            fields,
            route=route,
            endpoint=endpoint,
            stream=stream,
            is_compressed=encoding is not None,
        )
        target = route.targets[0]
        if self._before_call is not None:
            facts = CallFacts(
                call_id=call_id,
                caller=caller,
                endpoint=endpoint.name,
                vendor=target.name,
                model=model,
                stream=stream,
            )
            async with asyncio.timeout(HOOK_SECONDS_MAX):
                await self._before_call(facts, body)
        return Request(
            endpoint=endpoint,
            path=_path(match, route),
            target=target,
            model=model,
            stream=stream,
            sent=sent,
        )


def request_head(exchange: Exchange, request: Request) -> bytes:
    """Return the request line and headers that go to the vendor."""
    target = request.target
    path = target.kind.target_path(target.base.path, request.path)
    query = upstream_query(exchange.query)
    if query:
        path = f"{path}?{query.decode('ascii')}"
    headers = upstream_headers(
        exchange.headers,
        target=target,
        stream=request.stream,
        body_length=len(request.sent.body),
        drop_content_encoding=request.sent.drop_content_encoding,
    )
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (exchange.method, path.encode("ascii"), headers)


def header_of(exchange: Exchange, wanted: bytes) -> bytes | None:
    """Return the first value of a header, or None; `wanted` is in lower case."""
    for name, value in exchange.headers:
        if name == wanted:
            return value
    return None


def _has_to_name_model(endpoint: Endpoint, caller: Caller) -> bool:
    """Return whether a body needs a model: a vendor's default may not be on the token's list."""
    if endpoint.model_in != "body":
        return False
    return not endpoint.has_default_model or caller.has_model_list


def _edited(
    body: bytes,
    fields: bodies.DecidingFields,
    *,
    route: Route,
    endpoint: Endpoint,
    stream: bool,
    is_compressed: bool,
) -> Sent:
    """Return the body as it goes up: the client's own bytes, but for an alias and the usage."""
    asks_usage = (
        stream and endpoint.asks_usage and route.targets[0].asks_usage and not fields.asks_usage
    )
    model = route.model if route.alias is not None and endpoint.model_in == "body" else None
    if not asks_usage and model is None:
        return Sent(body=body, asked_usage=False, drop_content_encoding=False)
    return Sent(
        body=bodies.edited(fields, model=model, asks_usage=asks_usage),
        asked_usage=asks_usage,
        drop_content_encoding=is_compressed,
    )


def _path(match: Match, route: Route) -> str:
    if match.endpoint.model_in == "path" and route.alias is not None and route.model is not None:
        return match.path_for(route.model)
    return match.path
