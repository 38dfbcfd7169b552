from typing import Any

import asyncpg
import pytest

from control_plane.tenancy.vendors import register_public_key
from gateway.vendors.seal import keygen
from gateway.vendors.vault import Vault, load_vendors
from tests.control_plane.conftest import Node, People

KEY = "sk-canary-0123456789"
PAIR = keygen()
VENDOR = {"key": KEY}
ELSEWHERE = "https://llm.example.com/v1"


@pytest.fixture(autouse=True)
async def public_key(owner: asyncpg.Connection) -> None:
    await register_public_key(owner, PAIR.public)


async def opened(owner: asyncpg.Connection) -> dict[tuple[str | None, str], Any]:
    return {(one.org_id, one.name): one for one in await load_vendors(owner, Vault([PAIR.private]))}


async def test_an_org_brings_its_own_key_which_nobody_but_gateways_can_read(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    org = await people.org()
    admin = await people.member(org, "admin")

    made = await node.call("PUT", "/api/v1/vendors/openai", by=admin, json=VENDOR)

    assert made.status == 200, made.content
    assert made.json["owner"] == "org"
    assert made.json["base_url"] == "https://api.openai.com/v1"
    vendor = (await opened(owner))[str(org), "openai"]
    assert (vendor.key, vendor.problem) == (KEY.encode(), None)
    told = [made.content]
    told += [(await node.call("GET", path, by=admin)).content for path in (
        "/api/v1/vendors", "/api/v1/vendors/openai")]  # fmt: skip
    told += node.lines
    rows = await owner.fetch(
        "SELECT v::text FROM vendors AS v UNION ALL SELECT a::text FROM audit_log AS a"
    )
    told += [row[0].encode() for row in rows]
    assert not [one for one in told if KEY.encode() in one or KEY.encode().hex().encode() in one]


async def test_the_control_plane_can_not_read_what_it_sealed(node: Node, people: People) -> None:
    async with node.services.database.transaction() as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("SELECT sealed_key FROM vendors")


async def test_a_replaced_vendor_keeps_its_key_only_at_its_address(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    org = await people.org()
    operator = await people.member(org, "admin", await people.person(is_operator=True))
    path = "/api/v1/vendors/work"
    body = {"kind": "openai", "base_url": ELSEWHERE, **VENDOR}
    assert (await node.call("PUT", path, by=operator, json=body)).status == 200

    again = {"kind": "openai", "base_url": f"{ELSEWHERE}/v2", "models": ["gpt-*"], "default": True}
    kept = await node.call("PUT", path, by=operator, json=again)
    assert (kept.status, kept.json["key_version"], kept.json["models"]) == (200, 1, ["gpt-*"])
    assert (await opened(owner))[str(org), "work"].key == KEY.encode()

    moved = {**again, "base_url": "https://other.example.com/v1"}
    refused = await node.call("PUT", path, by=operator, json=moved)
    assert (refused.status, refused.json["field"]) == (400, "key")
    assert (await node.call("PUT", path, by=operator, json={**moved, **VENDOR})).status == 200
    assert (await opened(owner))[str(org), "work"].problem is None


async def test_a_vendor_is_changed_rotated_and_removed(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    org = await people.org()
    admin = await people.member(org, "admin")
    path = "/api/v1/vendors/openai"
    await node.call("PUT", path, by=admin, json=VENDOR)
    tag = (await node.call("GET", path, by=admin)).headers["etag"]

    patch = {"models": ["gpt-5*"], "disabled": True}
    changed = await node.call("PATCH", path, by=admin, json=patch, headers={"if-match": tag})
    assert (changed.status, changed.json["models"], changed.json["disabled"]) == (
        200, ["gpt-5*"], True,
    )  # fmt: skip
    assert changed.json["receipt"]["complete"] in (True, False)
    late = await node.call("PATCH", path, by=admin, json=patch, headers={"if-match": tag})
    assert late.status == 412

    rotated = await node.call("POST", f"{path}/rotate", by=admin, json={"key": "sk-new"})
    assert (rotated.status, rotated.json["key_version"]) == (200, 2)
    assert (await opened(owner))[str(org), "openai"].key == b"sk-new"

    removed = await node.call("DELETE", path, by=admin)
    assert (removed.status, removed.json["receipt"]["workers"]) == (200, [])
    assert (await node.call("GET", path, by=admin)).status == 404
    actions = await owner.fetch(
        "SELECT action, actor_id FROM audit_log WHERE org_id = $1 ORDER BY ordinal", org
    )
    assert [row["action"] for row in actions] == [
        "vendor.create", "vendor.update", "vendor.rotate_key", "vendor.delete",
    ]  # fmt: skip
    assert {row["actor_id"] for row in actions} == {admin.account_id}


async def test_orgs_see_their_own_vendors_and_the_operators(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    operator = await people.person(is_operator=True)
    private = {"kind": "openai", "base_url": "http://10.0.0.1/v1", "private": True, **VENDOR}
    shared = await node.call("PUT", "/api/v1/operator/vendors/shared", by=operator, json=private)
    assert (shared.status, shared.json["owner"]) == (200, "operator")
    seen = []
    for name in ("acme", "umbrella"):
        org = await people.org(name)
        admin = await people.member(org, "admin")
        await node.call("PUT", "/api/v1/vendors/openai", by=admin, json=VENDOR)
        listed = (await node.call("GET", "/api/v1/vendors", by=admin)).json["data"]
        seen.append([(one["owner"], one["name"], one["base_url"]) for one in listed])
        alone = await node.call("GET", "/api/v1/vendors/shared", by=admin)
        assert (alone.status, alone.json["base_url"]) == (200, None)
        assert (
            await node.call("PUT", "/api/v1/operator/vendors/x", by=admin, json=VENDOR)
        ).status == 403
        assert (await node.call("DELETE", "/api/v1/vendors/shared", by=admin)).status == 404
    own = ("org", "openai", "https://api.openai.com/v1")
    assert seen == [[own, ("operator", "shared", None)]] * 2


async def test_what_two_vendors_would_claim_alike_is_refused_for_each_org_by_itself(
    node: Node, people: People
) -> None:
    answers = []
    for name in ("acme", "umbrella"):
        admin = await people.member(await people.org(name), "admin")
        for vendor in ("groq", "mistral"):
            body = {**VENDOR, "models": ["llama-*"]}
            made = await node.call("PUT", f"/api/v1/vendors/{vendor}", by=admin, json=body)
            answers.append((made.status, made.json.get("code")))
    assert answers == [(200, None), (409, "ambiguous")] * 2


async def test_viewers_may_look_and_not_touch(node: Node, people: People) -> None:
    org = await people.org()
    viewer = await people.member(org, "viewer")
    assert (await node.call("GET", "/api/v1/vendors", by=viewer)).status == 200
    assert (await node.call("GET", "/api/v1/aliases", by=viewer)).status == 200
    for method, path, body in (
        ("PUT", "/api/v1/vendors/openai", VENDOR),
        ("PATCH", "/api/v1/vendors/openai", {}),
        ("POST", "/api/v1/vendors/openai/rotate", VENDOR),
        ("PUT", "/api/v1/aliases/fast", {"vendor": "openai", "model": "gpt-5"}),
    ):
        assert (await node.call(method, path, by=viewer, json=body)).status == 403
    for path in ("/api/v1/vendors/openai", "/api/v1/aliases/fast"):
        assert (await node.call("DELETE", path, by=viewer)).status == 403


async def test_an_alias_leads_to_an_own_vendor_or_the_operators(
    node: Node, people: People, owner: asyncpg.Connection
) -> None:
    operator = await people.person(is_operator=True)
    await node.call("PUT", "/api/v1/operator/vendors/groq", by=operator, json=VENDOR)
    target = {"vendor": "groq", "model": "llama-3"}
    assert (
        await node.call("PUT", "/api/v1/operator/aliases/fast", by=operator, json=target)
    ).status == 200
    org = await people.org()
    admin = await people.member(org, "admin")
    path = "/api/v1/aliases/fast"

    inherited = await node.call("GET", path, by=admin)
    assert (inherited.json["owner"], inherited.json["model"]) == ("operator", "llama-3")
    own = await node.call("PUT", path, by=admin, json={**target, "model": "llama-4"})
    assert (own.status, own.json["owner"], own.json["model"]) == (200, "org", "llama-4")
    listed = (await node.call("GET", "/api/v1/aliases", by=admin)).json["data"]
    assert [(one["owner"], one["model"]) for one in listed] == [
        ("org", "llama-4"),
        ("operator", "llama-3"),
    ]
    nobody = await node.call("PUT", path, by=admin, json={"vendor": "nobody", "model": "x"})
    assert (nobody.status, nobody.json["field"]) == (404, "target")

    tag = (await node.call("GET", path, by=admin)).headers["etag"]
    await node.call("PUT", path, by=admin, json=target)
    assert (await node.call("DELETE", path, by=admin, headers={"if-match": tag})).status == 412
    removed = await node.call("DELETE", path, by=admin)
    assert (removed.status, removed.json["removed"]) == (200, True)
    assert (await node.call("GET", path, by=admin)).json["owner"] == "operator"


async def test_pages_of_vendors_and_aliases_have_each_once(node: Node, people: People) -> None:
    admin = await people.member(await people.org(), "admin")
    for name in ("groq", "mistral", "openai"):
        await node.call("PUT", f"/api/v1/vendors/{name}", by=admin, json=VENDOR)
        target = {"vendor": name, "model": "x"}
        await node.call("PUT", f"/api/v1/aliases/to-{name}", by=admin, json=target)
    for path, prefix in (("/api/v1/vendors", ""), ("/api/v1/aliases", "to-")):
        found, after = [], ""
        for _ in range(4):
            page = (await node.call("GET", f"{path}?limit=1{after}", by=admin)).json
            found += [one["name"] for one in page["data"]]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        assert found == [f"{prefix}{name}" for name in ("groq", "mistral", "openai")]
