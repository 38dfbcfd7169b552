"""What a call asks of the other parts of its worker."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from gateway.auth.caller import Caller, Subject
from gateway.errors import GatewayError
from gateway.permit_limit import PermitLimit
from gateway.proxy.routing import Target

Limits = tuple[Subject, ...]
CredentialReady = Callable[[Target], Awaitable[None]]
OnRefusal = Callable[[GatewayError, Caller | None], None]
OnDefect = Callable[[str, BaseException], None]


class Authenticator(Protocol):
    """Finds out who is calling."""

    def find_cached(self, digest: bytes) -> Caller | None:
        """Return the caller whose token has this digest, if that takes no waiting."""

    async def authenticate(self, candidates: Sequence[bytes], address: str) -> Caller:
        """Return the caller. Raises GatewayError."""

    async def authenticate_digest(self, digest: bytes, address: str) -> Caller:
        """Return the caller whose token has this digest. Raises GatewayError."""


class Allowances(Protocol):
    """How many calls are left."""

    def known_spent(self, limits: Limits) -> None:
        """Raise MonthlyLimitReached where it is known that nothing is left."""

    def take(self, limits: Limits) -> tuple[str, ...] | None:
        """Take one unit of each; the blocks they came from, or None where one has none here."""

    def put_back(self, limits: Limits, block_ids: tuple[str, ...]) -> None:
        """Undo a `take` in the step in which it was made."""

    async def refill(self, limits: Limits) -> None:
        """Return when it is worth taking. Raises MonthlyLimitReached, DatabaseAway."""


class Permits(Protocol):
    """How many calls may begin now, and be open."""

    def take(self, limits: Sequence[PermitLimit]) -> bool:
        """Take one permit of each, or none and return False."""

    def release(self, limits: Sequence[PermitLimit]) -> None:
        """A call that took these has ended."""

    async def refill(self, limits: Sequence[PermitLimit]) -> None:
        """Return when it is worth taking.

        Raises RateWindowReached, ConcurrencyReached, DatabaseAway, Draining.
        """


class CallMetrics(Protocol):
    """Counts what is not in a row."""

    def refused(self, reason: str) -> None:
        """Count a refusal."""

    def vendor_error(self, vendor: str, kind: str) -> None:
        """Count a vendor that could not be connected to; no row tells of it."""
