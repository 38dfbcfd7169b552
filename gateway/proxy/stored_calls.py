"""Where calls and stored objects meet: what is noted of an answer, what of a list is passed on."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Protocol

from gateway.auth.caller import Caller
from gateway.proxy.held_relay import HeldRelay
from gateway.proxy.preparation import Request
from gateway.proxy.relay import Relay
from gateway.proxy.retrieval_relay import RetrievalRelay
from gateway.proxy.routing import Target
from gateway.proxy.stored_answer import StoredAnswer, StoredFacts
from gateway.proxy.stored_ids import Stored
from gateway.proxy.stored_owners import Holding
from gateway.proxy.stored_pages import Page, without_results_host
from gateway.proxy.stored_requests import Owners
from gateway.proxy.upload_relay import UploadRelay


class StoredRecords(Owners, Protocol):
    """Knows who made what, and takes note of it."""

    def note(
        self, stored: Iterable[Stored], *, caller: Caller, vendor_id: str, call_id: str
    ) -> None:
        """Record that an answer to this caller told of something stored."""

    async def find_listed(
        self, object_ids: Collection[str], *, org_id: str, vendor_id: str
    ) -> Mapping[str, Holding]:
        """Return those of a list's objects that are the org's. Raises DatabaseAway."""


def relay_class(stored: StoredAnswer) -> type[Relay]:
    """Return what passes an answer on, by what it has to do with stored objects."""
    if stored.facts.is_held:
        return HeldRelay
    if stored.facts.is_upload:
        return UploadRelay
    return RetrievalRelay if stored.facts.retrieves else Relay


class StoredCalls:
    """What the calls of one worker have to do with stored objects."""

    def __init__(self, records: StoredRecords) -> None:
        """`records` know who made what."""
        self.records: Final = records

    def watch(
        self, facts: StoredFacts, target: Target, *, caller: Caller, call_id: str
    ) -> StoredAnswer:
        """Return what watches the answer to a request that has to do with stored objects."""
        vendor_id = target.vendor_id

        def note(found: Sequence[Stored]) -> None:
            self.records.note(found, caller=caller, vendor_id=vendor_id, call_id=call_id)

        return StoredAnswer(facts, vendor_id=vendor_id, note=note)

    async def pass_on(
        self, relay: HeldRelay, request: Request, *, caller: Caller, call_id: str
    ) -> None:
        """Pass on what the caller may see of an answer that is held. Raises GatewayError."""
        facts, vendor_id = request.stored, request.target.vendor_id
        assert facts is not None

        async def edit(text: bytes) -> bytes:
            if facts.lists is not None:
                page = Page(text, rows_in=facts.lists)
                own = await self.records.find_listed(
                    page.ids, org_id=caller.org_id, vendor_id=vendor_id
                )
                self.records.note(
                    page.parts(own), caller=caller, vendor_id=vendor_id, call_id=call_id
                )
                text = page.only(own)
            return without_results_host(text) if facts.has_results_url else text

        await relay.answer(edit)
