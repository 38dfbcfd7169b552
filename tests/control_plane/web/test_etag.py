import asyncio

import asyncpg
import pytest

from control_plane.tenancy.vendors import register_public_key
from control_plane.web.etag import etag_of_bytes, matches
from gateway.vendors.seal import keygen
from tests.control_plane.conftest import Node, People

PATH = "/api/v1/vendors/openai"


@pytest.mark.parametrize(
    ("header", "expected"),
    [('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), ('"b"', False), ("a", False)],
)
def test_a_header_names_tags_or_any(header: str, expected: bool) -> None:  # noqa: FBT001
    assert matches(header, '"a"') is expected


async def test_who_has_the_answer_already_gets_none(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    person = await people.member(await people.org(), "admin")
    first = await node.call("GET", "/api/v1/me", by=person)
    tag = first.headers["etag"]
    assert tag == etag_of_bytes(first.content)
    same = await node.call("GET", "/api/v1/me", by=person, headers={"if-none-match": tag})
    assert (same.status, same.content, same.headers["etag"]) == (304, b"", tag)
    assert same.headers["x-content-type-options"] == "nosniff"
    await owner.execute("UPDATE accounts SET name = 'Ada'")
    other = await node.call("GET", "/api/v1/me", by=person, headers={"if-none-match": tag})
    assert (other.status, other.json["name"]) == (200, "Ada")


async def test_of_two_who_change_what_both_have_read_one_is_told(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    await register_public_key(owner, keygen().public)
    admin = await people.member(await people.org(), "admin")
    await node.call("PUT", PATH, by=admin, json={"key": "sk-first"})
    headers = {"if-match": (await node.call("GET", PATH, by=admin)).headers["etag"]}
    answers = await asyncio.gather(
        *(
            node.call("PATCH", PATH, by=admin, json={"models": [f"m{n}"]}, headers=headers)
            for n in range(8)
        )
    )
    assert sorted(one.status for one in answers) == [200] + [412] * 7
    gone = {"if-match": "*"}
    await node.call("DELETE", PATH, by=admin)
    late = await node.call("PUT", PATH, by=admin, json={"key": "sk-new"}, headers=gone)
    assert late.status == 412
