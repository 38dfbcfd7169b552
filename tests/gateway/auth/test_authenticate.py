"""Who is calling: carriers, memory, shared lookups, and their races with changes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import Any

import pytest

from gateway.auth.authenticate import (
    CANDIDATES_MAX,
    Authenticator,
    AuthenticatorLimits,
    the_token,
    token_candidates,
)
from gateway.auth.caller import Caller
from gateway.auth.token import digest, generate
from gateway.auth.token_store import Found
from gateway.clock import DatabaseClock
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

ADDRESS = "192.0.2.1"
TOKEN = generate().encode()
OTHER = generate().encode()


# ------------------------------------------------------------------------------------- carriers


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([(b"authorization", b"Bearer " + TOKEN)], b""),
        ([(b"authorization", b"bearer  " + TOKEN + b" ")], b""),
        ([(b"authorization", b"BEARER " + TOKEN)], b""),
        ([(b"host", b"x"), (b"x-api-key", TOKEN), (b"accept", b"*/*")], b""),
        ([(b"x-goog-api-key", TOKEN)], b"alt=sse"),
        ([(b"api-key", TOKEN)], b""),
        ([], b"key=" + TOKEN),
        ([], b"alt=sse&key=" + TOKEN + b"&x=y"),
        ([(b"authorization", b"Bearer " + TOKEN), (b"x-goog-api-key", TOKEN)], b"key=" + TOKEN),
        ([(b"authorization", b"Bearer sk-dummy"), (b"x-api-key", TOKEN)], b"key=AIza"),
        ([(b"authorization", b"Basic dTpw"), (b"x-api-key", TOKEN)], b"monkey=1"),
    ],
)
def test_a_token_is_found_wherever_clients_put_it(
    headers: list[tuple[bytes, bytes]], query: bytes
) -> None:
    assert token_candidates(headers, query) == (TOKEN,)
    assert the_token(token_candidates(headers, query)) == TOKEN


@pytest.mark.parametrize(
    ("headers", "query", "error"),
    [
        ([], b"", TokenMissing),
        ([(b"host", b"x")], b"alt=sse", TokenMissing),
        ([(b"authorization", b"Bearer ")], b"key=", TokenMissing),
        ([(b"authorization", TOKEN)], b"", TokenMissing),
        ([(b"authorization", b"Basic " + TOKEN)], b"", TokenMissing),
        ([(b"cookie", TOKEN), (b"x-kxg", TOKEN)], b"token=" + TOKEN, TokenMissing),
        ([(b"authorization", b"Bearer junk")], b"", TokenInvalid),
        ([(b"x-api-key", TOKEN[:-1])], b"", TokenInvalid),
        ([(b"x-api-key", TOKEN.upper())], b"", TokenInvalid),
        ([(b"x-api-key", digest(TOKEN).hex().encode())], b"", TokenInvalid),
        ([], b"key=" + TOKEN.replace(b"_", b"%5F"), TokenInvalid),
        ([(b"x-api-key", TOKEN + b", " + OTHER)], b"", TokenInvalid),
        ([(b"x-api-key", TOKEN), (b"api-key", OTHER)], b"", TwoTokens),
        ([(b"authorization", b"Bearer " + TOKEN)], b"key=" + OTHER, TwoTokens),
        ([(b"x-api-key", TOKEN), (b"x-api-key", OTHER)], b"", TwoTokens),
        ([(b"x-api-key", b"kx%d" % n) for n in range(CANDIDATES_MAX + 1)], b"", TwoTokens),
    ],
)
async def test_what_carries_no_single_token_is_refused_without_a_lookup(
    headers: list[tuple[bytes, bytes]], query: bytes, error: type[GatewayError]
) -> None:
    gateway = Gateway()
    with pytest.raises(error):
        await gateway.authenticator.authenticate(token_candidates(headers, query), ADDRESS)
    assert gateway.lookups == []


def test_a_mistyped_token_beside_a_good_one_is_left_out_of_account() -> None:
    assert the_token(token_candidates([(b"x-api-key", TOKEN[:-1]), (b"api-key", TOKEN)], b"")) == (
        TOKEN
    )


# --------------------------------------------------------------------------------- a small world


class Gateway:
    """An authenticator with a database, a feed and a clock that the test moves."""

    def __init__(self, **limits: Any) -> None:
        self.boottime = 1000.0
        self.clock = DatabaseClock(lambda: self.boottime)
        self.clock.observe(sent=1000.0, received=1000.0, database_time=50_000.0)
        self.applied = 10
        self.changes: list[tuple[int, str, str]] = []  # those in the feed's memory
        self.reaches_back_to = 0
        self.lookups: list[bytes] = []
        self.answers: dict[bytes, Found] = {}
        self.held: asyncio.Event | None = None  # lookups wait for it
        self.arrived = asyncio.Semaphore(0)
        self.before_answer: list[Any] = []  # called once each, after the snapshot was taken
        self.error: BaseException | None = None
        self.authenticator = Authenticator(
            find=self.find,
            clock=self.clock,
            applied=lambda: self.applied,
            touched_since=self.touched_since,
            limits=AuthenticatorLimits(**limits),
        )

    async def find(self, token_digest: bytes) -> Found:
        self.lookups.append(token_digest)
        self.arrived.release()
        found = self.answers.get(token_digest, Found(caller=None, why="unknown", head=self.applied))
        if self.held is not None:
            await self.held.wait()
        if self.before_answer:
            self.before_answer.pop(0)()
        if self.error is not None:
            raise self.error
        return found

    def touched_since(
        self, ordinal: int, subjects: Iterable[tuple[str, str | None]]
    ) -> bool | None:
        if ordinal < self.reaches_back_to:
            return None
        wanted = set(subjects)
        return any(at > ordinal and (kind, id_) in wanted for at, kind, id_ in self.changes)

    def change(self, kind: str, subject_id: str) -> None:
        """As the feed does it: evict, remember, move on, in one step."""
        self.authenticator.evict(kind, subject_id)
        self.applied += 1
        self.changes.append((self.applied, kind, subject_id))

    def add(self, token: bytes = TOKEN, *, head: int | None = None, **changes: Any) -> Caller:
        caller = make_caller(**changes)
        self.answers[digest(token)] = Found(
            caller=caller,
            why=None,
            subjects=caller.subjects,
            head=self.applied if head is None else head,
        )
        return caller

    def refuse(self, token: bytes, why: str, *, head: int | None = None) -> None:
        self.answers[digest(token)] = Found(
            caller=None,
            why=why,
            subjects=make_caller().subjects,
            head=self.applied if head is None else head,
        )

    def call(self, token: bytes = TOKEN, address: str = ADDRESS) -> Awaitable[Caller]:
        return self.authenticator.authenticate((token,), address)


def make_caller(**changes: Any) -> Caller:
    values: dict[str, Any] = {
        "token_id": "t",
        "parent_id": "p",
        "org_id": "o",
        "workspace_id": "w",
        "user_id": "u",
        "scopes": frozenset({"calls"}),
        "models": None,
        "expires_at": 60_000.0,
        "limits": (),
    }
    return Caller(**values | changes)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    gateway = Gateway()
    yield gateway
    await gateway.authenticator.close()


# --------------------------------------------------------------------------------------- memory


async def test_a_caller_is_looked_up_once_and_then_known(gateway: Gateway) -> None:
    caller = gateway.add()
    assert gateway.authenticator.find_cached(digest(TOKEN)) is None
    assert await gateway.call() is caller
    assert gateway.authenticator.find_cached(digest(TOKEN)) is caller
    assert await gateway.call() is caller
    assert gateway.lookups == [digest(TOKEN)]


async def test_who_proved_to_have_a_token_is_known_by_its_digest(gateway: Gateway) -> None:
    caller = gateway.add()
    assert await gateway.authenticator.authenticate_digest(digest(TOKEN), ADDRESS) is caller
    gateway.change("token", "t")
    gateway.refuse(TOKEN, "revoked")
    with pytest.raises(TokenRevoked):
        await gateway.authenticator.authenticate_digest(digest(TOKEN), ADDRESS)


async def test_junk_is_not_known(gateway: Gateway) -> None:
    assert gateway.authenticator.find_cached(digest(b"junk")) is None
    assert gateway.authenticator.find_cached(digest(TOKEN[:-1])) is None


async def test_expiry_is_checked_on_each_call_by_the_late_edge_of_database_time(
    gateway: Gateway,
) -> None:
    caller = gateway.add(expires_at=50_100.0)
    await gateway.call()
    gateway.boottime += 99.9
    assert gateway.authenticator.find_cached(digest(TOKEN)) is caller
    gateway.boottime += 0.09
    assert gateway.authenticator.find_cached(digest(TOKEN)) is None
    for _ in range(2):
        with pytest.raises(TokenExpired):
            await gateway.call()
    assert len(gateway.lookups) == 1


async def test_without_database_time_nobody_is_let_in(gateway: Gateway) -> None:
    gateway.add()
    await gateway.call()
    gateway.clock._known = False
    assert gateway.authenticator.find_cached(digest(TOKEN)) is None
    with pytest.raises(DatabaseAway):
        await gateway.call()


@pytest.mark.parametrize(
    ("why", "error", "word"),
    [
        ("revoked", TokenRevoked, "was revoked"),
        ("parent_revoked", TokenRevoked, "was revoked"),
        ("user_disabled", TokenRevoked, "user"),
        ("workspace_archived", TokenRevoked, "workspace"),
        ("org_suspended", TokenRevoked, "organization"),
        ("nested", TokenInvalid, "child"),
        ("expired", TokenExpired, "expired"),
    ],
)
async def test_a_refused_token_is_refused_from_memory_until_a_change(
    gateway: Gateway, why: str, error: type[GatewayError], word: str
) -> None:
    gateway.refuse(TOKEN, why)
    for _ in range(3):
        with pytest.raises(error, match=word):
            await gateway.call()
        gateway.boottime += 3600
    assert len(gateway.lookups) == 1
    gateway.change("token", "t")
    caller = gateway.add(expires_at=1e9)
    assert await gateway.call() is caller


async def test_an_unknown_token_is_refused_from_memory_for_two_seconds(gateway: Gateway) -> None:
    for _ in range(3):
        with pytest.raises(TokenInvalid):
            await gateway.call()
    assert len(gateway.lookups) == 1
    caller = gateway.add()  # the token is created
    gateway.boottime += 1.9
    with pytest.raises(TokenInvalid):
        await gateway.call()
    gateway.boottime += 0.1
    assert await gateway.call() is caller


async def test_refusals_push_out_refusals_and_never_callers() -> None:
    gateway = Gateway(refusals_max=2, callers_max=1, failed_lookups_max=100)
    caller = gateway.add()
    await gateway.call()
    for _ in range(5):
        with pytest.raises(TokenInvalid):
            await gateway.call(generate().encode())
    assert gateway.authenticator.find_cached(digest(TOKEN)) is caller
    assert len(gateway.authenticator._refusals) == 2


@pytest.mark.parametrize(
    ("kind", "subject_id"),
    [("token", "t"), ("token", "p"), ("user", "u"), ("workspace", "w"), ("org", "o")],
)
async def test_a_change_to_whatever_a_caller_depends_on_evicts_it(
    gateway: Gateway, kind: str, subject_id: str
) -> None:
    gateway.add()
    await gateway.call()
    gateway.authenticator.evict(kind, "another")
    gateway.authenticator.evict("vendors", subject_id)
    assert gateway.authenticator.find_cached(digest(TOKEN)) is not None
    gateway.change(kind, subject_id)
    assert gateway.authenticator.find_cached(digest(TOKEN)) is None
    gateway.refuse(TOKEN, "revoked")
    with pytest.raises(TokenRevoked):
        await gateway.call()


async def test_everything_can_be_forgotten(gateway: Gateway) -> None:
    gateway.add()
    gateway.refuse(OTHER, "revoked")
    await gateway.call()
    with pytest.raises(TokenRevoked):
        await gateway.call(OTHER)
    gateway.authenticator.forget_all()
    gateway.add(OTHER)
    await gateway.call()
    await gateway.call(OTHER)
    assert len(gateway.lookups) == 4


# ------------------------------------------------------------------------- lookups and changes


async def test_an_answer_from_before_a_change_that_touches_it_is_looked_up_again(
    gateway: Gateway,
) -> None:
    gateway.add()

    def revoked_while_the_answer_is_under_way() -> None:
        gateway.refuse(TOKEN, "revoked", head=11)
        gateway.change("token", "t")

    gateway.before_answer = [revoked_while_the_answer_is_under_way]
    with pytest.raises(TokenRevoked):
        await gateway.call()
    assert len(gateway.lookups) == 2
    assert gateway.authenticator.find_cached(digest(TOKEN)) is None


async def test_a_change_before_the_waiting_call_has_heard_the_answer_counts(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed finds no call to cut then: it is registered only once it knows its caller."""
    gateway.add()
    remember = gateway.authenticator._remember

    def then_revoked(*answer: Any) -> Any:
        monkeypatch.undo()
        remembered = remember(*answer)
        asyncio.get_running_loop().call_soon(revoke)
        return remembered

    def revoke() -> None:
        gateway.change("token", "t")
        gateway.refuse(TOKEN, "revoked")

    monkeypatch.setattr(gateway.authenticator, "_remember", then_revoked)
    with pytest.raises(TokenRevoked):
        await gateway.call()
    assert len(gateway.lookups) == 2


