import asyncio
import json

import asyncpg

from tests.control_plane.conftest import Node
from tests.control_plane.identity.accounts import PASSWORD, registered


async def send(node: Node, request: bytes) -> bytes:
    """Send bytes that no client would, and return the answer's status line."""
    host, port = node.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    line = await reader.readline()
    writer.close()
    return line.strip()


async def test_a_user_agent_that_is_no_text_signs_in_as_any(
    node: Node, owner: asyncpg.Connection
) -> None:
    account = await registered(node)
    body = json.dumps({"email": account.email, "password": PASSWORD}).encode()
    line = await send(
        node,
        b"POST /api/v1/sessions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"User-Agent: canary\xff\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body),
    )
    assert line == b"HTTP/1.1 201 Created"
    agents = await owner.fetch("SELECT user_agent FROM sessions ORDER BY created_at DESC")
    assert agents[0]["user_agent"] == "canary?"
