"""The last changes, by subject: whether one came after a look at the database."""

from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

VENDORS: Final = "vendors"  # the kind of a change to vendors or aliases
CHANGES_KEPT_MAX: Final = 10_000  # a lookup that took longer than these is made again


class Change(NamedTuple):
    """A row of the change log. `subject_id` is None for kind 'vendors'.

    `effect`: 'dead' ends the subject's open streams, 'changed' only what is remembered of it,
    'limit' also calls its blocks back.
    """

    ordinal: int
    kind: str
    subject_id: str | None
    effect: str


class RecentChanges:
    """Every change in (floor, newest], and for each subject its newest ordinal."""

    def __init__(self, *, kept_max: int = CHANGES_KEPT_MAX) -> None:
        """`kept_max` bounds the memory; older changes are out of reach."""
        self._kept_max = kept_max
        self._floor = 0
        self._changes: deque[Change] = deque()
        self._newest: dict[tuple[str, str | None], int] = {}

    def start_at(self, ordinal: int) -> None:
        """Forget everything; what came up to `ordinal` is out of reach."""
        self._floor = ordinal
        self._changes.clear()
        self._newest.clear()

    def add(self, changes: Iterable[Change]) -> None:
        """Take in the next changes, in order."""
        for change in changes:
            self._changes.append(change)
            self._newest[change.kind, change.subject_id] = change.ordinal
        while len(self._changes) > self._kept_max:
            oldest = self._changes.popleft()
            self._floor = oldest.ordinal
            subject = oldest.kind, oldest.subject_id
            if self._newest[subject] == oldest.ordinal:
                del self._newest[subject]

    def touched_since(
        self, ordinal: int, subjects: Iterable[tuple[str, str | None]]
    ) -> bool | None:
        """Return whether one of the subjects changed after `ordinal`; None: out of reach."""
        if any(self._newest.get(subject, ordinal) > ordinal for subject in subjects):
            return True
        return None if ordinal < self._floor else False
