import asyncio

import pytest

from control_plane.web import request as web_request
from control_plane.web.database import POOL_CONNECTIONS_MAX
from tests.control_plane.conftest import Node, People


async def test_requests_that_are_checked_again_do_not_wait_for_each_others_connections(
    node: Node, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_request, "STANDING_SECONDS_MAX", 0.0)  # as where all wait for long
    person = await people.person()
    answers = await asyncio.gather(
        *(node.call("GET", "/api/v1/me", by=person) for _ in range(POOL_CONNECTIONS_MAX * 4))
    )
    assert [answer.status for answer in answers] == [200] * (POOL_CONNECTIONS_MAX * 4)
