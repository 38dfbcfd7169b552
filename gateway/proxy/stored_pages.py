"""Lists of what a vendor stores, cut down to the caller's own; every other byte stays.

A vendor lists what all orgs made under the gateway's key. Rows of others are taken out of a page
with all that tells of them; where the page says which were its first and last, it then says so of
those that are left. A page may be left empty and yet not be the last one.
"""

import re
from collections.abc import Collection
from typing import Any, Final

import msgspec

from gateway.metering.usage import join_members, split_members
from gateway.proxy.stored_ids import Stored, batch_parts

PAGE_BYTES_MAX: Final = 8 * 1024 * 1024  # vendors list at most 10,000 rows of a few hundred bytes

_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_ROWS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_NULL: Final = b"null"
# An absolute address of a batch's results: who follows it would leave the gateway.
_RESULTS_URL: Final = re.compile(
    rb'("results_url"[ \t\r\n]*+:[ \t\r\n]*+")https?://[^"\\/]++(/v1/messages/batches/[^"\\]*+")'
)


class PageUnreadable(Exception):
    """What came is not a list of that kind."""


class Page:
    """One page of a list. Raises PageUnreadable where it is none."""

    def __init__(self, text: bytes, *, rows_in: str) -> None:
        """`rows_in` is the member with the rows; a page without it has none."""
        members = split_members(text)
        if members is None:
            raise PageUnreadable
        self._members = members
        self._rows_in = rows_in
        self._name = "id" if rows_in == "data" else "name"
        try:
            rows = [bytes(row) for row in _ROWS.decode(members.get(rows_in, b"[]"))]
            self._rows = [(self._id(msgspec.json.decode(row)), row) for row in rows]
        except _UNREADABLE as error:
            raise PageUnreadable from error

    def _id(self, row: Any) -> str:  # noqa: ANN401 - JSON
        """Return a row's id; one that has none is nobody's."""
        value = row.get(self._name) if isinstance(row, dict) else None
        return value if isinstance(value, str) else ""

    @property
    def ids(self) -> list[str]:
        """The ids of all rows."""
        return [object_id for object_id, _ in self._rows if object_id]

    def parts(self, own: Collection[str]) -> list[Stored]:
        """Return the files of the results of those batches that are the caller's."""
        if self._name != "id":
            return []
        return [
            part
            for object_id, row in self._rows
            if object_id in own
            for part in batch_parts(msgspec.json.decode(row))
            if not part.is_whole
        ]

    def only(self, own: Collection[str]) -> bytes:
        """Return the page with the rows whose ids are the caller's."""
        kept = [one for one in self._rows if one[0] and one[0] in own]
        members = dict(self._members)
        if self._rows_in in members:
            members[self._rows_in] = b"[%b]" % b",".join(row for _, row in kept)
        for name, at in (("first_id", 0), ("last_id", -1)):
            if name in members:
                members[name] = msgspec.json.encode(kept[at][0]) if kept else _NULL
        return join_members(members)


def without_results_host(text: bytes) -> bytes:
    """Return batches whose `results_url` is a path, which clients follow to whom they asked."""
    return _RESULTS_URL.sub(rb"\1\2", text)
