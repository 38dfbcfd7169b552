from pathlib import Path

import asyncpg
import pytest

from control_plane.tenancy.aliases import set_alias
from control_plane.tenancy.vendors import NewVendor, add_vendor, register_public_key
from gateway.vendors.seal import keygen
from tests.control_plane.test_cli import Run, on_database, run  # noqa: F401 - fixtures


@pytest.fixture
async def public_key(owner: asyncpg.Connection) -> None:
    await register_public_key(owner, keygen().public)


@pytest.mark.usefixtures("on_database", "public_key")
def test_what_commands_change_is_in_the_audit_log_which_verifies(
    run: Run,  # noqa: F811
    tmp_path: Path,
) -> None:
    key = tmp_path / "key"
    key.write_text("sk-canary-0123456789")
    add = ("vendor", "add", "openai", "--key-file", str(key))
    assert run(*add).code == 0
    assert run("vendor", "rotate", "openai", "--key-file", str(key)).code == 0
    assert run("alias", "set", "fast", "openai/gpt-5").code == 0
    assert run("alias", "remove", "fast").code == 0
    assert run("vendor", "remove", "openai").code == 0

    verified = run("audit", "verify", "--json")
    assert verified.code == 0
    [chain] = verified.document["chains"]
    assert (verified.document["ok"], chain["org_id"], chain["entries"]) == (True, None, 5)

    heads = tmp_path / "heads"
    heads.write_text(run("audit", "head").stdout)
    assert run("audit", "verify", "--head", str(heads)).code == 0
    heads.write_text(heads.read_text().replace('"ordinal":5', '"ordinal":6'))
    assert run("audit", "verify", "--head", str(heads)).code == 1
    assert run("audit", "verify", "--head", str(tmp_path / "none")).code == 2


@pytest.mark.usefixtures("on_database", "public_key")
async def test_what_was_done_by_commands_is_told_as_an_operators(
    owner: asyncpg.Connection,
) -> None:
    vendor = NewVendor(name="x", kind="openai", base_url="https://x.example.com", key="sk-canary")
    await add_vendor(owner, vendor)
    await set_alias(owner, "fast", "x/gpt-5")
    rows = await owner.fetch("SELECT * FROM audit_log ORDER BY ordinal")
    assert [(row["action"], row["actor_kind"], row["credential"]) for row in rows] == [
        ("vendor.create", "operator", "command"), ("alias.set", "operator", "command"),
    ]  # fmt: skip
    assert "sk-canary" not in str(rows)
