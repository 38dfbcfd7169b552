"""Gateway tokens that read for machines: billing pulls by one that has the scope for it."""

import ipaddress
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from control_plane.errors import NotFound
from gateway.auth.token import digest, is_well_formed
from gateway.sql import load_queries

_FIND: Final = load_queries(__package__, "token_reader.sql")["find_reader"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReader:
    """A gateway token that asks."""

    token_id: uuid.UUID
    org_id: uuid.UUID
    scopes: frozenset[str]


def is_gateway_token(text: str) -> bool:
    """Return whether this can be one of our tokens, and no session's."""
    return is_well_formed(text.encode(errors="replace"))


async def find_reader(
    connection: asyncpg.Connection, text: str, *, address: str
) -> TokenReader | None:
    """Return the token that is shown from an address; None where it may do nothing from there."""
    row = await connection.fetchrow(_FIND, digest(text), ipaddress.ip_address(address))
    if row is None:
        return None
    return TokenReader(
        token_id=row["token_id"], org_id=row["org_id"], scopes=frozenset(row["scopes"])
    )


def check_org(reader: TokenReader, named: Sequence[str] | None) -> None:
    """Refuse another org than the token's. Raises NotFound."""
    if named is not None and list(named) != [str(reader.org_id)]:
        raise NotFound("There is no such org.", field="org")
