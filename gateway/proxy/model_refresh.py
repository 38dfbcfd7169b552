"""Asks vendors which models they have, in the background, for the lists that we answer ourselves.

No client's call and no allowance is behind it, so it has no row. A vendor that does not answer
keeps the list that it had.
"""

import asyncio
from typing import Final

from gateway.errors import GatewayError
from gateway.proxy.headers import upstream_headers
from gateway.proxy.model_list import ModelDirectory
from gateway.proxy.routing import RoutingTable, Target
from gateway.proxy.upstream import Headers, Origin, UpstreamPool
from gateway.vendors.vendor import ModelListUnreadable

LIST_BYTES_MAX: Final = 8 * 1024 * 1024
LIST_SECONDS_MAX: Final = 15.0

_OK: Final = 200


class _WholeAnswer:
    """A Reply that keeps the answer, up to a bound."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.done: asyncio.Future[bytes | None] = loop.create_future()
        self._loop = loop
        self._status = 0
        self._body = bytearray()

    def on_head(self, status: int, reason: bytes, headers: Headers) -> None:  # noqa: ARG002
        """Keep the status."""
        self._status = status

    def on_data(self, data: bytes) -> None:
        """Keep a piece of the body."""
        self._body += data
        if len(self._body) > LIST_BYTES_MAX:
            self._end(None)

    def on_end(self) -> None:
        """Give the body, if it is an answer."""
        self._end(bytes(self._body) if self._status == _OK else None)

    def on_read_done(self) -> None:
        """Nothing is written on."""

    def on_broken(self, *, any_byte: bool) -> None:  # noqa: ARG002 - as Reply
        """Give nothing."""
        self._end(None)

    def on_drained(self) -> None:
        """Nothing waits."""

    def on_defect(self, error: Exception) -> None:
        """Give nothing; the loop's handler tells what failed."""
        self._loop.call_exception_handler(
            {"message": "A list of models could not be read", "exception": error}
        )
        self._end(None)

    def _end(self, body: bytes | None) -> None:
        if not self.done.done():
            self.done.set_result(body)


class ModelRefresh:
    """Keeps a ModelDirectory up to date."""

    def __init__(self, directory: ModelDirectory, pool: UpstreamPool) -> None:
        """`pool` is the one that calls use."""
        self._directory = directory
        self._pool = pool

    async def refresh(self, table: RoutingTable) -> None:
        """Ask every vendor of the table, forget the others. Never raises."""
        self._directory.retain([target.name for target in table.targets])
        for target in table.targets:
            if target.problem is None:
                ids = await self._ids(target)
                if ids is not None:
                    self._directory.update(target.name, ids)

    async def _ids(self, target: Target) -> list[str] | None:
        try:
            async with asyncio.timeout(LIST_SECONDS_MAX):
                body = await self._ask(target)
            return None if body is None else target.kind.model_ids(body)
        except (GatewayError, ModelListUnreadable, TimeoutError):
            return None

    async def _ask(self, target: Target) -> bytes | None:
        origin = Origin.of(target)
        connection = self._pool.take_idle(origin) or await self._pool.connect(origin)
        answer = _WholeAnswer(asyncio.get_running_loop())
        path = target.base.path.rstrip("/") + target.kind.models_path
        headers = upstream_headers(
            target.kind.models_headers,
            target=target,
            stream=False,
            body_length=None,
            drop_content_encoding=False,
        )
        connection.send(answer, b"GET %b HTTP/1.1\r\n%b\r\n" % (path.encode(), headers), b"")
        try:
            return await answer.done
        finally:
            connection.give_up(answer)
