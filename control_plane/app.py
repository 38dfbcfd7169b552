"""The control plane as an aiohttp application: its routes, its document, and nothing else."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Final, cast

import aiohttp_cors
import msgspec
from aiohttp import HttpVersion11, web

from control_plane.routes import ROUTES
from control_plane.services import Services
from control_plane.sweeper import sweeping
from control_plane.web.connections import Connections
from control_plane.web.dispatch import BODY_BYTES_MAX, Dispatcher
from control_plane.web.openapi import openapi_document
from control_plane.web.problems import plain_problem
from control_plane.web.readiness import Readiness
from control_plane.web.route import Route
from control_plane.web.security_headers import harden

KEEP_ALIVE_SECONDS: Final = 15.0  # also what a request's head may take
SHUTDOWN_SECONDS: Final = 10.0
PREFLIGHT_SECONDS: Final = 600
CONTINUE: Final = "100-continue"

_EXPOSED: Final = ("etag", "retry-after", "x-request-id")
_STATUS_ERROR_MIN: Final = 400

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(services: Services, routes: Sequence[Route] = ROUTES) -> web.Application:
    """Return the application that answers these routes."""
    dispatcher = Dispatcher(services)
    document = msgspec.json.encode(openapi_document(routes, version=version("kaixu-gateway")))

    async def openapi(_: web.Request) -> web.Response:
        return web.Response(body=document, content_type="application/json")

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    readiness = Readiness(services)

    async def readyz(_: web.Request) -> web.Response:
        told = await readiness.told()
        return web.Response(
            body=msgspec.json.encode(told),
            status=200 if told.ready else 503,
            content_type="application/json",
        )

    @web.middleware
    async def plain_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPException as error:
            if error.status < _STATUS_ERROR_MIN:
                raise
            response = plain_problem(error.status, request_id=services.ids.new())
            if "allow" in error.headers:
                response.headers["allow"] = error.headers["allow"]
        return response

    async def expected(request: web.Request) -> web.StreamResponse | None:
        if request.version == HttpVersion11 and request.headers["expect"].lower() == CONTINUE:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # what was written so far is no answer
            return None
        return plain_problem(417, request_id=services.ids.new())

    app = web.Application(middlewares=[plain_errors], client_max_size=BODY_BYTES_MAX)
    app.on_response_prepare.append(_harden)
    app.router.add_get("/api/openapi.json", openapi)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    for route in routes:
        app.router.add_route(
            route.method, route.path, dispatcher.handler(route), expect_handler=expected
        )
    _allow_origins(app, services.settings.allowed_origins)
    return app


async def _harden(_: web.Request, response: web.StreamResponse) -> None:
    """Put on an answer what every one has; aiohttp's name and version are on it only now."""
    harden(response)


def _allow_origins(app: web.Application, origins: Sequence[str]) -> None:
    options = aiohttp_cors.ResourceOptions(  # type: ignore[no-untyped-call]
        allow_credentials=False,  # bearers only: a browser adds nothing by itself
        expose_headers=_EXPOSED,
        allow_headers=("authorization", "content-type", "idempotency-key", "if-match"),
        max_age=PREFLIGHT_SECONDS,
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(origins, options))
    for route in list(app.router.routes()):
        cors.add(route)


@asynccontextmanager
async def listening(
    app: web.Application, sock: socket.socket, services: Services
) -> AsyncIterator[None]:
    """Answer on a bound socket for as long as the context lasts."""
    loop = asyncio.get_running_loop()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    manager = runner.server
    assert manager is not None

    connections = Connections(trusted=services.settings.trusted_proxies)

    def protocol() -> _Connection:
        return _Connection(manager, loop=loop, services=services, connections=connections)

    server = await loop.create_server(protocol, sock=sock)
    try:
        async with sweeping(services.database, services.log):
            yield
    finally:
        server.close()
        await runner.cleanup()


class _Connection(web.RequestHandler):
    """A connection whose broken requests are neither repeated in the answer nor in the log.

    aiohttp's own error page and log line quote the request, bearer tokens included.
    """

    __slots__ = ("_admitted_from", "_connections", "_services")

    def __init__(
        self,
        manager: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        services: Services,
        connections: Connections,
    ) -> None:
        """`services` has the log that hears of defects of ours."""
        super().__init__(
            manager,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # its type leaves out what it documents
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            lingering_time=0,
            auto_decompress=False,
        )
        self._services = services
        self._connections = connections
        self._admitted_from: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, unless there are too many."""
        peer = transport.get_extra_info("peername") or ("",)
        if not self._connections.admit(peer[0]):
            cast("asyncio.Transport", transport).abort()
            return
        self._admitted_from = peer[0]
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let it go."""
        if self._admitted_from is not None:
            self._connections.forget(self._admitted_from)
            super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it may quote the request
    ) -> web.StreamResponse:
        """Return the page for a request that could not be handled."""
        if status == web.HTTPInternalServerError.status_code and exc is not None:
            self._services.log.error("control plane failed", error=exc, path=request.path[:100])
        told = plain_problem(status, request_id=self._services.ids.new())
        response = _Nameless(body=told.body, status=status, content_type=told.content_type)
        harden(response)
        response.force_close()
        return response


class _Nameless(web.Response):
    """An answer without the server's name and version, where no application is asked."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall("server", None)