async def test_an_answer_from_before_a_change_to_others_holds(gateway: Gateway) -> None:
    caller = gateway.add()
    gateway.before_answer = [lambda: gateway.change("token", "another")]
    assert await gateway.call() is caller
    assert len(gateway.lookups) == 1
    assert gateway.authenticator.find_cached(digest(TOKEN)) is caller


async def test_an_answer_newer_than_the_feed_is_kept_until_the_feed_evicts_it(
    gateway: Gateway,
) -> None:
    caller = gateway.add(head=12)
    assert await gateway.call() is caller
    gateway.change("token", "another")
    assert gateway.authenticator.find_cached(digest(TOKEN)) is caller
    gateway.change("token", "t")
    assert gateway.authenticator.find_cached(digest(TOKEN)) is None


async def test_an_answer_from_before_the_feeds_memory_is_looked_up_again(gateway: Gateway) -> None:
    gateway.add(head=5)
    gateway.reaches_back_to = 8
    caller_now = make_caller(models=("gpt-*",))
    gateway.before_answer = [
        lambda: gateway.add(head=10, models=("gpt-*",)),
    ]
    assert await gateway.call() == caller_now
    assert len(gateway.lookups) == 2


async def test_a_token_that_changes_under_every_lookup_is_given_up_after_three(
    gateway: Gateway,
) -> None:
    gateway.add()
    gateway.before_answer = [lambda: gateway.change("user", "u")] * 9
    with pytest.raises(DatabaseAway):
        await gateway.call()
    assert len(gateway.lookups) == 3
    assert gateway.authenticator.find_cached(digest(TOKEN)) is None


