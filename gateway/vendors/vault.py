"""Opening vendor keys: the only place where it is done, and only gateway processes have what opens.

The counterpart of `seal.py`. One vendor whose key can't be opened or used is a vendor with a
problem, not a gateway that does not start.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.connect_guard import BaseUrl, BaseUrlInvalid, check_base_url
from gateway.sql import load_queries
from gateway.vendors import seal
from gateway.vendors.credential import KeyUnusable, Signer
from gateway.vendors.registry import KINDS

# What a simulator is called with: it takes any key, and this one opens nothing.
SIMULATOR_KEY: Final = b"kaixu-simulator-needs-no-key"
# Where a vendor's base URL can't be used. A name that never resolves (RFC 2606).
NOWHERE: Final = BaseUrl(scheme="https", host="nowhere.invalid", port=443, path="")

DERIVED_BYTES: Final = 32

_HEADER_BYTES: Final = len(seal.FORMAT) + seal.KEY_ID_BYTES
_NO_CREDENTIAL: Final = (b"", b"")

_QUERIES: Final = load_queries(__package__, "vault.sql")
_LOAD_VENDORS = _QUERIES["load_vendors"]
_LOAD_ALIASES = _QUERIES["load_aliases"]


class KeyNotOpened(Exception):
    """A sealed key stays closed. The message says why and what to do; it quotes nothing sealed."""


class KeyMissing(KeyNotOpened):
    """It is sealed to a vault key that is not here, or not yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedVendor:
    """A vendor that calls can go to.

    With a `problem` none can: `key`, `credential` and `signer` are empty then, and where the base
    URL is at fault, it leads nowhere. `lacks_vault_key`: that is the problem.
    """

    id: str
    org_id: str | None  # None: the operator's, for every org
    name: str
    kind: str
    base_url: BaseUrl
    is_private: bool
    is_default: bool
    models: tuple[str, ...] | None
    asks_usage: bool
    account_headers: bool
    is_simulator: bool
    credential: tuple[bytes, bytes] = field(repr=False)
    key: bytes = field(repr=False)
    problem: str | None = None
    key_version: int = 1
    lacks_vault_key: bool = False
    signer: Signer | None = None
    is_disabled: bool = False  # called by tests of it only


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A name that clients may use for a vendor's model; `org_id` None: those of every org."""

    org_id: str | None
    name: str
    vendor_name: str
    model: str


class Vault:
    """The gateways' private keys: the current one, and the previous one during a rotation."""

    def __init__(self, private_keys: Sequence[str] = ()) -> None:
        """`private_keys` are `kxvault1_…` texts; none: nothing opens. Raises KeyTextInvalid."""
        self._keys: dict[bytes, X25519PrivateKey] = {}
        self.replace(private_keys)

    def replace(self, private_keys: Sequence[str]) -> bool:
        """Open with these keys from now on; return whether they are others than before.

        Raises KeyTextInvalid; then nothing has changed.
        """
        before = self._keys.keys()
        keys = [seal.parse_private(text) for text in private_keys]
        self._keys = {seal.key_id(key.public_key()): key for key in keys}
        return self._keys.keys() != before

    @property
    def is_sealed(self) -> bool:
        """Whether nothing can be opened, for want of a key."""
        return not self._keys

    def derived(self, purpose: bytes) -> tuple[bytes, ...]:
        """Return a secret of 32 bytes that all gateways share, of each key, the current first.

        It serves one purpose and says nothing of the key; none where there is no key.
        """
        return tuple(
            HKDF(
                algorithm=SHA256(), length=DERIVED_BYTES, salt=None, info=b"kaixu " + purpose
            ).derive(key.private_bytes_raw())
            for key in self._keys.values()
        )

    def resealed(self, sealed: bytes, *, info: bytes, public: str) -> bytes | None:
        """Return the same closed to another gateway key; None: it is closed to that one.

        Raises KeyNotOpened, KeyTextInvalid.
        """
        header = seal.FORMAT + seal.key_id(seal.parse_public(public))
        if sealed.startswith(header):
            return None
        return seal.seal(public, info, self.open(sealed, info=info))

    def open(self, sealed: bytes, *, info: bytes) -> bytes:
        """Return what was closed by `seal.seal` with this `info`. Raises KeyNotOpened."""
        header, closed = sealed[:_HEADER_BYTES], sealed[_HEADER_BYTES:]
        if len(header) < _HEADER_BYTES or not header.startswith(seal.FORMAT):
            raise KeyNotOpened("Its sealed key is in a format this release does not know.")
        if self.is_sealed:
            raise KeyMissing(
                "Its key is sealed and this gateway has no vault key. Set KAIXU_VAULT_KEY."
            )
        key = self._keys.get(header[len(seal.FORMAT) :])
        if key is None:
            raise KeyMissing(
                "Its key is sealed to a vault key that this gateway does not have. "
                "Enter the key again, or give the gateway that vault key."
            )
        try:
            return seal.SUITE.decrypt(closed, key, info=header + info)
        except (InvalidTag, ValueError):
            raise KeyNotOpened(
                "Its sealed key belongs to other facts: its kind, base URL, org or version was "
                "changed without it. Enter the key again."
            ) from None


