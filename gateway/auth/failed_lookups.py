"""Counts each address's lookups of tokens that do not exist: guessing must not cost the database.

A sliding window of two halves of fixed length: the last one counts by the share of it that is still
within the window. An IPv6 address counts as its /64, which is one customer's.
"""

import ipaddress
from collections.abc import Callable
from typing import Final

from cachetools import LRUCache

IPV6_PREFIX_BITS: Final = 64


class FailedLookups:
    """Failures by address within `window_seconds`; addresses quiet for longest are forgotten."""

    def __init__(
        self,
        *,
        failures_max: int,
        window_seconds: float,
        addresses_max: int,
        now: Callable[[], float],
    ) -> None:
        """`now` gives seconds on a clock that never steps."""
        self._failures_max = failures_max
        self._window_seconds = window_seconds
        self._now = now
        self._counts: LRUCache[str, tuple[int, int, int]] = LRUCache(addresses_max)

    def add(self, address: str) -> None:
        """Count one failure."""
        network = network_of(address)
        window, last, current = self._count(network)
        self._counts[network] = (window, last, current + 1)

    def wait_seconds(self, address: str) -> float:
        """Return after how long this address may try again; 0: it may now."""
        _, last, current = self._count(network_of(address))
        elapsed = self._now() % self._window_seconds
        rest = self._window_seconds - elapsed
        if current >= self._failures_max:
            return rest + 1.0
        over = last * rest / self._window_seconds + current - self._failures_max
        return 0.0 if over < 0 else over * self._window_seconds / last + 1.0

    def _count(self, network: str) -> tuple[int, int, int]:
        window = int(self._now() // self._window_seconds)
        counted, last, current = self._counts.get(network, (window, 0, 0))
        if counted == window:
            return window, last, current
        return window, current if counted == window - 1 else 0, 0


def network_of(address: str) -> str:
    """Return what an address counts as: itself, or the /64 of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a Unix socket's peer has none
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), IPV6_PREFIX_BITS), strict=False))