async def test_a_refusal_from_before_a_change_is_looked_up_again(gateway: Gateway) -> None:
    gateway.refuse(TOKEN, "user_disabled")

    def enabled_again() -> None:
        gateway.add(head=11)
        gateway.change("user", "u")

    gateway.before_answer = [enabled_again]
    assert await gateway.call() == make_caller()


async def test_an_answer_from_before_everything_was_forgotten_is_looked_up_again(
    gateway: Gateway,
) -> None:
    gateway.add(head=99)  # of a database that has been replaced by an older one

    def restored() -> None:
        gateway.applied = 3
        gateway.refuse(TOKEN, "revoked", head=3)
        gateway.authenticator.forget_all()

    gateway.before_answer = [restored]
    with pytest.raises(TokenRevoked):
        await gateway.call()
    assert len(gateway.lookups) == 2


# ------------------------------------------------------------------------------- shared lookups


async def test_calls_with_one_token_share_its_lookup(gateway: Gateway) -> None:
    caller = gateway.add()
    gateway.held = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(wait_for(gateway.call())) for _ in range(50)]
        await gateway.arrived.acquire()
        gateway.held.set()
    assert {call.result() for call in calls} == {caller}
    assert len(gateway.lookups) == 1


async def test_who_asked_first_may_hang_up_and_the_others_get_their_answer(
    gateway: Gateway,
) -> None:
    caller = gateway.add()
    gateway.held = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(wait_for(gateway.call()))
        second = group.create_task(wait_for(gateway.call()))
        await gateway.arrived.acquire()
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        gateway.held.set()
    assert second.result() is caller
    assert len(gateway.lookups) == 1


