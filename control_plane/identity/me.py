"""What an account is told of itself."""

from typing import Final

import msgspec

from control_plane.throttle import RateClass
from control_plane.web.request import ApiRequest
from control_plane.web.route import Access, Route
from gateway.sql import load_queries

_QUERIES: Final = load_queries(__package__, "me.sql")
_ACCOUNT = _QUERIES["account"]
_ORGS = _QUERIES["orgs"]


class MyOrg(msgspec.Struct, frozen=True, kw_only=True):
    """An org that the account is in."""

    id: str
    name: str
    user_id: str
    role: str
    suspended: bool


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """An account, as it sees itself."""

    id: str
    email: str
    name: str
    email_verified: bool
    totp_enabled: bool
    is_operator: bool
    created_at: str
    orgs: list[MyOrg]


async def read_me(request: ApiRequest) -> Me:
    """Return the account that asks, and the orgs that it is in."""
    async with request.transaction() as connection:
        row = await connection.fetchrow(_ACCOUNT, request.signed_in.account_id)
        orgs = await connection.fetch(_ORGS, request.signed_in.account_id)
    assert row is not None, "a session has an account"
    return Me(**dict(row), orgs=[MyOrg(**dict(org)) for org in orgs])


ROUTES: Final = (
    Route(
        method="GET",
        path="/api/v1/me",
        summary="Your account, and the orgs you are in",
        access=Access.SIGNED_IN,
        rate_class=RateClass.READ,
        handler=read_me,
        answer=Me,
    ),
)
