"""Every route there is: what is not in this table is not answered."""

from collections.abc import Sequence
from typing import Final

from control_plane.identity import (
    me,
    my_email,
    my_password,
    my_second_factor,
    sessions,
    signup,
)
from control_plane.tenancy import invitations, members, orgs, workspace_members, workspaces
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
)
