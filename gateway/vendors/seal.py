"""Closing a vendor key to the gateways' public key, so that only gateway processes can open it.

HPKE (RFC 9180) in base mode: X25519, HKDF-SHA256, AES-256-GCM. `info` ties the sealed bytes to the
vendor they were entered for: whoever can write to the database, but has no private key, can't make
a gateway send the key to another origin, org or kind of vendor, nor bring back an older version.

Sealed bytes are: format (1 byte), key id (8 bytes: which key pair they were sealed to), then HPKE's
encapsulated key and ciphertext.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

PRIVATE_PREFIX: Final = "kxvault1_"
PUBLIC_PREFIX: Final = "kxseal1_"
KEY_BYTES: Final = 32  # of an X25519 key, private or public
FORMAT: Final = b"\x01"
KEY_ID_BYTES: Final = 8  # tells a few key pairs apart; a wrong guess fails to open
PLAINTEXT_BYTES_MAX: Final = 16 * 1024  # a credential; cloud service accounts have 3 KiB

SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)

_INFO_LABEL: Final = b"kaixu vendor key 1"
_NO_ORG: Final = b"\x00"  # the operator's own vendor, which is not the vendor of an org named ""
_AN_ORG: Final = b"\x01"


class KeyTextInvalid(ValueError):
    """A text is no key in our format. The message never quotes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A new key pair, as text."""

    private: str = field(repr=False)
    public: str


def keygen() -> KeyPair:
    """Return a new key pair: the gateways get the private key, everyone else the public one."""
    private = _text(PRIVATE_PREFIX, X25519PrivateKey.generate().private_bytes_raw())
    return KeyPair(private=private, public=public_of(private))


def public_of(private: str) -> str:
    """Return the public key of a private one. Raises KeyTextInvalid."""
    return _text(PUBLIC_PREFIX, parse_private(private).public_key().public_bytes_raw())


def parse_private(text: str) -> X25519PrivateKey:
    """Return the private key in a `kxvault1_…` text. Raises KeyTextInvalid."""
    return X25519PrivateKey.from_private_bytes(_bytes(PRIVATE_PREFIX, text))


def parse_public(text: str) -> X25519PublicKey:
    """Return the public key in a `kxseal1_…` text. Raises KeyTextInvalid."""
    return X25519PublicKey.from_public_bytes(_bytes(PUBLIC_PREFIX, text))


def key_id(public: X25519PublicKey) -> bytes:
    """Return what the bytes sealed to this key begin with, after their format."""
    return hashlib.sha256(b"kaixu key id 1" + public.public_bytes_raw()).digest()[:KEY_ID_BYTES]


def info(
    vendor_id: str, org_id: str | None, kind: str, base_url_origin: str, key_version: int
) -> bytes:
    """Return what a sealed key is tied to; different arguments never give the same bytes.

    `base_url_origin` is `connect_guard.check_base_url(…).origin`.
    """
    org = _NO_ORG if org_id is None else _AN_ORG + org_id.encode()
    fields = (_INFO_LABEL, vendor_id.encode(), org, kind.encode(), base_url_origin.encode())
    sized = (len(one).to_bytes(4, "big") + one for one in fields)
    return b"".join(sized) + key_version.to_bytes(8, "big")


def seal(public: str, info: bytes, plaintext: bytes) -> bytes:
    """Return `plaintext` closed to a `kxseal1_…` key; the same `info` is needed to open it.

    Raises KeyTextInvalid for the public key, ValueError for an empty or too long plaintext.
    """
    if not 0 < len(plaintext) <= PLAINTEXT_BYTES_MAX:
        raise ValueError(f"A key to be sealed has 1 to {PLAINTEXT_BYTES_MAX} bytes.")
    key = parse_public(public)
    header = FORMAT + key_id(key)
    return header + SUITE.encrypt(plaintext, key, info=header + info)


def _text(prefix: str, key: bytes) -> str:
    return prefix + base64.urlsafe_b64encode(key).rstrip(b"=").decode()


def _bytes(prefix: str, text: str) -> bytes:
    """Return the key in a text; there is exactly one text for a key."""
    problem = f"This is not a key in the form '{prefix}' and 43 characters."
    if not text.startswith(prefix):
        raise KeyTextInvalid(problem)
    try:
        key = base64.b64decode(text[len(prefix) :] + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise KeyTextInvalid(problem) from None  # the cause may quote the text
    if len(key) != KEY_BYTES or _text(prefix, key) != text:
        raise KeyTextInvalid(problem)
    return key
