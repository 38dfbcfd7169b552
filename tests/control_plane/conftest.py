import asyncio
import json
import secrets
import socket
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import asyncpg
import pytest

from control_plane.app import listening, make_app
from control_plane.identity.session_keys import (
    SESSION_LIFE,
    SessionClaims,
    SessionKeys,
    parse_session_keys,
)
from control_plane.mail import Mail, Outbox
from control_plane.secrets import ControlKeys, make_control_key, parse_control_keys
from control_plane.server_settings import ServerSettings
from control_plane.services import Services
from control_plane.web.database import open_control_database
from gateway.ids import IdMaker
from gateway.log import Log
from tests.conftest import Database

JWT_SECRET: Final = secrets.token_urlsafe(48)
CONTROL_KEY: Final = make_control_key()
CONTROL_ROLE: Final = "kaixu_control_test"
CONTROL_PASSWORD: Final = "control-of-the-tests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """An account with an open session."""

    account_id: uuid.UUID
    email: str
    session_id: uuid.UUID
    token: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the control plane answered, whole."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


class Node:
    """A control plane that listens, and a client that talks to it."""

    def __init__(self, services: Services, url: str) -> None:
        self.services = services
        self.url = url
        self.lines: list[bytes] = []
        self.mails: list[Mail] = []
        self._session = aiohttp.ClientSession(auto_decompress=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        by: Person | None = None,
        headers: dict[str, str] | None = None,
        **arguments: Any,
    ) -> Answer:
        """Send a request, as a person or as nobody; `json` and `data` are aiohttp's."""
        sent = {**(by.headers if by is not None else {}), **(headers or {})}
        async with self._session.request(
            method, self.url + path, headers=sent, allow_redirects=False, **arguments
        ) as response:
            return Answer(
                status=response.status,
                headers={name.lower(): value for name, value in response.headers.items()},
                content=await response.read(),
            )


class People:
    """Puts accounts, sessions, orgs and members into a test's database."""

    def __init__(self, owner: asyncpg.Connection, keys: SessionKeys) -> None:
        self._owner = owner
        self._keys = keys

    async def person(
        self, email: str | None = None, *, is_operator: bool = False, name: str = ""
    ) -> Person:
        """Insert an account that has signed in."""
        email = email or f"{uuid.uuid4().hex}@example.com"
        account_id = await self._owner.fetchval(
            """
            INSERT INTO accounts (email, email_key, email_verified_at, is_operator, name)
            VALUES ($1, lower($1), now(), $2, $3) RETURNING id
            """,
            email,
            is_operator,
            name,
        )
        return await self.session(account_id, email)

    async def session(self, account_id: uuid.UUID, email: str) -> Person:
        """Insert a session of an account."""
        session_id = uuid.uuid4()
        await self._owner.execute(
            """
            INSERT INTO sessions (id, account_id, expires_at, methods)
            VALUES ($1, $2, now() + $3, '{pwd}')
            """,
            session_id,
            account_id,
            SESSION_LIFE,
        )
        now = int(time.time())
        token = self._keys.sign(
            SessionClaims(session_id=session_id, account_id=account_id),
            issued_at=now,
            expires_at=now + int(SESSION_LIFE.total_seconds()),
        )
        return Person(account_id=account_id, email=email, session_id=session_id, token=token)

    async def org(self, name: str = "acme", *, workspaces: Sequence[str] = ("default",)) -> Any:
        """Insert an org and its workspaces; return its id."""
        org_id = await self._owner.fetchval(
            "INSERT INTO orgs (name) VALUES ($1) RETURNING id", name
        )
        for workspace in workspaces:
            await self._owner.execute(
                "INSERT INTO workspaces (org_id, name) VALUES ($1, $2)", org_id, workspace
            )
        return org_id

    async def member(self, org_id: uuid.UUID, role: str, person: Person | None = None) -> Person:
        """Make someone a member of an org."""
        person = person or await self.person()
        await self._owner.execute(
            "INSERT INTO users (org_id, account_id, name, role) VALUES ($1, $2, $3, $4)",
            org_id,
            person.account_id,
            person.email,
            role,
        )
        return person

    async def user_id(self, org_id: uuid.UUID, person: Person) -> uuid.UUID:
        """Return the id that a person has as a member of an org."""
        found: uuid.UUID = await self._owner.fetchval(
            "SELECT id FROM users WHERE org_id = $1 AND account_id = $2", org_id, person.account_id
        )
        return found

    async def workspace_id(self, org_id: uuid.UUID, name: str = "default") -> uuid.UUID:
        """Return the id of a workspace."""
        found: uuid.UUID = await self._owner.fetchval(
            "SELECT id FROM workspaces WHERE org_id = $1 AND name = $2", org_id, name
        )
        return found

    async def workspace_member(
        self, org_id: uuid.UUID, workspace_id: uuid.UUID, role: str, person: Person | None = None
    ) -> Person:
        """Make someone a member of a workspace, and a viewer of its org where they are nothing."""
        if person is None:
            person = await self.member(org_id, "viewer")
        await self._owner.execute(
            """
            INSERT INTO workspace_members (org_id, workspace_id, user_id, role)
            SELECT $1, $2, id, $3 FROM users WHERE org_id = $1 AND account_id = $4
            """,
            org_id,
            workspace_id,
            role,
            person.account_id,
        )
        return person


