"""Who changed what: an append-only log, each entry chained to the one before by its hash.

An entry is written in the transaction of the change that it tells, so that there is none without
the other.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import asyncpg
import msgspec

from control_plane.identity.actor import Actor
from gateway.sql import load_queries

_QUERIES: Final = load_queries(__package__, "audit_log.sql")
_APPEND = _QUERIES["append"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who does something, and by what means: what an entry says about its cause.

    `credential` names a session or a means, never a secret.
    """

    actor_kind: str  # account, operator (a command), anonymous, system
    actor_id: uuid.UUID | None = None
    credential: str = ""
    address: str = ""
    request_id: str = ""

    @classmethod
    def of(cls, actor: Actor | None, *, address: str, request_id: str) -> Self:
        """Return the origin of what is done for a request."""
        return cls(
            actor_kind="anonymous" if actor is None else "account",
            actor_id=None if actor is None else actor.account_id,
            credential="" if actor is None else actor.credential,
            address=address,
            request_id=request_id,
        )


COMMAND: Final = Origin(actor_kind="operator", credential="command")
SYSTEM: Final = Origin(actor_kind="system")


async def record(
    connection: asyncpg.Connection,
    origin: Origin,
    action: str,
    *,
    org_id: uuid.UUID | str | None,
    target_kind: str,
    target_id: uuid.UUID | str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Append an entry about a change, within the transaction that makes it.

    `action` is a noun and a verb, as in `token.revoke`; `before` and `after` hold what changed, and
    never a secret. `org_id` None: it is about the installation, or about a person in no org.
    """
    assert connection.is_in_transaction(), "an entry belongs to the transaction of its change"
    await connection.execute(
        _APPEND,
        None if org_id is None else str(org_id),
        origin.actor_kind,
        None if origin.actor_id is None else str(origin.actor_id),
        origin.credential,
        origin.address,
        origin.request_id,
        action,
        target_kind,
        str(target_id),
        None if before is None else msgspec.json.encode(before).decode(),
        None if after is None else msgspec.json.encode(after).decode(),
    )
