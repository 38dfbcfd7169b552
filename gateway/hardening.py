"""What a process asks of the system: to keep its secrets in it, and for room."""

import contextlib
import ctypes
import os
import resource
from typing import Final

from gateway.limits import CONNECTIONS_PER_WORKER_MAX

OPEN_FILES: Final = 2 * CONNECTIONS_PER_WORKER_MAX + 1_024  # a call has one on each side

_PR_SET_DUMPABLE: Final = 4


def harden_process() -> None:
    """Keep keys that are in memory out of core files, and out of other processes' reach."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    os.umask(0o077)


def raise_open_files() -> None:
    """Have room for all connections that there may be, where the system gives little unasked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
