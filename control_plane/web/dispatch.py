"""From a request to its answer: who asks, how often, may they, what; then the route's function.

The order is told by `Dispatcher.answer`, from top to bottom, and is the same for every route.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from aiohttp import web

from control_plane.errors import (
    BadArgument,
    ControlError,
    DatabaseUnreachable,
    Forbidden,
    Overloaded,
    TooLarge,
    UnsupportedMedia,
)
from control_plane.identity.actor import Actor
from control_plane.identity.authenticate import find_actor, is_open, only_org
from control_plane.identity.session_keys import SessionClaims, refusal
from control_plane.identity.token_reader import (
    TokenReader,
    check_org,
    find_reader,
    is_gateway_token,
)
from control_plane.services import Services
from control_plane.throttle import take, takings
from control_plane.web.client_address import client_address
from control_plane.web.etag import etag_of_bytes, matches
from control_plane.web.idempotency import check_key, once
from control_plane.web.input import TEXT_CHARS_MAX, read_body, read_query, read_uuid
from control_plane.web.problems import plain_problem, problem
from control_plane.web.request import ApiRequest, forbidden
from control_plane.web.route import Access, Reply, Route
from gateway.log import told

BODY_BYTES_MAX: Final = 64 * 1024
REQUEST_SECONDS_MAX: Final = 30.0
FRESH: Final = timedelta(minutes=10)  # that a proof of who one is counts for what is dangerous
USER_AGENT_CHARS_MAX: Final = 300
JSON: Final = "application/json"

_BEARER: Final = "bearer "
_NOTHING_SAID: Final = b"{}"


class Dispatcher:
    """Answers requests of all routes."""

    def __init__(self, services: Services) -> None:
        """`services` is what the routes' functions work with."""
        self._services = services

    def handler(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Return what aiohttp calls for a route."""

        async def handle(request: web.Request) -> web.StreamResponse:
            request_id = self._services.ids.new()
            response = await self._guarded(route, request, request_id)
            response.headers["x-request-id"] = request_id
            return response

        return handle

    async def _guarded(
        self, route: Route, request: web.Request, request_id: str
    ) -> web.StreamResponse:
        """Return an answer, whatever happens."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS_MAX):
                return await self.answer(route, request, request_id)
        except TimeoutError as error:
            self._services.log.warning(
                "request too slow", error=told(error), route=str(route), request_id=request_id
            )
            return problem(_away(), request_id=request_id)
        except DatabaseUnreachable as error:  # its message may quote a query, or say where it is
            self._services.log.warning(
                "database away", error=told(error), route=str(route), request_id=request_id
            )
            return problem(_away(), request_id=request_id)
        except ControlError as error:
            if error.status >= web.HTTPInternalServerError.status_code:
                self._services.log.warning(
                    "request failed", code=error.code, route=str(route), request_id=request_id
                )
            return problem(error, request_id=request_id)
        except web.HTTPException as error:
            return plain_problem(error.status, request_id=request_id)
        except Exception as error:  # noqa: BLE001 - a defect of ours is told to nobody but the log
            self._services.log.error(  # noqa: TRY400 - our log takes the error itself
                "request failed", error=error, route=str(route), request_id=request_id
            )
            return plain_problem(
                500, request_id=request_id, detail="This went wrong; it is logged."
            )

    async def answer(self, route: Route, request: web.Request, request_id: str) -> web.Response:
        """Return the answer to a request of a route. Raises ControlError."""
        services = self._services
        address = client_address(
            peer=request.remote or "",
            forwarded_for=request.headers.getall("x-forwarded-for", ()),
            trusted=services.settings.trusted_proxies,
        )
        claims, reader = None, None
        if route.access is not Access.PUBLIC:
            bearer = _bearer_token(request)
            if route.token_scope is not None and is_gateway_token(bearer):
                reader = await self._reader(route, bearer, address=address)
            else:
                claims = self._services.session_keys.verify(bearer)
                await self._take(route, address=address, claims=claims)
        else:
            await self._take(route, address=address, claims=None)
        path = _path(route, request)
        query = _query(request)
        org_text = query.pop("org", None) if route.takes_org_by_query else None
        asked = None if route.query is None else read_query(query, route.query)
        if route.query is None and query:
            raise BadArgument("There is no such parameter.", field=min(query))
        raw = await _body(route, request)
        said = raw or (_NOTHING_SAID if route.body_is_optional else b"")
        body = None if route.body is None else read_body(said, route.body)
        actor, org_id = None, None
        if reader is not None:
            org_id = reader.org_id
            check_org(reader, org_text)
        elif claims is not None:
            actor, org_id = await self._actor(route, claims, path, org_text)
            _check_access(route, actor, path)
        call = ApiRequest(
            services=services,
            route=route,
            actor=actor,
            org_id=org_id,
            path=path,
            query=asked,
            body=body,
            address=address,
            user_agent=_user_agent(request),
            request_id=request_id,
            if_match=request.headers.get("if-match"),
            reader=reader,
        )
        key = request.headers.get("idempotency-key")
        if key is None or actor is None or route.method != "POST":
            return _not_modified(request, await _carry_out(call))
        check_key(key)

        async def work() -> tuple[int, bytes]:
            response = await _carry_out(call)
            assert isinstance(response.body, bytes)
            return response.status, response.body

        (status, answer), was_kept = await once(
            services.database,
            account_id=actor.account_id,
            route=f"{route.method} {request.path_qs}",
            key=key,
            digest=services.control_keys.digest(raw),
            work=work,
            tells_once=route.tells_once,
            may_have_happened=lambda: call.may_have_changed,
        )
        headers = {"idempotency-replayed": "true"} if was_kept else {}
        return web.Response(
            body=answer, status=status, content_type=route.content_type, headers=headers
        )

    async def _reader(self, route: Route, token: str, *, address: str) -> TokenReader:
        """Return the gateway token that asks, and count the request. Raises ControlError."""
        assert route.token_scope is not None
        async with self._services.database.connection() as connection:
            reader = await find_reader(connection, token, address=address)
            counted_for = None if reader is None else str(reader.token_id)
            await take(
                connection, takings(route.rate_class, address=address, account_id=counted_for)
            )
        if reader is None:
            raise refusal()
        if route.token_scope not in reader.scopes:
            raise Forbidden(
                f"This token may not read this: it takes the scope {route.token_scope}."
            )
        return reader

    async def _take(self, route: Route, *, address: str, claims: SessionClaims | None) -> None:
        """Count a request: who shows the token of a session that is over uses up nobody's share."""
        account_id = None
        async with self._services.database.connection() as connection:
            if claims is not None and await is_open(connection, claims):
                account_id = str(claims.account_id)
            await take(
                connection, takings(route.rate_class, address=address, account_id=account_id)
            )

    async def _actor(
        self,
        route: Route,
        claims: SessionClaims,
        path: dict[str, str],
        org_text: list[str] | None,
    ) -> tuple[Actor, uuid.UUID | None]:
        """Return who asks, and the org that it is about."""
        database = self._services.database
        async with database.transaction(account_id=claims.account_id) as connection:
            org_id = None
            if "org" in path:
                org_id = uuid.UUID(path["org"]) if route.is_in_org else None
            elif route.takes_org_by_query:
                await find_actor(connection, claims, org_id=None)  # before anything is told
                if org_text is None:
                    org_id = await only_org(connection, claims.account_id)
                else:
                    org_id = read_uuid(org_text[0], field="org")
            return await find_actor(connection, claims, org_id=org_id), org_id


def _bearer_token(request: web.Request) -> str:
    """Return the bearer token. Raises Unauthenticated."""
    headers = request.headers.getall("authorization", ())
    if len(headers) != 1 or not headers[0].lower().startswith(_BEARER):
        raise refusal()
    return headers[0][len(_BEARER) :].strip(" ")


def _check_access(route: Route, actor: Actor, path: dict[str, str]) -> None:
    """Raise Forbidden for who may not ask for this, as far as the path tells."""
    if route.access is Access.OPERATOR and not actor.is_operator:
        raise Forbidden("Only who runs this installation may do this.")
    if not isinstance(route.access, Access):
        membership = actor.membership
        assert membership is not None, "a permission is held in an org"
        permission = route.access.permission
        if route.is_about_workspace:
            is_held = membership.holds(permission, workspace_id=uuid.UUID(path["workspace"]))
        elif route.access.scope == "each":
            is_held = membership.may_hold(permission)
        else:
            is_held = membership.holds(permission)
        if not is_held:
            raise forbidden(permission)
    if route.needs_fresh and datetime.now(UTC) - actor.authenticated_at > FRESH:
        raise Forbidden(
            "Prove that it is you: sign in again, then repeat this within "
            f"{FRESH.seconds // 60} minutes.",
            code="reauthentication_required",
        )


async def _carry_out(call: ApiRequest) -> web.Response:
    """Call the route's function, and return its answer."""
    route = call.route
    answer = await route.handler(call)
    decides_each = not isinstance(route.access, Access) and route.access.scope == "each"
    assert call.authorized or not decides_each, f"{route} answers without having asked who may"
    headers: dict[str, str] = {}
    status = route.status
    if isinstance(answer, Reply):
        headers, status = dict(answer.headers), answer.status or status
        answer = answer.body
    body = answer if isinstance(answer, bytes) else b"" if answer is None else _encode(answer)
    if route.method == "GET" and body:
        headers.setdefault("etag", etag_of_bytes(body))
    return web.Response(
        body=body,
        status=status,
        headers=headers,
        content_type=route.content_type if body else None,
    )


def _away() -> Overloaded:
    """Return the refusal where the database does not answer, or not in time."""
    return Overloaded(
        "The database can't be asked at the moment: try again in a while.",
        code="database_unreachable",
    )


def _encode(answer: object) -> bytes:
    return msgspec.json.encode(answer)


def _not_modified(request: web.Request, response: web.Response) -> web.Response:
    """Return 304 in place of what the asker has already."""
    tag = response.headers.get("etag")
    wanted = request.headers.get("if-none-match")
    if tag is None or wanted is None or not matches(wanted, tag):
        return response
    return web.Response(status=304, headers={"etag": tag})


def _path(route: Route, request: web.Request) -> dict[str, str]:
    """Return the names in the path. Raises NotFound's like: what is no id names nothing."""
    path = dict(request.match_info)
    for name, text in path.items():
        if name in route.text_names:
            if not 0 < len(text) <= TEXT_CHARS_MAX or not text.isprintable():
                raise BadArgument("This is no name.", field=name)
        else:
            read_uuid(text, field=name)
    return path


def _user_agent(request: web.Request) -> str:
    """Return what the client calls itself; what is no text in it is a question mark."""
    text = request.headers.get("user-agent", "")[:USER_AGENT_CHARS_MAX]
    return text.encode(errors="replace").decode()


def _query(request: web.Request) -> dict[str, list[str]]:
    query: dict[str, list[str]] = {}
    for name, value in request.query.items():
        if "\0" in value or len(value) > TEXT_CHARS_MAX:
            raise BadArgument("This value can't be one.", field=name)
        query.setdefault(name, []).append(value)
    if len(query.get("org", ())) > 1:
        raise BadArgument("This parameter is there more than once.", field="org")
    return query


async def _body(route: Route, request: web.Request) -> bytes:
    """Return the body's bytes. Raises TooLarge, UnsupportedMedia, BadArgument."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMedia("Send the body as it is, not compressed.", field="content-encoding")
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise TooLarge(f"A body has at most {BODY_BYTES_MAX} bytes.") from error
    if route.body is None:
        if raw:
            raise BadArgument("This takes no body.", field="body")
    elif not raw and route.body_is_optional:
        return raw
    elif request.content_type != JSON:
        raise UnsupportedMedia(f"Send the body as {JSON}.", field="content-type")
    elif b"\\u0000" in raw or b"\0" in raw:
        raise BadArgument("A text has no NUL in it.", field="body")
    return raw
