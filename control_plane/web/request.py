"""One request, after everything about it was checked: what a route's function is given."""

import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncpg
import msgspec

from control_plane import audit_log
from control_plane.audit_log import Origin
from control_plane.errors import Forbidden, PreconditionFailed
from control_plane.identity.actor import Actor, Membership
from control_plane.identity.authenticate import find_actor
from control_plane.identity.session_keys import SessionClaims
from control_plane.identity.token_reader import TokenReader
from control_plane.tenancy.rbac import Permission
from control_plane.web.etag import etag_of, matches
from control_plane.web.route import Route

if TYPE_CHECKING:
    from control_plane.services import Services

Struct = TypeVar("Struct", bound=msgspec.Struct)

STANDING_SECONDS_MAX: Final = (
    0.5  # for so long it counts that someone was found to be what they are
)


@dataclass(slots=True, kw_only=True)
class ApiRequest:
    """A request that may be carried out.

    `path` has the path's names as they came (UUIDs in their usual form), `query` and `body` are of
    the route's types. `org_id` is the org that it is about, None: none. `address` is the client's.
    `reader` is the gateway token that asks, on a route that takes them; there is no `actor` then.
    """

    services: "Services"
    route: Route
    actor: Actor | None
    org_id: uuid.UUID | None
    path: Mapping[str, str]
    query: msgspec.Struct | None
    body: msgspec.Struct | None
    address: str
    user_agent: str
    request_id: str
    if_match: str | None = None
    reader: TokenReader | None = None
    authorized: bool = field(default=False)  # whether `authorize` or `may` was asked
    stood_at: float = field(default_factory=time.monotonic)  # when it was looked up who asks
    may_have_changed: bool = field(default=False)  # whether a transaction came to its commit

    @property
    def signed_in(self) -> Actor:
        """Who asks, on a route that is not public."""
        assert self.actor is not None, "a public route knows nobody"
        return self.actor

    @property
    def membership(self) -> Membership:
        """What the one who asks is in the org, on a route that is about one."""
        membership = self.signed_in.membership
        assert membership is not None, "this route is about no org"
        return membership

    @property
    def origin(self) -> Origin:
        """What the audit log says about who did it."""
        return Origin.of(self.actor, address=self.address, request_id=self.request_id)

    def id(self, name: str) -> uuid.UUID:
        """Return a UUID of the path."""
        return uuid.UUID(self.path[name])

    def body_as(self, struct: type[Struct]) -> Struct:
        """Return the body, as the type that the route says."""
        assert isinstance(self.body, struct)
        return self.body

    def query_as(self, struct: type[Struct]) -> Struct:
        """Return the query, as the type that the route says."""
        assert isinstance(self.query, struct)
        return self.query

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """Open a transaction that sees what the org has, and the one who asks.

        What commits was permitted at most STANDING_SECONDS_MAX ago, however long it waited and
        worked before: by then, roles that were lowered are. Raises what `find_actor` does, and
        Forbidden.
        """
        account_id = None if self.actor is None else self.actor.account_id
        async with self.services.database.transaction(
            org_id=self.org_id, account_id=account_id
        ) as connection:
            if self._stood_long_ago():
                await self._check_standing(connection)
            yield connection
            if self._stood_long_ago():
                # What the request itself is about to change is not to be seen by this.
                async with self.services.database.transaction_aside(
                    org_id=self.org_id, account_id=account_id
                ) as aside:
                    await self._check_standing(aside)
            self.may_have_changed = True

    def _stood_long_ago(self) -> bool:
        return self.actor is not None and time.monotonic() - self.stood_at >= STANDING_SECONDS_MAX

    async def _check_standing(self, connection: asyncpg.Connection) -> None:
        """Look again whether the one who asks is still what it was."""
        actor = self.signed_in
        claims = SessionClaims(session_id=actor.session_id, account_id=actor.account_id)
        now = await find_actor(connection, claims, org_id=self.org_id, touches=False)
        if (now.membership, now.is_operator) != (actor.membership, actor.is_operator):
            raise Forbidden("Your role was changed meanwhile: ask again.", code="role_changed")
        self.stood_at = time.monotonic()

    def may(
        self,
        *,
        workspace_id: uuid.UUID | None = None,
        user_id: uuid.UUID | None = None,
        permission: Permission | None = None,
    ) -> bool:
        """Return whether the one who asks may, about what is in a workspace or is a user's.

        `permission` None: the route's.
        """
        self.authorized = True
        asked = permission or self._permission
        return self.membership.holds(asked, workspace_id=workspace_id, user_id=user_id)

    def workspaces(self) -> frozenset[uuid.UUID] | None:
        """Return the workspaces for which the route's permission is held; None: all of the org."""
        self.authorized = True
        return self.membership.workspaces(self._permission)

    def authorize(
        self,
        *,
        workspace_id: uuid.UUID | None = None,
        user_id: uuid.UUID | None = None,
        permission: Permission | None = None,
    ) -> None:
        """Refuse what `may` denies. Raises Forbidden."""
        if not self.may(workspace_id=workspace_id, user_id=user_id, permission=permission):
            raise forbidden(permission or self._permission)

    @property
    def _permission(self) -> Permission:
        access = self.route.access
        assert not isinstance(access, str), "this route needs no permission"
        return access.permission

    def check_match(self, current: object) -> None:
        """Refuse a change of what is not any more as `If-Match` says. Raises PreconditionFailed.

        `current` is what GET would answer now, read in the transaction of the change, with a lock.
        """
        if self.if_match is not None and not matches(self.if_match, etag_of(current)):
            raise PreconditionFailed(
                "This was changed since you read it: read it again.", field="If-Match"
            )

    async def audit(
        self,
        connection: asyncpg.Connection,
        action: str,
        *,
        target_kind: str,
        target_id: uuid.UUID | str,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
        org_id: uuid.UUID | None = None,
    ) -> None:
        """Append an entry to the audit log, in the transaction of the change that it tells.

        `org_id`: whose log, where it is not that of the org which the request is about.
        """
        await audit_log.record(
            connection,
            self.origin,
            action,
            org_id=org_id or self.org_id,
            target_kind=target_kind,
            target_id=target_id,
            before=before,
            after=after,
        )


def forbidden(permission: Permission) -> Forbidden:
    """Return the refusal for a permission that is not held."""
    return Forbidden(f"Your role does not permit this: it takes {permission}.")
