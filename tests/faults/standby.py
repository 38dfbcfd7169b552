"""A standby of the world's PostgreSQL, which takes over when that is killed."""

import asyncio
import os
import socket
from typing import Final
from urllib.parse import urlsplit

import asyncpg

from control_plane.postgres import EmbeddedPostgres

START_SECONDS_MAX: Final = 60
LOOK_SECONDS: Final = 0.05

_HEARS: Final = "SELECT count(*) FROM pg_stat_wal_receiver"
_HAS_REPLAYED: Final = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn"


class Standby:
    """Made from a running server, as its owner. Blocking, but for `follow`."""

    def __init__(self, postgres: EmbeddedPostgres, *, owner_url: str) -> None:
        parts = urlsplit(owner_url)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._primary_url = owner_url
        self.owner_url = owner_url.replace(f":{parts.port}/", f":{self.port}/")
        self._postgres = postgres
        self._folder = postgres._folder / "standby"
        self._primary = (
            f"host={parts.hostname} port={parts.port} user={parts.username} "
            f"password={parts.password} application_name=standby"
        )

    def start(self) -> None:
        """Copy the primary, and start."""
        self._folder.mkdir(mode=0o700)
        user = self._postgres._user
        if user is not None:
            os.chown(self._folder, user.pw_uid, user.pw_gid)
        self._postgres._run(
            "pg_basebackup", "-D", str(self._folder), "-R", "-c", "fast", "-d", self._primary
        )
        settings = {
            **self._postgres._settings,
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
        }
        self._postgres._run(
            "pg_ctl", "start", "-w", "-t", str(START_SECONDS_MAX), "-D", str(self._folder),
            "-l", str(self._folder / "log"),
            "-o", " ".join(f"-c {name}={value}" for name, value in settings.items()),
        )  # fmt: skip

    async def follow(self) -> None:
        """Have the primary commit nothing that is not here too."""
        primary = await asyncpg.connect(self._primary_url)
        await primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        await primary.execute("SELECT pg_reload_conf()")
        await primary.close()

    async def part(self) -> None:
        """Hear no more of the primary: return once all that it has committed so far is here."""
        primary = await asyncpg.connect(self._primary_url)
        standby = await asyncpg.connect(self.owner_url)
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                place = await primary.fetchval("SELECT pg_current_wal_lsn()::text")
                while not await standby.fetchval(_HAS_REPLAYED, place):  # noqa: ASYNC110 - a server
                    await asyncio.sleep(LOOK_SECONDS)
                await standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
                await standby.execute("SELECT pg_reload_conf()")
                while await standby.fetchval(_HEARS):  # noqa: ASYNC110 - as above
                    await asyncio.sleep(LOOK_SECONDS)
        finally:
            await primary.close()
            await standby.close()

    def promote(self) -> None:
        """Take over; return once it takes writes."""
        self._postgres._run(
            "pg_ctl", "promote", "-w", "-t", str(START_SECONDS_MAX), "-D", str(self._folder)
        )

    def stop(self) -> None:
        """Stop at once."""
        self._postgres._run("pg_ctl", "stop", "-m", "immediate", "-w", "-D", str(self._folder))
