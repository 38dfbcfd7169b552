"""Where a call goes: from a vendor's name or a model's name to targets, in order.

A vendor that the path names comes first; then an alias; then the vendor with the most specific
pattern for the model; then the wire format's default. Nothing is translated: only vendors that
talk as the client does are candidates, and where a name leads to another one, the refusal says so.

Pure, and shared with the control plane, which refuses ambiguity when it is configured.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from itertools import combinations
from typing import Final, NamedTuple, Protocol

from gateway.connect_guard import BaseUrl
from gateway.errors import NoRoute, VendorKeyRefused
from gateway.vendors.credential import Signer
from gateway.vendors.vendor import MODEL_ID_CHARS_MAX, VendorKind

KNOWN_ROUTES_MAX: Final = 4_096  # remembered; the names of models are whatever clients say

_WILD: Final = re.compile(r"[*?\[]")
_WILD_TOKENS: Final = frozenset("*?")
_ANYTHING: Final = (False, 0, 0)  # how specific '*' is
_OTHER_FORMAT: Final = (
    "leads to a vendor that talks in another wire format, and the gateway translates nothing. "
    "Call it by that format's path."
)
_KEY_UNUSABLE: Final = (
    "The gateway can't use its own key for this vendor. Tell the gateway's operator; "
    "your token is fine."
)


class Origin(NamedTuple):
    """Where connections go: what two targets must share to share a connection."""

    scheme: str
    host: str
    port: int
    allow_private: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A vendor as a call needs it.

    `models` are the names or globs of the models that it takes, None where nothing is said.
    `asks_usage`: streams report usage only when asked. `account_headers`: clients may select an
    account of the vendor's. `signer` makes what the credential adds to each request, None where it
    is the same header for all. `problem` says why it can't be called, None where it can.
    """

    vendor_id: str
    name: str
    kind: VendorKind
    base: BaseUrl
    is_private: bool
    is_default: bool
    models: tuple[str, ...] | None
    asks_usage: bool
    account_headers: bool
    is_simulator: bool
    credential: tuple[bytes, bytes] = field(repr=False)  # name (lower case) and value of a header
    key: bytes = field(repr=False)  # looked for in what the vendor answers
    problem: str | None = None
    signer: Signer | None = None
    head: bytes = field(init=False, repr=False, compare=False)  # its own lines of a request's head
    origin: Origin = field(init=False, repr=False, compare=False)  # where its connections go

    def __post_init__(self) -> None:
        base = self.base
        origin = Origin(
            scheme=base.scheme, host=base.host, port=base.port, allow_private=self.is_private
        )
        object.__setattr__(self, "origin", origin)
        name, value = self.credential
        host = self.base.authority.encode()
        credential = b"%b: %b\r\n" % (name, value) if name else b""
        object.__setattr__(self, "head", b"host: %b\r\n%b" % (host, credential))

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """What is looked for in what the vendor answers."""
        return (self.key,) if self.signer is None else self.signer.secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a call may go. `model` is the vendor's name for it, `alias` what the client said."""

    targets: tuple[Target, ...]
    model: str | None
    alias: str | None = None


