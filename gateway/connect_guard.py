"""Which addresses the gateway may connect to: no vendor's URL may lead into the operator's network.

A URL is checked when it is configured, so that a mistake is told at once, and again where it
counts: on the addresses that its host resolves to, and on the address of the connected peer. A name
that resolves to a public address now and to a private one later gets nowhere.

A vendor that the operator marked as private may be on a private network or on this machine; link-
local, cloud metadata, multicast and IPv4 addresses inside IPv6 ones stay refused for it too.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

ADDRESSES_MAX: Final = 16  # tried of what one name resolves to
URL_CHARS_MAX: Final = 2048
HOST_CHARS_MAX: Final = 253  # RFC 1035
PORTS: Final = {"http": 80, "https": 443}
PORT_MAX: Final = 65_535


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# Global unicast, of which `ipaddress` calls too much global: the rest is refused, unknown or not.
_PUBLIC_V6: Final = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC: Final = _networks(
    "168.63.129.16/32",  # Azure's host agent
    "192.0.0.0/24",  # IETF protocol assignments; Oracle Cloud's metadata
    "192.88.99.0/24",  # 6to4 relays
    "2001::/23",  # IETF protocol assignments; Teredo carries IPv4 addresses
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4 carries IPv4 addresses
    "3fff::/20",  # documentation
)
_PRIVATE: Final = _networks(
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "fc00::/7",
)
# Inside the private networks, what hands out a machine's credentials.
_METADATA: Final = _networks(
    "100.100.100.200/32",  # Alibaba Cloud
    "fd00:ec2::/32",  # AWS
    "fd20:ce::254/128",  # Google Cloud
)

_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)"
    r"(?P<path>[^?#]*)(?P<query>\?[^#]*)?(?P<fragment>\#.*)?"
)
_AUTHORITY: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[^:]*))?")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?")
_LIKE_A_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*")


class AddressNotAllowed(OSError):
    """The gateway may not connect to this address; the message names it."""


class BaseUrlInvalid(ValueError):
    """A base URL can't be configured. The text is `field: problem fix`, safe to show."""

    def __init__(self, problem: str, *, fix: str) -> None:
        super().__init__(f"base_url: {problem} {fix}")
        self.field = "base_url"
        self.problem = problem
        self.fix = fix


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseUrl:
    """A checked base URL, its host in lower case, its path without a slash at the end."""

    scheme: str
    host: str  # a name, or an IP address without brackets
    port: int
    path: str

    @property
    def origin(self) -> str:
        """Scheme, host and port, always with the port: one text for one origin."""
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}"

    @property
    def authority(self) -> str:
        """What stands in the Host header: without the port where it is the scheme's own."""
        host = bracketed(self.host)
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


class ConnectGuard:
    """Decides about the addresses of one vendor."""

    def __init__(self, *, allow_private: bool, allowed_hosts: frozenset[str] | None = None) -> None:
        """`allow_private`: private addresses and this machine may be connected to as well.

        `allowed_hosts`: the only hosts, as `host` or `host:port`, that there may be; None: any.
        """
        self._allow_private = allow_private
        self._allowed_hosts = allowed_hosts

    async def allowed_addresses(self, host: str, port: int, resolve: Resolve) -> list[str]:
        """Return the addresses of `host` that may be dialled, in the order resolved.

        `resolve(host, port)` gives IP addresses; it is not asked where the host is one. Raises
        AddressNotAllowed where none may be dialled, and what `resolve` raises.
        """
        if not host_is_allowed(host, port, self._allowed_hosts):
            raise AddressNotAllowed(f"{host}:{port} is not among the hosts that vendors may have")
        literal = parse_address(host)
        found = [host] if literal else list(await resolve(host, port))[:ADDRESSES_MAX]
        allowed = [address for address in found if self.is_allowed(address)]
        if not allowed:
            raise AddressNotAllowed(f"{host} has no address that the gateway may connect to")
        return allowed

    def check_peer(self, address: str) -> None:
        """Raise AddressNotAllowed unless a connection to `address` may be used.

        `address` is what the connected socket says, `transport.get_extra_info("peername")[0]`.
        """
        if not self.is_allowed(address):
            raise AddressNotAllowed(f"the gateway may not connect to {address}")

    def is_allowed(self, address: str) -> bool:
        """Return whether an IP address, in its plain form, may be connected to."""
        parsed = parse_address(address)
        if parsed is None:
            return False
        return is_public(parsed) or (self._allow_private and is_private(parsed))


def is_public(address: Address) -> bool:
    """Return whether an address is somebody's on the Internet, and carries no other address."""
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address not in _PUBLIC_V6:
        return False
    return not _is_in(address, _NOT_PUBLIC)


def is_private(address: Address) -> bool:
    """Return whether an address is on a private network or this machine, metadata excepted."""
    return _is_in(address, _PRIVATE) and not _is_in(address, _METADATA)


def parse_address(text: str) -> Address | None:
    """Return an IP address in its plain form; None for anything else, `%zone` included."""
    try:
        address = ipaddress.ip_address(text) if text.isascii() else None
    except ValueError:
        return None
    return None if getattr(address, "scope_id", None) else address


