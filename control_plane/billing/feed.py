"""The feed of usage events, which billing pulls: every event once, in the order of commits.

Each event comes with a cursor, an opaque text of (ledger id, ordinal, row id). Reading goes on
after the row that a cursor names. Where that exact row is not there any more (the database was
restored, or another one took over), going on would skip rows or repeat them: the cursor is refused.
"""

import base64
import binascii
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from control_plane.billing.usage import Seen
from control_plane.errors import BadArgument, CursorGone
from gateway.sql import load_queries

PAGE_ROWS: Final = 1000
CURSOR_CHARS_MAX: Final = 200
ORDINAL_MAX: Final = 2**63 - 1  # PostgreSQL's bigint
COLUMNS: Final = (
    "id", "cursor", "ordinal", "call_id", "attempt", "retry_of", "corrects", "time", "ended_at",
    "month", "org_id", "workspace_id", "user_id", "token_id", "vendor", "endpoint",
    "client_format", "model_requested", "model_served", "stream", "status", "http_status",
    "reason", "counted", "usage_source", "input_tokens", "cache_read_tokens",
    "cache_write_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "output_tokens",
    "reasoning_tokens", "audio_input_tokens", "audio_output_tokens", "image_input_tokens",
    "seconds", "searches", "pages", "service_tier", "finish_reason", "session_id",
    "vendor_request_id", "ttfb_ms", "duration_ms", "bytes_up", "bytes_down", "flags",
    "vendor_usage",
)  # fmt: skip

_VERSION: Final = "1"
_NO_CURSOR: Final = "This is not a cursor of this feed."
_QUERIES: Final = load_queries(__package__, "feed.sql")
_LEDGER_ID = _QUERIES["ledger_id"]
_FIND = _QUERIES["find"]
_READ = _QUERIES["read"]
_READ_OF_ORG = _QUERIES["read_of_org"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A place in a ledger: after the row that it names."""

    ledger_id: str
    ordinal: int
    row_id: str

    def __str__(self) -> str:
        text = f"{_VERSION}.{self.ledger_id}.{self.ordinal}.{self.row_id}"
        return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Return the cursor in a text. Raises BadArgument for what is none."""
        try:
            padded = text[:CURSOR_CHARS_MAX].encode("ascii") + b"=" * (-len(text) % 4)
            decoded = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
            version, ledger_id, ordinal, row_id = decoded.split(".")
            cursor = cls(
                ledger_id=str(uuid.UUID(ledger_id)),
                ordinal=int(ordinal),
                row_id=str(uuid.UUID(row_id)),
            )
        except (ValueError, binascii.Error):
            raise BadArgument(_NO_CURSOR, field="after") from None
        if version != _VERSION or str(cursor) != text or not 0 < cursor.ordinal <= ORDINAL_MAX:
            raise BadArgument(_NO_CURSOR, field="after")
        return cursor


async def read_events(
    connection: asyncpg.Connection, *, after: str | None
) -> AsyncIterator[dict[str, Any]]:
    """Yield every event after a cursor (None: from the first) that is committed by now.

    Keys are COLUMNS; `vendor_usage` is JSON text. Raises BadArgument, CursorGone.
    """
    ledger_id, ordinal = await _place(connection, after)
    while rows := await connection.fetch(_READ, ordinal, PAGE_ROWS):
        for row in rows:
            yield _event(row, ledger_id)
        ordinal = rows[-1]["ordinal"]


async def read_events_of(
    connection: asyncpg.Connection, seen: Seen, *, after: str | None, limit: int
) -> list[dict[str, Any]]:
    """Return the next `limit` events after a cursor (None: the first) of those that are seen.

    As `read_events` gives them. Raises BadArgument, CursorGone.
    """
    ledger_id, ordinal = await _place(connection, after)
    org_id, workspaces, user_id = seen.arguments()
    rows = await connection.fetch(_READ_OF_ORG, org_id, ordinal, workspaces, user_id, limit)
    return [_event(row, ledger_id) for row in rows]


async def _place(connection: asyncpg.Connection, after: str | None) -> tuple[str, int]:
    """Return which ledger it is, and the ordinal after which to read on."""
    ledger_id: str = await connection.fetchval(_LEDGER_ID)
    if after is None:
        return ledger_id, 0
    cursor = Cursor.parse(after)
    known = cursor.ledger_id == ledger_id and await connection.fetchval(
        _FIND, cursor.ordinal, cursor.row_id
    )
    if not known:
        raise CursorGone(
            "The ledger has no longer the row that this cursor names: the database was restored, "
            "or another one took over. Read again without one: events that you have are known by "
            "their id; one that does not come again was lost here and stays valid with you.",
            field="after",
        )
    return ledger_id, cursor.ordinal


def _event(row: asyncpg.Record, ledger_id: str) -> dict[str, Any]:
    event: dict[str, Any] = {
        name: str(value) if isinstance(value, uuid.UUID) else value for name, value in row.items()
    }
    event["cursor"] = str(Cursor(ledger_id=ledger_id, ordinal=row["ordinal"], row_id=event["id"]))
    return {name: event[name] for name in COLUMNS}
