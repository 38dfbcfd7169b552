"""What is remembered of tokens: bounded, and forgotten by whatever it depends on.

Keyed by the whole digest: a key cut short would let one token pass for another. The digest is
itself a secret, so that nothing here shows it.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, TypeVar

from gateway.auth.caller import Subject

Value = TypeVar("Value")


class TokenCache(Generic[Value]):
    """Values by digest, the least recently used going first; indexed by their subjects."""

    def __init__(self, *, entries_max: int) -> None:
        self._entries_max = entries_max
        # The least recently used first.
        self._entries: OrderedDict[bytes, tuple[Value, frozenset[Subject]]] = OrderedDict()
        self._by_subject: dict[Subject, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} entries>"

    def get(self, digest: bytes) -> Value | None:
        """Return what was put under this digest, if it is still there."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        self._entries.move_to_end(digest)
        return entry[0]

    def put(self, digest: bytes, value: Value, *, subjects: Iterable[Subject]) -> None:
        """Remember a value until a change to one of `subjects` evicts it."""
        self.discard(digest)
        if len(self._entries) >= self._entries_max:
            oldest, (_, its_subjects) = self._entries.popitem(last=False)
            self._unindex(oldest, its_subjects)
        entry = (value, frozenset(subjects))
        self._entries[digest] = entry
        for subject in entry[1]:
            self._by_subject.setdefault(subject, set()).add(digest)

    def discard(self, digest: bytes) -> None:
        """Forget what is under this digest, if anything is."""
        entry = self._entries.pop(digest, None)
        if entry is not None:
            self._unindex(digest, entry[1])

    def evict(self, subject: Subject) -> None:
        """Forget everything that depends on this subject."""
        for digest in tuple(self._by_subject.get(subject, ())):
            self.discard(digest)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._by_subject.clear()

    def _unindex(self, digest: bytes, subjects: frozenset[Subject]) -> None:
        for subject in subjects:
            digests = self._by_subject[subject]
            digests.discard(digest)
            if not digests:
                del self._by_subject[subject]
