"""The bearer token: its format, its checksum, and the digest that is all we ever store.

    kxg_  0123456789abcdefghijklmnopqrstuv  2ZrQ7x
    kind  32 random digits, 190 bits        checksum of all before it

Digits are base 62, the checksum is CRC-32. It tells typing errors and scanners' noise apart from
tokens without asking anybody; it stops no attacker.
"""

import re
import secrets
from collections.abc import Callable
from hashlib import sha256
from typing import Final
from zlib import crc32

KINDS: Final = {
    "g": "gateway",
    "c": "child of a gateway token",
    "r": "restricted",
    "s": "SCIM",
    "i": "invite",
}
PREFIX: Final = b"kx"  # of every kind
TOKEN_CHARS: Final = 42

_BASE: Final = 62
_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_CHARS: Final = 32
_RANDOM_BYTES: Final = 40  # 320 bits make the remainder by 62**32 even to 2**-129
_CHECKED_CHARS: Final = 36  # what stands before the checksum
_HINT_CHARS: Final = 4  # shown at each end
_FORMAT: Final = re.compile(rb"kx[gcrsi]_[0-9A-Za-z]{38}")

# The checksum is written two digits at a time: it is computed on each call.
_PAIRS: Final = tuple(f"{first}{second}".encode() for first in _DIGITS for second in _DIGITS)
_PAIR: Final = _BASE**2
_TWO_PAIRS: Final = _BASE**4


def generate(kind: str = "g", random: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """Return a new token of a kind in KINDS; `random(n)` gives n unpredictable bytes."""
    assert kind in KINDS
    number = int.from_bytes(random(_RANDOM_BYTES), "big")
    digits = ""
    for _ in range(_RANDOM_CHARS):
        number, digit = divmod(number, _BASE)
        digits += _DIGITS[digit]
    checked = f"kx{kind}_{digits}"
    return checked + _checksum(checked.encode()).decode()


def is_well_formed(text: bytes) -> bool:
    """Return whether this has the format and the checksum of a token, of whichever kind."""
    return (
        _FORMAT.fullmatch(text) is not None
        and _checksum(text[:_CHECKED_CHARS]) == text[_CHECKED_CHARS:]
    )


def digest(text: str | bytes) -> bytes:
    """Return the SHA-256 of the whole token."""
    return sha256(text.encode() if isinstance(text, str) else text).digest()


def hint(text: str) -> str:
    """Return what a person may see of a token, to tell it from others: `kxg_…wxyz`."""
    return f"{text[:_HINT_CHARS]}…{text[-_HINT_CHARS:]}"


def _checksum(checked: bytes) -> bytes:
    number = crc32(checked)
    return _PAIRS[number // _TWO_PAIRS] + _PAIRS[number // _PAIR % _PAIR] + _PAIRS[number % _PAIR]
