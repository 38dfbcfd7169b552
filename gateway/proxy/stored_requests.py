"""Whose are the stored objects that a request names: in its path, its query, its body.

Everything that it names has to be the caller's org's, at the vendor that the call goes to; before
that is known nothing goes anywhere. A path without a model in it goes to the vendor that holds what
it names.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Final, Protocol
from urllib.parse import unquote_plus

from gateway.auth.caller import Caller
from gateway.errors import BatchesNotAllowed, BodyInvalid, ModelNotAllowed, NotYours
from gateway.metering.meter import MeterFormat
from gateway.proxy.body import DecidingFields
from gateway.proxy.endpoints import Endpoint, Match
from gateway.proxy.routing import RoutingTable, Target
from gateway.proxy.stored_answer import StoredFacts
from gateway.proxy.stored_batches import batch_models
from gateway.proxy.stored_objects import Named, item_ids, says
from gateway.proxy.stored_owners import Holding
from gateway.proxy.stored_paths import Answer, Kind, StoredUse
from gateway.vendors import anthropic, gemini

_CURSORS: Final = frozenset({"after", "before", "after_id", "before_id"})
_INPUT_FILE: Final = "input_file_id"
# What may be fetched later: its usage is told then.
_BACKGROUND: Final = (Answer.RESPONSE, Answer.INTERACTION)
# Not together with that: the answer could be read where nothing is metered, in its conversation, or
# its id would be the client's choice, that of an answer which was metered before.
_NOT_IN_BACKGROUND: Final = ("conversation", "request_id")


class Owners(Protocol):
    """Knows who made what."""

    async def find(
        self, object_ids: Collection[str], *, org_id: str, vendor_ids: Collection[str]
    ) -> Mapping[str, Holding]:
        """Return those objects that the org has at one of the vendors. Raises DatabaseAway."""


class StoredRequests:
    """Checks the requests of one worker."""

    def __init__(self, owners: Owners, *, routing: Callable[[Caller | None], RoutingTable]) -> None:
        """`routing` gives a caller's table."""
        self._owners = owners
        self._routing = routing

    async def locate(
        self, match: Match, object_id: str, *, caller: Caller
    ) -> tuple[Target, Holding]:
        """Return who holds the object that a path names.

        Raises NotYours, DatabaseAway, and what `RoutingTable.route` raises.
        """
        return await self._holder(match, object_id, caller=caller, param=None)

    async def _holder(
        self, match: Match, object_id: str, *, caller: Caller, param: str | None
    ) -> tuple[Target, Holding]:
        targets = self._candidates(match, caller=caller)
        vendor_ids = [target.vendor_id for target in targets]
        found = await self._owners.find([object_id], org_id=caller.org_id, vendor_ids=vendor_ids)
        holding = found.get(object_id)
        if holding is None:
            raise NotYours(None if param is None else _message(param), param=param)
        name = next(one.name for one in targets if one.vendor_id == holding.vendor_id)
        wire_name = match.endpoint.routed_by
        route = self._routing(caller).route(wire_name=wire_name, vendor=name, model=None)
        return route.targets[0], holding

    def _candidates(self, match: Match, *, caller: Caller) -> list[Target]:
        """Return the vendors that may hold what a path names. Raises NoRoute where none can."""
        wire_name = match.endpoint.routed_by
        if match.vendor is not None:
            route = self._routing(caller).route(
                wire_name=wire_name, vendor=match.vendor, model=None
            )
            return list(route.targets)
        return [one for one in self._routing(caller).targets if wire_name in one.kind.groups]

    async def check_named(
        self, named: Iterable[Named], *, caller: Caller, target: Target
    ) -> Mapping[str, Holding]:
        """Return who holds what a body names, all of it the caller's. Raises NotYours."""
        params = {one.object_id: one.param for one in named}
        if not params:
            return {}
        found = await self._owners.find(
            params.keys(), org_id=caller.org_id, vendor_ids=(target.vendor_id,)
        )
        for object_id, param in params.items():
            if object_id not in found:
                raise NotYours(_message(param), param=param)
        return found

    async def check_cursors(self, query: bytes, *, caller: Caller, target: Target) -> None:
        """Raise NotYours where a list is to go on from somebody else's object."""
        named = []
        for part in query.split(b"&"):
            name, _, value = part.decode("latin-1").partition("=")
            name, value = unquote_plus(name), unquote_plus(value)
            if name.partition("[")[0] in _CURSORS and value:
                named.append(Named(name, value))
        await self.check_named(named, caller=caller, target=target)

    async def batch_vendor(
        self, match: Match, fields: DecidingFields, named: Collection[Named], *, caller: Caller
    ) -> str | None:
        """Return the vendor that a batch goes to, None where any will do; it may be begun.

        Raises BatchesNotAllowed, ModelNotAllowed, NotYours, BodyInvalid.
        """
        if not caller.may_batch():
            raise BatchesNotAllowed
        if match.endpoint.wire is anthropic.FORMAT:
            return self._vendor_of_models(match, batch_models(fields.text), caller=caller)
        vendor = match.vendor
        for one in named:
            if one.param == _INPUT_FILE:
                target, holding = await self._holder(
                    match, one.object_id, caller=caller, param=one.param
                )
                vendor = target.name
                if holding.kind != Kind.BATCH_INPUT:
                    raise BodyInvalid(
                        "This file was not uploaded as one of a batch: upload it as a plain form "
                        "with the purpose 'batch'.",
                        param=_INPUT_FILE,
                    )
        return vendor

    def _vendor_of_models(self, match: Match, models: set[str], *, caller: Caller) -> str | None:
        """Return the one vendor that takes all requests of a batch."""
        if not all(map(caller.may_use, models)):
            raise ModelNotAllowed(param="model")
        vendors = set()
        for model in models:
            route = self._routing(caller).route(
                wire_name=match.endpoint.routed_by, vendor=match.vendor, model=model
            )
            if route.alias is not None:
                raise BodyInvalid("An alias can't be used inside a batch.", param="model")
            vendors.add(route.targets[0].name)
        if len(vendors) > 1:
            raise BodyInvalid("The models of a batch are of several vendors.", param="model")
        return vendors.pop() if vendors else match.vendor


