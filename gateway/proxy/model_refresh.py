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
from gateway.proxy.upstream import UpstreamPool
from gateway.proxy.whole_answer import WholeAnswer
from gateway.vendors.vendor import ModelListUnreadable

LIST_BYTES_MAX: Final = 8 * 1024 * 1024
LIST_SECONDS_MAX: Final = 15.0

_OK: Final = 200


class ModelRefresh:
    """Keeps a ModelDirectory up to date."""

    def __init__(self, directory: ModelDirectory, pool: UpstreamPool) -> None:
        """`pool` is the one that calls use."""
        self._directory = directory
        self._pool = pool

    async def refresh(self, table: RoutingTable) -> None:
        """Ask every vendor of the table, forget the others. Never raises."""
        self._directory.retain([target.vendor_id for target in table.targets])
        for target in table.targets:
            if target.problem is None and target.kind.models_path:
                ids = await self._ids(target)
                if ids is not None:
                    self._directory.update(target.vendor_id, ids)

    async def _ids(self, target: Target) -> list[str] | None:
        try:
            async with asyncio.timeout(LIST_SECONDS_MAX):
                body = await self._ask(target)
            return None if body is None else target.kind.model_ids(body)
        except (GatewayError, ModelListUnreadable, TimeoutError):
            return None

    async def _ask(self, target: Target) -> bytes | None:
        origin = target.origin
        connection = self._pool.take_idle(origin) or await self._pool.connect(origin)
        answer = WholeAnswer(asyncio.get_running_loop(), bytes_max=LIST_BYTES_MAX)
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
            status, body = await answer.done
            return body if status == _OK else None
        finally:
            connection.give_up(answer)
