import json
from typing import Any

import asyncpg
import pytest

from control_plane.errors import BadArgument, NotFound, Refused
from control_plane.tenancy.aliases import list_aliases, remove_alias, set_alias
from control_plane.tenancy.vendor_presets import with_preset
from control_plane.tenancy.vendors import (
    NewVendor,
    add_vendor,
    check_vendor,
    list_vendors,
    register_public_key,
    remove_vendor,
    rotate_vendor,
)
from gateway.vendors.presets import PLACEHOLDER_KEY, PRESETS
from gateway.vendors.seal import keygen
from gateway.vendors.vault import Vault, load_vendors
from tests.gateway.vendors.cloud_keys import AWS, service_account

KEY = "sk-canary-0123456789"
PAIR = keygen()


def vendor(name: str = "openai", **changes: Any) -> NewVendor:
    values = {"kind": "openai", "base_url": "https://api.openai.com/v1", "key": KEY, **changes}
    return NewVendor(name=name, **values)


@pytest.fixture(autouse=True)
async def public_key(owner: asyncpg.Connection) -> None:
    await register_public_key(owner, PAIR.public)


async def test_a_gateway_opens_what_was_sealed_here(owner: asyncpg.Connection) -> None:
    added = await add_vendor(owner, vendor())
    assert added == {
        "name": "openai",
        "kind": "openai",
        "base_url": "https://api.openai.com/v1",
        "key_version": 1,
    }
    (opened,) = await load_vendors(owner, Vault([PAIR.private]))
    assert opened.key == KEY.encode()
    assert KEY not in repr(vendor())
    assert KEY.encode() not in await owner.fetchval("SELECT sealed_key FROM vendors")

    assert (await rotate_vendor(owner, "openai", "sk-new"))["key_version"] == 2
    (opened,) = await load_vendors(owner, Vault([PAIR.private]))
    assert (opened.key, opened.problem) == (b"sk-new", None)


async def test_a_vendor_takes_a_simulators_place_and_another_vendors_only_when_told(
    owner: asyncpg.Connection,
) -> None:
    simulator = vendor(base_url="http://127.0.0.1:1/v1", key="", is_private=True, is_simulator=True)
    await add_vendor(owner, simulator)
    await add_vendor(owner, vendor())
    with pytest.raises(Refused, match="--replace"):
        await add_vendor(owner, vendor())
    replaced = await add_vendor(owner, vendor(base_url="https://eu.example.com/v1"), replace=True)
    assert replaced["key_version"] == 2
    (row,) = await list_vendors(owner)
    assert (row["base_url"], row["is_simulator"]) == ("https://eu.example.com/v1", False)
    (opened,) = await load_vendors(owner, Vault([PAIR.private]))
    assert opened.problem is None


async def test_the_first_vendor_of_a_format_is_its_default_until_another_one_is(
    owner: asyncpg.Connection,
) -> None:
    async def defaults() -> list[str]:
        return [row["name"] for row in await list_vendors(owner) if row["is_default"]]

    await add_vendor(owner, vendor())
    await add_vendor(owner, vendor("groq", base_url="https://api.groq.com/openai/v1"))
    await add_vendor(owner, vendor("claude", kind="anthropic", base_url="https://api.example.com"))
    assert await defaults() == ["openai", "claude"]
    await add_vendor(owner, vendor("xai", base_url="https://api.x.ai/v1", is_default=True))
    assert await defaults() == ["claude", "xai"]
    await remove_vendor(owner, "xai", is_embedded=True)
    assert await defaults() == ["openai", "claude"]


