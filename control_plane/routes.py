"""Every route there is: what is not in this table is not answered."""

from collections.abc import Sequence
from typing import Final

from control_plane import audit_routes, privacy
from control_plane.alerts import subscriptions
from control_plane.billing import usage_routes
from control_plane.identity import (
    me,
    my_email,
    my_password,
    my_second_factor,
    sessions,
    signup,
)
from control_plane.tenancy import (
    alias_routes,
    child_tokens,
    invitations,
    limit_routes,
    members,
    orgs,
    revocation,
    token_rotation,
    token_routes,
    vendor_routes,
    vendor_test,
    workspace_members,
    workspaces,
)
from control_plane.web.route import Route

ROUTES: Final[Sequence[Route]] = (
    *signup.ROUTES,
    *sessions.ROUTES,
    *me.ROUTES,
    *my_password.ROUTES,
    *my_email.ROUTES,
    *my_second_factor.ROUTES,
    *orgs.ROUTES,
    *members.ROUTES,
    *invitations.ROUTES,
    *workspaces.ROUTES,
    *workspace_members.ROUTES,
    *vendor_routes.ROUTES,
    *vendor_test.ROUTES,
    *alias_routes.ROUTES,
    *audit_routes.ROUTES,
    *privacy.ROUTES,
    *token_routes.ROUTES,
    *child_tokens.ROUTES,
    *token_rotation.ROUTES,
    *revocation.ROUTES,
    *limit_routes.ROUTES,
    *subscriptions.ROUTES,
    *usage_routes.ROUTES,
)
