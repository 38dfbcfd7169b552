"""What a system under measurement is: how it is started, reached, and told apart from its rig."""

import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from benchmarks.processes import Placement, wait_until
from benchmarks.workloads import Workload

LOOPBACK: Final = "127.0.0.1"
VENDOR_KEY: Final = "sk-benchmark-vendor"  # the bench vendor takes any
CALLS_PATH: Final = "/v1/chat/completions"
READY_SECONDS_MAX: Final = 120.0  # LiteLLM imports for long
RELEASE_SECONDS_MAX: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorAddress:
    """Where the bench vendor listens, and what its certificate is checked against."""

    port: int
    tls_port: int  # 0: none
    authority: Path

    def port_for(self, workload: Workload) -> int:
        """Return the port on which this workload reaches it."""
        return self.tls_port if workload.by_tls else self.port

    def origin(self, workload: Workload) -> str:
        """Return the origin by which this workload reaches it."""
        scheme = "https" if workload.by_tls else "http"
        return f"{scheme}://{LOOPBACK}:{self.port_for(workload)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What a system is started in."""

    vendor: VendorAddress
    placement: Placement
    folder: Path  # of the system's own, for configuration and logs


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A system that takes calls.

    - `roots`: processes that are it, with all below them; `database`: those that are not.
    - `tokens`: a file with bearers that the calls cycle over, in place of the headers' one.
    - `check`: raises RigError where not every one of so many calls left its mark.
    """

    port: int
    roots: tuple[int, ...]
    headers: tuple[str, ...] = ()
    path: str = CALLS_PATH
    database: tuple[int, ...] = ()
    tokens: Path | None = None
    check: "Callable[[int], None] | None" = field(default=None)


class System(Protocol):
    """A system under measurement."""

    name: str
    version: str
    notes: tuple[str, ...]  # what was done for it to run
    rewrites: bool  # it writes answers anew: events are counted, bytes are not compared
    streams_most: Mapping[str, int]  # by the workload's answer; more would measure its queue
    speaks: str  # what is on, in words

    def start(self, workload: Workload, around: Around) -> AbstractContextManager[Running]:
        """Start it anew for a workload, on its CPU; end it afterwards."""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, *, what: str) -> None:
    """Wait until somebody listens. Raises RigError."""

    def is_open() -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((LOOPBACK, port)) == 0

    wait_until(is_open, seconds=READY_SECONDS_MAX, what=f"{what} listens")
