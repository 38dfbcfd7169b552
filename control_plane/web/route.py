"""What a route is: everything that has to be said before a request may reach its function.

A route says who may ask, how often, and what goes in and out. What is not said does not start.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import msgspec

from control_plane.tenancy.rbac import Permission
from control_plane.throttle import RateClass

if TYPE_CHECKING:
    from control_plane.web.request import ApiRequest

METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
PATH_NAME: Final = re.compile(r"\{([a-z_]+)\}")


class Access(StrEnum):
    """Who may ask where no permission in an org decides."""

    PUBLIC = "public"
    SIGNED_IN = "signed_in"  # any account, about itself
    OPERATOR = "operator"  # who runs the installation


class Scope(StrEnum):
    """What a permission has to be held for."""

    ORG = "org"  # all of the org
    WORKSPACE = "workspace"  # the workspace in the path
    EACH = "each"  # the things that are found: the function asks for each, by `authorize`


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The permission that a route needs, and for what."""

    permission: Permission
    scope: Scope = Scope.ORG


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer that is more than its body."""

    body: object
    status: int | None = None  # None: the route's
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[["ApiRequest"], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path.

    `path` has names in braces: `{org}` and `{workspace}` decide about the permission; every name
    is a UUID but those in `text_names`. `query` and `body` are structs, all fields of which are
    checked; None: there is none. `body_is_optional`: none at all is one that says nothing. `answer`
    is the struct of a successful answer (None: no body), `status` its status. `errors` are statuses
    that the function itself may answer with, beyond those that every route has. `tells_once`:
    fields of the answer that nobody is told again. `needs_fresh`: the account has to have proven
    itself within minutes. `token_scope`: gateway tokens of the org that have this scope may ask
    too, for all of the org.
    """

    method: str
    path: str
    summary: str
    access: Access | Needs
    rate_class: RateClass
    handler: Handler
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    body_is_optional: bool = False
    answer: Any = None
    status: int = 200
    errors: Sequence[int] = ()
    text_names: frozenset[str] = frozenset()
    tells_once: frozenset[str] = frozenset()
    needs_fresh: bool = False
    token_scope: str | None = None
    content_type: str = "application/json"  # of the answer

    def __post_init__(self) -> None:
        """Refuse what no route can be. Raises ValueError, TypeError: the start stops."""
        if self.method not in METHODS:
            raise ValueError(f"{self}: no such method")
        if not self.path.startswith("/"):
            raise ValueError(f"{self}: a path begins with a slash")
        if not isinstance(self.access, Access | Needs):
            raise TypeError(f"{self}: who may ask is not said")
        if not isinstance(self.rate_class, RateClass):
            raise TypeError(f"{self}: how often is not said")
        if self.is_about_workspace and "workspace" not in self.names:
            raise ValueError(f"{self}: no workspace in the path")
        if self.token_scope is not None and (self.method != "GET" or "org" in self.names):
            raise ValueError(f"{self}: tokens read, in the org that they are of")
        if self.method == "GET" and self.body is not None:
            raise ValueError(f"{self}: GET has no body")

    @property
    def names(self) -> Sequence[str]:
        """The names in the path."""
        return PATH_NAME.findall(self.path)

    @property
    def is_about_workspace(self) -> bool:
        """Whether the permission is for the workspace in the path."""
        return isinstance(self.access, Needs) and self.access.scope is Scope.WORKSPACE

    @property
    def is_in_org(self) -> bool:
        """Whether it is about what an org has."""
        return isinstance(self.access, Needs)

    @property
    def takes_org_by_query(self) -> bool:
        """Whether the org is named by `?org=`, because the path doesn't."""
        return self.is_in_org and "org" not in self.names

    def __str__(self) -> str:
        return f"{self.method} {self.path}"
