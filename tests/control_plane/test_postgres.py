import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from control_plane.errors import Refused
from control_plane.postgres import EmbeddedPostgres, wheel_binaries

NOBODY = 65534
STARTER = """
import sys, time
from pathlib import Path
from control_plane.postgres import EmbeddedPostgres, wheel_binaries
postgres = EmbeddedPostgres(Path(sys.argv[1]), binaries=wheel_binaries())
print(postgres.start(), postgres.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    # Closed to others, as a home is, and not pytest's own, which another user may not have.
    made = Path(tempfile.mkdtemp(prefix="kaixu-postgres-"))
    yield made / "data"
    for running in (EmbeddedPostgres(made / "data", binaries=wheel_binaries()),):
        if running.pid is not None:
            os.kill(running.pid, signal.SIGQUIT)
    shutil.rmtree(made, ignore_errors=True)


def embedded(folder: Path) -> EmbeddedPostgres:
    settings = {"fsync": "off"}
    return EmbeddedPostgres(folder, binaries=wheel_binaries(), settings=settings)


async def number(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT 42"))
    finally:
        await connection.close()


async def test_it_keeps_its_data_and_its_url_from_one_start_to_the_next(folder: Path) -> None:
    first = embedded(folder)
    url = first.start()
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
    assert await connection.fetchval("SHOW synchronous_commit") == "on"
    await connection.close()
    assert first.stop()
    assert first.pid is None

    second = embedded(folder)
    assert second.start() == url
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT value FROM kept") == 7
    await connection.close()
    assert second.stop()


async def test_the_last_one_who_uses_it_stops_it(folder: Path) -> None:
    one, other = embedded(folder), embedded(folder)
    assert one.start() == other.start()
    assert one.pid == other.pid
    assert not one.stop()
    assert other.pid is not None
    assert other.stop()
    assert other.pid is None


def test_it_outlives_a_killed_starter_and_is_found_again(folder: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    url, pid = starter.stdout.readline().split()
    starter.kill()
    starter.communicate()

    found = embedded(folder)
    assert found.start() == url
    assert found.pid == int(pid)
    assert found.stop()


async def test_a_killed_server_starts_again(folder: Path) -> None:
    postgres = embedded(folder)
    url = postgres.start()
    assert postgres.pid is not None
    server = psutil.Process(postgres.pid)
    server.kill()
    server.wait()
    assert postgres.start() == url
    assert await number(url) == 42
    assert postgres.stop()


async def test_nobody_gets_in_without_the_password(folder: Path) -> None:
    postgres = embedded(folder)
    url = postgres.start()
    owner, _, place = url.removeprefix("postgresql://").partition("@")
    user, _, password = owner.partition(":")
    assert password
    for wrong in ("", "wrong"):
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await asyncpg.connect(f"postgresql://{place}", user=user, password=wrong)
    assert postgres.stop()


def test_every_way_in_asks_for_a_password_that_only_the_owner_can_read(folder: Path) -> None:
    postgres = embedded(folder)
    postgres.start()
    postgres.stop()
    made = folder / "postgresql-18"
    lines = (made / "cluster" / "pg_hba.conf").read_text().splitlines()
    rules = [line.split() for line in lines if line and not line.startswith("#")]
    assert {rule[-1] for rule in rules} == {"scram-sha-256"}
    assert (made / "password").stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o007 == 0


async def test_the_process_id_of_another_process_is_not_taken_for_the_servers(
    folder: Path,
) -> None:
    postgres = embedded(folder)
    postgres.start()
    postgres.stop()
    file = folder / "postgresql-18" / "cluster" / "postmaster.pid"
    file.write_text(f"{os.getpid()}\n/elsewhere\n0\n1\n\n127.0.0.1\n\nready\n")
    assert postgres.pid is None
    assert await number(postgres.start()) == 42
    assert postgres.stop()


async def test_an_interrupted_first_start_is_begun_anew(folder: Path) -> None:
    unfinished = folder / "postgresql-18" / "cluster.new"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    postgres = embedded(folder)
    assert await number(postgres.start()) == 42
    assert postgres.stop()


def test_the_data_of_another_major_version_is_refused(folder: Path) -> None:
    (folder / "postgresql-17" / "cluster").mkdir(parents=True)
    with pytest.raises(Refused, match="another PostgreSQL"):
        embedded(folder).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_an_ordinary_user_runs_it_as_well() -> None:
    made = Path(tempfile.mkdtemp(prefix="kaixu-postgres-"))
    os.chown(made, NOBODY, NOBODY)
    child = os.fork()  # not a new interpreter, which another user may not be able to reach
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            postgres = embedded(made / "data")
            postgres.start()
            owner = Path(f"/proc/{postgres.pid}").stat().st_uid
            code = 0 if postgres.stop() and owner == NOBODY else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    shutil.rmtree(made)
    assert os.waitstatus_to_exitcode(status) == 0
