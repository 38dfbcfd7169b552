"""`python -m gateway`: read the environment and become the supervisor, or one of its workers.

Exit codes: 0 drained, 1 failed, 2 a setting can't be used.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Final

from gateway.hardening import harden_process, raise_open_files
from gateway.log import Log, file_writer, route_standard_logging
from gateway.settings import Problem, Settings, SettingsInvalid
from gateway.vendors.seal import KeyTextInvalid, parse_private
from gateway.worker_link import FDS_VARIABLE, NUMBER_VARIABLE, WorkerContext

DONE: Final = 0
FAILED: Final = 1
BAD_SETTING: Final = 2

ROLE_CHECK_SECONDS_MAX: Final = 5.0  # that a start waits for the database

_STDERR: Final = 2


def main() -> int:
    """Run until told to stop; return the exit code."""
    environ = dict(os.environ)
    harden_process()
    raise_open_files()
    lines = Log(file_writer(_STDERR), now=time.time)
    route_standard_logging(lines)
    try:
        settings = Settings.from_env(environ)
        check_vault_keys(settings.vault_keys)
    except SettingsInvalid as error:
        return _refuse(error, lines)
    if FDS_VARIABLE in environ:
        return _run_worker(settings, environ, lines)
    if settings.is_production:
        try:
            asyncio.run(check_database_roles(settings))
        except SettingsInvalid as error:
            return _refuse(error, lines)
    return _run_supervisor(settings, environ, lines)


def _refuse(error: SettingsInvalid, lines: Log) -> int:
    for one in error.problems:
        lines.line(
            "error",
            "setting invalid",
            {"setting": one.setting, "problem": one.problem, "fix": one.fix},
        )
    return BAD_SETTING


def check_vault_keys(keys: tuple[str, ...]) -> None:
    """Raise SettingsInvalid where one is no private key."""
    for key in keys:
        try:
            parse_private(key)
        except KeyTextInvalid as error:
            problem = Problem(
                setting="KAIXU_VAULT_KEY",
                problem=str(error),
                fix="Give a private key that `kaixu vault keygen` made.",
            )
            raise SettingsInvalid((problem,)) from None


async def check_database_roles(settings: Settings) -> None:
    """Raise SettingsInvalid where a login stands above row security; a database may be away."""
    import asyncpg  # noqa: PLC0415 - outside of production the supervisor does without

    from gateway.database_role import FIX, stands_above_policies  # noqa: PLC0415
    from gateway.sql import DATABASE_FAULTS  # noqa: PLC0415

    for setting, url in (
        ("KAIXU_GATEWAY_DATABASE_URL", settings.gateway_database_url),
        ("KAIXU_FEED_DATABASE_URL", settings.feed_database_url),
    ):
        try:
            connection = await asyncpg.connect(url, timeout=ROLE_CHECK_SECONDS_MAX)
        except DATABASE_FAULTS:
            continue  # workers wait for it, and ask by themselves
        try:
            is_above = await stands_above_policies(connection)
        except DATABASE_FAULTS:
            continue
        finally:
            connection.terminate()
        if is_above:
            problem = "Row-level policies do not bind this login."
            raise SettingsInvalid((Problem(setting=setting, problem=problem, fix=FIX),))


def _run_supervisor(settings: Settings, environ: Mapping[str, str], lines: Log) -> int:
    from gateway.supervisor import Supervisor, announce_on_stdout  # noqa: PLC0415 - workers do without

    supervisor = Supervisor(
        command=(sys.executable, *(("-P",) if sys.flags.safe_path else ()), "-m", "gateway"),
        environ=environ,
        host=settings.host,
        port=settings.port,
        ops_host=settings.ops_host,
        ops_port=settings.ops_port,
        workers=settings.workers,
        drain_timeout_seconds=settings.drain_timeout_seconds,
        log=lines.bind(process="supervisor"),
        announce=announce_on_stdout,
    )
    try:
        asyncio.run(supervisor.run())
    except OSError as error:  # an address that can't be listened on
        lines.error("supervisor failed", error=error)
        return BAD_SETTING
    except Exception as error:  # noqa: BLE001 - the last place where it can be told
        lines.error("supervisor failed", error=error)
        return FAILED
    return DONE


def _run_worker(settings: Settings, environ: Mapping[str, str], lines: Log) -> int:
    # The supervisor never loads what reads tokens and opens keys.
    import uvloop  # noqa: PLC0415

    from gateway.app import serve  # noqa: PLC0415

    # Ctrl-C goes to the supervisor too, which tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener, channel = (int(fd) for fd in environ[FDS_VARIABLE].split(","))
    number = int(environ.get(NUMBER_VARIABLE, "0"))
    context = WorkerContext(
        number=number,
        listener=socket.socket(fileno=listener),
        channel=socket.socket(fileno=channel),
    )
    lines = lines.bind(process=f"worker {number}")
    route_standard_logging(lines)

    async def live() -> None:
        try:
            await serve(settings, context, log=lines)
        except Exception as error:  # noqa: BLE001 - the last place where it can be told
            lines.error("worker failed", error=error)
            # As if killed: calls that are open now are found so in the journal. Unwinding them
            # would record them as ended by their clients.
            os._exit(FAILED)

    uvloop.run(live())
    return DONE


if __name__ == "__main__":
    sys.exit(main())