async def load_vendors(
    connection: "asyncpg.Connection | asyncpg.Pool",
    vault: Vault,
    *,
    allowed_hosts: frozenset[str] | None = None,
) -> list[OpenedVendor]:
    """Return every vendor, the oldest first; those that can't be called with their problem.

    `allowed_hosts`: the only ones, as `host` or `host:port`, that vendors may have; None: any.
    Raises what asyncpg raises.
    """
    rows = await connection.fetch(_LOAD_VENDORS)
    return [_opened(row, vault, allowed_hosts) for row in rows]


async def load_aliases(connection: "asyncpg.Connection | asyncpg.Pool") -> list[Alias]:
    """Return every alias, by name. Raises what asyncpg raises."""
    return [
        Alias(
            org_id=None if row["org_id"] is None else str(row["org_id"]),
            name=row["name"],
            vendor_name=row["vendor_name"],
            model=row["model"],
        )
        for row in await connection.fetch(_LOAD_ALIASES)
    ]


def _opened(
    row: Any,  # noqa: ANN401 - asyncpg's rows have no types
    vault: Vault,
    allowed_hosts: frozenset[str] | None,
) -> OpenedVendor:
    kind = KINDS.get(row["kind"])
    base_url, key, credential, problem = NOWHERE, b"", _NO_CREDENTIAL, None
    lacks_vault_key = False
    signer: Signer | None = None
    try:
        base_url = check_base_url(
            row["base_url"], allow_private=row["is_private"], allowed_hosts=allowed_hosts
        )
        if kind is None:
            problem = f"This release knows no vendor of kind '{row['kind']}'."
        else:
            key = _key(row, base_url, vault)
            credential = kind.credential_header(key)
            signer = None if kind.open_signer is None else kind.open_signer(key, base_url)
    except (BaseUrlInvalid, KeyNotOpened) as error:
        problem, lacks_vault_key = str(error), isinstance(error, KeyMissing)
    except KeyUnusable as error:
        key, credential, problem = b"", _NO_CREDENTIAL, str(error)
    return OpenedVendor(
        id=str(row["id"]),
        org_id=None if row["org_id"] is None else str(row["org_id"]),
        name=row["name"],
        kind=row["kind"],
        base_url=base_url,
        is_private=row["is_private"],
        is_default=row["is_default"],
        models=None if row["models"] is None else tuple(row["models"]),
        asks_usage=kind is not None and kind.needs_usage_asked and not row["usage_unasked"],
        account_headers=row["account_headers"],
        is_simulator=row["is_simulator"],
        credential=credential,
        key=key,
        problem=problem,
        key_version=row["key_version"],
        lacks_vault_key=lacks_vault_key,
        signer=signer,
        is_disabled=row["is_disabled"],
    )


def _key(row: Any, base_url: BaseUrl, vault: Vault) -> bytes:  # noqa: ANN401 - as above
    """Return the vendor's key. Raises KeyNotOpened."""
    if row["is_simulator"] and not row["sealed_key"]:
        return SIMULATOR_KEY
    return vault.open(row["sealed_key"], info=info_of(row, base_url))


def info_of(row: Any, base_url: BaseUrl) -> bytes:  # noqa: ANN401 - as above
    """Return what the sealed key in a vendor's row is tied to."""
    return seal.info(
        str(row["id"]),
        None if row["org_id"] is None else str(row["org_id"]),
        row["kind"],
        base_url.origin,
        row["key_version"],
    )
