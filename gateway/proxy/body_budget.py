"""How much request bodies may hold: a worker's budget in bytes, with a share for each holder."""

from collections.abc import Iterable

from gateway.errors import BodyBudgetSpent
from gateway.limits import BODY_BUDGET_BYTES, BODY_SHARE_MAX


class BodyBudget:
    """What all request bodies of a worker hold together; no org and no address gets it all."""

    def __init__(
        self, bytes_max: int = BODY_BUDGET_BYTES, share_max: float = BODY_SHARE_MAX
    ) -> None:
        """`bytes_max` in all, `share_max` of it for one holder."""
        self._bytes_max = bytes_max
        self._share_bytes_max = int(bytes_max * share_max)
        self._held: dict[str, int] = {}
        self.held_bytes = 0

    def take(self, size: int, holders: Iterable[str]) -> None:
        """Take `size` bytes on account of `holders`. Raises BodyBudgetSpent; then none is taken."""
        if self.held_bytes + size > self._bytes_max:
            raise BodyBudgetSpent
        for holder in holders:
            if self._held.get(holder, 0) + size > self._share_bytes_max:
                raise BodyBudgetSpent
        self.held_bytes += size
        for holder in holders:
            self._held[holder] = self._held.get(holder, 0) + size

    def share(self, size: int, holder: str) -> None:
        """Charge bytes that were taken already to one more holder. Raises BodyBudgetSpent."""
        held = self._held.get(holder, 0) + size
        if held > self._share_bytes_max:
            raise BodyBudgetSpent
        self._held[holder] = held

    def give_back(self, size: int, holders: Iterable[str]) -> None:
        """Give back what was taken on account of `holders`."""
        self.held_bytes -= size
        for holder in holders:
            held = self._held[holder] - size
            if held:
                self._held[holder] = held
            else:
                del self._held[holder]
