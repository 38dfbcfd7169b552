import uuid
from typing import Any

import asyncpg
import pytest

from control_plane.audit_log import COMMAND, SYSTEM, record
from control_plane.audit_verification import heads_text, parse_heads, read_heads, verify
from control_plane.errors import BadArgument, NotFound
from tests.control_plane.conftest import Node, People

FILL = """
SELECT audit_append($1, 'system', NULL, '', '192.0.2.1', '', 'thing.change', 'thing', n::text,
    jsonb_build_object('n', n - 1), jsonb_build_object('n', n))
FROM generate_series(1, $2::integer) AS n
"""


async def filled(owner: asyncpg.Connection, org: uuid.UUID | None, entries: int) -> None:
    await owner.execute(FILL, org, entries)


async def problems(owner: asyncpg.Connection, **arguments: Any) -> set[tuple[int, str]]:
    found = await verify(owner, **arguments)
    assert found["ok"] is (not found["bad"])
    return {(one["ordinal"], one["problem"].partition(":")[0]) for one in found["bad"]}


async def test_every_chain_is_as_it_was_written(owner: asyncpg.Connection, people: People) -> None:
    org = await people.org()
    await filled(owner, org, 30)
    await filled(owner, None, 5)
    found = await verify(owner)
    assert found["ok"], found
    assert [(one["org_id"], one["entries"]) for one in found["chains"]] == [
        (None, 5), (str(org), 30),
    ]  # fmt: skip
    assert await problems(owner, org_id=org, is_one=True) == set()
    with pytest.raises(NotFound):
        await verify(owner, org_id=uuid.uuid4(), is_one=True)


EDITED = "its hash is another than that of what it says"


@pytest.mark.parametrize(
    ("sabotage", "expected"),
    [
        ("UPDATE audit_log SET action = 'thing.other' WHERE ordinal = 17", {(17, EDITED)}),
        ("UPDATE audit_log SET actor_id = gen_random_uuid() WHERE ordinal = 17", {(17, EDITED)}),
        ("UPDATE audit_log SET at = at + interval '1 us' WHERE ordinal = 17", {(17, EDITED)}),
        ("UPDATE audit_log SET after = '{}' WHERE ordinal = 17", {(17, "its change was changed")}),
        ("UPDATE audit_log SET address = '' WHERE ordinal = 17", {(17, "its address was changed")}),
        (
            "UPDATE audit_log SET after = '{}', change_salt = NULL WHERE ordinal = 17",
            {(17, "its change was changed")},
        ),
        (
            "DELETE FROM audit_log WHERE ordinal = 17",
            {(18, "entries are missing from 17 on"), (18, EDITED)},
        ),
        (
            "UPDATE audit_log SET after = NULL, before = NULL, change_salt = NULL, "  # noqa: ISC004
            "erased_at = now() WHERE ordinal = 17",
            {(30, "more was erased than entries tell of")},
        ),
        (
            "UPDATE audit_log SET ordinal = CASE ordinal WHEN 17 THEN -18 ELSE -17 END "  # noqa: ISC004
            "WHERE ordinal IN (17, 18); UPDATE audit_log SET ordinal = -ordinal WHERE ordinal < 0",
            {(17, EDITED), (18, EDITED), (19, EDITED)},
        ),
        ("DELETE FROM audit_log WHERE ordinal > 27", {(30, "truncated")}),
        (
            "DELETE FROM audit_log WHERE ordinal <= 3; UPDATE audit_heads SET pruned = 3, "  # noqa: ISC004
            "pruned_hash = (SELECT hash FROM audit_log WHERE ordinal = 4)",
            {(4, EDITED), (3, "cut off at the beginning, which no entry tells of")},
        ),
    ],
)  # fmt: skip
async def test_what_was_done_to_it_is_found(
    owner: asyncpg.Connection, people: People, sabotage: str, expected: set[tuple[int, str]]
) -> None:
    await filled(owner, await people.org(), 30)
    await owner.execute(sabotage)
    assert await problems(owner) == expected


@pytest.mark.slow
@pytest.mark.parametrize("ordinal", [1, 31_337, 100_000])
async def test_one_row_in_a_hundred_thousand_is_found(
    owner: asyncpg.Connection, people: People, ordinal: int
) -> None:
    org = await people.org()
    for _ in range(10):
        await filled(owner, org, 10_000)
    assert await problems(owner) == set()
    await owner.execute(
        "UPDATE audit_log SET after = jsonb_set(after, '{n}', '0') WHERE ordinal = $1", ordinal
    )
    assert await problems(owner) == {(ordinal, "its change was changed")}


