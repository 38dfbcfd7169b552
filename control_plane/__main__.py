"""The control plane's process: `python -m control_plane`, told by the environment.

It says that it is ready by one line of JSON on stdout, and ends on SIGTERM.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from dataclasses import replace

import msgspec
import uvloop

from control_plane.alerts.watch import watching
from control_plane.app import listening, make_app
from control_plane.errors import BadArgument, ControlError
from control_plane.identity.passwords import PasswordHasher, PasswordRules
from control_plane.identity.second_factor import reseal_all
from control_plane.mail import open_outbox
from control_plane.server_settings import ServerSettings, load_server_settings
from control_plane.services import Services
from control_plane.web.database import ControlDatabase, open_control_database
from gateway.database_role import FIX, stands_above_policies
from gateway.ids import IdMaker
from gateway.log import Log, file_writer, route_standard_logging


async def serve(settings: ServerSettings, log: Log) -> None:
    """Answer until SIGTERM or SIGINT. Raises ControlError, OSError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with contextlib.closing(_bound(settings.host, settings.port)) as sock:
        settings = _with_port(settings, sock.getsockname()[1])
        async with open_control_database(settings.database_url) as database:
            if settings.is_production:
                await _check_role(database)
            async with open_outbox(
                settings.mail, is_production=settings.is_production, log=log
            ) as outbox:
                with contextlib.closing(PasswordHasher(settings.control_keys)) as passwords:
                    services = Services(
                        settings=settings,
                        database=database,
                        session_keys=settings.session_keys,
                        control_keys=settings.control_keys,
                        passwords=passwords,
                        password_rules=PasswordRules(),
                        outbox=outbox,
                        ids=IdMaker(time.time),
                        log=log,
                        now=time.time,
                    )
                    async with (
                        listening(make_app(services), sock, services),
                        watching(services),
                        asyncio.TaskGroup() as tasks,
                    ):
                        _say_ready(sock)
                        resealing = tasks.create_task(_reseal(settings, database, log))
                        await stop.wait()
                        resealing.cancel()


async def _check_role(database: ControlDatabase) -> None:
    """Raise BadArgument where row-level policies don't bind our login."""
    async with database.connection() as connection:
        is_above = await stands_above_policies(connection)
    if is_above:
        raise BadArgument(
            f"Row-level policies do not bind this login. {FIX}",
            field="KAIXU_CONTROL_DATABASE_URL",
        )


async def _reseal(settings: ServerSettings, database: ControlDatabase, log: Log) -> None:
    """Seal to the current key what is sealed to the one before, where there are two."""
    if len(settings.control_keys.keys) > 1:
        try:
            async with database.connection() as connection:
                resealed, lost = await reseal_all(connection, settings.control_keys)
        except ControlError as error:  # the next start goes on with it
            log.warning("not all sealed anew", error=error.message)
        else:
            key_id = settings.control_keys.current
            log.info("sealed anew", secrets=resealed, without_key=lost, key_id=key_id)


def _with_port(settings: ServerSettings, port: int) -> ServerSettings:
    """Put the port that was free where any was asked for, also into links that nobody named."""
    if settings.port:
        return settings
    url = settings.public_url.removesuffix(":0")
    public_url = settings.public_url if url == settings.public_url else f"{url}:{port}"
    return replace(settings, port=port, public_url=public_url)


def _say_ready(sock: socket.socket) -> None:
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    line = msgspec.json.encode({"admin_url": f"http://{shown}:{port}"})
    sys.stdout.write(line.decode() + "\n")
    sys.stdout.flush()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


def main() -> int:
    """Run the control plane and return its exit code."""
    os.umask(0o077)
    log = Log(file_writer(2), now=time.time)
    route_standard_logging(log)
    try:
        uvloop.run(serve(load_server_settings(os.environ), log))
    except ControlError as error:
        sys.stderr.write(f"kaixu control-plane: {error.field or ''} {error.message}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"kaixu control-plane: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
