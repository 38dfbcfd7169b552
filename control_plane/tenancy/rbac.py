"""Who may do what: one table, read by every route and told in the documentation."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What someone is in an org, or in one of its workspaces."""

    OWNER = "owner"
    ADMIN = "admin"
    EDITOR = "editor"
    VIEWER = "viewer"


RANKS: Final[Mapping[Role, int]] = {
    Role.OWNER: 4, Role.ADMIN: 3, Role.EDITOR: 2, Role.VIEWER: 1,
}  # fmt: skip


class Permission(StrEnum):
    """What can be permitted, in an org."""

    ORG_READ = "org:read"
    ORG_WRITE = "org:write"  # its name, what it asks of members
    ORG_DELETE = "org:delete"
    MEMBERS_READ = "members:read"
    MEMBERS_WRITE = "members:write"  # invite, change roles, disable, remove
    WORKSPACES_READ = "workspaces:read"
    WORKSPACES_CREATE = "workspaces:create"
    WORKSPACES_WRITE = "workspaces:write"  # rename
    WORKSPACES_DELETE = "workspaces:delete"
    WORKSPACE_MEMBERS_WRITE = "workspace_members:write"
    TOKENS_READ = "tokens:read"
    TOKENS_CREATE = "tokens:create"
    TOKENS_WRITE = "tokens:write"  # narrow, rotate; to widen or prolong takes tokens:create too
    TOKENS_DELEGATE = "tokens:delegate"  # child tokens of one's own
    TOKENS_REVOKE = "tokens:revoke"
    TOKENS_REVOKE_ALL = "tokens:revoke_all"  # of a user, of the org
    LIMITS_READ = "limits:read"
    LIMITS_WRITE = "limits:write"  # of users, workspaces and the org
    VENDORS_READ = "vendors:read"
    VENDORS_WRITE = "vendors:write"
    ALIASES_READ = "aliases:read"
    ALIASES_WRITE = "aliases:write"
    USAGE_READ = "usage:read"
    AUDIT_READ = "audit:read"
    ALERTS_READ = "alerts:read"
    ALERTS_WRITE = "alerts:write"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Who holds a permission.

    `org`: roles in the org, for all of it. `workspace`: roles in a workspace, for what is in it.
    `own`: roles in the org, for what is the asker's own.
    """

    org: frozenset[Role] = frozenset()
    workspace: frozenset[Role] = frozenset()
    own: frozenset[Role] = frozenset()


_ALL: Final = frozenset(Role)
_EDIT: Final = frozenset({Role.OWNER, Role.ADMIN, Role.EDITOR})
_ADMIN: Final = frozenset({Role.OWNER, Role.ADMIN})
_OWNER: Final = frozenset({Role.OWNER})

GRANTS: Final[Mapping[Permission, Grant]] = {
    Permission.ORG_READ: Grant(org=_ALL),
    Permission.ORG_WRITE: Grant(org=_ADMIN),
    Permission.ORG_DELETE: Grant(org=_OWNER),
    Permission.MEMBERS_READ: Grant(org=_ALL),
    Permission.MEMBERS_WRITE: Grant(org=_ADMIN),
    Permission.WORKSPACES_READ: Grant(org=_ADMIN, workspace=_ALL),
    Permission.WORKSPACES_CREATE: Grant(org=_ADMIN),
    Permission.WORKSPACES_WRITE: Grant(org=_ADMIN, workspace=_ADMIN),
    Permission.WORKSPACES_DELETE: Grant(org=_ADMIN, workspace=_OWNER),
    Permission.WORKSPACE_MEMBERS_WRITE: Grant(org=_ADMIN, workspace=_ADMIN),
    Permission.TOKENS_READ: Grant(org=_ADMIN, workspace=_ADMIN, own=_ALL),
    Permission.TOKENS_CREATE: Grant(org=_ADMIN, workspace=_EDIT),
    Permission.TOKENS_WRITE: Grant(org=_ADMIN, workspace=_ADMIN, own=_ALL),
    Permission.TOKENS_DELEGATE: Grant(own=_ALL),
    Permission.TOKENS_REVOKE: Grant(org=_ADMIN, workspace=_ADMIN, own=_ALL),
    Permission.TOKENS_REVOKE_ALL: Grant(org=_ADMIN),
    Permission.LIMITS_READ: Grant(org=_ADMIN, workspace=_ALL),
    Permission.LIMITS_WRITE: Grant(org=_ADMIN, workspace=_ADMIN),
    Permission.VENDORS_READ: Grant(org=_ALL),
    Permission.VENDORS_WRITE: Grant(org=_ADMIN),
    Permission.ALIASES_READ: Grant(org=_ALL),
    Permission.ALIASES_WRITE: Grant(org=_ADMIN),
    Permission.USAGE_READ: Grant(org=_ADMIN, workspace=_ADMIN, own=_ALL),
    Permission.AUDIT_READ: Grant(org=_ADMIN),
    Permission.ALERTS_READ: Grant(org=_ADMIN),
    Permission.ALERTS_WRITE: Grant(org=_ADMIN),
}


def allows(
    permission: Permission,
    *,
    org_role: Role,
    workspace_role: Role | None = None,
    is_own: bool = False,
) -> bool:
    """Return whether these roles hold a permission.

    `workspace_role`: in the workspace that it is about, if there is one. `is_own`: it is about
    something of the asker's own.
    """
    grant = GRANTS[permission]
    return (
        org_role in grant.org
        or workspace_role in grant.workspace
        or (is_own and org_role in grant.own)
    )


def may_confer(role: Role, *, by: Role) -> bool:
    """Return whether someone may make someone else this: nobody lifts others above themselves."""
    return RANKS[role] <= RANKS[by]
