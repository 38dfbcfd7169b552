import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest

from control_plane import cli
from control_plane.secrets import make_control_key
from gateway.auth.token import is_well_formed
from gateway.vendors.seal import public_of
from tests.conftest import Database, Seed
from tests.control_plane.billing.test_feed import append

KEY = "sk-canary-0123456789"


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        assert self.stdout.count("\n") == 1
        return json.loads(self.stdout)

    @property
    def error(self) -> Any:
        assert self.stdout == ""
        assert self.stderr.count("\n") == 1
        return json.loads(self.stderr)["error"]


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["kaixu", *arguments])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        code = exited.value.code
        assert isinstance(code, int)
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def on_database(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAIXU_DATABASE_URL", database.owner_url)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("token", "create", "--expires", "91d"), "expires"),
        (("token", "create", "--expires", "2w"), "expires"),
        (("token", "create", "--limit", "-1"), "limit"),
        (("token", "create", "--limit", "many"), "limit"),
        (("token", "create", "--rate", "60"), "rate"),
        (("token", "create", "--rate", "60/1y"), "rate"),
        (("token", "create", "--rate", "0/1m"), "rate"),
        (("token", "create", "--rate", "60/2d"), "rate"),
        (("token", "create", "--concurrency", "0"), "concurrency"),
        (("limit", "set", "org"), "limit"),
        (("limit", "set", "org", "--limit", "many"), "limit"),
        (("limit", "set", "org", "--rate", "1"), "rate"),
        (("limit", "set", "org", "--concurrency", "x"), "concurrency"),
        (("token", "create", "--scope", "root"), "scope"),
        (("token", "create", "--models", "a,,b"), "models"),
        (("token", "revoke"), "token-id"),
        (("token", "create", "--unknown"), None),
        (("usage", "--month", "2026-13"), "month"),
        (("usage", "--by", "moon"), "by"),
        (("usage", "events", "--after", "x"), "after"),
        (("nothing",), None),
    ],
)
def test_a_bad_argument_is_exit_2_before_any_database_is_asked(
    run: Run, arguments: tuple[str, ...], field: str | None
) -> None:
    done = run(*arguments, "--json")
    assert done.code == 2
    assert done.error["code"] == "bad_argument"
    assert done.error["field"] == field
    if arguments[-1] != "--unknown":
        assert run(*arguments).code == 2