class Patterned(Protocol):
    """What is compared of a vendor when it is configured."""

    @property
    def name(self) -> str:
        """The vendor's name."""
        ...

    @property
    def kind(self) -> VendorKind:
        """How it is called."""
        ...

    @property
    def models(self) -> Sequence[str] | None:
        """Names or globs of the models that it takes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pattern:
    """A glob of a target, compiled."""

    text: str
    compiled: re.Pattern[str]
    target: Target


class RoutingTable:
    """All targets and aliases at one time; never changes, so what was found once is remembered."""

    def __init__(
        self,
        targets: Iterable[Target],
        aliases: Mapping[str, tuple[str, str]] | None = None,
        *,
        base: "RoutingTable | None" = None,
        disabled: Collection[str] = (),
    ) -> None:
        """`targets` in the order in which they were added; `aliases`: name → (vendor, model).

        `base` is what comes after all of these: a name, an alias, a pattern or a default is looked
        for in it where there is none here. Its targets whose names are taken here are not called:
        by one of `targets`, or by a `disabled` one, for who turns a vendor off wants no other one
        called in its place.
        """
        own = tuple(targets)
        off = frozenset(disabled)
        self.disabled: Final[frozenset[str]] = off if base is None else off | base.disabled
        names = {target.name for target in own} | off
        inherited: tuple[Target, ...] = () if base is None else base.targets
        self.targets: Final[tuple[Target, ...]] = (
            *own, *(one for one in inherited if one.name not in names),
        )  # fmt: skip
        self.aliases: Final[Mapping[str, tuple[str, str]]] = {
            **(base.aliases if base is not None else {}), **(aliases or {}),
        }  # fmt: skip
        self._base = base
        self._by_name = {target.name: target for target in self.targets}
        self.defaults: Final[dict[str, Target]] = {}  # by group
        self._exact: dict[tuple[str, str], Target] = {}  # by group of paths and model
        self._patterns: dict[str, list[_Pattern]] = {}  # by group, the most specific first
        self._known: dict[tuple[str, str | None, str | None], Route] = {}  # found before
        if base is not None:
            self._take_defaults(one for one in own if one.is_default)
            for group, target in base.defaults.items():
                if target.name in self._by_name:
                    self._take_defaults([self._by_name[target.name]], groups=(group,))
        self._take_defaults(sorted(own, key=lambda one: not one.is_default))
        for target in own:
            self._add_patterns(target)
        for patterns in self._patterns.values():
            patterns.sort(key=lambda one: specificity(one.text), reverse=True)

    def _take_defaults(
        self, targets: Iterable[Target], *, groups: Sequence[str] | None = None
    ) -> None:
        """Let the first of these that a group can have be its default, where it has none yet."""
        for target in targets:
            for group in target.kind.groups:
                if groups is None or group in groups:
                    self.defaults.setdefault(group, target)

    def _add_patterns(self, target: Target) -> None:
        for group in target.kind.groups:
            for text in target.models or ():
                self._exact.setdefault((group, text), target)  # a name may have brackets in it
                if _WILD.search(text):
                    compiled = re.compile(translate(text))
                    pattern = _Pattern(text=text, compiled=compiled, target=target)
                    self._patterns.setdefault(group, []).append(pattern)

    def target(self, name: str) -> Target | None:
        """Return the target of this name, or None."""
        return self._by_name.get(name)

    def route(self, *, wire_name: str, vendor: str | None, model: str | None) -> Route:
        """Return where a call goes, as its client talks and says. Raises NoRoute.

        `wire_name` is the group of the path: a wire format, or a kind of vendor with its own paths.

        Raises VendorKeyRefused where the first target can't be called for its key.
        """
        asked = wire_name, vendor, model
        route = self._known.get(asked)
        if route is None:
            route = self._route(wire_name=wire_name, vendor=vendor, model=model)
            if len(self._known) < KNOWN_ROUTES_MAX:
                self._known[asked] = route
        if route.targets[0].problem is not None:
            raise VendorKeyRefused(_KEY_UNUSABLE)
        return route

    def _route(self, *, wire_name: str, vendor: str | None, model: str | None) -> Route:
        if vendor is not None:
            target = self._by_name.get(vendor)
            if target is None:
                raise NoRoute(
                    "This vendor is disabled."
                    if vendor in self.disabled
                    else "The gateway has no vendor of this name."
                )
            if wire_name not in target.kind.groups:
                raise NoRoute(f"This path {_OTHER_FORMAT}")
            return Route(targets=(target,), model=model)
        if model is not None:
            alias = self.aliases.get(model)
            if alias is not None:
                return self._alias(model, alias, wire_name=wire_name)
            target = self.match_model(model, wire_name)
            if target is not None:
                return Route(targets=(target,), model=model)
        target = self.defaults.get(wire_name)
        if target is None and model is not None and self.is_elsewhere(model, wire_name):
            raise NoRoute(f"This model {_OTHER_FORMAT}")
        if target is None:
            raise NoRoute("The gateway has no vendor for this wire format.")
        return Route(targets=(target,), model=model)

    def _alias(self, name: str, alias: tuple[str, str], *, wire_name: str) -> Route:
        vendor, model = alias
        target = self._by_name.get(vendor)
        if target is None:
            gone = "is disabled" if vendor in self.disabled else "the gateway no longer has"
            raise NoRoute(f"This model is an alias for a vendor that {gone}.")
        if wire_name not in target.kind.groups:
            raise NoRoute(f"This model is an alias. It {_OTHER_FORMAT}")
        return Route(targets=(target,), model=model, alias=name)

    def match_model(self, model: str, wire_name: str) -> Target | None:
        """Return the target with the most specific pattern for a model."""
        exact = self._exact.get((wire_name, model))
        if exact is not None:
            return exact
        for pattern in self._patterns.get(wire_name, ()):
            if pattern.compiled.match(model):
                return pattern.target
        found = None if self._base is None else self._base.match_model(model, wire_name)
        named = None if found is None else self._by_name.get(found.name)
        return named if named is not None and wire_name in named.kind.groups else None

    def is_elsewhere(self, model: str, wire_name: str) -> bool:
        """Return whether a vendor of another wire format claims a model, by more than '*'."""
        groups = {group for target in self.targets for group in target.kind.groups}
        for other in groups - {wire_name}:
            if (other, model) in self._exact:
                return True
            for pattern in self._patterns.get(other, ()):
                if specificity(pattern.text) > _ANYTHING and pattern.compiled.match(model):
                    return True
        return self._base is not None and self._base.is_elsewhere(model, wire_name)

    def models_for(self, wire_name: str) -> tuple[str, ...]:
        """Return the aliases that a client of this wire format can use, in order of name."""
        return tuple(
            name
            for name, (vendor, _) in sorted(self.aliases.items())
            if vendor in self._by_name and wire_name in self._by_name[vendor].kind.groups
        )


def model_problem(name: str) -> str | None:
    """Return what is wrong with a model's name, as the rest of a sentence, or None."""
    if not name:
        return "is empty"
    if len(name) > MODEL_ID_CHARS_MAX:
        return f"is longer than {MODEL_ID_CHARS_MAX} characters"
    if not name.isprintable():
        return "has control characters in it"
    if name[0] == " " or name[-1] == " ":
        return "has spaces around it"
    return None