async def test_two_vendors_that_claim_a_model_alike_are_refused_when_they_are_configured(
    owner: asyncpg.Connection,
) -> None:
    await add_vendor(owner, vendor(models=["gpt-*"]))
    other = vendor("azure", base_url="https://gpt.example.com/v1", models=["gpt-*"])
    with pytest.raises(Refused, match="equally specific"):
        await add_vendor(owner, other)
    assert len(await list_vendors(owner)) == 1
    await add_vendor(owner, vendor("azure", models=["gpt-5*"]))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("name", {"name": "v1"}),
        ("kind", {"kind": "telex"}),
        ("base-url", {"base_url": "http://api.openai.com/v1"}),
        ("base-url", {"base_url": "https://10.0.0.1/v1"}),
        ("key-file", {"key": "two words"}),
        ("models", {"models": [""]}),
    ],
)
async def test_what_no_vendor_can_be_is_refused(
    owner: asyncpg.Connection, field: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(BadArgument) as refused:
        await add_vendor(owner, vendor(**{"name": "openai", **changes}))
    assert refused.value.field == field
    assert "two words" not in str(refused.value)


def said(name: str, **changes: Any) -> NewVendor:
    return NewVendor(name=name, **{"kind": "", "base_url": "", "key": KEY, **changes})


async def test_a_known_vendor_needs_no_more_than_its_name_and_key(
    owner: asyncpg.Connection,
) -> None:
    known = {name: preset for name, preset in PRESETS.items() if preset.base_url}
    for name, preset in known.items():
        key = "" if preset.is_private else KEY
        added = await add_vendor(owner, with_preset(said(name, key=key)))
        assert (added["kind"], added["base_url"]) == (preset.kind, preset.base_url)
    opened = {one.name: one for one in await load_vendors(owner, Vault([PAIR.private]))}
    assert len(opened) == len(known)
    assert {one.problem for one in opened.values()} == {None}
    assert opened["ollama"].key == PLACEHOLDER_KEY.encode()
    assert (opened["ollama"].is_private, opened["mistral"].is_private) == (True, False)
    assert (opened["openai"].asks_usage, opened["mistral"].asks_usage) == (True, False)


def test_what_is_said_of_a_vendor_goes_before_its_preset() -> None:
    claimed = with_preset(said("groq"), usage_unasked=False)
    assert (claimed.kind, claimed.usage_unasked) == ("openai", False)
    work = with_preset(said("work", key=""), preset="ollama")
    assert (work.base_url, work.is_private) == (PRESETS["ollama"].base_url, True)
    renamed = with_preset(said("gpu", base_url="https://gpu.example.com/v1"), preset="mistral")
    assert (renamed.base_url, renamed.usage_unasked) == ("https://gpu.example.com/v1", True)
    other = with_preset(said("openai", kind="anthropic", base_url="https://claude.example.com"))
    assert (other.kind, other.base_url) == ("anthropic", "https://claude.example.com")


def test_at_an_address_of_its_own_a_known_name_tells_the_kind_alone() -> None:
    elsewhere = with_preset(said("mistral", base_url="https://proxy.example.com/v1"))
    assert (elsewhere.kind, elsewhere.usage_unasked) == ("openai", False)
    with pytest.raises(BadArgument) as refused:
        with_preset(said("ollama", base_url="http://10.0.0.1/v1", key=""))
    assert refused.value.field == "key-file"


@pytest.mark.parametrize(
    ("field", "name", "preset", "changes"),
    [
        ("base-url", "azure", None, {}),
        ("base-url", "bedrock", None, {}),
        ("base-url", "aws", None, {"kind": "bedrock"}),
        ("kind", "acme", None, {}),
        ("kind", "acme", None, {"base_url": "https://acme.example.com"}),
        ("base-url", "acme", None, {"kind": "openai"}),
        ("base-url", "groq", None, {"kind": "anthropic"}),
        ("base-url", "acme", "groq", {"kind": "anthropic"}),
        ("key-file", "groq", None, {"key": ""}),
        ("preset", "acme", "telex", {}),
    ],
)
def test_what_neither_a_preset_nor_anyone_says_is_named(
    field: str, name: str, preset: str | None, changes: dict[str, Any]
) -> None:
    with pytest.raises(BadArgument) as refused:
        with_preset(said(name, **changes), preset=preset)
    assert refused.value.field == field
    assert refused.value.exit_code == 2


async def test_the_operators_list_of_hosts_holds(owner: asyncpg.Connection) -> None:
    with pytest.raises(BadArgument, match="among the hosts"):
        await add_vendor(owner, vendor(), allowed_hosts=frozenset({"api.groq.com"}))


async def test_without_a_public_key_nothing_is_sealed(owner: asyncpg.Connection) -> None:
    await owner.execute("DELETE FROM vault_keys")
    with pytest.raises(Refused, match="keygen"):
        await add_vendor(owner, vendor())


async def test_a_key_that_is_registered_again_is_the_one_to_seal_to_again(
    owner: asyncpg.Connection,
) -> None:
    await register_public_key(owner, keygen().public)
    await register_public_key(owner, PAIR.public)
    await add_vendor(owner, vendor())
    [opened] = await load_vendors(owner, Vault([PAIR.private]))
    assert opened.problem is None


async def test_a_removed_vendor_leaves_no_key_behind(owner: asyncpg.Connection) -> None:
    await add_vendor(owner, vendor())
    await set_alias(owner, "fast", "openai/gpt-5")
    with pytest.raises(Refused, match="fast"):
        await remove_vendor(owner, "openai", is_embedded=True)
    await remove_alias(owner, "fast")
    await remove_vendor(owner, "openai", is_embedded=True)
    assert await owner.fetchval("SELECT sealed_key FROM vendors") == b""
    with pytest.raises(NotFound):
        await remove_vendor(owner, "openai", is_embedded=True)
    with pytest.raises(NotFound):
        await rotate_vendor(owner, "openai", KEY)


async def test_an_alias_leads_to_a_vendor_that_is_there(owner: asyncpg.Connection) -> None:
    await add_vendor(owner, vendor())
    with pytest.raises(NotFound):
        await set_alias(owner, "fast", "nobody/gpt-5")
    for name, target in (("fast", "gpt-5"), ("fast", "openai/"), ("a b", "openai/gpt-5")):
        with pytest.raises(BadArgument):
            await set_alias(owner, name, target)
    await set_alias(owner, "fast", "openai/gpt-4o")
    await set_alias(owner, "fast", "openai/vendor/gpt-5")
    (row,) = await list_aliases(owner)
    assert (row["name"], row["vendor"], row["model"]) == ("fast", "openai", "vendor/gpt-5")


async def test_each_change_wakes_the_gateways(owner: asyncpg.Connection) -> None:
    async def changes() -> int:
        query = "SELECT count(*) FROM change_log WHERE kind = 'vendors'"
        return int(await owner.fetchval(query))

    await add_vendor(owner, vendor())
    assert await changes() == 1
    await rotate_vendor(owner, "openai", "sk-new")
    assert await changes() == 2
    await set_alias(owner, "fast", "openai/gpt-5")
    assert await changes() == 3
    await remove_alias(owner, "fast")
    assert await changes() == 4
    await remove_vendor(owner, "openai", is_embedded=True)
    assert await changes() == 5


async def test_a_clouds_key_file_is_opened_by_gateways_as_what_signs(
    owner: asyncpg.Connection,
) -> None:
    aws = said("aws", kind="bedrock", base_url="https://llm.example.com", key=json.dumps(AWS))
    google = said(
        "google", kind="vertex", base_url="https://aiplatform.googleapis.com",
        key=service_account().decode(),
    )  # fmt: skip
    for vendor in (aws, google):
        await add_vendor(owner, with_preset(vendor))
    await rotate_vendor(owner, "aws", json.dumps({**AWS, "access_key_id": "AKIAOTHER"}))
    opened = {one.name: one for one in await load_vendors(owner, Vault([PAIR.private]))}
    assert {one.problem for one in opened.values()} == {None}
    assert opened["aws"].signer is not None
    assert b"AKIAOTHER" in opened["aws"].signer.secrets
    assert opened["google"].signer is not None
    assert "canary" not in repr(opened)
    assert "PRIVATE" not in repr(opened)


@pytest.mark.parametrize(
    ("kind", "key", "problem"),
    [
        ("bedrock", json.dumps({**AWS, "region": None}), "'region'"),
        ("bedrock", '{"access_key_id": "canary"}', "'secret_access_key'"),
        ("vertex", '{"type": "service_account", "project_id": "p"}', "'client_email'"),
        ("vertex", service_account(token_uri="http://canary").decode(), "'token_uri'"),
    ],
)
def test_what_a_clouds_key_file_lacks_is_told(kind: str, key: str, problem: str) -> None:
    with pytest.raises(BadArgument) as refused:
        check_vendor(said("cloud", kind=kind, base_url="https://llm.example.com", key=key))
    assert refused.value.field == "key-file"
    assert problem in str(refused.value)
    assert "canary" not in str(refused.value)
