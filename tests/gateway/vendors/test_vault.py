"""Opening vendor keys, and loading vendors with whatever is wrong with them."""

import uuid
from typing import Any

import asyncpg
import pytest

from gateway.connect_guard import check_base_url
from gateway.vendors import seal
from gateway.vendors.seal import KeyTextInvalid
from gateway.vendors.vault import (
    NOWHERE,
    SIMULATOR_KEY,
    Alias,
    KeyNotOpened,
    OpenedVendor,
    Vault,
    load_aliases,
    load_vendors,
)

KEYS = seal.keygen()
OLD_KEYS = seal.keygen()
SECRET = b"sk-canary-31337"


async def add_vendor(connection: asyncpg.Connection, **columns: Any) -> str:
    """Insert a vendor as the control plane would; what differs from the usual is named."""
    row: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "org_id": None,
        "name": "openai",
        "kind": "openai",
        "base_url": "https://api.openai.com/v1",
        "is_private": False,
        "key_version": 1,
    } | columns
    public, secret = row.pop("public", KEYS.public), row.pop("secret", SECRET)
    if "sealed_key" not in row:
        origin = check_base_url(row["base_url"], allow_private=row["is_private"]).origin
        info = seal.info(row["id"], row["org_id"], row["kind"], origin, row["key_version"])
        row["sealed_key"] = seal.seal(public, info, secret)
    places = ", ".join(f"${place}" for place in range(1, len(row) + 1))
    await connection.execute(
        f"INSERT INTO vendors ({', '.join(row)}) VALUES ({places})",  # noqa: S608 - our own names
        *row.values(),
    )
    return str(row["id"])


async def only_vendor(
    pool: asyncpg.Pool, vault: Vault, allowed_hosts: frozenset[str] | None = None
) -> OpenedVendor:
    (vendor,) = await load_vendors(pool, vault, allowed_hosts=allowed_hosts)
    return vendor


