"""For whoever runs the gateway: is it alive, is it ready, what has it counted.

On a listener of its own, which clients don't reach, and in the supervisor's process: it speaks for
the whole machine, also while a worker is dead. It needs no token and tells nothing about anyone.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import orjson
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from gateway.log import Log

BODY_BYTES_MAX: Final = 1024  # nothing here takes a body
KEEP_ALIVE_SECONDS: Final = 75.0
SHUTDOWN_SECONDS: Final = 1.0

_STATUS_ERROR_MIN: Final = 400
_JSON: Final = "application/json"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Machine(Protocol):
    """What the listener tells about."""

    def not_ready(self) -> Sequence[str]:
        """What is not ready, in words; nothing: calls are taken."""

    def workers(self) -> Sequence[tuple[str, int]]:
        """Id and process id of each worker that runs."""

    async def exposition(self) -> bytes:
        """All metrics, as Prometheus reads them."""


def make_app(machine: Machine) -> web.Application:
    """Return the application that answers for `machine`."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        not_ready = list(machine.not_ready())
        told = {
            "ready": not not_ready,
            "not_ready": not_ready,
            "workers": [{"id": worker, "pid": pid} for worker, pid in machine.workers()],
        }
        status = 503 if not_ready else 200
        return web.Response(body=orjson.dumps(told) + b"\n", content_type=_JSON, status=status)

    async def metrics(_: web.Request) -> web.Response:
        headers = {"content-type": CONTENT_TYPE_LATEST}
        return web.Response(body=await machine.exposition(), headers=headers)

    app = web.Application(middlewares=[_plain_errors], client_max_size=BODY_BYTES_MAX)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.on_response_prepare.append(_harden)
    return app


@asynccontextmanager
async def listening(app: web.Application, sock: socket.socket, log: Log) -> AsyncIterator[None]:
    """Answer on a bound socket for as long as the context lasts."""
    loop = asyncio.get_running_loop()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    manager = runner.server
    assert manager is not None

    def protocol() -> _Connection:
        return _Connection(manager, loop=loop, log=log)

    server = await loop.create_server(protocol, sock=sock)
    try:
        yield
    finally:
        server.close()
        await runner.cleanup()


class _Connection(web.RequestHandler):
    """A connection whose broken requests are neither repeated in the answer nor in the log.

    aiohttp's own error page and log line quote the request, bearer tokens included.
    """

    __slots__ = ("_log",)

    def __init__(self, manager: web.Server, *, loop: asyncio.AbstractEventLoop, log: Log) -> None:
        """`log` hears of defects of ours."""
        super().__init__(
            manager,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # its type leaves out what it documents
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            lingering_time=0,
        )
        self._log = log

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it may quote the request
    ) -> web.StreamResponse:
        """Return the page for a request that could not be handled."""
        if status == web.HTTPInternalServerError.status_code and exc is not None:
            self._log.error("ops request failed", error=exc, path=request.path)
        response = _error(status)
        response.force_close()
        return response


@web.middleware
async def _plain_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < _STATUS_ERROR_MIN:
            raise
        response = _error(error.status)
        if "allow" in error.headers:
            response.headers["allow"] = error.headers["allow"]
        return response


def _error(status: int) -> web.Response:
    told: dict[str, Any] = {"error": {"status": status}}
    response = web.Response(body=orjson.dumps(told) + b"\n", content_type=_JSON, status=status)
    response.headers["x-content-type-options"] = "nosniff"
    return response


async def _harden(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["x-content-type-options"] = "nosniff"
    response.headers["cache-control"] = "no-store"
    response.headers.popall("server", None)
