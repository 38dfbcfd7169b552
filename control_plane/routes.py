"""Every route there is: what is not in this table is not answered."""

from collections.abc import Sequence
from typing import Final

from control_plane import audit_routes, privacy
from control_plane.identity import me
from control_plane.tenancy import alias_routes, vendor_routes, vendor_test
from control_plane.web.route import Route

ROUTES: Final[Sequence[Route]] = (
    *me.ROUTES,
    *vendor_routes.ROUTES,
    *vendor_test.ROUTES,
    *alias_routes.ROUTES,
    *audit_routes.ROUTES,
    *privacy.ROUTES,
)
