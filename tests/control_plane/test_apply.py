import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from control_plane.apply import Applier
from control_plane.apply_file import Source
from control_plane.audit_verification import verify
from control_plane.errors import BadArgument, ControlError, NotFound, Refused
from control_plane.tenancy.aliases import set_alias
from control_plane.tenancy.vendors import register_public_key
from gateway.vendors.seal import keygen
from gateway.vendors.vault import Vault, load_vendors
from tests.control_plane.conftest import People
from tests.control_plane.test_cli import Run, on_database, run  # noqa: F401 - fixtures

PAIR = keygen()
KEY = "sk-canary-0123456789"
FILE = """
org:
  name: acme
  requires_totp: true
  token_days_max: 30
  limit: 10000
  rate: 60/1m
workspaces:
  - name: default
  - name: research
    limit: 500
members:
  - email: Ada@example.com
    role: admin
    workspaces: {research: editor}
vendors:
  - name: openai
    models: [gpt-*]
    key: {env: OPENAI_API_KEY}
  - name: mine
    kind: openai
    base_url: https://llm.example.com/v1
    key: {env: OPENAI_API_KEY}
aliases:
  fast: openai/gpt-5
"""


@pytest.fixture(autouse=True)
async def public_key(owner: asyncpg.Connection) -> None:
    await register_public_key(owner, PAIR.public)


@pytest.fixture
async def org(people: People) -> Any:
    made = await people.org("acme")
    await people.member(made, "owner")
    await people.member(made, "viewer", await people.person("ada@example.com"))
    return made


async def apply(
    owner: asyncpg.Connection,
    text: str,
    *,
    dry_run: bool = False,
    prune: bool = False,
    environment: dict[str, str] | None = None,
) -> list[tuple[str, str, str]]:
    applier = Applier(
        Source(Path("org.yaml"), text.encode()),
        environment={"OPENAI_API_KEY": KEY} if environment is None else environment,
        allowed_hosts=None,
        is_embedded=True,
        prune=prune,
    )
    steps = await applier.apply(owner, dry_run=dry_run)
    assert KEY not in json.dumps(steps, default=str)
    return [(one["action"], one["kind"], one["name"]) for one in steps]


async def test_an_org_becomes_as_the_file_says_and_stays_so(
    owner: asyncpg.Connection, org: Any, people: People
) -> None:
    before = await owner.fetch("SELECT * FROM change_log")
    wanted = await apply(owner, FILE, dry_run=True)
    assert len(wanted) == 8, wanted
    assert await owner.fetch("SELECT * FROM change_log") == before
    assert await owner.fetchval("SELECT count(*) FROM audit_log") == 0

    done = await apply(owner, FILE)

    assert [(action, kind) for action, kind, _ in done] == [
        ("update", "org"), ("create", "workspace"), ("update", "member"), ("create", "vendor"),
        ("create", "vendor"), ("create", "alias"), ("update", "limit"), ("update", "limit"),
    ]  # fmt: skip
    assert await apply(owner, FILE, dry_run=True) == []
    assert await apply(owner, FILE) == []
    row = await owner.fetchrow("SELECT * FROM orgs WHERE id = $1", org)
    assert row is not None
    assert (row["requires_totp"], row["token_life_max"].days) == (True, 30)
    assert await owner.fetchval("SELECT role FROM workspace_members") == "editor"
    opened = {one.name: one for one in await load_vendors(owner, Vault([PAIR.private]))}
    assert {one.org_id for one in opened.values()} == {str(org)}
    assert [one.key for one in opened.values()] == [KEY.encode()] * 2
    assert opened["openai"].models == ("gpt-*",)
    limits = await owner.fetch("SELECT kind, calls_a_month FROM call_limits ORDER BY kind")
    assert [tuple(row) for row in limits] == [("org", 10_000), ("workspace", 500)]
    assert (await verify(owner))["ok"]


async def test_drift_is_found_and_mended(owner: asyncpg.Connection, org: Any) -> None:
    await apply(owner, FILE)
    await owner.execute("UPDATE users SET role = 'viewer' WHERE role = 'admin'")
    await owner.execute("UPDATE vendors SET models = NULL, disabled_at = now()")
    await owner.execute("DELETE FROM org_aliases")
    await owner.execute("DELETE FROM call_limits WHERE kind = 'org'")
    drift = await apply(owner, FILE, dry_run=True)
    assert [(action, kind) for action, kind, _ in drift] == [
        ("update", "member"), ("update", "vendor"), ("create", "alias"), ("update", "limit"),
    ]  # fmt: skip
    await apply(owner, FILE, environment={})  # a vendor that stays where it is needs no key again
    assert await apply(owner, FILE, dry_run=True) == []
    assert await owner.fetchval("SELECT count(*) FROM vendors WHERE disabled_at IS NULL") == 0
    moved = FILE.replace("llm.example.com", "other.example.com")
    with pytest.raises(BadArgument, match=r"org\.yaml:23: vendors\[1\]\.key: OPENAI_API_KEY"):
        await apply(owner, moved, environment={})
    assert await apply(owner, moved) == [("update", "vendor", "mine")]


async def test_what_the_file_does_not_mention_stays_until_it_is_pruned(
    owner: asyncpg.Connection, org: Any
) -> None:
    await apply(owner, FILE)
    await set_alias(owner, "extra", "mine/x", org_id=org)
    less = FILE.partition("workspaces:")[0] + "vendors: [{name: openai}]\naliases: {}\n"
    assert await apply(owner, less) == []
    assert await apply(owner, less, prune=True) == [
        ("delete", "alias", "extra"), ("delete", "alias", "fast"), ("delete", "vendor", "mine"),
    ]  # fmt: skip
    assert await owner.fetchval("SELECT count(*) FROM workspaces WHERE org_id = $1", org) == 2


