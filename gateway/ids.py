"""Time-ordered ids: UUID version 7 (RFC 9562) as lower-case strings.

PostgreSQL 15 has no `uuidv7()`, and a call's id must exist before the database hears of the call.
"""

import os
from collections.abc import Callable
from typing import Final

_RANDOM_DIGITS: Final = 20  # fetched for an id, of which 74 bits are used
_VARIANTS: Final = {digit: "89ab"[int(digit, 16) & 0b11] for digit in "0123456789abcdef"}
_RANDOM_POOL_BYTES: Final = 10 * 256  # randomness is fetched for 256 ids at a time


class IdMaker:
    """Makes UUIDv7 strings from a clock and a source of randomness."""

    def __init__(
        self,
        unix_seconds: Callable[[], float],
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`unix_seconds` dates the ids; `random_bytes(n)` gives n unpredictable bytes."""
        self._unix_seconds = unix_seconds
        self._random_bytes = random_bytes
        self._pool = ""  # in hexadecimal digits
        self._at = 0

    def new(self) -> str:
        """Return a new id, such as '01936b2e-7c51-7d3a-9b0e-3f6c5a1d2e4f'."""
        at = self._at
        if at >= len(self._pool):
            self._pool = self._random_bytes(_RANDOM_POOL_BYTES).hex()
            at = 0
        self._at = at + _RANDOM_DIGITS
        random = self._pool[at : self._at]
        time = f"{int(self._unix_seconds() * 1000):012x}"
        variant = _VARIANTS[random[3]]
        return f"{time[:8]}-{time[8:]}-7{random[:3]}-{variant}{random[4:7]}-{random[7:19]}"
