"""Which logins to the database the control plane refuses to start with in production."""

import os
import subprocess
import sys

import asyncpg
import pytest

from tests.conftest import Database
from tests.control_plane.conftest import CONTROL_PASSWORD, CONTROL_ROLE, JWT_SECRET


def start(**environ: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "control_plane"],
        env={"PATH": os.defpath, "JWT_SECRET": JWT_SECRET, "KAIXU_ADMIN_PORT": "0", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def test_in_production_a_superuser_is_refused(database: Database) -> None:
    process = start(KAIXU_CONTROL_DATABASE_URL=database.owner_url, KAIXU_ENV="production")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2, b"")
    assert b"KAIXU_CONTROL_DATABASE_URL Row-level policies do not bind this login." in err


@pytest.mark.parametrize(
    "change",
    [
        "ALTER ROLE {role} BYPASSRLS",
        "ALTER TABLE orgs OWNER TO {role}",
        "CREATE ROLE {role}_above BYPASSRLS; GRANT {role}_above TO {role}",
    ],
    ids=["bypasses", "owns", "can become one that bypasses"],
)
async def test_in_production_a_login_that_policies_don_t_bind_is_refused(
    database: Database, owner: asyncpg.Connection, change: str
) -> None:
    role = f"{database.name[:20]}_login"
    await owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x' IN ROLE kaixu_control")
    try:
        await owner.execute(change.format(role=role))
        url = database.server.url(database.name, user=role, password="x")
        process = start(KAIXU_CONTROL_DATABASE_URL=url, KAIXU_ENV="production")
        _, err = process.communicate(timeout=20)
        assert process.returncode == 2, err
        assert b"Row-level policies" in err
    finally:
        await owner.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}")
        await owner.execute(f"DROP ROLE {role}; DROP ROLE IF EXISTS {role}_above")


async def test_in_production_its_own_role_is_fine(control_url: str) -> None:
    assert f"{CONTROL_ROLE}:{CONTROL_PASSWORD}" in control_url
    process = start(KAIXU_CONTROL_DATABASE_URL=control_url, KAIXU_ENV="production")
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith(b'{"admin_url":')
    finally:
        process.terminate()
        process.communicate(timeout=20)