def is_exact(pattern: str) -> bool:
    """Return whether a pattern is just a model's name."""
    return _WILD.search(pattern) is None


def specificity(pattern: str) -> tuple[bool, int, int]:
    """Return how specific a pattern is; of two, the greater one decides.

    A name beats a glob, a longer beginning without wildcards a shorter one, then more characters
    without wildcards fewer.
    """
    wild = _WILD.search(pattern)
    if wild is None:
        return True, len(pattern), len(pattern)
    return False, wild.start(), sum(token not in _WILD_TOKENS for token in _tokens(pattern))


def find_ambiguities(vendors: Iterable[Patterned]) -> list[str]:
    """Return a text for each two vendors of which a model could mean either: equally specific."""
    claims: dict[tuple[str, tuple[bool, int, int]], list[tuple[str, str]]] = {}
    for vendor in vendors:
        for pattern in dict.fromkeys(vendor.models or ()):
            for group in vendor.kind.groups:
                key = group, specificity(pattern)
                claims.setdefault(key, []).append((vendor.name, pattern))
    found = [
        f"'{one_pattern}' of vendor '{one}' and '{other_pattern}' of vendor '{other}' are equally "
        "specific for the same model."
        for alike in claims.values()
        for (one, one_pattern), (other, other_pattern) in combinations(alike, 2)
        if one != other and _overlap(one_pattern, other_pattern)
    ]
    return list(dict.fromkeys(found))  # two may meet in more than one group


def _tokens(pattern: str) -> list[str]:
    """Return a glob's characters; a set in brackets counts as any one character, '?'."""
    characters: list[str] = []
    at = 0
    while at < len(pattern):
        end = pattern.find("]", at + 2) if pattern[at] == "[" else -1
        characters.append("?" if end > 0 else pattern[at])
        at = end + 1 if end > 0 else at + 1
    return characters


def _overlap(one: str, other: str) -> bool:
    """Return whether a name may match both globs."""
    ones, others = _tokens(one), _tokens(other)
    # reached[j]: whether a text may match what was read of `ones` and the first j of `others`.
    reached = [all(theirs == "*" for theirs in others[:j]) for j in range(len(others) + 1)]
    for mine in ones:
        before, reached = reached, [reached[0] and mine == "*"]
        for j, theirs in enumerate(others, start=1):
            if "*" in (mine, theirs):
                reached.append(before[j] or reached[j - 1])
            else:
                reached.append(before[j - 1] and (mine == theirs or "?" in (mine, theirs)))
    return reached[-1]
