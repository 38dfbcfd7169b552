"""Finds out who is calling: from memory where it can, else by one lookup that all wait for.

A token's answer is remembered until a change to something it depends on evicts it. A lookup can
race with such a change: its answer is from before the change, and the eviction came when there was
nothing to evict. So an answer says which change it has seen last (`Found.head`). If this worker has
applied no later one, whatever comes later finds the answer in the cache and evicts it. Else the
changes between are asked whether they touch the answer; if they do, it is looked up again.

Refusals are remembered too: clients repeat calls that were refused. A token that exists but may not
call is refused from memory until a change to it is heard of. One that does not exist is looked up
again after UNKNOWN_SECONDS, so that a token works at the latest so long after its creation, even if
it was tried before.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from gateway.auth.caller import Caller
from gateway.auth.failed_lookups import FailedLookups
from gateway.auth.token import PREFIX, is_well_formed
from gateway.auth.token import digest as digest_of
from gateway.auth.token_cache import TokenCache
from gateway.auth.token_store import Found
from gateway.clock import DatabaseClock, DatabaseTimeUnknown
from gateway.errors import (
    DatabaseAway,
    Draining,
    GatewayError,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
    TokenRevoked,
    TooManyFailedLookups,
    TwoTokens,
)

CALLERS_MAX: Final = 32_768  # remembered, about 1 KiB each
REFUSALS_MAX: Final = 8_192  # remembered; unknown tokens of a flood push each other out
UNKNOWN_SECONDS: Final = 2.0  # how long "no such token" is believed
LOOKUPS_MAX: Final = 8  # at once; the database serves many workers
LOOKUPS_WAITING_MAX: Final = 1_024  # behind those; one more is refused at once
LOOKUP_SECONDS_MAX: Final = 5.0  # from joining the queue to the answer
LOOKUP_ATTEMPTS_MAX: Final = 3  # while changes touch what is being looked up
FAILED_LOOKUPS_MAX: Final = 120  # of one address in the window; a misconfigured office is no attack
FAILED_LOOKUPS_SECONDS: Final = 60.0  # the window
FAILED_LOOKUPS_ADDRESSES_MAX: Final = 16_384  # whose failures are counted
CANDIDATES_MAX: Final = 8  # carriers looked at; no client sends more than two

_AUTHORIZATION: Final = b"authorization"
_CARRIERS: Final = frozenset((_AUTHORIZATION, b"x-api-key", b"x-goog-api-key", b"api-key"))
_BEARER: Final = b"bearer "
_QUERY_KEY: Final = b"key="
_BLANKS: Final = b" \t"

_REFUSALS: Final[Mapping[str, Callable[[], GatewayError]]] = {
    "unknown": TokenInvalid,
    "nested": lambda: TokenInvalid("A child token can't have child tokens; this is one's."),
    "expired": TokenExpired,
    "revoked": TokenRevoked,
    "parent_revoked": lambda: TokenRevoked("The token that this gateway token is of was revoked."),
    "user_disabled": lambda: TokenRevoked("The user of this gateway token is disabled."),
    "workspace_archived": lambda: TokenRevoked("The workspace of this gateway token is archived."),
    "org_suspended": lambda: TokenRevoked("The organization of this gateway token is suspended."),
}

Find = Callable[[bytes], Awaitable[Found]]
TouchedSince = Callable[[int, Iterable[tuple[str, str | None]]], bool | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticatorLimits:
    """What an authenticator keeps to; the reasons are beside the constants."""

    callers_max: int = CALLERS_MAX
    refusals_max: int = REFUSALS_MAX
    unknown_seconds: float = UNKNOWN_SECONDS
    lookups_max: int = LOOKUPS_MAX
    lookups_waiting_max: int = LOOKUPS_WAITING_MAX
    lookup_seconds_max: float = LOOKUP_SECONDS_MAX
    failed_lookups_max: int = FAILED_LOOKUPS_MAX
    failed_lookups_seconds: float = FAILED_LOOKUPS_SECONDS
    failed_lookups_addresses_max: int = FAILED_LOOKUPS_ADDRESSES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    why: str
    until: float | None  # boot-time seconds; None: until a change evicts it


def token_candidates(headers: list[tuple[bytes, bytes]], query: bytes) -> tuple[bytes, ...]:
    """Return what the request carries where a token may be, each text once.

    `headers` have lower-case names; `query` is what stands after the `?`. Where a text has a
    token's prefix, those without it are left out: they are some vendor's key, or a dummy that a
    client insists on.
    """
    carried: list[bytes] = []
    for name, value in headers:
        if name in _CARRIERS:
            if name != _AUTHORIZATION:
                carried.append(value.strip(_BLANKS))
            elif value[: len(_BEARER)].lower() == _BEARER:
                carried.append(value[len(_BEARER) :].strip(_BLANKS))
    if _QUERY_KEY in query:
        carried += [
            field[len(_QUERY_KEY) :] for field in query.split(b"&") if field.startswith(_QUERY_KEY)
        ]
    if len(carried) == 1 and carried[0]:
        return (carried[0],)
    distinct = [text for text in dict.fromkeys(carried) if text]
    return tuple([text for text in distinct if text.startswith(PREFIX)] or distinct)


def the_token(candidates: Sequence[bytes]) -> bytes:
    """Return the one well-formed token. Raises TokenMissing, TokenInvalid, TwoTokens."""
    if not candidates:
        raise TokenMissing
    if len(candidates) > CANDIDATES_MAX:
        raise TwoTokens
    tokens = {text for text in candidates if is_well_formed(text)}
    if not tokens:
        raise TokenInvalid
    if len(tokens) > 1:
        raise TwoTokens
    return tokens.pop()


def carried_digest(candidates: Sequence[bytes]) -> bytes:
    """Return the digest of the token that an authenticated request carries."""
    return digest_of(candidates[0] if len(candidates) == 1 else the_token(candidates))


class Authenticator:
    """Knows callers by their tokens. Keeps digests, never tokens."""

    def __init__(
        self,
        *,
        find: Find,
        clock: DatabaseClock,
        applied: Callable[[], int],
        touched_since: TouchedSince,
        limits: AuthenticatorLimits | None = None,
    ) -> None:
        """`find` looks a digest up; it may be cancelled, and raises GatewayErrors only.

        `applied` gives the ordinal of the last change whose `evict` was called; the two move in one
        step of the loop. `touched_since(ordinal, subjects)` says whether a later applied change was
        about one of the subjects; None: it goes back too far to say.
        """
        limits = limits or AuthenticatorLimits()
        self._find = find
        self._clock = clock
        self._applied = applied
        self._touched_since = touched_since
        self._limits = limits
        self._callers: TokenCache[Caller] = TokenCache(entries_max=limits.callers_max)
        self._refusals: TokenCache[_Refusal] = TokenCache(entries_max=limits.refusals_max)
        self._failed_lookups = FailedLookups(
            failures_max=limits.failed_lookups_max,
            window_seconds=limits.failed_lookups_seconds,
            addresses_max=limits.failed_lookups_addresses_max,
            now=clock.boottime,
        )
        self._slots = asyncio.Semaphore(limits.lookups_max)
        self._lookups: dict[bytes, asyncio.Task[Caller | _Refusal]] = {}
        self._times_forgotten = 0
        self._closed = False

    def find_cached(self, digest: bytes) -> Caller | None:
        """Return the caller whose token has this digest if that takes no waiting.

        None: `authenticate` knows. The way of nearly every call, about 1 µs.
        """
        caller = self._callers.get(digest)
        return None if caller is None or self._is_expired(caller) else caller

    async def authenticate(self, candidates: Sequence[bytes], address: str) -> Caller:
        """Return the caller whose token is among the candidates; `address` is the client's.

        Raises TokenMissing, TokenInvalid, TokenExpired, TokenRevoked, TwoTokens, DatabaseAway,
        TooManyFailedLookups, Draining, and what `find` raises.
        """
        return await self.authenticate_digest(digest_of(the_token(candidates)), address)

    async def authenticate_digest(self, digest: bytes, address: str) -> Caller:
        """Return the caller whose token has this digest.

        Nobody may call by a digest alone: whoever gave it has proved that it had the token. Raises
        what `authenticate` does.
        """
        answer = self._callers.get(digest) or self._refusal(digest)
        if answer is None:
            answer = await self._found(digest, address)
        if isinstance(answer, _Refusal):
            error = _REFUSALS[answer.why]()
            raise error
        if not self._clock.is_known:
            raise DatabaseAway
        if self._is_expired(answer):
            raise TokenExpired
        return answer

    def evict(self, kind: str, subject_id: str) -> None:
        """Forget every token that depends on this subject: it changed."""
        self._callers.evict((kind, subject_id))
        self._refusals.evict((kind, subject_id))

    def forget_all(self) -> None:
        """Forget every token, lookups under way included: the database is not the one it was."""
        self._callers.clear()
        self._refusals.clear()
        self._times_forgotten += 1

    async def close(self) -> None:
        """End the lookups under way; who waits for one is told that this process drains."""
        self._closed = True
        lookups = list(self._lookups.values())
        for lookup in lookups:
            lookup.cancel()
        await asyncio.gather(*lookups, return_exceptions=True)

    def _is_expired(self, caller: Caller) -> bool:
        """Return whether the token may have expired; as long as no database time is known, yes."""
        try:
            return self._clock.latest() >= caller.expires_at
        except DatabaseTimeUnknown:
            return True

    def _refusal(self, digest: bytes) -> _Refusal | None:
        refusal = self._refusals.get(digest)
        if refusal is None or refusal.until is None or self._clock.boottime() < refusal.until:
            return refusal
        self._refusals.discard(digest)
        return None

    async def _found(self, digest: bytes, address: str) -> Caller | _Refusal:
        """Return what a lookup says, as it is when it is heard.

        Between the lookup's last step and the next one of who waits for it, a change may have been
        applied: it found no call to cut, but has evicted the caller.
        """
        for _ in range(LOOKUP_ATTEMPTS_MAX):
            answer = await self._shared_lookup(digest, address)
            if isinstance(answer, _Refusal) or self._callers.get(digest) is answer:
                return answer
        raise DatabaseAway

    async def _shared_lookup(self, digest: bytes, address: str) -> Caller | _Refusal:
        """Wait for the lookup of this digest, started if there is none.

        It is a task of its own: the first to ask may hang up while others wait.
        """
        if self._closed:
            raise Draining
        lookup = self._lookups.get(digest)
        if lookup is None:
            if len(self._lookups) >= self._limits.lookups_max + self._limits.lookups_waiting_max:
                raise DatabaseAway
            self._check_failed_lookups(address)
            lookup = asyncio.get_running_loop().create_task(self._look_up(digest, address))
            self._lookups[digest] = lookup
            lookup.add_done_callback(lambda done: self._on_lookup_done(digest, done))
        try:
            return await asyncio.shield(lookup)
        except asyncio.CancelledError:
            waiter = asyncio.current_task()
            if lookup.cancelled() and not (waiter and waiter.cancelling()):
                raise Draining from None
            raise

    def _on_lookup_done(self, digest: bytes, lookup: "asyncio.Task[Caller | _Refusal]") -> None:
        del self._lookups[digest]
        if not lookup.cancelled():
            lookup.exception()  # those who wait have it; if all have hung up, nobody wants it

    async def _look_up(self, digest: bytes, address: str) -> Caller | _Refusal:
        async with self._slot():
            self._check_failed_lookups(address)
            for _ in range(LOOKUP_ATTEMPTS_MAX):
                times_forgotten = self._times_forgotten
                found = await self._find(digest)
                if times_forgotten == self._times_forgotten and self._still_holds(found):
                    return self._remember(digest, found, address)
        raise DatabaseAway

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Be one of so many lookups for so long. Raises DatabaseAway when the time is up."""
        try:
            async with asyncio.timeout(self._limits.lookup_seconds_max), self._slots:
                yield
        except TimeoutError as error:
            raise DatabaseAway from error

    def _still_holds(self, found: Found) -> bool:
        if self._applied() <= found.head:
            return True
        return self._touched_since(found.head, found.subjects) is False

    def _remember(self, digest: bytes, found: Found, address: str) -> Caller | _Refusal:
        """Put the answer where the next call finds it.

        In the step in which it was seen to hold: no change can be applied between.
        """
        if found.caller is not None:
            self._callers.put(digest, found.caller, subjects=found.subjects)
            return found.caller
        assert found.why is not None
        until = None
        if not found.subjects:
            until = self._clock.boottime() + self._limits.unknown_seconds
            self._failed_lookups.add(address)
        refusal = _Refusal(why=found.why, until=until)
        self._refusals.put(digest, refusal, subjects=found.subjects)
        return refusal

    def _check_failed_lookups(self, address: str) -> None:
        wait_seconds = self._failed_lookups.wait_seconds(address)
        if wait_seconds:
            raise TooManyFailedLookups(wait_seconds=wait_seconds)