def test_a_database_that_is_not_there_is_exit_3(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run("token", "list", "--json", "--data", str(tmp_path / "none"))
    assert (done.code, done.error["code"]) == (3, "database_unreachable")
    assert not (tmp_path / "none").exists()
    monkeypatch.setenv("KAIXU_DATABASE_URL", "postgresql://owner:canary@127.0.0.1:1/none")
    done = run("token", "list", "--json")
    assert (done.code, done.error["code"]) == (3, "database_unreachable")
    assert "canary" not in done.stderr


@pytest.mark.parametrize("url", ["owner:canary@nowhere", "postgresql://o:canary@127.0.0.1:99999/d"])
def test_a_database_url_that_is_none_is_exit_2_and_not_quoted(
    run: Run, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("KAIXU_DATABASE_URL", url)
    done = run("token", "list", "--json")
    assert (done.code, done.error["field"]) == (2, "KAIXU_DATABASE_URL")
    assert "canary" not in done.stderr


@pytest.mark.usefixtures("on_database")
def test_a_wrong_password_is_exit_3(
    run: Run, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database.owner_url.replace("kaixu_owner:", "kaixu_owner:wrong")
    monkeypatch.setenv("KAIXU_DATABASE_URL", url)
    assert run("token", "list").code == 3


@pytest.mark.parametrize(
    ("output", "told"),
    [("| true", ""), ("> /dev/full", "kaixu: Input or output: No space left on device.\n")],
)
async def test_output_that_nobody_takes_is_no_fault_of_the_database(
    database: Database, owner: asyncpg.Connection, seed: Seed, output: str, told: str
) -> None:
    await append(owner, seed, 400)
    kaixu = Path(sys.executable).with_name("kaixu")
    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", f"set -o pipefail; {kaixu} usage events {output}",
        env={"KAIXU_DATABASE_URL": database.owner_url}, stderr=subprocess.PIPE,
    )  # fmt: skip
    _, stderr = await shell.communicate()
    assert (shell.returncode, stderr.decode()) == (1, told)


async def test_a_command_does_not_wait_for_ever(
    database: Database,
    owner: asyncpg.Connection,
    seed: Seed,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("control_plane.database.COMMAND_SECONDS_MAX", 0.3)
    monkeypatch.setenv("KAIXU_DATABASE_URL", database.owner_url)
    _, token_id = await seed.token()
    async with owner.transaction():
        await owner.execute("LOCK TABLE tokens")
        done = await asyncio.to_thread(run, "token", "revoke", token_id, "--json")
    assert (done.code, done.error["code"]) == (3, "database_unreachable")
    assert "may have been done" in done.error["message"]


@pytest.mark.usefixtures("on_database")
def test_what_is_not_there_is_exit_1(run: Run) -> None:
    for arguments in (
        ("token", "revoke", "nothing"),
        ("vendor", "remove", "nothing"),
        ("alias", "remove", "nothing"),
    ):
        done = run(*arguments, "--json")
        assert (done.code, done.error["code"]) == (1, "not_found")
        text = run(*arguments)
        assert text.code == 1
        assert text.stderr.startswith("kaixu: There is no ")


@pytest.mark.usefixtures("on_database")
def test_limits_are_set_listed_and_taken_away(run: Run) -> None:
    made = run("token", "create", "--rate", "60/1m", "--concurrency", "4", "--json").document
    assert (made["limit"], made["rate"], made["concurrency"]) == (None, "60/60s", 4)
    subject = f"token:{made['id']}"
    changed = run("limit", "set", subject, "--limit", "9", "--rate", "none", "--json").document
    receipt = changed.pop("receipt")
    assert (receipt["workers"], receipt["streams_cut"]) == ([], 0)
    assert changed == {
        "kind": "token", "subject_id": made["id"], "limit": 9, "rate": None, "concurrency": 4,
    }  # fmt: skip
    [row] = run("token", "list", "--json").document
    assert (row["limit"], row["rate"], row["concurrency"]) == (9, None, 4)
    run("limit", "set", "org", "--rate", "1000/1h")
    rows = run("limit", "list", "--json").document
    assert [(row["kind"], row["rate"]) for row in rows] == [("org", "1000/3600s"), ("token", None)]
    assert "1000/3600s" in run("limit", "list").stdout
    run("limit", "set", "org", "--rate", "none")
    run("limit", "set", subject, "--limit", "none", "--concurrency", "none")
    again = run("limit", "set", subject, "--limit", "none", "--json").document
    assert again["receipt"] is None, "nothing was changed"
    assert run("limit", "list").stdout == "There is no limit.\n"


@pytest.mark.usefixtures("on_database")
@pytest.mark.parametrize(
    ("subject", "code"),
    [
        ("planet:1", 2),
        ("token", 2),
        ("token:1", 2),
        ("user:6f2e7f0e-6f0e-4b7a-9f1e-000000000000", 2),  # a window is on tokens and orgs
        ("token:6f2e7f0e-6f0e-4b7a-9f1e-000000000000", 1),
    ],
)
def test_a_limit_is_on_somebody_that_there_is(run: Run, subject: str, code: int) -> None:
    done = run("limit", "set", subject, "--rate", "5/1m", "--json")
    assert (done.code, done.error["field"]) == (code, "subject")


@pytest.mark.usefixtures("on_database")
def test_a_token_lives_from_create_to_revoke(run: Run) -> None:
    created = run("token", "create", "--name", "ci", "--limit", "5", "--json").document
    assert is_well_formed(created["token"].encode())
    assert created["limit"] == 5
    listed = run("token", "list", "--json")
    assert created["token"] not in listed.stdout
    assert [row["id"] for row in listed.document] == [created["id"]]
    assert "ci" in run("token", "list").stdout
    receipt = run("token", "revoke", created["id"], "--json").document
    assert receipt["complete"] in {True, False}  # a young server may not know every worker
    assert (receipt["token_id"], receipt["workers"]) == (created["id"], [])
    assert receipt["committed_at"].endswith("Z")
    assert run("token", "revoke", created["id"]).code == 0
    assert run("token", "list", "--json").document[0]["state"] == "revoked"


@pytest.mark.usefixtures("on_database")
def test_a_token_is_held_to_vendors_and_networks(run: Run) -> None:
    lists = ("--vendors", "openai, groq", "--addresses", "203.0.113.0/24,::ffff:10.0.0.0/104")
    made = run("token", "create", *lists, "--json").document
    networks = ["203.0.113.0/24", "10.0.0.0/8"]
    assert (made["vendors"], made["addresses"]) == (["openai", "groq"], networks)
    [row] = run("token", "list", "--json").document
    assert (row["vendors"], row["addresses"]) == (["openai", "groq"], networks)
    for wrong in (("--vendors", "A B"), ("--addresses", "10.0.0.1/8"), ("--addresses", "x")):
        done = run("token", "create", *wrong, "--json")
        assert (done.code, done.error["field"]) == (2, wrong[0].removeprefix("--"))


@pytest.mark.usefixtures("on_database")
def test_every_token_is_revoked_in_one_go(run: Run) -> None:
    for _ in range(3):
        run("token", "create")
    assert run("token", "revoke", "some", "--all", "--json").code == 2
    told = run("token", "revoke", "--all", "--json").document
    assert (told["revoked"], told["receipt"]["workers"]) == (3, [])
    assert run("token", "revoke", "--all", "--json").document == {"revoked": 0, "receipt": None}
    assert {row["state"] for row in run("token", "list", "--json").document} == {"revoked"}


@pytest.mark.usefixtures("on_database")
def test_a_token_stands_alone_on_stdout_for_a_script_that_wants_no_json(run: Run) -> None:
    done = run("token", "create")
    assert is_well_formed(done.stdout.strip().encode())


@pytest.mark.usefixtures("on_database")
def test_a_vendor_and_an_alias_are_configured(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    add = (
        "vendor", "add", "groq", "--kind", "openai", "--base-url",
        "https://api.groq.com/openai/v1", "--key-file", str(file),
    )  # fmt: skip
    refused = run(*add, "--json")
    assert (refused.code, refused.error["code"]) == (1, "no_vault_key")


@pytest.mark.usefixtures("on_database")
def test_a_known_vendor_is_added_by_its_name(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    for arguments in (
        ("groq", "--key-file", str(file)),
        ("fast", "--preset", "groq", "--usage-asked", "--key-file", str(file)),
        ("ollama",),
    ):
        refused = run("vendor", "add", *arguments, "--json")
        assert (refused.code, refused.error["code"]) == (1, "no_vault_key")


def test_what_is_missing_of_a_vendor_is_exit_2(run: Run) -> None:
    for field, arguments in (
        ("kind", ("acme",)),
        ("base-url", ("acme", "--kind", "openai")),
        ("base-url", ("groq", "--kind", "gemini")),
        ("key-file", ("groq",)),
        ("preset", ("groq", "--preset", "telex")),
    ):
        done = run("vendor", "add", *arguments, "--json")
        assert (done.code, done.error["field"]) == (2, field)
        assert field in done.stderr


def test_a_key_file_that_is_missing_empty_or_odd_is_exit_2(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "key"
    for content in (None, "", "\n", "two words", "k\u00e9y"):
        if content is not None:
            file.write_text(content)
        done = run(
            "vendor", "add", "groq", "--kind", "openai", "--base-url", "https://api.groq.com/v1",
            "--key-file", str(file), "--json",
        )  # fmt: skip
        assert done.code == 2
        assert done.error["field"] == "key-file"
        assert not content or content.strip() == "" or content not in done.stderr


@pytest.mark.usefixtures("on_database")
def test_usage_and_events_of_an_empty_ledger(run: Run) -> None:
    report = run("usage", "--json").document
    assert set(report) == {"month", "by", "sealed_through", "rows"}
    assert run("usage", "--by", "day").code == 0
    assert run("usage", "events").stdout == ""
    assert run("usage", "events", "--format", "csv").stdout.startswith("id,cursor,ordinal,")


def test_a_vault_key_is_written_once_for_its_owner_alone(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "vault.key"
    made = run("vault", "keygen", "--out", str(file), "--json").document
    assert public_of(file.read_text().strip()) == made["public_key"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert run("vault", "keygen", "--out", str(file)).code == 1
    printed = run("vault", "keygen").stdout.strip()
    assert public_of(printed) != made["public_key"]


def test_a_generated_token_is_well_formed(run: Run) -> None:
    assert is_well_formed(run("token", "generate").stdout.strip().encode())


@pytest.mark.usefixtures("on_database")
def test_migrating_what_is_migrated_does_nothing(run: Run) -> None:
    assert run("migrate", "--json").document["applied"] == []


def test_a_data_folder_is_made_used_and_left_stopped(tmp_path_factory: Any, run: Run) -> None:
    folder = tmp_path_factory.mktemp("data") / "kaixu"
    assert run("migrate", "--data", str(folder)).code == 0
    made = run("token", "create", "--data", str(folder), "--json").document
    assert run("token", "list", "--data", str(folder), "--json").document[0]["id"] == made["id"]
    assert not list(folder.glob("postgresql-*/cluster/postmaster.pid"))
    assert folder.stat().st_mode & 0o067 == 0


def test_the_installed_command_answers() -> None:
    kaixu = Path(sys.executable).with_name("kaixu")
    done = subprocess.run([str(kaixu), "--help"], capture_output=True, text=True, check=True)
    assert "vendor" in done.stdout


@pytest.mark.usefixtures("on_database")
def test_who_can_not_get_in_is_given_a_new_password(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database: Database
) -> None:
    folder = str(tmp_path)
    assert run("account", "list", "--json", "--data", folder).document == []
    refused = run("account", "reset", "ada@example.com", "--json", "--data", folder)
    assert (refused.code, refused.error["field"]) == (1, "KAIXU_CONTROL_KEY")

    monkeypatch.setenv("KAIXU_CONTROL_KEY", make_control_key())
    unknown = run("account", "reset", "ada@example.com", "--json", "--data", folder)
    assert (unknown.code, unknown.error["code"]) == (1, "not_found")

    async def insert() -> None:
        connection = await asyncpg.connect(database.owner_url)
        await connection.execute(
            "INSERT INTO accounts (email, email_key) VALUES ('Ada@example.com', 'ada@example.com')"
        )
        await connection.close()

    asyncio.run(insert())
    done = run("account", "reset", "ada@example.com", "--data", folder)
    assert done.code == 0
    assert len(done.stdout.strip()) == 24
    assert "Ada@example.com" in done.stderr
    (row,) = run("account", "list", "--json", "--data", folder).document
    assert (row["email"], row["totp"]) == ("Ada@example.com", False)
