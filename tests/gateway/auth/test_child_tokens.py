"""A child token is never for more than its parent is, whatever is written in its row.

The rows are random, and some ask for everything; the gateway's own lookup reads them.
"""

import random
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import pytest

from gateway.auth.caller import Caller
from gateway.auth.token import digest, generate
from gateway.auth.token_store import TokenStore
from tests.conftest import Seed

SCOPES: Final = ("calls", "batches", "usage:read")
MODELS: Final = ("gpt-5", "gpt-5-mini", "claude-opus", "GPT-5", "o3", "claude-x[1m]")
GLOBS: Final = ("gpt-*", "*-mini", "claude-opus", "*", "claude-x[1m]", "o?", "[!g]*", "gpt-5")
VENDORS: Final = ("openai", "anthropic", "gemini", "mistral")
NETWORKS: Final = ("10.0.0.0/8", "10.1.0.0/16", "203.0.113.7", "2001:db8::/32", "0.0.0.0/0")
ADDRESSES: Final = ("10.1.2.3", "10.9.9.9", "203.0.113.7", "::ffff:10.1.2.3", "2001:db8::1", "x")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A token as it is written, and its limits."""

    text: str
    id: uuid.UUID
    parent_id: uuid.UUID | None
    scopes: list[str]
    models: list[str] | None
    vendors: list[str] | None
    addresses: list[str] | None
    expires_at: datetime
    limits: tuple[bool, bool, bool]  # calls a month, rate, open calls


def random_row(rng: random.Random, now: datetime, parent: uuid.UUID | None) -> Row:
    def some(of: tuple[str, ...], *, least: int = 0) -> list[str]:
        return rng.sample(of, rng.randint(least, len(of)))

    def some_or_any(of: tuple[str, ...]) -> list[str] | None:
        return None if rng.random() < 0.4 else some(of)[:3]

    return Row(
        text=generate("c" if parent else "g"),
        id=uuid.UUID(int=rng.getrandbits(128)),
        parent_id=parent,
        scopes=some(SCOPES, least=1),
        models=some_or_any(GLOBS),
        vendors=some_or_any(VENDORS),
        addresses=some_or_any(NETWORKS),
        expires_at=now + timedelta(seconds=rng.randint(600, 7200)),
        limits=(rng.random() < 0.3, rng.random() < 0.3, rng.random() < 0.3),
    )


async def write(owner: asyncpg.Connection, rows: list[Row]) -> None:
    place = await owner.fetchrow(
        "SELECT w.org_id, w.id AS workspace_id, u.id AS user_id FROM workspaces AS w, users AS u"
    )
    assert place is not None
    async with owner.transaction():
        await owner.executemany(
            """
            INSERT INTO tokens (id, digest, hint, org_id, workspace_id, user_id, parent_id, scopes,
                                models, vendors, addresses, expires_at)
            VALUES ($1, $2, '', $3, $4, $5, $6, $7, $8, $9, $10::text[]::cidr[], $11)
            """,
            [
                (
                    row.id, digest(row.text), *place.values(), row.parent_id, row.scopes,
                    row.models, row.vendors, row.addresses, row.expires_at,
                )
                for row in rows
            ],
        )  # fmt: skip
        for number, statement in enumerate(
            (
                "INSERT INTO call_limits VALUES ('token', $1, $2, 5)",
                "INSERT INTO rate_limits VALUES ('token', $1, $2, 5, 60)",
                "INSERT INTO concurrency_limits VALUES ('token', $1, $2, 5)",
            )
        ):
            limited = [(row.id, place["org_id"]) for row in rows if row.limits[number]]
            await owner.executemany(statement, limited)


def excess(child: Caller, parent: Caller) -> list[str]:
    """Return in what a child is for more than its parent."""
    found = [f"scope {scope}" for scope in child.scopes - parent.scopes]
    checks: tuple[tuple[Any, Any, tuple[str, ...]], ...] = (
        (child.may_use, parent.may_use, MODELS),
        (child.may_call_vendor, parent.may_call_vendor, VENDORS),
        (child.may_call_from, parent.may_call_from, ADDRESSES),
    )
    for mine, theirs, probes in checks:
        found += [f"{mine.__name__} {probe}" for probe in probes if mine(probe) > theirs(probe)]
    if child.may_batch() > parent.may_batch() or child.may_call > parent.may_call:
        found.append("may begin what its parent may not")
    if child.expires_at > parent.expires_at:
        found.append("lives longer")
    found += [f"escapes {limit}" for limit in set(parent.limits) - set(child.limits)]
    found += [f"escapes {limit}" for limit in set(parent.permits) - set(child.permits)]
    return found


@pytest.mark.parametrize("cases", [300, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("seed")
async def test_a_child_never_exceeds_its_parent(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool, cases: int
) -> None:
    rng, now = random.Random(cases), datetime.now(UTC)
    parents = [random_row(rng, now, None) for _ in range(cases)]
    children = [random_row(rng, now, parent.id) for parent in parents]
    await write(owner, parents)
    await write(owner, children)
    store = TokenStore(gateway_pool)

    async def caller(row: Row) -> Caller:
        found = await store.find(digest(row.text), worker_id=str(uuid.uuid4()), block_ids=[])
        assert found.caller is not None, found.why
        return found.caller

    narrower = 0
    for parent, child in zip(parents, children, strict=True):
        of_parent, of_child = await caller(parent), await caller(child)
        assert not excess(of_child, of_parent), (parent, child)
        assert ("token", str(parent.id)) in of_child.subjects
        narrower += bool(excess(of_parent, of_child))
    assert narrower > cases / 2, "the cases try nothing"


async def test_what_a_parent_loses_its_children_lose(
    owner: asyncpg.Connection, gateway_pool: asyncpg.Pool, seed: Seed
) -> None:
    _, parent_id = await seed.token()
    text, _ = await seed.token(parent=parent_id)
    store = TokenStore(gateway_pool)
    await owner.execute(
        "UPDATE tokens SET vendors = '{openai}', addresses = '{10.0.0.0/8}' WHERE id = $1",
        parent_id,
    )
    found = await store.find(digest(text), worker_id=str(uuid.uuid4()), block_ids=[])
    assert found.caller is not None
    assert found.caller.may_call_vendor("openai")
    assert not found.caller.may_call_vendor("anthropic")
    assert not found.caller.may_call_from("203.0.113.7")
    await owner.execute("UPDATE tokens SET revoked_at = now() WHERE id = $1", parent_id)
    found = await store.find(digest(text), worker_id=str(uuid.uuid4()), block_ids=[])
    assert found.why == "parent_revoked"
