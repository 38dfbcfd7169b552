"""What vendors are asked for their models, on the connections that calls use too."""

import asyncio

import pytest

from gateway.proxy.model_list import ModelDirectory
from gateway.proxy.model_refresh import ModelRefresh
from gateway.proxy.routing import Origin, RoutingTable
from gateway.proxy.upstream import UpstreamConnection, UpstreamPool
from gateway.proxy.whole_answer import WholeAnswer
from tests.gateway.proxy.rig import DEADLINE_SECONDS, Rig
from tests.gateway.proxy.test_calls import answers, plain

MODELS = plain(200, {"data": [{"id": "model-a"}]})
QUESTION = b"GET /v1/models HTTP/1.1\r\nhost: vendor\r\n\r\n"


async def test_a_connection_that_went_on_to_somebody_else_is_left_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between an answer's end and the next step of who asked, a call may take the connection."""
    call = WholeAnswer(asyncio.get_running_loop(), bytes_max=1024)
    put_back = UpstreamPool._put_back

    def taken_at_once(self: UpstreamPool, origin: Origin, connection: UpstreamConnection) -> None:
        put_back(self, origin, connection)
        if len(rig.vendor.heads) == 1:
            assert self.take_idle(origin) is connection
            connection.send(call, QUESTION, b"")

    monkeypatch.setattr(UpstreamPool, "_put_back", taken_at_once)
    rig.vendor.script = answers(MODELS)
    directory = ModelDirectory()
    table = RoutingTable([rig.target("openai")], {})
    await ModelRefresh(directory, rig.pool).refresh(table)
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await call.done == (200, b'{"data": [{"id": "model-a"}]}')
    assert rig.vendor.connections == 1
