"""How many calls may begin from one address: an IPv6 address counts as its /64, one customer's."""

from typing import Final

from cachetools import LRUCache

from gateway.auth.failed_lookups import network_of
from gateway.permit_limit import PermitLimit

ADDRESSES_MAX: Final = 16_384  # remembered; the others are made again


class AddressWindow:
    """The limit of each address."""

    def __init__(self, *, calls: int, window_seconds: int) -> None:
        """So many calls within so many seconds."""
        self._calls = calls
        self._window_seconds = window_seconds
        self._limits: LRUCache[str, PermitLimit] = LRUCache(ADDRESSES_MAX)

    def limit(self, address: str) -> PermitLimit:
        """Return the limit of an address."""
        limit = self._limits.get(address)
        if limit is None:
            limit = self._limits[address] = PermitLimit(
                subject_kind="address",
                subject=network_of(address),
                calls=self._calls,
                window_seconds=self._window_seconds,
            )
        return limit
