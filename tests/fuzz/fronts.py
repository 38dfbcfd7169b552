"""nginx and HAProxy in front of a gateway, each telling by its log what it has passed on."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

START_SECONDS_MAX: Final = 10.0

# All that makes them pass more on than they would: the gateway has to cope with it.
_NGINX: Final = """
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log crit;
events {{ worker_connections 2048; }}
http {{
    log_format passed '$upstream_bytes_sent $upstream_status $status';
    access_log {folder}/passed.log passed;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/answers;
    fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u;
    scgi_temp_path {folder}/s;
    underscores_in_headers on;
    ignore_invalid_headers off;
    merge_slashes off;
    client_header_timeout 1s;
    client_body_timeout 1s;
    large_client_header_buffers 4 32k;
    upstream gateway {{ server 127.0.0.1:{gateway}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://gateway;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
            proxy_request_buffering {buffering};
            proxy_next_upstream off;
            proxy_read_timeout 2s;
        }}
    }}
}}
"""
_HAPROXY: Final = """
global
    maxconn 2048
    log stdout format raw local0
defaults
    mode http
    timeout connect 5s
    timeout client 1s
    timeout http-request 1s
    timeout server 2s
    retries 0
    option http-keep-alive
    http-reuse always
frontend clients
    bind 127.0.0.1:{port}
    option accept-invalid-http-request
    log global
    log-format "%s %ts %ST"
    default_backend gateway
backend gateway
    server gateway 127.0.0.1:{gateway}
"""
FRONTS: Final = ("nginx", "haproxy")


@dataclass(frozen=True, kw_only=True)
class Front:
    """A proxy that runs."""

    name: str
    port: int
    log: Path
    process: asyncio.subprocess.Process

    def passed_on(self) -> int:
        """Return how many requests it has sent to the gateway so far."""
        with self.log.open("rb") as lines:
            return sum(self._is_passed(line.split()) for line in lines)

    def _is_passed(self, words: list[bytes]) -> bool:
        if self.name == "nginx":
            return words[0].isdigit() and int(words[0]) > 0
        # The second letter: in which state the request was; in these nothing was sent.
        return words[0] == b"gateway" and words[1][1:2] not in (b"R", b"Q", b"C")


def installed(name: str) -> str | None:
    """Return where a proxy's program is; Debian's are for root alone."""
    return shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/bin")


@asynccontextmanager
async def front(
    name: str, *, gateway_port: int, folder: Path, buffering: bool
) -> AsyncIterator[Front]:
    """Run a proxy. `buffering`: nginx reads a body whole before it passes it on."""
    program = installed(name)
    assert program is not None
    port = _free_port()
    template = _NGINX if name == "nginx" else _HAPROXY
    config = folder / f"{name}.conf"
    config.write_text(
        template.format(
            folder=folder,
            port=port,
            gateway=gateway_port,
            buffering="on" if buffering else "off",
        )
    )
    log = folder / "passed.log"
    arguments = ["-c", str(config)] if name == "nginx" else ["-db", "-f", str(config)]
    if name == "nginx":
        arguments += ["-p", str(folder), "-e", str(folder / "error.log")]
    with log.open("ab") as out, (folder / "stderr").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            program, *arguments, stdout=out, stderr=errors
        )
    try:
        await _listening(port, process, folder)
        yield Front(name=name, port=port, log=log, process=process)
        assert process.returncode is None, f"{name} ended by itself"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _listening(port: int, process: asyncio.subprocess.Process, folder: Path) -> None:
    async with asyncio.timeout(START_SECONDS_MAX):
        while True:
            assert process.returncode is None, (folder / "stderr").read_text()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                await writer.wait_closed()
                return


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port