async def test_a_vendor_is_opened_with_the_header_it_is_called_with(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    vendor_id = await add_vendor(owner, models=["gpt-*", "o3"], is_default=True)
    vendor = await only_vendor(gateway_pool, Vault([KEYS.private]))
    assert vendor == OpenedVendor(
        id=vendor_id,
        org_id=None,
        name="openai",
        kind="openai",
        base_url=check_base_url("https://api.openai.com/v1", allow_private=False),
        is_private=False,
        is_default=True,
        models=("gpt-*", "o3"),
        asks_usage=True,
        account_headers=False,
        is_simulator=False,
        credential=(b"authorization", b"Bearer " + SECRET),
        key=SECRET,
        problem=None,
    )
    assert "canary" not in repr(vendor)


async def test_vendors_come_in_the_order_they_were_added_without_the_removed(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    for name in ("zeta", "alpha", "gone", "mid"):
        await add_vendor(owner, name=name)
    await owner.execute("UPDATE vendors SET removed_at = now() WHERE name = 'gone'")
    vendors = await load_vendors(gateway_pool, Vault([KEYS.private]))
    assert [vendor.name for vendor in vendors] == ["zeta", "alpha", "mid"]


async def test_a_vendor_of_an_org_is_tied_to_it(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    org_id = str(await owner.fetchval("SELECT id FROM orgs"))
    await add_vendor(owner, org_id=org_id)
    vendor = await only_vendor(gateway_pool, Vault([KEYS.private]))
    assert (vendor.org_id, vendor.key) == (org_id, SECRET)
    await owner.execute("UPDATE vendors SET org_id = NULL")
    vendor = await only_vendor(gateway_pool, Vault([KEYS.private]))
    assert (vendor.key, vendor.problem is None) == (b"", False)


async def test_usage_is_asked_for_where_the_kind_needs_it_and_the_vendor_does_not_tell_by_itself(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    await add_vendor(owner, name="a")
    await add_vendor(owner, name="b", usage_unasked=True)
    await add_vendor(owner, name="c", kind="anthropic", base_url="https://api.anthropic.com")
    vendors = await load_vendors(gateway_pool, Vault([KEYS.private]))
    assert [vendor.asks_usage for vendor in vendors] == [True, False, False]
    assert [vendor.problem for vendor in vendors] == [None] * 3


async def test_during_a_rotation_keys_sealed_to_the_previous_vault_key_open_too(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    await add_vendor(owner, name="old", public=OLD_KEYS.public, secret=b"sk-old")
    await add_vendor(owner, name="new", public=KEYS.public, secret=b"sk-new")
    vendors = await load_vendors(gateway_pool, Vault([KEYS.private, OLD_KEYS.private]))
    assert [vendor.key for vendor in vendors] == [b"sk-old", b"sk-new"]
    vendors = await load_vendors(gateway_pool, Vault([KEYS.private]))
    assert [vendor.key for vendor in vendors] == [b"", b"sk-new"]
    assert "does not have" in str(vendors[0].problem)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("base_url = 'https://evil.example/v1'", id="another origin"),
        pytest.param("base_url = 'https://api.openai.com:8443/v1'", id="another port"),
        pytest.param("kind = 'anthropic'", id="another kind"),
        pytest.param("key_version = 2", id="another version"),
        pytest.param("id = gen_random_uuid()", id="another vendor"),
        pytest.param("org_id = (SELECT id FROM orgs)", id="another org"),
        pytest.param("sealed_key = sealed_key || '\\x00'", id="a byte more"),
        pytest.param("sealed_key = substr(sealed_key, 1, 60)", id="bytes missing"),
        pytest.param("sealed_key = substr(sealed_key, 1, 5)", id="nearly all missing"),
        pytest.param("sealed_key = ''", id="all missing"),
        pytest.param("sealed_key = overlay(sealed_key placing '\\x02' from 1)", id="format"),
        pytest.param("kind = 'hal9000'", id="an unknown kind"),
        pytest.param("base_url = 'http://api.openai.com/v1'", id="no TLS"),
        pytest.param("base_url = 'https://127.0.0.1/v1'", id="a private address"),
    ],
)
async def test_what_was_changed_without_the_key_is_a_problem_of_that_vendor_alone(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool, change: str
) -> None:
    await add_vendor(owner, name="changed")
    await owner.execute(f"UPDATE vendors SET {change}")  # noqa: S608 - from the list above
    await add_vendor(owner, name="sound")
    changed, sound = await load_vendors(gateway_pool, Vault([KEYS.private]))
    assert changed.problem
    assert "canary" not in changed.problem
    assert (changed.key, changed.credential) == (b"", (b"", b""))
    assert (sound.key, sound.problem) == (SECRET, None)


async def test_another_path_of_the_same_origin_needs_no_new_key(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    await add_vendor(owner)
    await owner.execute("UPDATE vendors SET base_url = 'https://api.openai.com/v2'")
    assert (await only_vendor(gateway_pool, Vault([KEYS.private]))).problem is None


async def test_a_host_that_the_operator_does_not_list_is_a_problem(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    await add_vendor(owner)
    vault = Vault([KEYS.private])
    vendor = await only_vendor(gateway_pool, vault, frozenset({"api.example.com"}))
    assert vendor.base_url == NOWHERE
    assert (vendor.key, vendor.problem is None) == (b"", False)
    vendor = await only_vendor(gateway_pool, vault, frozenset({"api.openai.com"}))
    assert vendor.problem is None


async def test_a_key_that_can_not_stand_in_a_header_is_a_problem_and_not_kept(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    await add_vendor(owner, secret=SECRET + b"\r\nx: y")
    vendor = await only_vendor(gateway_pool, Vault([KEYS.private]))
    assert vendor.problem == "A vendor key has to be visible ASCII without spaces."
    assert (vendor.key, vendor.credential) == (b"", (b"", b""))


async def test_without_a_vault_key_only_simulators_are_called(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool
) -> None:
    await add_vendor(owner)
    await add_vendor(
        owner,
        name="simulator",
        base_url="http://127.0.0.1:9/v1",
        is_private=True,
        is_simulator=True,
        sealed_key=b"",
    )
    vault = Vault()
    assert vault.is_sealed
    real, simulator = await load_vendors(gateway_pool, vault)
    assert "KAIXU_VAULT_KEY" in str(real.problem)
    assert (simulator.key, simulator.problem) == (SIMULATOR_KEY, None)


async def test_aliases_come_by_name(owner: asyncpg.Connection, gateway_pool: asyncpg.Pool) -> None:
    await owner.execute(
        "INSERT INTO aliases (name, vendor_name, model) VALUES ('fast', 'groq', 'llama'), "
        "('best', 'openai', 'o3')"
    )
    assert await load_aliases(gateway_pool) == [
        Alias(org_id=None, name="best", vendor_name="openai", model="o3"),
        Alias(org_id=None, name="fast", vendor_name="groq", model="llama"),
    ]


def test_neither_a_vault_nor_what_it_raises_shows_a_key() -> None:
    vault = Vault([KEYS.private])
    sealed = seal.seal(KEYS.public, b"info", SECRET)
    assert vault.open(sealed, info=b"info") == SECRET
    with pytest.raises(KeyNotOpened) as caught:
        vault.open(sealed, info=b"other")
    assert KEYS.private not in repr(vault)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
    with pytest.raises(KeyTextInvalid):
        Vault([KEYS.private, KEYS.public])


def test_gateways_with_the_same_keys_derive_the_same_secrets_and_others_do_not() -> None:
    vault = Vault([KEYS.private, OLD_KEYS.private])
    current, previous = vault.derived(b"one thing")
    assert Vault([KEYS.private]).derived(b"one thing") == (current,)
    assert Vault([OLD_KEYS.private]).derived(b"one thing") == (previous,)
    assert len({current, previous, *vault.derived(b"another")}) == 4
    assert Vault().derived(b"one thing") == ()
