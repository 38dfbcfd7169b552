"""The simulator of `kaixu up`: it stands in for vendors until there are keys to real ones."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import asyncpg

from control_plane.files import make_private
from control_plane.processes import KeptProcess, reduced
from control_plane.tenancy.vendors import list_vendors

READY_SECONDS_MAX: Final = 60.0
CONNECT_SECONDS: Final = 1.0  # to another machine's simulator


@dataclass(slots=True, kw_only=True)
class Simulator:
    """The simulator; `process` and `tally` are None where it is another `up`'s."""

    port: int
    tally: Path | None = None
    process: KeptProcess | None = None

    def command(self) -> list[str]:
        """Return how it is started; on the same port again once it has one."""
        start = [sys.executable, "-P", "-m", "gateway.vendors.simulator"]
        return [*start, "--port", str(self.port), "--tally", str(self.tally)]


async def find_simulator(
    owner: asyncpg.Connection,
    *,
    keys: Mapping[str, str | None],
    data_dir: Path,
    is_embedded: bool,
    environment: Mapping[str, str],
    note: Callable[[str], None],
) -> Simulator | None:
    """Return the simulator where some vendor needs it, on the port where the vendors expect it.

    `keys` are the vendors that it may stand in for, with the keys that there are. It is yet to be
    started, unless it is another `up`'s: machines that share a database and are one (a trial) share
    the simulator of the first.
    """
    present = {row["name"]: row for row in await list_vendors(owner)}
    needs = [
        n for n in keys if keys[n] is None and (n not in present or present[n]["is_simulator"])
    ]
    simulated = [row for row in present.values() if row["is_simulator"]]
    if not needs and not simulated:
        return None
    port = urlsplit(simulated[0]["base_url"]).port or 0 if simulated else 0
    if port and await _is_listening(port):
        if not is_embedded:
            return Simulator(port=port)
        port = 0
    elif port and not _is_free(port):  # a connection of somebody's has it, by chance
        port = 0
    folder = data_dir / "simulator"
    make_private(folder)
    simulator = Simulator(port=port, tally=folder / "tally.jsonl")
    simulator.process = KeptProcess(
        "simulator",
        lambda: (simulator.command(), reduced(environment)),
        note=note,
        ready_seconds_max=READY_SECONDS_MAX,
        dies_with_us=True,
    )
    return simulator


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


async def _is_listening(port: int) -> bool:
    def connect() -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=CONNECT_SECONDS),
        ):
            return True
        return False

    return await asyncio.to_thread(connect)