async def test_a_chain_that_was_written_anew_is_not_that_of_an_exported_head(
    owner: asyncpg.Connection, people: People
) -> None:
    org = await people.org()
    await filled(owner, org, 20)
    heads = parse_heads(heads_text(await read_heads(owner)).encode())
    await filled(owner, org, 5)
    assert await problems(owner, heads=heads) == set()

    # Somebody who may write everything cuts the chain off and goes on with it.
    await owner.execute(
        "DELETE FROM audit_log WHERE ordinal > 15; UPDATE audit_heads SET last = 15, "
        "last_hash = (SELECT hash FROM audit_log WHERE ordinal = 15)"
    )
    assert await problems(owner) == set()
    assert await problems(owner, heads=heads) == {(20, "truncated")}
    await filled(owner, org, 10)
    assert await problems(owner) == set()
    assert await problems(owner, heads=heads) == {
        (20, "it is another than when its head was exported")
    }
    await owner.execute("TRUNCATE audit_log, audit_heads")
    assert await problems(owner, heads=heads) == {(20, "truncated")}


@pytest.mark.parametrize("content", [b"{}", b"[", b"\xff", b'{"org_id":1}'])
def test_what_is_no_file_of_heads_is_refused(content: bytes) -> None:
    with pytest.raises(BadArgument):
        parse_heads(content)


async def test_admins_read_their_orgs_entries_and_nobody_elses(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    org, other = await people.org("acme"), await people.org("umbrella")
    admin = await people.member(org, "admin")
    viewer = await people.member(org, "viewer")
    await filled(owner, org, 3)
    await filled(owner, other, 4)
    await filled(owner, None, 2)
    path = f"/api/v1/orgs/{org}/audit-log"
    entries = (await node.call("GET", path, by=admin)).json["data"]
    assert [one["ordinal"] for one in entries] == [3, 2, 1]
    assert entries[0]["after"] == {"n": 3}
    assert (await node.call("GET", path, by=viewer)).status == 403
    assert (await node.call("GET", path.replace(str(org), str(other)), by=admin)).status == 404
    installation = "/api/v1/operator/audit-log"
    assert (await node.call("GET", installation, by=admin)).status == 403
    operator = await people.person(is_operator=True)
    assert len((await node.call("GET", installation, by=operator)).json["data"]) == 2


async def test_pages_are_exact_while_entries_come(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    org = await people.org()
    admin = await people.member(org, "admin")
    await filled(owner, org, 25)
    path, after, found = f"/api/v1/orgs/{org}/audit-log?limit=4", "", []
    while True:
        page = (await node.call("GET", path + after, by=admin)).json
        found += [one["ordinal"] for one in page["data"]]
        await filled(owner, org, 3)
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert found == list(range(25, 0, -1))


async def test_entries_are_filtered_and_exported(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    org = await people.org()
    admin = await people.member(org, "admin")
    await filled(owner, org, 5)
    async with owner.transaction():
        await record(owner, SYSTEM, "other.change", org_id=org, target_kind="thing", target_id="x")
    middle = await owner.fetchval("SELECT at FROM audit_log WHERE ordinal = 3")
    path = f"/api/v1/orgs/{org}/audit-log"

    async def ordinals(query: str) -> list[int]:
        answer = await node.call("GET", f"{path}?{query}", by=admin)
        assert answer.status == 200, answer.content
        return [one["ordinal"] for one in answer.json["data"]]

    time = middle.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert await ordinals("action=other.change") == [6]
    assert await ordinals(f"since={time}") == [6, 5, 4, 3]
    assert await ordinals(f"until={time}") == [2, 1]
    assert await ordinals(f"actor={admin.account_id}") == []
    for wrong in ("since=2026-01-01T00:00:00", "actor=x", "after=x", "limit=0", "nothing=1"):
        assert (await node.call("GET", f"{path}?{wrong}", by=admin)).status == 400
    export = await node.call("GET", f"{path}/export?action=thing.change", by=admin)
    assert export.headers["content-type"] == "application/x-ndjson"
    assert export.content.count(b"\n") == 5


async def test_an_entry_belongs_to_a_transaction(owner: asyncpg.Connection) -> None:
    with pytest.raises(AssertionError):
        await record(owner, COMMAND, "a.b", org_id=None, target_kind="x", target_id="y")
