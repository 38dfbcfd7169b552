"""HAProxy in front of machines: it passes connections on to those whose /readyz says ready."""

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tests.faults.machine import Machine

START_SECONDS_MAX: Final = 10.0
LOOK_SECONDS: Final = 0.02

# What is refused is given to another machine at once; it is still alive while its streams end.
_CONFIG: Final = """
global
    maxconn 2048
defaults
    mode tcp
    timeout connect 2s
    timeout client 600s
    timeout server 600s
    retries 10
    option redispatch 1
listen gateways
    bind 127.0.0.1:{port}
    balance leastconn
    option httpchk GET /readyz
    default-server inter 100ms fall 1 rise 1
{servers}
"""


def haproxy() -> str | None:
    """Return where the program is, or None; Debian's is for root alone."""
    return shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


@contextlib.asynccontextmanager
async def balanced(machines: Sequence[Machine]) -> AsyncIterator[str]:
    """Run it in front of machines that keep their ports; give its URL."""
    program = haproxy()
    assert program is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    servers = "\n".join(
        f"    server {machine.name} 127.0.0.1:{urlsplit(machine.url).port} "
        f"check port {urlsplit(machine.ops_url).port}"
        for machine in machines
    )
    with tempfile.TemporaryDirectory(prefix="kaixu-haproxy-") as folder:
        config = Path(folder) / "haproxy.cfg"
        config.write_text(_CONFIG.format(port=port, servers=servers))
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                program, "-db", "-f", str(config), stdout=out, stderr=out
            )
        try:
            await _listening(port, process, log)
            yield f"http://127.0.0.1:{port}"
            assert process.returncode is None, log.read_text()
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _listening(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(START_SECONDS_MAX):
        while True:
            assert process.returncode is None, f"HAProxy ended: {log}"
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(LOOK_SECONDS)
            else:
                writer.transport.abort()
                return
