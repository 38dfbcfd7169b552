"""Gateway tokens, as the members of their org may see them: never the secret, nor its digest."""

import uuid
from collections.abc import Collection
from datetime import datetime
from typing import Any, Final, Literal

import asyncpg
import msgspec

from control_plane.errors import NotFound
from control_plane.web.input import read_uuid
from control_plane.web.pages import Page, PageQuery, check_limit, decode_cursor, page_of
from gateway.sql import load_queries

TokenState = Literal["live", "expired", "revoked"]

_QUERIES: Final = load_queries(__package__, "token_views.sql")
_LOCK = _QUERIES["lock"]
_FIND = _QUERIES["find"]
_LIST = _QUERIES["list"]


class GatewayToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token; `hint` is what a person may see of its secret.

    `limit` is of calls a month, `rate` of calls within a window, `concurrency` of open calls; null:
    none of its own. `models`, `vendors` and `addresses` null: any. `created_by` null: a command.
    `issued_at` is when the present secret was made, `old_secret_until` until when one before it is
    taken as well.
    """

    id: str
    hint: str
    name: str
    state: TokenState
    workspace_id: str
    user_id: str
    parent_id: str | None
    created_by: str | None
    scopes: list[str]
    models: list[str] | None
    vendors: list[str] | None
    addresses: list[str] | None
    limit: int | None
    rate: str | None
    concurrency: int | None
    created_at: datetime
    issued_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    old_secret_until: datetime | None

    @property
    def workspace(self) -> uuid.UUID:
        """The workspace that it is in."""
        return uuid.UUID(self.workspace_id)

    @property
    def user(self) -> uuid.UUID:
        """Whose it is."""
        return uuid.UUID(self.user_id)


class TokensQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tokens are asked for."""

    workspace_id: uuid.UUID | None = None
    user_id: uuid.UUID | None = None
    parent_id: uuid.UUID | None = None
    state: TokenState | None = None


async def find_token(
    connection: asyncpg.Connection, org_id: uuid.UUID, token_id: uuid.UUID, *, lock: bool = False
) -> GatewayToken:
    """Return a token of an org, with a lock until the transaction ends. Raises NotFound."""
    if lock:
        await connection.execute(_LOCK, org_id, token_id)
    row = await connection.fetchrow(_FIND, org_id, token_id)
    if row is None:
        raise NotFound("There is no such token.")
    return _token(row)


async def page_of_tokens(
    connection: asyncpg.Connection,
    query: TokensQuery,
    *,
    org_id: uuid.UUID,
    workspaces: Collection[uuid.UUID] | None,
    user_id: uuid.UUID,
) -> Page[GatewayToken]:
    """Return some of an org's tokens, newest first.

    Only those in `workspaces` (None: in any) and those of the user. Raises BadArgument.
    """
    limit = check_limit(query.limit)
    after = decode_cursor(query.after, parts=1)
    rows = await connection.fetch(
        _LIST,
        org_id,
        None if workspaces is None else list(workspaces),
        user_id,
        query.workspace_id,
        query.user_id,
        query.parent_id,
        query.state,
        None if after is None else read_uuid(after[0], field="after"),
        limit + 1,
    )
    kept, following = page_of(rows, limit, key=lambda row: (str(row["id"]),))
    return Page(data=[_token(row) for row in kept], next=following)


def _token(row: asyncpg.Record) -> GatewayToken:
    values: dict[str, Any] = {
        name: str(value) if isinstance(value, uuid.UUID) else value
        for name, value in row.items()
        if name != "org_id"
    }
    return GatewayToken(**values)