def bracketed(host: str) -> str:
    """Return a host as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def host_is_allowed(host: str, port: int, allowed_hosts: frozenset[str] | None) -> bool:
    """Return whether the operator's list, if there is one, has this host or host and port."""
    if allowed_hosts is None:
        return True
    return host in allowed_hosts or f"{bracketed(host)}:{port}" in allowed_hosts


def check_base_url(
    url: str, *, allow_private: bool, allowed_hosts: frozenset[str] | None = None
) -> BaseUrl:
    """Return a vendor's base URL in its parts. Raises BaseUrlInvalid, which says what to change.

    Names are not resolved here: what they resolve to is checked at each connection.
    """
    if len(url) > URL_CHARS_MAX:
        raise BaseUrlInvalid("The URL is too long.", fix=f"Use at most {URL_CHARS_MAX} characters.")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise BaseUrlInvalid(
            "The URL has a space, a backslash or a character beyond ASCII.",
            fix="Write it plainly, an international name in its xn-- form.",
        )
    parts = _URL.fullmatch(url)
    if parts is None:
        raise BaseUrlInvalid(
            "This is not an absolute URL.", fix="Write it as https://api.example.com."
        )
    if parts["query"] is not None or parts["fragment"] is not None:
        raise BaseUrlInvalid("The URL has a query or fragment.", fix="Remove '?' or '#' and after.")
    scheme = _scheme(parts["scheme"].lower(), allow_private=allow_private)
    host, port = _host_and_port(parts["authority"], scheme=scheme, allow_private=allow_private)
    if not host_is_allowed(host, port, allowed_hosts):
        raise BaseUrlInvalid(
            f"{bracketed(host)}:{port} is not among the hosts that vendors may have.",
            fix="Ask the gateway's operator to add it.",
        )
    return BaseUrl(scheme=scheme, host=host, port=port, path=_path(parts["path"]))


def _scheme(scheme: str, *, allow_private: bool) -> str:
    if scheme not in PORTS:
        raise BaseUrlInvalid(f"A vendor can't be called by {scheme}.", fix="Use https.")
    if scheme == "http" and not allow_private:
        raise BaseUrlInvalid(
            "http would send the vendor key in the clear.",
            fix="Use https, or mark the vendor as private.",
        )
    return scheme


def _host_and_port(authority: str, *, scheme: str, allow_private: bool) -> tuple[str, int]:
    if "@" in authority:
        raise BaseUrlInvalid(
            "The URL has a user name or password.",
            fix="Remove what stands before '@'; the key is entered separately.",
        )
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise BaseUrlInvalid(
            "The URL's host can't be read.", fix="Put an IPv6 address in brackets."
        )
    port = _port(parts["port"], scheme=scheme, allow_private=allow_private)
    host = parts["host"].lower()
    if host.startswith("["):
        return _checked_address(host[1:-1], allow_private=allow_private, version=6), port
    if _LIKE_A_NUMBER.fullmatch(host.rsplit(".", 1)[-1]):
        return _checked_address(host, allow_private=allow_private, version=4), port
    return _checked_name(host, allow_private=allow_private), port


def _port(text: str | None, *, scheme: str, allow_private: bool) -> int:
    if text is None:
        return PORTS[scheme]
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text) or int(text) > PORT_MAX:
        raise BaseUrlInvalid(
            "The URL's port is not a number from 1 to 65535.", fix="Correct or remove it."
        )
    port = int(text)
    if port != PORTS[scheme] and not allow_private:
        raise BaseUrlInvalid(
            f"Port {port} is not {scheme}'s own.",
            fix=f"Use port {PORTS[scheme]}, or mark the vendor as private.",
        )
    return port


def _checked_address(text: str, *, allow_private: bool, version: int) -> str:
    """Return an IP address in its one plain form: what other forms mean differs by resolver."""
    address = parse_address(text)
    if address is None or address.version != version:
        raise BaseUrlInvalid(
            "The URL's host looks like an IP address, but is not one in plain form.",
            fix="Write IPv4 as four decimal numbers, IPv6 in brackets and without a zone.",
        )
    if is_public(address) or (allow_private and is_private(address)):
        return str(address)
    if is_private(address):
        raise BaseUrlInvalid(
            f"{address} is a private address.", fix="Mark the vendor as private if it is meant."
        )
    raise BaseUrlInvalid(
        f"The gateway never connects to {address}.", fix="Use the vendor's public host name."
    )


def _checked_name(host: str, *, allow_private: bool) -> str:
    labels = host.split(".")
    if len(host) > HOST_CHARS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise BaseUrlInvalid(
            "The URL's host is not a host name.", fix="Write it as in https://api.example.com."
        )
    is_local = len(labels) == 1 or labels[-1] in {"localhost", "local", "internal"}
    if is_local and not allow_private:
        raise BaseUrlInvalid(
            f"'{host}' is a name of a private network.",
            fix="Use a public host name, or mark the vendor as private.",
        )
    return host


def _path(path: str) -> str:
    path = path.removesuffix("/")
    if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise BaseUrlInvalid(
            "The URL's path has '//', '.', '..', '%' or another character that it can't have.",
            fix="Write it plainly, as in https://api.example.com/v1.",
        )
    return path


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)
