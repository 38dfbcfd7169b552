"""Time-ordered ids: UUID version 7 (RFC 9562) as lower-case strings.

PostgreSQL 15 has no `uuidv7()`, and a call's id must exist before the database hears of the call.
"""

import os
from collections.abc import Callable
from typing import Final

_IDS_AT_ONCE: Final = 64  # randomness is fetched for so many
_ID_BYTES: Final = 10  # of randomness in an id
_ID_DIGITS: Final = 2 * _ID_BYTES
_VARIANT: Final = {f"{digit:x}": "89ab"[digit & 3] for digit in range(16)}  # 0b10 and two bits


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
        self._ends: list[str] = []  # of ids to come
        self._milliseconds = -1
        self._dated = ""  # the part that tells the milliseconds

    def new(self) -> str:
        """Return a new id, such as '01936b2e-7c51-7d3a-9b0e-3f6c5a1d2e4f'."""
        milliseconds = int(self._unix_seconds() * 1000)
        if milliseconds != self._milliseconds:
            digits = f"{milliseconds & 0xFFFF_FFFF_FFFF:012x}"
            self._milliseconds, self._dated = milliseconds, f"{digits[:8]}-{digits[8:]}-7"
        if not self._ends:
            self._ends = _ends(self._random_bytes(_IDS_AT_ONCE * _ID_BYTES).hex())
        return self._dated + self._ends.pop()


def _ends(random: str) -> list[str]:
    """Return what stands behind the date and version of ids, from their random digits."""
    each = (random[at : at + _ID_DIGITS] for at in range(0, len(random), _ID_DIGITS))
    return [f"{one[:3]}-{_VARIANT[one[3]]}{one[4:7]}-{one[7:19]}" for one in each][::-1]
