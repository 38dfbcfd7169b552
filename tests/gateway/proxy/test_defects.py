"""A defect of ours in one call: it is told, the call has its row, and nothing stays taken."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from gateway.proxy import calls
from gateway.proxy.call_record import CallRecord
from gateway.proxy.held_relay import HeldRelay
from gateway.proxy.relay import Outcome, Relay
from gateway.proxy.stored_pages import Page
from gateway.proxy.upstream import Reply, UpstreamConnection
from tests.gateway.proxy.rig import DEADLINE_SECONDS, Rig, Units
from tests.gateway.proxy.test_calls import CHAT, answers, never_answers, plain

PATH = "/v1/chat/completions"
WHOLE = {**CHAT, "stream": False}
LIST = plain(200, {"object": "list", "data": []})


@pytest.fixture
def failure() -> RuntimeError:
    return RuntimeError("of a test")


@pytest.fixture
def fails(failure: RuntimeError) -> Callable[..., None]:
    def fails(*arguments: object, **options: object) -> None:
        raise failure

    return fails


async def test_a_defect_while_an_answer_is_held_closes_its_record(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    failure: RuntimeError,
    fails: Callable[..., None],
) -> None:
    monkeypatch.setattr(Page, "only", fails)
    rig.vendor.script = answers(LIST)
    answer = await rig.ask("/v1/files", method="GET")
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (500, "internal")
    row = await rig.lines.row()
    assert (row["status"], row["reason"]) == ("interrupted", "internal")
    assert rig.defects == [failure]
    rig.defects.clear()


async def test_a_call_that_ends_as_its_held_answer_is_whole_has_a_row(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its task is cancelled before it hears that there is something to pass on."""
    done = HeldRelay._done
    cancelled = asyncio.Event()

    def cancels(self: HeldRelay, outcome: Outcome) -> None:
        done(self, outcome)
        assert self._exchange.errand is not None
        self._exchange.errand.cancel()
        cancelled.set()

    monkeypatch.setattr(HeldRelay, "_done", cancels)
    rig.vendor.script = answers(LIST)
    async with rig.client() as client:
        client.send(rig.request("/v1/files", method="GET"))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await cancelled.wait()
        row = await rig.lines.row()
    assert row["status"] == "client_closed"


async def test_a_held_answer_is_not_passed_on_if_its_token_is_revoked_as_it_is_whole(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = HeldRelay._done

    def revokes(self: HeldRelay, outcome: Outcome) -> None:
        done(self, outcome)
        assert rig.live.cut("token", "token-1") == 1

    monkeypatch.setattr(HeldRelay, "_done", revokes)
    rig.vendor.script = answers(LIST)
    answer = await rig.ask("/v1/files", method="GET")
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (401, "token_revoked")
    row = await rig.lines.row()
    assert (row["status"], row["reason"]) == ("revoked", "token_revoked")


@pytest.mark.parametrize(
    "where",
    [(calls, "request_head"), (CallRecord, "open"), (Relay, "__init__"), (Units, "take")],
    ids=["head", "record", "relay", "units"],
)
async def test_a_defect_before_anything_was_sent_gives_back_what_was_taken(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    failure: RuntimeError,
    fails: Callable[..., None],
    where: tuple[object, str],
) -> None:
    before = rig.units.left
    with monkeypatch.context() as patched:
        patched.setattr(*where, fails)
        for _ in range(3):
            answer = await rig.ask(PATH, WHOLE)
            assert (answer.status, answer.headers["x-kaixu-reason"]) == (500, "internal")
    assert rig.defects == [failure] * 3
    rig.defects.clear()
    assert (rig.units.left, rig.permits.out, rig.lines.opened) == (before, [], {})
    rig.vendor.script = answers(plain(200, {"a": 1}))
    assert (await rig.ask(PATH, WHOLE)).status == 200
    assert rig.vendor.connections == 1, "the connection was there for the next one"


async def test_a_request_that_could_not_be_written_has_a_row(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, failure: RuntimeError
) -> None:
    send = UpstreamConnection.send

    def fails(self: UpstreamConnection, reply: Reply, data: bytes, body: bytes) -> None:
        send(self, reply, data, body)
        raise failure

    rig.vendor.script = never_answers
    with monkeypatch.context() as patched:
        patched.setattr(UpstreamConnection, "send", fails)
        answer = await rig.ask(PATH, WHOLE)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (500, "internal")
    row = await rig.lines.row()
    assert (row["status"], row["reason"]) == ("interrupted", "internal")
    assert rig.defects == [failure]
    rig.defects.clear()


async def test_a_row_that_could_not_be_made_leaves_the_record_open_for_another(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, failure: RuntimeError
) -> None:
    made = CallRecord._row
    failures = [failure]

    def fails_once(self: CallRecord, *arguments: object, **options: object) -> bytes:
        if failures:
            raise failures.pop()
        return made(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(CallRecord, "_row", fails_once)
    rig.vendor.script = answers(plain(200, {"a": 1}))
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        await rig.ask(PATH, WHOLE)
    row = await rig.lines.row()
    assert (row["status"], row["reason"]) == ("interrupted", "internal")
    assert rig.defects == [failure]
    rig.defects.clear()
