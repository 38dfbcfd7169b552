"""Open calls by whom they belong to, so that they can be cut, and one org's be bounded.

Every call is registered and unregistered, so both cost a dictionary look-up and a set operation.
What takes longer is done once for a token and not for each call: its group is indexed by token,
parent, user, workspace and org, and stays when its last call ends, until there are many.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from gateway.auth.caller import Caller, Subject
from gateway.errors import GatewayError, TokenRevoked, TooManyOpenCalls

GROUPS_MANY: Final = 16_384  # tokens; below it, those without an open call may stay


class LiveCall(Protocol):
    """An open call."""

    @property
    def caller(self) -> Caller:
        """Who makes it."""
        ...

    def cut(self, error: GatewayError) -> None:
        """End it now, in the wire format's own way; may unregister it."""
        ...


class _Group:
    """The open calls of one token, and every subject under which they are found."""

    __slots__ = ("caller", "calls", "subjects")

    def __init__(self) -> None:
        self.caller: Caller | None = None  # the one registered last; its subjects are in the index
        self.calls: set[LiveCall] = set()
        self.subjects: set[Subject] = set()


class LiveCalls:
    """The open calls of one worker."""

    def __init__(
        self, *, on_cut_failed: Callable[[Exception], None], calls_per_org_max: int | None = None
    ) -> None:
        """`on_cut_failed` hears what the cut of a call raised; the others are cut all the same.

        `calls_per_org_max`: how many calls one org may have open; None: no bound.
        """
        self._on_cut_failed = on_cut_failed
        self._calls_per_org_max = calls_per_org_max
        self._by_org: Counter[str] = Counter()  # counted where there is a bound
        self._groups: OrderedDict[str, _Group] = OrderedDict()  # by token id
        self._index: dict[Subject, set[_Group]] = {}

    def __iter__(self) -> Iterator[LiveCall]:
        """Go over the calls that are open now; they may end meanwhile."""
        return iter([call for group in self._groups.values() for call in group.calls])

    @property
    def count(self) -> int:
        """How many calls are open."""
        return sum(len(group.calls) for group in self._groups.values())

    def token_ids(self) -> list[str]:
        """Return the tokens with an open call."""
        return [token_id for token_id, group in self._groups.items() if group.calls]

    def register(self, call: LiveCall) -> None:
        """Take in a call that begins. `call.caller` stays the same until it is unregistered.

        Raises TooManyOpenCalls; then it is not taken in.
        """
        caller = call.caller
        if self._calls_per_org_max is not None:
            if self._by_org[caller.org_id] >= self._calls_per_org_max:
                raise TooManyOpenCalls(calls_max=self._calls_per_org_max)
            self._by_org[caller.org_id] += 1
        group = self._groups.get(caller.token_id)
        if group is None or group.caller is not caller:
            group = self._group_of(caller)
        group.calls.add(call)

    def unregister(self, call: LiveCall) -> None:
        """Let a call go that has ended; again is no mistake."""
        group = self._groups.get(call.caller.token_id)
        if group is None or call not in group.calls:
            return
        group.calls.remove(call)
        if self._calls_per_org_max is not None:
            org_id = call.caller.org_id
            self._by_org[org_id] -= 1
            if not self._by_org[org_id]:
                del self._by_org[org_id]

    def cut(
        self, kind: str, subject_id: str, reason: Callable[[], GatewayError] = TokenRevoked
    ) -> int:
        """Cut the open calls of a token and its child tokens, a user, a workspace or an org.

        `reason` makes the error that each of them ends with. Return how many were cut.
        """
        subject = kind, subject_id
        return self._cut(
            [
                call
                for group in self._index.get(subject, ())
                for call in group.calls
                if subject in call.caller.subjects
            ],
            reason,
        )

    def cut_all(self, reason: Callable[[], GatewayError]) -> int:
        """Cut every open call. Return how many were cut."""
        return self._cut(list(self), reason)

    def _cut(self, calls: list[LiveCall], reason: Callable[[], GatewayError]) -> int:
        cut = 0
        for call in calls:
            try:
                call.cut(reason())
            except Exception as error:  # noqa: BLE001 - one call's trouble is not the others'
                self._on_cut_failed(error)
            else:
                cut += 1
        return cut

    def _group_of(self, caller: Caller) -> _Group:
        """Return the group of a token, found under all subjects of this caller."""
        group = self._groups.get(caller.token_id)
        if group is None:
            if len(self._groups) >= GROUPS_MANY:
                self._drop_old()
            group = self._groups[caller.token_id] = _Group()
        group.caller = caller
        for subject in caller.subjects:
            if subject not in group.subjects:
                group.subjects.add(subject)
                self._index.setdefault(subject, set()).add(group)
        return group

    def _drop_old(self) -> None:
        """Drop the two oldest groups, if they have no call: more go than come."""
        for _ in range(2):
            token_id, group = self._groups.popitem(last=False)
            if group.calls:
                self._groups[token_id] = group
                continue
            for subject in group.subjects:
                groups = self._index[subject]
                groups.discard(group)
                if not groups:
                    del self._index[subject]
