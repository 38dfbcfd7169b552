import asyncio
import json
import os
import secrets
import signal
import sys
from pathlib import Path

import asyncpg
import psutil
import pytest

from control_plane.identity.second_factor import seed_place
from control_plane.secrets import make_control_key, parse_control_keys
from tests.control_plane.conftest import People

KAIXU = Path(sys.executable).with_name("kaixu")
START_SECONDS_MAX = 30


async def start(*command: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        env={"PATH": os.defpath, "HOME": "/nowhere", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def settings(control_url: str) -> dict[str, str]:
    return {
        "KAIXU_CONTROL_DATABASE_URL": control_url,
        "JWT_SECRET": secrets.token_urlsafe(48),
        "KAIXU_CONTROL_KEY": make_control_key(),
        "KAIXU_ADMIN_PORT": "0",
    }


async def test_it_says_when_it_is_ready_and_ends_when_it_is_asked_to(control_url: str) -> None:
    process = await start(sys.executable, "-m", "control_plane", **settings(control_url))
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS_MAX)
    assert json.loads(line)["admin_url"].startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")


async def test_the_command_runs_it_alone_and_hides_what_is_the_gateways(
    control_url: str, tmp_path: Path
) -> None:
    given = settings(control_url)
    del given["KAIXU_CONTROL_KEY"]  # of the data folder, then
    given |= {
        "KAIXU_VAULT_KEY": "canary",
        "KAIXU_DATABASE_URL": "canary",
        "OPENAI_API_KEY": "canary",
    }
    process = await start(str(KAIXU), "control-plane", "--data", str(tmp_path / "data"), **given)
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS_MAX)
    assert json.loads(line)["admin_url"]
    assert "canary" not in psutil.Process(process.pid).environ().values()
    assert (tmp_path / "data" / "control.key").stat().st_mode & 0o777 == 0o600
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert process.returncode == 0


async def test_in_production_no_secret_is_made_up(control_url: str, tmp_path: Path) -> None:
    given = {**settings(control_url), "KAIXU_ENV": "production"}
    del given["JWT_SECRET"]
    process = await start(str(KAIXU), "control-plane", "--data", str(tmp_path / "data"), **given)
    _, errors = await process.communicate()
    assert (process.returncode, b"JWT_SECRET" in errors) == (2, True)


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        ("JWT_SECRET", "short", 2),
        ("KAIXU_CONTROL_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none", 3),
    ],
)
async def test_what_keeps_it_from_starting_is_told(
    control_url: str, setting: str, value: str, code: int
) -> None:
    given = {**settings(control_url), setting: value}
    process = await start(sys.executable, "-m", "control_plane", **given)
    output, errors = await process.communicate()
    assert (process.returncode, output) == (code, b"")
    assert b"kaixu control-plane:" in errors
    assert b"Traceback" not in errors


async def test_a_new_key_seals_anew_what_the_old_one_has_sealed(
    control_url: str, people: People, owner: asyncpg.Connection
) -> None:
    person = await people.person()
    old, new = make_control_key(), make_control_key()
    place = seed_place(person.account_id)
    sealed = parse_control_keys(old).seal(b"seed", place)
    await owner.execute("UPDATE accounts SET totp_sealed = $1", sealed)
    given = {**settings(control_url), "KAIXU_CONTROL_KEY": f"{new} {old}"}
    process = await start(sys.executable, "-m", "control_plane", **given)
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), START_SECONDS_MAX)
    assert process.stderr is not None
    line = json.loads(await asyncio.wait_for(process.stderr.readline(), START_SECONDS_MAX))
    assert (line["event"], line["secrets"], line["without_key"]) == ("sealed anew", 1, 0)
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    resealed = await owner.fetchval("SELECT totp_sealed FROM accounts")
    assert parse_control_keys(new).open(resealed, place) == b"seed"
