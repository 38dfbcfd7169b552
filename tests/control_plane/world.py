"""Two orgs with everybody in them who can be in one: what tests of permissions ask about."""

import json
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import asyncpg

from control_plane.tenancy.rbac import Role
from gateway.auth.token import digest, generate, hint
from tests.control_plane.conftest import People, Person

ANONYMOUS: Final = "anonymous"
GATEWAY_TOKEN: Final = "gateway token"
OTHER_OWNER: Final = "other org's owner"
DISABLED: Final = "disabled owner"
OPERATOR: Final = "operator"
IN_ORG: Final = {f"org {role}": role for role in Role}
IN_WORKSPACE: Final = {f"workspace {role}": role for role in Role}
# Whose own the thing is that is asked about; they have this role in the org, and none elsewhere.
OWN: Final = {"own, editor": Role.EDITOR, "own, viewer": Role.VIEWER}
NOBODY: Final = (ANONYMOUS, GATEWAY_TOKEN)
OUTSIDE: Final = (OTHER_OWNER, DISABLED, OPERATOR)
EVERYBODY: Final = (*NOBODY, *IN_ORG, *IN_WORKSPACE, *OWN, *OUTSIDE)


@dataclass(kw_only=True)
class World:
    """An org, the other one, and who asks."""

    owner: asyncpg.Connection
    people: People
    org: uuid.UUID
    workspace: uuid.UUID
    bystander: uuid.UUID  # a member, as a viewer, of org and workspace, who asks for nothing
    other_org: uuid.UUID
    other_workspace: uuid.UUID
    who: dict[str, Person] = field(default_factory=dict)
    gateway_token: str = field(default="", repr=False)
    snapshot: str = field(default="", repr=False)  # the statement that reads all tables

    def headers(self, who: str) -> dict[str, str]:
        """Return what an identity sends to prove itself."""
        if who == ANONYMOUS:
            return {}
        if who == GATEWAY_TOKEN:
            return {"authorization": f"Bearer {self.gateway_token}"}
        return self.who[who].headers

    async def user_id(self, who: str) -> uuid.UUID:
        """Return what an identity is in its org."""
        org = self.other_org if who == OTHER_OWNER else self.org
        return await self.people.user_id(org, self.who[who])

    async def token(self, org: uuid.UUID, workspace: uuid.UUID, user: uuid.UUID) -> str:
        """Insert a gateway token, and return its text."""
        text = generate("g")
        await self.owner.execute(
            """
            INSERT INTO tokens (id, digest, hint, name, org_id, workspace_id, user_id, expires_at)
            VALUES ($1, $2, $3, 'made by the test', $4, $5, $6, now() + $7)
            """,
            uuid.uuid4(), digest(text), hint(text), org, workspace, user, timedelta(hours=1),
        )  # fmt: skip
        return text

    async def token_id(self, org: uuid.UUID, workspace: uuid.UUID, user: uuid.UUID) -> uuid.UUID:
        """Insert a gateway token, and return its id."""
        text = await self.token(org, workspace, user)
        found: uuid.UUID = await self.owner.fetchval(
            "SELECT id FROM tokens WHERE digest = $1", digest(text)
        )
        return found

    async def invitation(
        self, org: uuid.UUID, *, email: str | None = None, role: str = "viewer"
    ) -> tuple[uuid.UUID, str]:
        """Insert an open invitation; return its id and its token."""
        email, token = email or f"{uuid.uuid4().hex}@example.com", generate("i")
        found: uuid.UUID = await self.owner.fetchval(
            """
            INSERT INTO invitations (
                id, org_id, digest, email, email_key, role, invited_by, expires_at
            )
            SELECT $1, $2, $3, $4, lower($4), $5, id, now() + interval '1 day' FROM users
            WHERE org_id = $2 AND role = 'owner' AND disabled_at IS NULL LIMIT 1
            RETURNING id
            """,
            uuid.uuid4(), org, digest(token), email, role,
        )  # fmt: skip
        return found, token

    async def rows(self) -> str:
        """Return a digest of what every table has, but for what asking alone leaves behind."""
        if not self.snapshot:
            tables = await self.owner.fetch(
                """
                SELECT c.relname AS name FROM pg_class AS c
                WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
                    AND NOT c.relispartition AND c.relname <> ALL ($1)
                """,
                ["throttle", "sessions", "idempotency_keys", "workers", "confirmations"],
            )
            self.snapshot = "SELECT md5(concat_ws('|', {}))".format(
                ", ".join(
                    f"(SELECT string_agg(t::text, '|' ORDER BY t::text) FROM {row['name']} AS t)"  # noqa: S608 - from the catalogue
                    for row in tables
                )
            )
        digest_of_all: str = await self.owner.fetchval(self.snapshot)
        return digest_of_all


async def make_world(owner: asyncpg.Connection, people: People) -> World:
    """Insert two orgs and everybody."""
    org, other_org = await people.org("ours"), await people.org("theirs")
    workspace, other_workspace = [await people.workspace_id(one) for one in (org, other_org)]
    bystander = await people.member(org, "viewer")
    await people.workspace_member(org, workspace, "viewer", bystander)
    world = World(
        owner=owner,
        people=people,
        org=org,
        workspace=workspace,
        bystander=await people.user_id(org, bystander),
        other_org=other_org,
        other_workspace=other_workspace,
    )
    for name, role in (*IN_ORG.items(), *OWN.items()):
        world.who[name] = await people.member(org, role)
    for name, role in IN_WORKSPACE.items():
        world.who[name] = await people.workspace_member(org, workspace, role)
    world.who[OTHER_OWNER] = await people.member(other_org, "owner")
    world.who[OPERATOR] = await people.person(is_operator=True)
    world.who[DISABLED] = await people.member(org, "owner")
    await owner.execute(
        "UPDATE users SET disabled_at = now() WHERE account_id = $1",
        world.who[DISABLED].account_id,
    )
    user = await people.user_id(org, world.who["org owner"])
    world.gateway_token = await world.token(org, workspace, user)
    return world


async def unthrottle(owner: asyncpg.Connection) -> None:
    """Let everyone ask as often as a test takes: windows have tests of their own."""
    await owner.execute(
        """
        CREATE OR REPLACE FUNCTION throttle_take(keys text[], limits integer[], windows interval[])
        RETURNS double precision LANGUAGE sql AS 'SELECT NULL::double precision'
        """
    )


def told(content: bytes) -> Any:
    """Return an answer's JSON without what differs each time."""
    answer = json.loads(content)
    answer.pop("request_id", None)
    return answer
