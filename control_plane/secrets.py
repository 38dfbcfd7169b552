"""The control plane's own key: what is sealed in the database, and what is mixed into passwords.

One key of 32 bytes, of which every use has a key of its own (HKDF, RFC 5869). A secret is sealed to
its place (AES-256-GCM): moved to another org, row or column it does not open. Two keys are valid
while one takes over from the other; the first seals, both open.
"""

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from control_plane.errors import BadArgument

SETTING: Final = "KAIXU_CONTROL_KEY"
KEY_BYTES: Final = 32
KEYS_MAX: Final = 2
KEY_ID_BYTES: Final = 4
NONCE_BYTES: Final = 12  # random: good for 2^32 secrets under one org's key
TAG_BYTES: Final = 16
DISTINCT_BYTES_MIN: Final = 12  # of 32 random ones; fewer come once in 10^19

_FORMAT: Final = b"\x01"
_HEX: Final = re.compile(r"[0-9A-Fa-f]{64}")


class SealBroken(Exception):
    """A sealed secret does not open: it was changed or moved, or its key is not here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a sealed secret is. `org_id` is empty where it belongs to no org."""

    table: str
    column: str
    row_id: str
    org_id: str = ""

    def bound(self, key_id: str) -> bytes:
        """Return what the seal is bound to."""
        return f"{self.table}|{self.column}|{self.org_id}|{self.row_id}|{key_id}".encode()


@dataclass(frozen=True, slots=True)
class ControlKeys:
    """The keyring: by id, the current key first."""

    keys: Mapping[str, bytes] = field(repr=False)

    @property
    def current(self) -> str:
        """The id of the key that seals."""
        return next(iter(self.keys))

    def pepper(self, key_id: str) -> bytes | None:
        """Return what a key mixes into passwords; None where the key is not here."""
        key = self.keys.get(key_id)
        return None if key is None else _derive(key, "pepper of passwords")

    def digest(self, content: bytes) -> bytes:
        """Return what stands for a content that may hold a secret that can be guessed.

        Without the current key nobody finds out by trying what it was.
        """
        return hmac.digest(_derive(self.keys[self.current], "digests"), content, "sha256")

    def seal(
        self, content: bytes, place: Place, *, random: Callable[[int], bytes] = os.urandom
    ) -> bytes:
        """Return a secret as its place may keep it."""
        key_id = self.current
        nonce = random(NONCE_BYTES)
        sealed = self._cipher(key_id, place).encrypt(nonce, content, place.bound(key_id))
        return _FORMAT + bytes.fromhex(key_id) + nonce + sealed

    def open(self, sealed: bytes, place: Place) -> bytes:
        """Return the secret that was sealed for a place. Raises SealBroken."""
        key_id = _key_id_of(sealed)
        if key_id not in self.keys:
            raise SealBroken(f"No key {key_id} is here.")
        start = len(_FORMAT) + KEY_ID_BYTES
        nonce, content = sealed[start : start + NONCE_BYTES], sealed[start + NONCE_BYTES :]
        try:
            return self._cipher(key_id, place).decrypt(nonce, content, place.bound(key_id))
        except InvalidTag:
            raise SealBroken(f"It was not sealed for {place.table}.{place.column}.") from None

    def is_current(self, sealed: bytes) -> bool:
        """Return whether the current key sealed it. Raises SealBroken for what is no seal."""
        return _key_id_of(sealed) == self.current

    def _cipher(self, key_id: str, place: Place) -> AESGCM:
        return AESGCM(_derive(self.keys[key_id], f"seal of org {place.org_id}"))


def parse_control_keys(text: str) -> ControlKeys:
    """Return the keyring in a setting: keys separated by white space, the current one first.

    Raises BadArgument, which never quotes one.
    """
    texts = text.split()
    if not 1 <= len(texts) <= KEYS_MAX:
        raise BadArgument(f"Give 1 or {KEYS_MAX} keys, the current one first.", field=SETTING)
    keys: dict[str, bytes] = {}
    for one in texts:
        key = _decode(one)
        if len(key) != KEY_BYTES or len(set(key)) < DISTINCT_BYTES_MIN:
            raise BadArgument(
                f"A key is {KEY_BYTES} random bytes, as `openssl rand -base64 32` makes them.",
                field=SETTING,
            )
        keys[hashlib.sha256(b"kaixu control key" + key).hexdigest()[: KEY_ID_BYTES * 2]] = key
    if len(keys) < len(texts):
        raise BadArgument("A key is there twice.", field=SETTING)
    return ControlKeys(keys)


def make_control_key(random: Callable[[int], bytes] = os.urandom) -> str:
    """Return a new key, as the setting takes it."""
    return base64.b64encode(random(KEY_BYTES)).decode()


def _decode(text: str) -> bytes:
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _key_id_of(sealed: bytes) -> str:
    start = len(_FORMAT)
    if (
        not sealed.startswith(_FORMAT)
        or len(sealed) < start + KEY_ID_BYTES + NONCE_BYTES + TAG_BYTES
    ):
        raise SealBroken("This is no seal of ours.")
    return sealed[start : start + KEY_ID_BYTES].hex()


def _derive(key: bytes, purpose: str) -> bytes:
    info = f"kaixu control plane: {purpose}".encode()
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(key)
