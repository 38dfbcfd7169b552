"""What is sent is a parameter: no text becomes a part of a query."""

import uuid
from urllib.parse import quote

import asyncpg
import pytest

from control_plane.routes import ROUTES
from control_plane.tenancy.vendors import register_public_key
from gateway.vendors.seal import keygen
from tests.control_plane.conftest import Node, People
from tests.control_plane.web.test_every_answer import check

# Each ends a text in another way, and would then do something that shows.
PAYLOADS = (
    "'; DROP TABLE accounts; --", "\\' OR '1'='1'; DELETE FROM accounts; --", '%_$1\u02bc") --',
)  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS)
async def test_what_would_be_sql_is_only_text(
    node: Node, people: People, owner: asyncpg.Connection, payload: str
) -> None:
    await register_public_key(owner, keygen().public)
    org = await people.org()
    quoted = quote(payload, safe="")
    for route in ROUTES:
        if route.path == "/api/v1/me" and route.method == "DELETE":
            continue
        person = await people.member(org, "owner", await people.person(is_operator=True))
        path = route.path
        for name in route.names:
            value = quoted if name in route.text_names else str(org)
            path = path.replace(f"{{{name}}}", value if name != "token" else str(uuid.uuid4()))
        fields = () if route.query is None else route.query.__struct_fields__
        for query in ("", *(f"?{name}={quoted}" for name in fields)):
            texts = {} if route.body is None else dict.fromkeys(
                route.body.__struct_fields__, payload
            )  # fmt: skip
            body = {} if route.body is None else {"json": texts}
            answer = await node.call(route.method, path + query, by=person, **body)
            check(answer, asked=f"{route} {query}")
            assert answer.status < 500, (str(route), query, answer.content)
            if answer.status == 429:
                await owner.execute("TRUNCATE throttle")
    header = await node.call("GET", "/api/v1/me", headers={"authorization": f"Bearer {quoted}"})
    assert header.status == 401
    assert await owner.fetchval("SELECT count(*) FROM accounts") > 0
    admin = await people.member(org, "admin")
    alias = await node.call(
        "PUT", "/api/v1/aliases/fast", by=admin, json={"vendor": payload[:40], "model": payload}
    )
    assert alias.status in (400, 404)
