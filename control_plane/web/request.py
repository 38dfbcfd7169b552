"""One request, after everything about it was checked: what a route's function is given."""

import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
import msgspec

from control_plane import audit_log
from control_plane.audit_log import Origin
from control_plane.errors import Forbidden, PreconditionFailed
from control_plane.identity.actor import Actor, Membership
from control_plane.tenancy.rbac import Permission
from control_plane.web.etag import etag_of, matches
from control_plane.web.route import Route

if TYPE_CHECKING:
    from control_plane.services import Services

Struct = TypeVar("Struct", bound=msgspec.Struct)


@dataclass(slots=True, kw_only=True)
class ApiRequest:
    """A request that may be carried out.

    `path` has the path's names as they came (UUIDs in their usual form), `query` and `body` are of
    the route's types. `org_id` is the org that it is about, None: none. `address` is the client's.
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
    authorized: bool = field(default=False)  # whether `authorize` or `may` was asked
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
        """Open a transaction that sees what the org has, and the one who asks."""
        account_id = None if self.actor is None else self.actor.account_id
        async with self.services.database.transaction(
            org_id=self.org_id, account_id=account_id
        ) as connection:
            yield connection
            self.may_have_changed = True

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
    ) -> None:
        """Append an entry to the audit log, in the transaction of the change that it tells."""
        await audit_log.record(
            connection,
            self.origin,
            action,
            org_id=self.org_id,
            target_kind=target_kind,
            target_id=target_id,
            before=before,
            after=after,
        )


def forbidden(permission: Permission) -> Forbidden:
    """Return the refusal for a permission that is not held."""
    return Forbidden(f"Your role does not permit this: it takes {permission}.")
