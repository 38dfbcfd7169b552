"""Every route there is: what is not in this table is not answered."""

from collections.abc import Sequence
from typing import Final

from control_plane.alerts import subscriptions
from control_plane.identity import me
from control_plane.tenancy import (
    child_tokens,
    limit_routes,
    revocation,
    token_rotation,
    token_routes,
)
from control_plane.web.route import Route

ROUTES: Final[Sequence[Route]] = (
    *me.ROUTES,
    *token_routes.ROUTES,
    *child_tokens.ROUTES,
    *token_rotation.ROUTES,
    *revocation.ROUTES,
    *limit_routes.ROUTES,
    *subscriptions.ROUTES,
)
