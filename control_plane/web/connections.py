"""How many connections there may be: of all together, and from one address."""

import ipaddress
from collections import Counter
from collections.abc import Sequence
from typing import Final

from gateway.client_address import Network

CONNECTIONS_MAX: Final = 800  # below the 1,024 descriptors that a process usually has
CONNECTIONS_PER_ADDRESS_MAX: Final = 64


class Connections:
    """Counts the connections that are open."""

    def __init__(
        self,
        *,
        trusted: Sequence[Network] = (),
        most: int = CONNECTIONS_MAX,
        most_per_address: int = CONNECTIONS_PER_ADDRESS_MAX,
    ) -> None:
        """From `trusted` proxies, and this machine, there may be as many as there may be at all."""
        self._trusted = trusted
        self._most = most
        self._most_per_address = most_per_address
        self._by_address: Counter[str] = Counter()

    def admit(self, address: str) -> bool:
        """Count a new connection; return False where there are too many, and don't."""
        is_bound = self._by_address[address] >= self._most_per_address and not self._is_exempt(
            address
        )
        if is_bound or self._by_address.total() >= self._most:
            return False
        self._by_address[address] += 1
        return True

    def forget(self, address: str) -> None:
        """Let one go that was admitted."""
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def _is_exempt(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:  # a socket that is no network's
            return True
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return parsed.is_loopback or any(parsed in network for network in self._trusted)
