"""What the journal itself does to rows: cuts one that is too long, ends one that has no end."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from gateway.metering.usage import Flag, join_members, split_members

TEXT_BYTES_KEPT: Final = 256  # a text is cut where it is longer and its row is too long
TEXT_CHARS_KEPT: Final = 64  # which leaves this much of it
FLAG_ROW_CUT: Final = "row_cut"
FLAG_DISPATCH_UNKNOWN: Final = "dispatch_unknown"

_INTERRUPTED: Final[Mapping[str, Any]] = {
    "ended_at": None,
    "status": "interrupted",
    "reason": None,
    "usage_source": "none",
    "flags": [FLAG_DISPATCH_UNKNOWN],
}


def shortened(row: bytes, bytes_max: int) -> bytes:
    """Return a row without its vendor usage, and with its texts cut if that is not enough."""
    members = split_members(row)
    if members is None:
        return row
    flags: list[str] = orjson.loads(members.get("flags", b"[]")) or []
    if members.pop("vendor_usage", None) is not None:
        flags.append(Flag.VENDOR_USAGE_CUT.value)
    members["flags"] = orjson.dumps(flags)
    if len(join_members(members)) > bytes_max:
        for name, value in members.items():
            if value.startswith(b'"') and len(value) > TEXT_BYTES_KEPT:
                members[name] = orjson.dumps(orjson.loads(value)[:TEXT_CHARS_KEPT])
        members["flags"] = orjson.dumps([*flags, FLAG_ROW_CUT])
    return join_members(members)


def interrupted(open_row: bytes) -> bytes:
    """Return the row of a call that was never closed: as noted at its end mark, or interrupted."""
    known = orjson.loads(open_row)
    if known.get("status") is not None:
        return open_row
    return orjson.dumps({**known, **_INTERRUPTED})
