"""Who asks: an account, what it was proven by, and what it is in the org that it asks about."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from control_plane.tenancy.rbac import GRANTS, Permission, Role, allows


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What an account is in one org, and in the workspaces of it that it belongs to."""

    org_id: uuid.UUID
    user_id: uuid.UUID
    role: Role
    workspace_roles: Mapping[uuid.UUID, Role] = field(default_factory=dict)

    def holds(
        self,
        permission: Permission,
        *,
        workspace_id: uuid.UUID | None = None,
        user_id: uuid.UUID | None = None,
    ) -> bool:
        """Return whether it holds a permission for what is in a workspace, or is a user's."""
        return allows(
            permission,
            org_role=self.role,
            workspace_role=(
                None if workspace_id is None else self.workspace_roles.get(workspace_id)
            ),
            is_own=user_id == self.user_id,
        )

    def may_hold(self, permission: Permission) -> bool:
        """Return whether there can be anything that it holds the permission for."""
        grant = GRANTS[permission]
        return (
            self.role in grant.org
            or self.role in grant.own
            or any(role in grant.workspace for role in self.workspace_roles.values())
        )

    def workspaces(self, permission: Permission) -> frozenset[uuid.UUID] | None:
        """Return the workspaces for which it holds a permission; None: for all of the org."""
        grant = GRANTS[permission]
        if self.role in grant.org:
            return None
        return frozenset(
            workspace for workspace, role in self.workspace_roles.items() if role in grant.workspace
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """An account that has proven itself, in one session.

    `membership` is in the org that the request is about; None: it is about none.
    `authenticated_at` is when it last proved itself, `methods` by what (RFC 8176).
    """

    account_id: uuid.UUID
    session_id: uuid.UUID
    email: str
    is_operator: bool
    has_totp: bool
    authenticated_at: datetime
    methods: frozenset[str]
    membership: Membership | None = None

    @property
    def credential(self) -> str:
        """What the audit log says that the account was proven by."""
        return f"session {self.session_id}"
