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

import msgspec
import uvloop

from control_plane.alerts.watch import watching
from control_plane.app import listening, make_app
from control_plane.errors import ControlError
from control_plane.mail import open_outbox
from control_plane.server_settings import ServerSettings, load_server_settings
from control_plane.services import Services
from control_plane.web.database import open_control_database
from gateway.ids import IdMaker
from gateway.log import Log, file_writer, route_standard_logging


async def serve(settings: ServerSettings, log: Log) -> None:
    """Answer until SIGTERM or SIGINT. Raises ControlError, OSError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with contextlib.closing(_bound(settings.host, settings.port)) as sock:
        async with (
            open_control_database(settings.database_url) as database,
            open_outbox(None, is_production=settings.is_production, log=log) as outbox,
        ):
            services = Services(
                settings=settings,
                database=database,
                session_keys=settings.session_keys,
                control_keys=settings.control_keys,
                outbox=outbox,
                ids=IdMaker(time.time),
                log=log,
                now=time.time,
            )
            async with listening(make_app(services), sock, services), watching(services):
                host, port = sock.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                line = msgspec.json.encode({"admin_url": f"http://{shown}:{port}"})
                sys.stdout.write(line.decode() + "\n")
                sys.stdout.flush()
                await stop.wait()


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
