"""Tokens that are made in the moment in which tokens end: none slips through."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from control_plane.audit_log import COMMAND
from control_plane.identity.actor import Membership
from control_plane.tenancy.rbac import Role
from control_plane.tenancy.token_rights import holder_for
from control_plane.tenancy.tokens import Holder, NewToken, create_token
from gateway.auth.token import generate
from tests.conftest import Database
from tests.control_plane.conftest import Answer, Node, People, Person

PATH = "/api/v1/tokens"
SECONDS_MAX = 10.0

_BLOCKED = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0
"""


@pytest.fixture
async def org(people: People, owner: asyncpg.Connection) -> uuid.UUID:
    """An org in whose log something is: the first entry would lock the org by itself."""
    org_id: uuid.UUID = await people.org()
    await owner.execute("INSERT INTO audit_heads (org_id) VALUES ($1)", org_id)
    return org_id


@pytest.fixture
async def admin(people: People, org: uuid.UUID) -> Person:
    return await people.member(org, "admin")


@pytest.fixture
async def other(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """Another connection, for what is under way meanwhile."""
    connection = await asyncpg.connect(database.owner_url)
    yield connection
    await connection.close()


async def make(connection: asyncpg.Connection, node: Node, holder: Holder) -> uuid.UUID:
    membership = Membership(org_id=holder.org_id, user_id=holder.user_id, role=Role.ADMIN)
    await holder_for(connection, membership, None, workspace_id=holder.workspace_id)
    made = await create_token(
        connection,
        NewToken(text=generate(), life=timedelta(days=1)),
        ids=node.services.ids,
        holder=holder,
        origin=COMMAND,
    )
    return uuid.UUID(made["id"])


async def meanwhile(
    owner: asyncpg.Connection,
    other: asyncpg.Connection,
    first: Callable[[asyncpg.Connection], Coroutine[Any, Any, uuid.UUID]],
    second: Coroutine[Any, Any, Answer],
) -> tuple[uuid.UUID, Answer]:
    """Begin the second while the first has not committed; it commits when the second waits."""
    async with asyncio.timeout(SECONDS_MAX):
        async with asyncio.TaskGroup() as tasks, other.transaction():
            done = await first(other)
            asked = tasks.create_task(second)
            while not asked.done() and not await owner.fetchval(_BLOCKED):
                await asyncio.wait({asked}, timeout=0.01)
        return done, asked.result()


@pytest.mark.parametrize("whose", ["org", "user", "installation"])
async def test_a_token_that_is_being_made_when_all_end_has_ended_too(  # noqa: PLR0917 - fixtures
    node: Node,
    people: People,
    org: uuid.UUID,
    admin: Person,
    owner: asyncpg.Connection,
    other: asyncpg.Connection,
    whose: str,
) -> None:
    user = await people.user_id(org, admin)
    holder = Holder(org_id=org, workspace_id=await people.workspace_id(org), user_id=user)
    operator = await people.person(is_operator=True)
    path = "/api/v1/operator/tokens/revoke-all" if whose == "installation" else f"{PATH}/revoke-all"
    revoking = node.call(
        "POST",
        path,
        by=operator if whose == "installation" else admin,
        json={"user_id": str(user)} if whose == "user" else None,
    )

    made, told = await meanwhile(owner, other, lambda c: make(c, node, holder), revoking)

    assert (told.status, told.json["revoked"]) == (200, 1), told.content
    assert await owner.fetchval("SELECT revoked_at IS NOT NULL FROM tokens WHERE id = $1", made)


async def test_who_is_removed_while_making_a_token_has_none_when_invited_again(  # noqa: PLR0917 - fixtures
    node: Node,
    people: People,
    org: uuid.UUID,
    admin: Person,
    owner: asyncpg.Connection,
    other: asyncpg.Connection,
) -> None:
    leaving = await people.member(org, "admin")
    user = await people.user_id(org, leaving)

    async def remove(connection: asyncpg.Connection) -> uuid.UUID:
        # As the route does; it is the one that is at work first.
        await connection.execute("SELECT FROM users WHERE id = $1 FOR UPDATE", user)
        await connection.execute(
            "UPDATE users SET removed_at = now(), disabled_at = now() WHERE id = $1", user
        )
        return user

    making = node.call("POST", PATH, by=leaving, json={})

    _, told = await meanwhile(owner, other, remove, making)

    assert told.status == 404, told.content
    assert await owner.fetchval("SELECT count(*) FROM tokens WHERE user_id = $1", user) == 0
