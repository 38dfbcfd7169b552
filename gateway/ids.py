"""Time-ordered ids: UUID version 7 (RFC 9562) as lower-case strings.

PostgreSQL 15 has no `uuidv7()`, and a call's id must exist before the database hears of the call.
"""

import os
from collections.abc import Callable
from typing import Final

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
        self._pool = b""
        self._at = 0

    def new(self) -> str:
        """Return a new id, such as '01936b2e-7c51-7d3a-9b0e-3f6c5a1d2e4f'."""
        if self._at >= len(self._pool):
            self._pool = self._random_bytes(_RANDOM_POOL_BYTES)
            self._at = 0
        random = int.from_bytes(self._pool[self._at : self._at + 10], "big")
        self._at += 10
        milliseconds = int(self._unix_seconds() * 1000)
        value = (
            (milliseconds & 0xFFFF_FFFF_FFFF) << 80
            | 0x7 << 76
            | (random >> 68 & 0xFFF) << 64
            | 0b10 << 62
            | random & 0x3FFF_FFFF_FFFF_FFFF
        )
        text = f"{value:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
