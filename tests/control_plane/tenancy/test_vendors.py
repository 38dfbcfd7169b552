from typing import Any

import asyncpg
import pytest

from control_plane.errors import BadArgument, NotFound, Refused
from control_plane.tenancy.aliases import list_aliases, remove_alias, set_alias
from control_plane.tenancy.vendors import (
    NewVendor,
    add_vendor,
    list_vendors,
    register_public_key,
    remove_vendor,
    rotate_vendor,
)
from gateway.vendors.seal import keygen
from gateway.vendors.vault import Vault, load_vendors

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
    await remove_vendor(owner, "xai")
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


async def test_the_operators_list_of_hosts_holds(owner: asyncpg.Connection) -> None:
    with pytest.raises(BadArgument, match="among the hosts"):
        await add_vendor(owner, vendor(), allowed_hosts=frozenset({"api.groq.com"}))


async def test_without_a_public_key_nothing_is_sealed(owner: asyncpg.Connection) -> None:
    await owner.execute("DELETE FROM vault_keys")
    with pytest.raises(Refused, match="keygen"):
        await add_vendor(owner, vendor())


async def test_a_removed_vendor_leaves_no_key_behind(owner: asyncpg.Connection) -> None:
    await add_vendor(owner, vendor())
    await set_alias(owner, "fast", "openai/gpt-5")
    with pytest.raises(Refused, match="fast"):
        await remove_vendor(owner, "openai")
    await remove_alias(owner, "fast")
    await remove_vendor(owner, "openai")
    assert await owner.fetchval("SELECT sealed_key FROM vendors") == b""
    with pytest.raises(NotFound):
        await remove_vendor(owner, "openai")
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
    await remove_vendor(owner, "openai")
    assert await changes() == 5