@pytest.fixture(scope="session")
def session_keys() -> SessionKeys:
    return parse_session_keys(JWT_SECRET)


@pytest.fixture(scope="session")
def control_keys() -> ControlKeys:
    return parse_control_keys(CONTROL_KEY)


@pytest.fixture
def people(owner: asyncpg.Connection, session_keys: SessionKeys) -> People:
    return People(owner, session_keys)


@pytest.fixture
async def control_url(database: Database, owner: asyncpg.Connection) -> str:
    """The control plane's login to the test's database, under its own role."""
    find = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)"
    if not await owner.fetchval(find, CONTROL_ROLE):
        await owner.execute(
            f"CREATE ROLE {CONTROL_ROLE} LOGIN PASSWORD '{CONTROL_PASSWORD}' IN ROLE kaixu_control"
        )
    return database.server.url(database.name, user=CONTROL_ROLE, password=CONTROL_PASSWORD)


@pytest.fixture
def server_settings(
    control_url: str, session_keys: SessionKeys, control_keys: ControlKeys
) -> ServerSettings:
    """The settings of the test's control plane; a test may override this fixture."""
    return ServerSettings(
        database_url=control_url, session_keys=session_keys, control_keys=control_keys
    )


@pytest.fixture
async def node(server_settings: ServerSettings) -> AsyncIterator[Node]:
    """A control plane on a port of its own."""
    async with started(server_settings) as node:
        yield node


@asynccontextmanager
async def started(settings: ServerSettings) -> AsyncIterator[Node]:
    """Run a control plane; several on one database are several nodes."""
    lines: list[bytes] = []
    mails: list[Mail] = []

    def write(line: bytes) -> bool:
        lines.append(line)
        return True

    async def deliver(mail: Mail) -> None:
        mails.append(mail)

    log = Log(write, now=time.time)
    outbox = Outbox(deliver, log=log)
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(outbox.work())
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            async with open_control_database(settings.database_url) as database:
                services = Services(
                    settings=settings,
                    database=database,
                    session_keys=settings.session_keys,
                    control_keys=settings.control_keys,
                    outbox=outbox,
                    ids=IdMaker(time.time),
                    log=log,
                    now=time.time,
                )
                async with listening(make_app(services), sock, services):
                    port = sock.getsockname()[1]
                    async with Node(services, f"http://127.0.0.1:{port}") as node:
                        node.lines, node.mails = lines, mails
                        yield node
        working.cancel()