async def test_a_lookup_that_nobody_waits_for_any_more_ends_in_the_cache(
    gateway: Gateway,
) -> None:
    caller = gateway.add()
    gateway.held = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        only = group.create_task(wait_for(gateway.call()))
        await gateway.arrived.acquire()
        only.cancel()
    lookup = gateway.authenticator._lookups[digest(TOKEN)]
    gateway.held.set()
    await lookup
    assert gateway.authenticator.find_cached(digest(TOKEN)) is caller
    assert gateway.authenticator._lookups == {}


@pytest.mark.parametrize("error", [DatabaseAway(), ValueError("a mistake of ours")])
async def test_all_who_wait_are_told_of_a_failed_lookup_and_the_next_call_tries_again(
    gateway: Gateway, error: Exception
) -> None:
    caller = gateway.add()
    gateway.error = error
    answers = await asyncio.gather(*(gateway.call() for _ in range(3)), return_exceptions=True)
    assert answers == [error] * 3
    assert len(gateway.lookups) == 1
    gateway.error = None
    assert await gateway.call() is caller


async def test_a_failure_that_nobody_waits_for_is_not_reported_as_unhandled(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.error = DatabaseAway()
    gateway.held = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        only = group.create_task(wait_for(gateway.call()))
        await gateway.arrived.acquire()
        only.cancel()
    lookup = gateway.authenticator._lookups[digest(TOKEN)]
    gateway.held.set()
    await asyncio.wait([lookup])
    del lookup
    await asyncio.sleep(0)
    assert caplog.records == []


async def test_only_so_many_lookups_run_and_wait_and_one_more_is_refused() -> None:
    gateway = Gateway(lookups_max=2, lookups_waiting_max=3)
    gateway.held = asyncio.Event()
    tokens = [generate().encode() for _ in range(5)]
    for token in tokens:
        gateway.add(token)
    async with asyncio.TaskGroup() as group:
        for token in tokens:
            group.create_task(wait_for(gateway.call(token)))
        for _ in range(2):
            await gateway.arrived.acquire()
        assert len(gateway.lookups) == 2
        with pytest.raises(DatabaseAway):
            await gateway.call(generate().encode())
        gateway.held.set()
    assert len(gateway.lookups) == 5


async def test_a_lookup_that_takes_too_long_is_given_up_also_in_the_queue() -> None:
    gateway = Gateway(lookups_max=1, lookup_seconds_max=0.02)
    gateway.held = asyncio.Event()
    answers = await asyncio.gather(gateway.call(TOKEN), gateway.call(OTHER), return_exceptions=True)
    assert [type(answer) for answer in answers] == [DatabaseAway, DatabaseAway]
    gateway.held.set()
    gateway.add()
    await gateway.call()


async def test_an_address_that_guesses_is_stopped_and_still_calls_with_what_is_known() -> None:
    gateway = Gateway(failed_lookups_max=5)
    caller = gateway.add()
    gateway.add(OTHER)
    await gateway.call()
    for _ in range(5):
        with pytest.raises(TokenInvalid):
            await gateway.call(generate().encode())
    with pytest.raises(TooManyFailedLookups) as refused:
        await gateway.call(generate().encode())
    assert refused.value.status == 429
    assert int(refused.value.headers["retry-after"]) > 0
    assert len(gateway.lookups) == 6
    assert await gateway.call() is caller
    assert await gateway.call(OTHER, "192.0.2.2") is not None
    gateway.boottime += int(refused.value.headers["retry-after"]) + 60
    with pytest.raises(TokenInvalid):
        await gateway.call(generate().encode())


async def test_many_guesses_at_once_are_stopped_as_well() -> None:
    gateway = Gateway(failed_lookups_max=5, lookups_max=2)
    answers = await asyncio.gather(
        *(gateway.call(generate().encode()) for _ in range(100)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {TokenInvalid, TooManyFailedLookups}
    assert len(gateway.lookups) <= 5 + 2


async def test_repeating_one_unknown_token_is_no_guessing() -> None:
    gateway = Gateway(failed_lookups_max=2)
    for _ in range(20):
        with pytest.raises(TokenInvalid):
            await gateway.call()
    assert len(gateway.lookups) == 1


async def test_closing_ends_lookups_and_tells_who_waits() -> None:
    gateway = Gateway()
    gateway.held = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        call = group.create_task(outcome(gateway.call()))
        await gateway.arrived.acquire()
        await gateway.authenticator.close()
    assert isinstance(call.result(), Draining)
    with pytest.raises(Draining):
        await gateway.call()


# --------------------------------------------------------------------------------------- secrets


async def test_neither_repr_nor_log_nor_refusal_shows_a_token_or_its_digest(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    gateway.add()
    caller = await gateway.call()
    with pytest.raises(TokenInvalid) as refused:
        await gateway.call(OTHER)
    authenticator = gateway.authenticator
    shown = "".join(
        map(
            repr,
            [
                caller,
                gateway.answers[digest(TOKEN)],
                authenticator,
                authenticator._callers,
                authenticator._refusals,
                authenticator._refusals.get(digest(OTHER)),
                authenticator._failed_lookups,
                refused.value,
                refused.value.message,
                caplog.text,
            ],
        )
    )
    for token in (TOKEN, OTHER):
        for secret in (token.decode(), digest(token).hex(), repr(digest(token))[2:-1]):
            assert secret not in shown


async def wait_for(call: Awaitable[Caller]) -> Caller:
    return await call


async def outcome(call: Awaitable[Caller]) -> Caller | BaseException:
    try:
        return await call
    except GatewayError as error:
        return error
