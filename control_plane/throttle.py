"""How often what may be asked of the control plane: sliding windows, exact on any number of nodes.

Every route has a class; a class has windows by address and by account. The moments of what was
admitted are rows of the database, so that a node more is no loophole, and neither is a restart.
"""

import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

import asyncpg

from control_plane.errors import TooManyRequests
from gateway.sql import load_queries

IPV6_PREFIX: Final = 64  # what one customer of a provider has for itself

_QUERIES: Final = load_queries(__package__, "throttle.sql")
_TAKE = _QUERIES["take"]
_GIVE_BACK = _QUERIES["give_back"]


class RateClass(StrEnum):
    """What kind of request a route takes, by how often it may come."""

    SIGNUP = "signup"
    SIGN_IN = "sign_in"  # tries a secret: password, code, link
    PUBLIC = "public"  # anyone, harmless
    READ = "read"
    WRITE = "write"
    HEAVY = "heavy"  # exports, tests of vendors


class Per(StrEnum):
    """Whose requests a window counts."""

    ADDRESS = "address"
    ACCOUNT = "account"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """At most `limit` requests within any `length`."""

    per: Per
    limit: int
    length: timedelta


_HOUR: Final = timedelta(hours=1)
_MINUTE: Final = timedelta(minutes=1)

WINDOWS: Final[Mapping[RateClass, Sequence[Window]]] = {
    RateClass.SIGNUP: (Window(per=Per.ADDRESS, limit=5, length=_HOUR),),
    RateClass.SIGN_IN: (Window(per=Per.ADDRESS, limit=30, length=_MINUTE),),
    RateClass.PUBLIC: (Window(per=Per.ADDRESS, limit=120, length=_MINUTE),),
    RateClass.READ: (Window(per=Per.ACCOUNT, limit=600, length=_MINUTE),),
    RateClass.WRITE: (Window(per=Per.ACCOUNT, limit=120, length=_MINUTE),),
    RateClass.HEAVY: (Window(per=Per.ACCOUNT, limit=10, length=_MINUTE),),
}


def address_key(address: str) -> str:
    """Return what counts as one address: an IPv4 address, or the /64 of an IPv6 address.

    An IPv4 address that is mapped into IPv6 is that IPv4 address. Anything else counts as itself.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
    return str(parsed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taking:
    """One window of one key that a request counts in. `key` may hold anything, secrets excepted."""

    key: str
    limit: int
    length: timedelta


def takings(rate_class: RateClass, *, address: str, account_id: str | None) -> list[Taking]:
    """Return all that a request of a class counts in; without an account, by its address."""
    result = []
    for window in WINDOWS[rate_class]:
        whose = f"address:{address_key(address)}"
        if window.per is Per.ACCOUNT and account_id is not None:
            whose = f"account:{account_id}"
        result.append(Taking(key=f"{rate_class}:{whose}", limit=window.limit, length=window.length))
    return result


def secret_key(prefix: str, text: str) -> str:
    """Return a key about something that is not to be read in the database, such as an address."""
    return f"{prefix}:{hashlib.sha256(text.encode()).hexdigest()}"


async def take(connection: asyncpg.Connection, asked: Sequence[Taking]) -> None:
    """Admit one request under all of these, or under none. Raises TooManyRequests.

    In a transaction it counts only when that commits: call it in one of its own.
    """
    wait: float | None = await connection.fetchval(
        _TAKE,
        [one.key for one in asked],
        [one.limit for one in asked],
        [one.length for one in asked],
    )
    if wait is not None:
        raise TooManyRequests("This was asked for too often.", retry_after=wait)


async def give_back(connection: asyncpg.Connection, asked: Sequence[Taking]) -> None:
    """Take one admission back under all of these: it turned out to be none that counts."""
    await connection.execute(_GIVE_BACK, [one.key for one in asked])
