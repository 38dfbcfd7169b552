"""Group I where vendors are configured: who may say where keys go, and what nobody may say."""

from typing import Final

import asyncpg

from control_plane.tenancy.vendors import register_public_key
from gateway.vendors.seal import keygen
from tests.control_plane.conftest import (  # noqa: F401 - fixtures
    Node,
    People,
    control_url,
    node,
    people,
    server_settings,
    session_keys,
)
from tests.corpus.conftest import Outcomes
from tests.corpus.test_i_destinations import NEVER, UNLESS_PRIVATE

ALONE: Final = {84}
CASES: Final = ()

KEY: Final = "sk-canary-0123456789"
ELSEWHERE: Final = "https://llm.example.com/v1"


async def test_84_a_vendors_url_by_who_does_not_run_the_installation(
    node: Node,  # noqa: F811
    people: People,  # noqa: F811
    owner: asyncpg.Connection,
    outcomes: Outcomes,
) -> None:
    await register_public_key(owner, keygen().public)
    org = await people.org()
    found = set()
    for role in ("owner", "admin", "editor", "viewer"):
        person = await people.member(org, role)
        for change in ({"base_url": ELSEWHERE}, {"base_url": "http://10.0.0.1", "private": True}):
            body = {"kind": "openai", "key": KEY, **change}
            answer = await node.call("PUT", "/api/v1/vendors/mine", by=person, json=body)
            found.add((answer.status, answer.json["code"]))
    assert found == {(403, "operator_only"), (403, "forbidden")}
    assert await owner.fetchval("SELECT count(*) FROM vendors") == 0

    operator = await people.member(org, "admin", await people.person(is_operator=True))
    body = {"kind": "openai", "key": KEY, "base_url": ELSEWHERE}
    made = await node.call("PUT", "/api/v1/vendors/mine", by=operator, json=body)
    assert made.status == 200, made.content
    # An admin may give a new key for the address that the operator chose, and choose no other.
    admin = await people.member(org, "admin")
    moved = {**body, "base_url": "https://evil.example.com"}
    statuses = [
        (await node.call("PUT", "/api/v1/vendors/mine", by=admin, json=one)).status
        for one in (body, moved)
    ]
    assert statuses == [200, 403]
    outcomes[84] = "403, nothing written"


async def test_85_urls_that_lead_inside_by_whoever_asks(
    node: Node,  # noqa: F811
    people: People,  # noqa: F811
    owner: asyncpg.Connection,
) -> None:
    await register_public_key(owner, keygen().public)
    operator = await people.person(is_operator=True)
    path = "/api/v1/operator/vendors/mine"
    tried = [(url, private) for url in NEVER for private in (False, True)]
    tried += [(url, False) for url in UNLESS_PRIVATE]
    for url, private in tried:
        body = {"kind": "openai", "key": KEY, "base_url": url, "private": private}
        answer = await node.call("PUT", path, by=operator, json=body)
        while answer.status == 429:  # more than anyone may write in a minute
            await owner.execute("TRUNCATE throttle")
            answer = await node.call("PUT", path, by=operator, json=body)
        assert (answer.status, answer.json["field"]) == (400, "base_url"), (url, answer.content)
        assert KEY.encode() not in answer.content
    assert await owner.fetchval("SELECT count(*) FROM vendors") == 0
