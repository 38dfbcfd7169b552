"""The other end of a client's connection: where it is, and what it has not taken yet."""

import asyncio
import contextlib
import fcntl
import ipaddress
import struct
import sys
import termios


def is_loopback(address: str) -> bool:
    """Return whether a client is on this machine."""
    if address.startswith("127.") or address in ("::1", "local"):
        return True
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool(mapped is not None and mapped.is_loopback)


def untaken_bytes(transport: asyncio.Transport | None) -> int:
    """Return how many bytes a client has not taken: those here, and on Linux those in the kernel.

    The kernel holds megabytes for a client far away, and says that it has room again only when a
    good part of them is gone.
    """
    if transport is None:
        return 0
    untaken = transport.get_write_buffer_size()
    socket = transport.get_extra_info("socket")
    if sys.platform == "linux" and socket is not None:
        with contextlib.suppress(OSError):  # closed meanwhile
            told = fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4))
            untaken += struct.unpack("i", told)[0]
    return untaken


class StallWatch:
    """Whether a client takes what waits for it. Slowly but steadily is no stall."""

    def __init__(self) -> None:
        self._untaken = 0
        self._took_at = 0.0

    def start(self, transport: asyncio.Transport | None, now: float) -> None:
        """From now on it has to take something now and then."""
        self._untaken = untaken_bytes(transport)
        self._took_at = now

    def seconds(self, transport: asyncio.Transport | None, now: float) -> float:
        """Return for how long it has taken nothing, as far as it was looked at."""
        untaken = untaken_bytes(transport)
        if untaken < self._untaken:
            self._took_at = now
        self._untaken = untaken
        return now - self._took_at
