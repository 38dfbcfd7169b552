"""Lists in pages, by the place after which the next one begins (keyset): exact while rows come.

A cursor is opaque to who asks. It holds the sort key of the last row, which is no secret.
"""

import base64
import binascii
import uuid
from typing import Any, Final, Generic, TypeVar

import msgspec

from control_plane.errors import BadArgument

LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 200

Item = TypeVar("Item")


class PageQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a list is asked for with."""

    limit: int = LIMIT_DEFAULT
    after: str | None = None


class Page(msgspec.Struct, Generic[Item], frozen=True, kw_only=True):
    """Some of a list; `next` is the `after` of the next page, null at the end."""

    data: list[Item]
    next: str | None = None


def check_limit(limit: int) -> int:
    """Return how many rows a page has at most. Raises BadArgument."""
    if not 1 <= limit <= LIMIT_MAX:
        raise BadArgument(f"A page has 1 to {LIMIT_MAX} rows.", field="limit")
    return limit


def encode_cursor(*key: str) -> str:
    """Return the cursor of a sort key."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def decode_cursor(text: str | None, *, parts: int) -> tuple[str, ...] | None:
    """Return the sort key of a cursor of ours; None for None. Raises BadArgument."""
    if text is None:
        return None
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        key: tuple[str, ...] = msgspec.json.decode(content, type=tuple[str, ...])
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise _bad() from error
    if len(key) != parts or any("\0" in part for part in key):
        raise _bad()
    return key


def decode_place(text: str | None) -> tuple[str | None, uuid.UUID | None]:
    """Return the text and the id after which a page begins, of a list that is sorted by both.

    Raises BadArgument.
    """
    key = decode_cursor(text, parts=2)
    if key is None:
        return None, None
    try:
        return key[0], uuid.UUID(key[1])
    except ValueError as error:
        raise _bad() from error


def page_of(rows: list[Any], limit: int, *, key: Any) -> tuple[list[Any], str | None]:  # noqa: ANN401
    """Return at most `limit` of the rows, one more of which was asked for, and the next cursor.

    `key` gives a row's sort key as texts.
    """
    if len(rows) <= limit:
        return rows, None
    kept = rows[:limit]
    return kept, encode_cursor(*key(kept[-1]))


def _bad() -> BadArgument:
    return BadArgument("This is no cursor: take it from `next` of the page before.", field="after")
