"""Whether the audit log is as it was written: each chain is walked, and every hash taken again.

An entry that was edited has another hash; one that was removed, added or moved breaks the chain of
hashes; entries cut off at the end miss the chain's head. Who can write all of these tables can make
a chain anew: against them there are heads that were exported before, kept where they can't write.
What was personal in an entry may have been erased; as often as entries of the same chain tell of.
"""

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import asyncpg
import msgspec

from control_plane.errors import BadArgument, NotFound
from gateway.sql import load_queries

ROWS_AT_ONCE: Final = 500
PROBLEMS_MAX: Final = 100  # told of one chain; where one is broken, all may be
PRUNE: Final = "audit.prune"
ERASE: Final = "audit.erase"

_QUERIES: Final = load_queries(__package__, "audit_log.sql")
_HEADS = _QUERIES["heads"]
_WALK = _QUERIES["walk"]


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """How far a chain went at some time; `org_id` null: the installation's."""

    org_id: str | None
    ordinal: int
    hash: str
    at: datetime


@dataclass(slots=True)
class _Chain:
    """What was found of one chain so far."""

    org_id: str | None
    ordinal: int  # of the last entry seen
    hash: bytes
    anchors: dict[int, str]  # ordinals and hashes that were exported before
    entries: int = 0
    erased: int = 0
    pruned_through: int = 0  # as an entry says
    erasures_told: int = 0  # likewise
    problems: list[dict[str, Any]] = field(default_factory=list)

    def blame(self, ordinal: int, problem: str, entry_id: str | None = None) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(
                {"org_id": self.org_id, "ordinal": ordinal, "id": entry_id, "problem": problem}
            )


async def read_heads(
    connection: asyncpg.Connection, *, org_id: uuid.UUID | None = None, is_one: bool = False
) -> list[Head]:
    """Return how far every chain goes, or (`is_one`) that of an org, or of the installation."""
    return [
        Head(org_id=r["org_id"], ordinal=r["last"], hash=r["last_hash"].hex(), at=r["at"])
        for r in await connection.fetch(_HEADS, is_one, org_id)
    ]


def parse_heads(content: bytes) -> list[Head]:
    """Return heads that were exported, one a line. Raises BadArgument."""
    try:
        return [msgspec.json.decode(line, type=Head) for line in content.split(b"\n") if line]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadArgument("This is no file of exported heads.", field="head") from error


async def verify(
    connection: asyncpg.Connection,
    *,
    org_id: uuid.UUID | None = None,
    is_one: bool = False,
    heads: Iterable[Head] = (),
) -> dict[str, Any]:
    """Walk every chain, or one, in memory that does not grow with it; return what was found.

    `heads` were exported before: the chains still have to have them. Raises NotFound.
    """
    anchors: dict[str | None, dict[int, str]] = {}
    for head in heads:
        anchors.setdefault(head.org_id, {})[head.ordinal] = head.hash
    chains: list[dict[str, Any]] = []
    problems: list[dict[str, Any]] = []
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        rows = await connection.fetch(_HEADS, is_one, org_id)
        if is_one and not rows:
            raise NotFound("There is no audit log of this org.", field="org")
        for row in rows:
            chain = await _walk(connection, row, anchors.pop(row["org_id"], {}))
            problems += chain.problems
            chains.append(
                {
                    "org_id": chain.org_id,
                    "entries": chain.entries,
                    "erased": chain.erased,
                    "last": row["last"],
                    "hash": row["last_hash"].hex(),
                }
            )
    for missing, ordinals in anchors.items():
        if not is_one and any(ordinals):
            problems.append(
                {"org_id": missing, "ordinal": max(ordinals), "id": None, "problem": "truncated"}
            )
    return {"ok": not problems, "chains": chains, "bad": problems}


async def _walk(
    connection: asyncpg.Connection,
    head: Mapping[str, Any] | asyncpg.Record,
    anchors: dict[int, str],
) -> _Chain:
    chain = _Chain(head["org_id"], head["pruned"], head["pruned_hash"], anchors)
    async for row in connection.cursor(_WALK, head["org_id"], prefetch=ROWS_AT_ONCE):
        _check(chain, row)
    if (chain.ordinal, chain.hash) != (head["last"], head["last_hash"]):
        chain.blame(head["last"], "truncated: the chain does not end where its head says")
    if chain.pruned_through != head["pruned"]:
        chain.blame(head["pruned"], "cut off at the beginning, which no entry tells of")
    if chain.erased > chain.erasures_told:
        chain.blame(head["last"], "more was erased than entries tell of")
    for ordinal in sorted(anchors):
        if ordinal > chain.ordinal:
            chain.blame(ordinal, "truncated: a head that was exported has gone")
    return chain


def _check(chain: _Chain, row: asyncpg.Record) -> None:
    """Hold an entry against the one before; go on from what it says itself."""
    ordinal, entry_id = row["ordinal"], row["id"]
    if ordinal != chain.ordinal + 1:
        chain.blame(ordinal, f"entries are missing from {chain.ordinal + 1} on", entry_id)
    if _sha256(chain.hash, row["text"]) != row["hash"]:
        chain.blame(ordinal, "its hash is another than that of what it says", entry_id)
    if row["version"] > 1:
        for part, is_empty in (("address", row["address"] == ""), ("change", row["is_blank"])):
            salt = row[f"{part}_salt"]
            if salt is None:
                if row["erased_at"] is None or not is_empty:
                    chain.blame(ordinal, f"its {part} was changed", entry_id)
            elif _sha256(salt, row[f"{part}_text"]) != row[f"{part}_digest"]:
                chain.blame(ordinal, f"its {part} was changed", entry_id)
    if chain.anchors.get(ordinal, row["hash"].hex()) != row["hash"].hex():
        chain.blame(ordinal, "it is another than when its head was exported", entry_id)
    if row["action"] == PRUNE and row["after"] is not None:
        chain.pruned_through = int(msgspec.json.decode(row["after"])["through"])
    if row["action"] == ERASE and row["after"] is not None:
        chain.erasures_told += int(msgspec.json.decode(row["after"])["entries"])
    chain.entries += 1
    chain.erased += row["erased_at"] is not None
    chain.ordinal, chain.hash = ordinal, row["hash"]


def _sha256(before: bytes, text: str) -> bytes:
    return hashlib.sha256(before + text.encode()).digest()


def heads_text(heads: Sequence[Head]) -> str:
    """Return heads as a file keeps them, one a line."""
    return "".join(msgspec.json.encode(head).decode() + "\n" for head in heads)
