"""nginx and HAProxy in front of a gateway, each telling by its log what it has passed on.

Each gives every request an id of its own, which the gateway sees and which stands in its log.
"""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

START_SECONDS_MAX: Final = 10.0
FRONT_ID_HEADER: Final = "X-Front-Id"

# All that makes them pass more on than they would: the gateway has to cope with it.
_NGINX: Final = """
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log crit;
events {{ worker_connections 2048; }}
http {{
    log_format passed '$request_id $upstream_bytes_sent $upstream_status $status $http_x_fuzz_id';
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
            proxy_set_header {id_header} $request_id;
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
    # Of threads that write to the log at once, one drops its line: it does not wait for the other.
    nbthread 1
    log stdout format raw local0
    stats socket {folder}/haproxy.sock
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
    unique-id-format %[uuid]
    unique-id-header {id_header}
    http-request capture req.hdr(x-fuzz-id) len 64
    log global
    log-format "%ID %s %ts %Tc %ST %hr"
    default_backend gateway
backend gateway
    server gateway 127.0.0.1:{gateway}
"""
FRONTS: Final = ("nginx", "haproxy")


@dataclass(kw_only=True)
class FrontLog:
    """A proxy's log, by the ids that it gave; `read` reads on from where it was."""

    path: Path
    is_passed_on: Callable[[list[bytes]], bool]  # of a line's words
    lines: dict[str, bytes] = field(default_factory=dict)
    passed_on: set[str] = field(default_factory=set)  # of these something went to the gateway
    _read_bytes: int = 0

    def read(self) -> None:
        """Take in the requests that were told of since the last time."""
        with self.path.open("rb") as log:
            log.seek(self._read_bytes)
            for line in log:
                if not line.endswith(b"\n"):  # it is being written
                    break
                self._read_bytes += len(line)
                words = line.split()
                front_id = words[0].decode()
                self.lines[front_id] = line.strip()
                if self.is_passed_on(words):
                    self.passed_on.add(front_id)


def _nginx_passed_on(words: list[bytes]) -> bool:
    _, bytes_sent, *_ = words
    return bytes_sent.isdigit() and int(bytes_sent) > 0


def _haproxy_passed_on(words: list[bytes]) -> bool:
    """Read the state of the session: its second letter says in which state the request was.

    In R, Q and C nothing was sent. HAProxy tells H from the moment that it dials: where the body
    turns out to be broken before the gateway's side has answered, it takes its connection back and
    has sent nothing either. The time that the connection took is -1 then.
    """
    _, server, state, connected_ms, *_ = words
    return server == b"gateway" and state[1:2] not in b"RQC" and connected_ms != b"-1"


@dataclass(frozen=True, kw_only=True)
class Front:
    """A proxy that runs."""

    name: str
    port: int
    log: FrontLog
    process: asyncio.subprocess.Process


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
            id_header=FRONT_ID_HEADER,
            buffering="on" if buffering else "off",
        )
    )
    log = FrontLog(
        path=folder / "passed.log",
        is_passed_on=_nginx_passed_on if name == "nginx" else _haproxy_passed_on,
    )
    arguments = ["-c", str(config)] if name == "nginx" else ["-db", "-f", str(config)]
    if name == "nginx":
        arguments += ["-p", str(folder), "-e", str(folder / "error.log")]
    with log.path.open("ab") as out, (folder / "stderr").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            program, *arguments, stdout=out, stderr=errors
        )
    try:
        await _listening(port, process, folder)
        yield Front(name=name, port=port, log=log, process=process)
        assert process.returncode is None, f"{name} ended by itself"
        if name == "haproxy":
            dropped = await _dropped_lines(folder)
            assert dropped == 0, f"{name} dropped {dropped} lines of its log"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _dropped_lines(folder: Path) -> int:
    """Return how many lines HAProxy could not write."""
    reader, writer = await asyncio.open_unix_connection(folder / "haproxy.sock")
    writer.write(b"show info\n")
    told = dict(line.split(b": ", 1) for line in (await reader.read()).split(b"\n") if line)
    writer.close()
    return int(told[b"DroppedLogs"])


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
