"""What an answer has to do with stored objects: the ids that it tells, the usage that it may tell.

One for each attempt of a call whose endpoint stores or retrieves; the relay feeds it the same copy
as the meter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.metering.usage import Usage, told_later
from gateway.proxy.call_row import MeteredObject
from gateway.proxy.resumable_uploads import BegunUpload
from gateway.proxy.stored_ids import Stored, Watcher, open_watcher, wants_nothing
from gateway.proxy.stored_paths import Answer, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFacts:
    """What a request means for what is stored.

    - `tells`: how its answer names what is stored; None where nothing is.
    - `kind`: what the answer's own object is, where the request knows it better.
    - `object_id`: the object whose usage the answer tells; else it is the answer's own.
    - `sent_ids`: ids that the request gave to what it sends; the vendor repeats them.
    - `retrieves`, `defers`: as `StoredUse`.
    - `lists`: the answer is a page of objects, with its rows in this member.
    - `has_results_url`: the answer says where a batch's results are.
    - `is_upload`: the answer may say where an upload goes on; `begins_upload`: and has to.
    """

    tells: Answer | None = None
    kind: Kind | None = None
    object_id: str | None = None
    sent_ids: frozenset[str] = frozenset()
    retrieves: bool = False
    defers: bool = False
    lists: str | None = None
    has_results_url: bool = False
    is_upload: bool = False
    begins_upload: BegunUpload | None = None

    @property
    def is_held(self) -> bool:
        """Whether the answer is passed on only once it is whole, for there are edits to make."""
        return self.lists is not None or self.has_results_url


class StoredAnswer:
    """Watches one answer."""

    def __init__(
        self, facts: StoredFacts, *, vendor_id: str, note: Callable[[Sequence[Stored]], None]
    ) -> None:
        """`note` is told of what is stored, as soon as an answer tells it."""
        self.facts: Final = facts
        self._vendor_id = vendor_id
        self._note = note
        self._watcher: Watcher | None = None
        self._object_id = facts.object_id

    def begin(self, *, content_type: bytes, content_encoding: bytes) -> None:
        """A good answer begins."""
        if self.facts.tells is not None:
            self._watcher = open_watcher(
                self.facts.tells, content_type=content_type, content_encoding=content_encoding
            )

    @property
    def wants(self) -> Callable[[bytes], bool] | None:
        """What tells whether whole events have to be fed; None: whatever comes next has to be."""
        return wants_nothing if self._watcher is None else self._watcher.wants

    def feed(self, data: bytes) -> None:
        """Take in bytes of the answer as they came."""
        if self._watcher is not None:
            self.tell(self._watcher.feed(data))

    def finish(self) -> None:
        """Nothing more comes."""
        if self._watcher is not None:
            self.tell(self._watcher.finish())

    def tell(self, found: Sequence[Stored]) -> None:
        """Note what the answer says is stored, but for what the request said."""
        found = [one for one in found if one.object_id not in self.facts.sent_ids]
        if not found:
            return
        kind = self.facts.kind
        if kind is not None:
            found = [one._replace(kind=kind) if one.is_whole else one for one in found]
        if self._object_id is None:
            self._object_id = next((one.object_id for one in found if one.is_whole), None)
        self._note(found)

    def usage(self, usage: Usage) -> Usage:
        """Return what the call's row may tell of what the vendor reported."""
        return told_later(usage, retrieves=self.facts.retrieves, defers=self.facts.defers)

    @property
    def metered_object(self) -> MeteredObject | None:
        """The object whose usage the row tells; None: of none that is stored."""
        if self._object_id is None:
            return None
        return MeteredObject(
            vendor_id=self._vendor_id,
            object_id=self._object_id,
            is_retrieved=self.facts.retrieves,
            is_deferred=self.facts.defers,
        )
