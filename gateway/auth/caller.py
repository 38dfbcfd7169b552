"""Who is calling: what a live token says about its bearer."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Final

from gateway.permit_limit import PermitLimit

CALLS_SCOPE: Final = "calls"
BATCHES_SCOPE: Final = "batches"
TEST_SCOPE: Final = "vendor_test:"  # and a vendor's id: calls this one only, be it disabled

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Subject = tuple[str, str]  # kind and id: ("token", "0193…"), as in the change log


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The bearer of a live token. Holds nothing that opens anything.

    `expires_at` is Unix seconds of database time: of the token and its parent, the earlier.
    `limits` are all allowances that apply, sorted; none: the caller calls as often as it likes.
    `permits` are all windows and caps on open calls that apply.
    """

    token_id: str
    parent_id: str | None
    org_id: str
    workspace_id: str
    user_id: str
    scopes: frozenset[str]
    models: tuple[str, ...] | None  # names or globs; None: any
    parent_models: tuple[str, ...] | None = None  # those of the parent, which hold as well
    vendors: tuple[str, ...] | None = None  # names; None: any
    parent_vendors: tuple[str, ...] | None = None
    addresses: tuple[Network, ...] | None = None  # that calls may come from; None: any
    parent_addresses: tuple[Network, ...] | None = None
    expires_at: float
    limits: tuple[Subject, ...]
    permits: tuple[PermitLimit, ...] = ()
    may_call: bool = field(init=False, compare=False)  # it is for making calls
    tests_vendor: str | None = field(init=False, compare=False)  # the id of the one that it tests
    has_model_list: bool = field(init=False, compare=False)  # there are some it may not use
    has_vendor_list: bool = field(init=False, compare=False)
    has_address_list: bool = field(init=False, compare=False)
    _patterns: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "may_call", CALLS_SCOPE in self.scopes)
        tested = (scope for scope in self.scopes if scope.startswith(TEST_SCOPE))
        vendor_id = next(tested, "").removeprefix(TEST_SCOPE) or None
        object.__setattr__(self, "tests_vendor", vendor_id)
        has_vendors = self.vendors is not None or self.parent_vendors is not None
        object.__setattr__(self, "has_vendor_list", has_vendors)
        has_addresses = self.addresses is not None or self.parent_addresses is not None
        object.__setattr__(self, "has_address_list", has_addresses)
        lists = [globs for globs in (self.models, self.parent_models) if globs is not None]
        object.__setattr__(self, "_patterns", tuple(map(_pattern, lists)))
        object.__setattr__(self, "has_model_list", bool(lists))

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Everything whose change is a change of this caller."""
        own = (
            ("token", self.token_id),
            ("user", self.user_id),
            ("workspace", self.workspace_id),
            ("org", self.org_id),
        )
        return own if self.parent_id is None else (*own, ("token", self.parent_id))

    def may_batch(self) -> bool:
        """Return whether this token may begin batches, in which no limit and no list holds."""
        return BATCHES_SCOPE in self.scopes or not (self.limits or self.has_model_list)

    def may_use(self, model: str) -> bool:
        """Return whether this token may use the model of this name; upper and lower case differ."""
        return all(pattern.match(model) for pattern in self._patterns)

    def may_call_vendor(self, name: str) -> bool:
        """Return whether this token may call the vendor of this name."""
        lists = (self.vendors, self.parent_vendors)
        return all(names is None or name in names for names in lists)

    def may_call_from(self, address: str) -> bool:
        """Return whether this token may be used from this address; a list allows no unknown one.

        An IPv4 address that is mapped into IPv6 is that IPv4 address.
        """
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return not self.has_address_list
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        lists = (self.addresses, self.parent_addresses)
        return all(
            networks is None or any(parsed in network for network in networks) for networks in lists
        )


def _pattern(globs: Sequence[str]) -> re.Pattern[str]:
    """Return what matches any of these; a name with brackets in it is also itself."""
    if not globs:
        return re.compile(r"(?!)")  # an empty list allows nothing
    return re.compile("|".join([*map(translate, globs), *(rf"{re.escape(g)}\Z" for g in globs)]))
