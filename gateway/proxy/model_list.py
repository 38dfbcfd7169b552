"""Which models a caller may call, answered by the gateway itself in each wire format's shape.

A model is listed under the name by which a call reaches it: aliases, and of each vendor's own list
what a call to the same path prefix would be routed to. What a token may not use is not there.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final
from urllib.parse import parse_qs

from gateway.errors import BodyInvalid, GatewayError, NoRoute
from gateway.proxy.routing import RoutingTable, Target, is_exact
from gateway.vendors import anthropic, gemini
from gateway.vendors.vendor import MODELS_MAX, Model, WireFormat

LISTED_MAX: Final = 10_000  # in one answer
PARAMETERS_MAX: Final = 32  # of a query
PAGE_DIGITS_MAX: Final = 10  # of what a client asks for
PAGE_MAX: Final = 1_000  # models on a page, where a format has pages
ANTHROPIC_PAGE: Final = 20  # models on a page where the client doesn't say
GEMINI_PAGE: Final = 50

MayUse = Callable[[str], bool]
MayCall = Callable[[str], bool]  # a vendor by its name

_NO_MODEL: Final = "There is no such model, or this token may not use it."


class ModelDirectory:
    """What each vendor last said that it has."""

    def __init__(self) -> None:
        self._ids: dict[str, tuple[str, ...]] = {}
        self._created: dict[str, int] = {}

    def update(self, vendor_id: str, ids: Sequence[str], created: int = 0) -> None:
        """Take a vendor's list in, in place of the one before; `created` is in Unix seconds."""
        self._ids[vendor_id] = tuple(dict.fromkeys(ids))[:MODELS_MAX]
        self._created[vendor_id] = created

    def retain(self, vendor_ids: Collection[str]) -> None:
        """Forget the lists of all other vendors."""
        for vendor_id in self._ids.keys() - set(vendor_ids):
            del self._ids[vendor_id]
            del self._created[vendor_id]

    def list_body(
        self,
        *,
        wire: WireFormat,
        vendor: str | None,
        table: RoutingTable,
        may_use: MayUse,
        may_call: MayCall = lambda _: True,
        query: bytes = b"",
    ) -> bytes:
        """Return the list, or the page of it that the query asks for, as JSON.

        `vendor` is the one that the path names, None for all. Raises NoRoute for one that is not
        there, BodyInvalid for a query that can't be followed.
        """
        listed = self._listed(
            wire=wire, vendor=vendor, table=table, may_use=may_use, may_call=may_call
        )
        models: list[Model] = []
        for model in listed:
            models.append(model)
            if len(models) == LISTED_MAX:
                break
        parameters = _parameters(query)
        has_more = False
        if wire.name == anthropic.FORMAT.name:
            models, has_more = _anthropic_page(models, parameters)
        elif wire.name == gemini.FORMAT.name:
            models, has_more = _gemini_page(models, parameters)
        return wire.models_list_body(models, has_more=has_more)

    def model_body(
        self,
        model: str,
        *,
        wire: WireFormat,
        vendor: str | None,
        table: RoutingTable,
        may_use: MayUse,
        may_call: MayCall = lambda _: True,
    ) -> bytes:
        """Return one model as JSON. Raises NoRoute where it is not in the list."""
        for one in self._listed(
            wire=wire, vendor=vendor, table=table, may_use=may_use, may_call=may_call
        ):
            if one.id == model:
                return wire.model_body(one)
        raise NoRoute(_NO_MODEL)

    def _listed(
        self,
        *,
        wire: WireFormat,
        vendor: str | None,
        table: RoutingTable,
        may_use: MayUse,
        may_call: MayCall,
    ) -> Iterator[Model]:
        """Yield what a caller can call, each name once, always in the same order."""
        if vendor is not None:
            target = table.target(vendor)
            if target is None:
                raise NoRoute("The gateway has no vendor of this name.")
            if may_call(vendor):
                yield from (one for one in self._of_vendor(target) if may_use(one.id))
            return
        seen: set[str] = set()
        for alias in table.models_for(wire.name):
            seen.add(alias)
            if may_use(alias) and may_call(table.aliases[alias][0]):
                yield Model(id=alias, owner=table.aliases[alias][0])
        for target in table.targets:
            if wire.name not in target.kind.groups or not may_call(target.name):
                continue
            for one in self._of_vendor(target):
                if one.id not in seen and may_use(one.id) and _reaches(table, one.id, target):
                    seen.add(one.id)
                    yield one

    def _of_vendor(self, target: Target) -> Iterator[Model]:
        """Yield what a vendor is configured to take by name, then what it says that it has."""
        names = [name for name in target.models or () if is_exact(name)]
        created = self._created.get(target.vendor_id, 0)
        for name in dict.fromkeys([*names, *self._ids.get(target.vendor_id, ())]):
            yield Model(id=name, owner=target.name, created=created)


def _reaches(table: RoutingTable, model: str, target: Target) -> bool:
    """Return whether a call with just this model's name goes to a target."""
    try:
        route = table.route(wire_name=target.kind.groups[0], vendor=None, model=model)
    except GatewayError:  # another wire format's, or a vendor whose key can't be used
        return False
    return route.targets[0] is target


def _parameters(query: bytes) -> dict[str, str]:
    """Return a query's parameters, of each name the last one. Raises BodyInvalid."""
    try:
        parsed = parse_qs(
            query.decode("latin-1"), keep_blank_values=True, max_num_fields=PARAMETERS_MAX
        )
    except ValueError as error:
        raise BodyInvalid("The query has too many parameters.") from error
    return {name: values[-1] for name, values in parsed.items()}


def _anthropic_page(models: list[Model], parameters: dict[str, str]) -> tuple[list[Model], bool]:
    """Return the page after `after_id`, or before `before_id`, and whether there is more beyond."""
    size = _page_size(parameters, "limit", default=ANTHROPIC_PAGE)
    after, before = parameters.get("after_id"), parameters.get("before_id")
    if after and before:
        raise BodyInvalid("'after_id' and 'before_id' exclude each other.", param="after_id")
    if before:
        end = _position(models, before, "before_id")
        start = max(0, end - size)
        return models[start:end], start > 0
    start = _position(models, after, "after_id") + 1 if after else 0
    return models[start : start + size], start + size < len(models)


def _gemini_page(models: list[Model], parameters: dict[str, str]) -> tuple[list[Model], bool]:
    """Return the page after the model that `pageToken` names, and whether there is more."""
    size = _page_size(parameters, "pageSize", default=GEMINI_PAGE)
    token = parameters.get("pageToken")
    start = _position(models, token, "pageToken") + 1 if token else 0
    return models[start : start + size], start + size < len(models)


def _page_size(parameters: dict[str, str], name: str, *, default: int) -> int:
    """Return how many models a page has; more than PAGE_MAX are PAGE_MAX. Raises BodyInvalid."""
    text = parameters.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= PAGE_DIGITS_MAX and int(text) > 0):
        raise BodyInvalid(f"'{name}' is not a number above zero.", param=name)
    return min(int(text), PAGE_MAX)


def _position(models: list[Model], model_id: str, name: str) -> int:
    for at, model in enumerate(models):
        if model.id == model_id:
            return at
    raise BodyInvalid(f"'{name}' names no model in the list.", param=name)