async def test_without_an_org_it_is_the_operators(owner: asyncpg.Connection) -> None:
    text = "vendors:\n  - {name: groq, key: {env: OPENAI_API_KEY}}\naliases: {fast: groq/llama}\n"
    await apply(owner, text)
    assert await owner.fetchval("SELECT count(*) FROM vendors WHERE org_id IS NULL") == 1
    assert await owner.fetchval("SELECT count(*) FROM aliases") == 1
    assert await apply(owner, text, dry_run=True) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("org: {name: acme}\nvendors:\n  - name: openai\n    model: x\n", "4: vendors[0].model"),
        ("org:\n  name: acme\n  token_days_max: 91\n", "3: org.token_days_max"),
        ("org: {name: acme}\nmembers:\n  - email: a@b.c\n    role: boss\n", "4: members[0].role"),
        ("org: {name: acme}\nmembers:\n  - email: no@b.c\n", "3: members[0].email"),
        ("org: {name: acme}\n\nmembers: [{email: ada@example.com, workspaces: {x: viewer}}]\n",
         "3: members[0].workspaces"),
        ("vendors:\n  - name: openai\n    key: {}\n", "3: vendors[0].key"),
        ("vendors:\n  - name: openai\n    key: {env: NOT_THERE}\n", "3: vendors[0].key"),
        ("vendors:\n  - name: x\n    kind: openai\n    base_url: http://a.example.com\n",
         "4: vendors[0].base_url"),
        ("vendors:\n  - name: x\n    kind: telex\n    base_url: https://a.example.com\n",
         "3: vendors[0].kind"),
        ("aliases:\n  fast: nobody/x\n", "2: aliases.fast"),
        ("workspaces:\n  - name: x\n", "1: workspaces"),
        ("org:\n  name: nobody\n", "2: org.name"),
        ("org:\n  name: acme\n  rate: often\n", "3: org.rate"),
        ("org:\n  name: acme\n  name: other\n", "3: org.name"),
        ("org: {name: acme}\nmembers: [{email: ada@example.com}]\nx: 1\n", "3: x"),
    ],
)  # fmt: skip
async def test_a_mistake_is_told_with_its_line_and_field(
    owner: asyncpg.Connection, org: Any, text: str, place: str
) -> None:
    with pytest.raises(ControlError) as refused:
        await apply(owner, text)
    assert str(refused.value).startswith(f"org.yaml:{place}: "), str(refused.value)
    assert await owner.fetchval("SELECT count(*) FROM audit_log") == 0


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "a: &x 1\nb: *x\n",
        "a: !!python/name:os.system x\n",
        "\x00",
        "org: {name: 2024-13-45}\n",
        f"org: {{name: {'1' * 5000}}}\n",
        "org: {name: !!int x}\n",
        "org: {name: !!bool x}\n",
        "org: {name: !!timestamp x}\n",
    ],
)
async def test_what_is_no_plain_yaml_is_refused(owner: asyncpg.Connection, text: str) -> None:
    with pytest.raises(BadArgument):
        await apply(owner, text)


@pytest.mark.parametrize(
    "where", ["env: KAIXU_VAULT_KEY", "env: JWT_SECRET", "file: own", "file: ./other/../own"]
)
async def test_the_installations_own_secrets_are_no_vendors_keys(
    owner: asyncpg.Connection, tmp_path: Path, where: str
) -> None:
    (tmp_path / "own").write_text("a-secret-of-the-installation")
    (tmp_path / "other").mkdir()
    where = where.replace("file: ", f"file: {tmp_path}/")
    environment = {
        "KAIXU_VAULT_KEY": "a-secret",
        "JWT_SECRET": "a-secret",
        "KAIXU_CONTROL_KEY_FILE": str(tmp_path / "own"),
    }
    text = (
        "vendors:\n"
        "  - name: mine\n"
        "    kind: openai\n"
        "    base_url: https://llm.example.com/v1\n"
        f"    key: {{{where}}}\n"
    )

    with pytest.raises(BadArgument, match="installation"):
        await apply(owner, text, environment=environment)

    assert await owner.fetchval("SELECT count(*) FROM vendors") == 0


async def test_all_of_it_holds_or_nothing(owner: asyncpg.Connection, org: Any) -> None:
    with pytest.raises(NotFound):
        await apply(owner, FILE.replace("fast: openai", "fast: nobody"))
    assert await owner.fetchval("SELECT count(*) FROM vendors") == 0
    assert await owner.fetchval("SELECT requires_totp FROM orgs WHERE id = $1", org) is False
    await owner.execute("UPDATE users SET role = 'viewer' WHERE role = 'owner'")
    with pytest.raises(Refused, match="leaves none"):
        await apply(owner, FILE)


@pytest.mark.usefixtures("on_database")
def test_the_command_tells_drift_by_its_exit_code(
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    file = tmp_path / "all.yaml"
    file.write_text("vendors:\n  - {name: groq, key: {env: OPENAI_API_KEY}}\n")
    assert run("apply", "-f", str(file), "--dry-run").code == 1
    applied = run("apply", "-f", str(file), "--json")
    assert applied.code == 0
    assert [one["name"] for one in applied.document["changes"]] == ["groq"]
    assert run("apply", "-f", str(file), "--dry-run").code == 0
    file.write_text("vendor: []\n")
    wrong = run("apply", "-f", str(file), "--json")
    assert (wrong.code, wrong.error["field"]) == (2, "vendor")
    assert run("apply", "-f", str(tmp_path / "none")).code == 2