def facts_of(
    endpoint: Endpoint,
    *,
    object_id: str | None = None,
    holding: Holding | None = None,
    fields: DecidingFields | None = None,
    is_batch_input: bool = False,
) -> StoredFacts | None:
    """Return what a request means for what is stored, None where that is nothing.

    `object_id` and `holding`: what its path names. Raises BodyInvalid for an answer that is to be
    fetched later where none can be, or where it can't be metered then.
    """
    use = endpoint.stored
    background = fields is not None and fields.background
    if background and (use is None or use.tells not in _BACKGROUND):
        raise BodyInvalid(
            "An answer that is fetched later can't be metered here. Leave out 'background'.",
            param="background",
        )
    for name in _NOT_IN_BACKGROUND if background else ():
        if fields is not None and says(fields.text, name):
            raise BodyInvalid(
                f"'{name}' can't be metered together with 'background'. Leave one of them out.",
                param=name,
            )
    if use is None or not _has_to_do(use, fields, background=background):
        return None
    metered = object_id if use.retrieves else None
    if use.retrieves and holding is not None and holding.parent_id is not None:
        metered = holding.parent_id
    sent_ids: frozenset[str] = frozenset()
    if use.tells is Answer.ITEMS and fields is not None and endpoint.items_in is not None:
        sent_ids = item_ids(fields.text, items_in=endpoint.items_in)
    return StoredFacts(
        tells=use.tells,
        kind=Kind.BATCH_INPUT if is_batch_input else None,
        object_id=metered,
        sent_ids=sent_ids,
        retrieves=use.retrieves,
        defers=use.defers or background,
        lists=use.lists,
        has_results_url=use.tells_results_url,
        is_upload=endpoint.body == "upload" and endpoint.wire is gemini.FORMAT,
    )


def _has_to_do(use: StoredUse, fields: DecidingFields | None, *, background: bool) -> bool:
    if use.always or background or fields is None:
        return True
    said = fields.members.store
    return use.stores_by_default if not said else bytes(said) == b"true"


def metered_endpoint(endpoint: Endpoint, holding: Holding) -> Endpoint:
    """Return the endpoint as it meters this object: of files only a batch's results tell usage."""
    if endpoint.meter != MeterFormat.OPENAI_BATCH_OUTPUT or holding.kind == Kind.BATCH_OUTPUT:
        return endpoint
    return replace(endpoint, meter=MeterFormat.NONE, stored=StoredUse(names=True))


def _message(param: str) -> str:
    return (
        f"'{param}' names an object stored at the vendor that the gateway does not know as yours."
    )
