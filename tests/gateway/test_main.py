import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from gateway.__main__ import check_database_roles, check_vault_keys
from gateway.hardening import OPEN_FILES
from gateway.settings import Settings, SettingsInvalid
from gateway.vendors.seal import keygen
from tests.conftest import Database

CANARY = "c4n4ry-pw"


def start(**environ: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "gateway"],
        env={"PATH": os.defpath, **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_settings_that_can_t_be_used_end_it_with_2_and_say_why() -> None:
    process = start(KAIXU_PORT="x", KAIXU_FEED_DATABASE_URL=f"mysql://u:{CANARY}@h/d")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2, b"")
    lines = [json.loads(line) for line in err.splitlines()]
    assert {line["setting"] for line in lines} == {
        "KAIXU_GATEWAY_DATABASE_URL",
        "KAIXU_JOURNAL_DIR",
        "KAIXU_PORT",
        "KAIXU_FEED_DATABASE_URL",
    }
    assert all(line["problem"] and line["fix"] for line in lines)
    assert CANARY.encode() not in err


def test_a_vault_key_has_to_be_one() -> None:
    private = keygen().private
    check_vault_keys((private,))
    with pytest.raises(SettingsInvalid) as caught:
        check_vault_keys((private, "kxvault1_" + CANARY))
    assert CANARY not in str(caught.value)


def test_it_runs_without_its_database_leaves_no_core_and_ends_with_its_parent(
    tmp_path: Path,
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        process = start(
            KAIXU_GATEWAY_DATABASE_URL=f"postgresql://u:{CANARY}@127.0.0.1:"
            f"{nobody.getsockname()[1]}/d",
            KAIXU_JOURNAL_DIR=str(tmp_path / "journal"),
            KAIXU_PORT="0",
            KAIXU_OPS_PORT="0",
            KAIXU_WORKERS="1",
            KAIXU_PARENT_PIPE="1",
        )
        assert process.stderr is not None
        lines = []
        for raw in process.stderr:
            lines.append(json.loads(raw))
            if lines[-1].get("reasons") == ["worker 0: database", "worker 0: vendors"]:
                break
        [worker] = psutil.Process(process.pid).children()
        assert worker.cmdline()[1:] == ["-m", "gateway"]
        assert resource.prlimit(worker.pid, resource.RLIMIT_CORE) == (0, 0)
        assert process.stdin is not None
        process.stdin.close()
        rest = process.stderr.read()
        assert process.wait(20) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b""  # it never was ready
        process.stdout.close()
        process.stderr.close()
    assert CANARY not in json.dumps(lines) + rest.decode()
    assert not worker.is_running()
    assert b"worker drained" in rest


def test_a_worker_hears_of_ctrl_c_from_its_supervisor(tmp_path: Path) -> None:
    process = start(
        KAIXU_GATEWAY_DATABASE_URL="postgresql://u@127.0.0.1:1/d",
        KAIXU_JOURNAL_DIR=str(tmp_path / "journal"),
        KAIXU_PORT="0",
        KAIXU_OPS_PORT="0",
        KAIXU_WORKERS="1",
    )
    assert process.stderr is not None
    for raw in process.stderr:
        if "worker_id" in json.loads(raw):
            break
    [worker] = psutil.Process(process.pid).children()
    worker.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    ended = [json.loads(line) for line in err.splitlines() if b"worker ended" in line]
    assert [line["exit_code"] for line in ended] == [0]


def test_it_asks_for_the_open_files_that_it_may_need() -> None:
    program = (
        "import resource as r; from gateway.__main__ import raise_open_files\n"
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]\n"
        "r.setrlimit(r.RLIMIT_NOFILE, (256, hard)); raise_open_files()\n"
        "print(*r.getrlimit(r.RLIMIT_NOFILE))"
    )
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    soft, hard = map(int, told.stdout.split())
    assert soft == OPEN_FILES or 256 < soft == hard


async def test_in_production_a_login_that_policies_don_t_bind_is_refused(
    database: Database, tmp_path: Path
) -> None:
    process = start(
        KAIXU_ENV="production",
        KAIXU_GATEWAY_DATABASE_URL=database.owner_url,
        KAIXU_JOURNAL_DIR=str(tmp_path),
        KAIXU_PORT="0",
        KAIXU_OPS_PORT="0",
    )
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2, b"")
    assert json.loads(err)["setting"] == "KAIXU_GATEWAY_DATABASE_URL"


async def test_in_production_the_gateway_s_own_login_is_fine(database: Database) -> None:
    url = database.gateway_url
    settings = Settings.from_env(
        {
            "KAIXU_ENV": "production",
            "KAIXU_GATEWAY_DATABASE_URL": url,
            "KAIXU_JOURNAL_DIR": "/nowhere",
        }
    )
    assert settings.is_production
    await check_database_roles(settings)
