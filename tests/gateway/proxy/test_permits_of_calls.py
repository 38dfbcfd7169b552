"""When a call takes its permits, and that it hands them back however it ends."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from gateway.errors import ConcurrencyReached, RateWindowReached, TokenRevoked
from gateway.permit_limit import PermitLimit
from gateway.proxy.address_window import AddressWindow
from tests.gateway.proxy.rig import DEADLINE_SECONDS, Rig, StayOpen
from tests.gateway.proxy.test_calls import CHAT, answers, hangs, never_answers, plain

PATH = "/v1/chat/completions"
WHOLE = {**CHAT, "stream": False}
LIMIT = PermitLimit(subject_kind="token", subject="token-1", calls=1, window_seconds=None)


@pytest.fixture
def limited(rig: Rig) -> Rig:
    rig.authenticated.caller = replace(rig.caller, permits=(LIMIT,))
    return rig


async def begins(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(plain(200, {"a": 1})[:-1])
    raise StayOpen


async def released(rig: Rig) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            if not rig.permits.out:
                return
            await asyncio.sleep(0)


async def test_a_call_holds_its_permits_until_its_answer_has_ended(limited: Rig) -> None:
    limited.vendor.script = begins
    async with limited.client() as client:
        client.send(limited.request(PATH, WHOLE))
        await client.until(b"\r\n\r\n")
        assert limited.permits.out == [LIMIT]
    await released(limited)


@pytest.mark.parametrize(
    "body", [WHOLE, {"no": "model"}, b"not JSON"], ids=["whole", "invalid", "not JSON"]
)
async def test_a_call_hands_its_permits_back_however_it_ends(limited: Rig, body: object) -> None:
    limited.vendor.script = answers(plain(200, {"a": 1}))
    await limited.ask(PATH, body)
    await released(limited)


async def test_a_revoked_call_hands_its_permits_back(limited: Rig) -> None:
    limited.vendor.script = never_answers
    async with limited.client() as client:
        client.send(limited.request(PATH, WHOLE))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await limited.vendor.asked.wait()
        limited.live.cut("token", "token-1", TokenRevoked)
        assert (await client.answer()).status == 401
    await released(limited)


@pytest.mark.parametrize("path", [PATH, "/v1/models", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    ("refusal", "reason"),
    [(RateWindowReached, "rate_window"), (ConcurrencyReached, "concurrency")],
)
async def test_without_a_permit_nothing_goes_to_the_vendor(
    limited: Rig, path: str, refusal: type[RateWindowReached], reason: str
) -> None:
    limited.permits.refusal = refusal(headers={"retry-after": "7", "x-kaixu-limit": "1"})
    is_read = path == "/v1/models"
    answer = await limited.ask(
        path, None if is_read else WHOLE, method="GET" if is_read else "POST"
    )
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (429, reason)
    assert (answer.headers["retry-after"], answer.headers["x-kaixu-limit"]) == ("7", "1")
    assert "x-should-retry" not in answer.headers
    assert not limited.vendor.heads
    assert not limited.lines.rows
    assert limited.metrics.refusals == [reason]


class OneAtATime:
    """Lets one call be open."""

    def __init__(self) -> None:
        self.open = 0

    def take(self, limits: Sequence[PermitLimit]) -> bool:
        if self.open:
            return False
        self.open += 1
        return True

    def release(self, limits: Sequence[PermitLimit]) -> None:
        self.open -= 1

    async def refill(self, limits: Sequence[PermitLimit]) -> None:
        raise ConcurrencyReached


async def test_a_request_sent_ahead_begins_when_the_one_before_has_handed_its_permits_back(
    limited: Rig,
) -> None:
    limited.calls._permits = OneAtATime()
    limited.vendor.script = answers(plain(200, {"a": 1}))
    async with limited.client() as client:  # the first call connects, and so is run by a task
        client.send(limited.request(PATH, WHOLE) * 3)
        assert [(await client.answer()).status for _ in range(3)] == [200, 200, 200]


async def test_an_address_has_its_window_too(rig: Rig) -> None:
    rig.calls._address_window = AddressWindow(calls=5, window_seconds=60)
    rig.vendor.script = hangs
    async with rig.client() as client:
        client.send(rig.request(PATH, WHOLE))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await rig.vendor.asked.wait()
        [limit] = rig.permits.out
        assert (limit.key, limit.calls) == (("rate-address", "127.0.0.1"), 5)
    await released(rig)


def test_customers_of_an_ipv6_network_share_a_window() -> None:
    window = AddressWindow(calls=5, window_seconds=60)
    keys = [window.limit(address).key for address in ("2001:db8::1", "2001:db8::2", "2001:db9::1")]
    assert keys[0] == keys[1] != keys[2]
    assert window.limit("::ffff:192.0.2.1").key == window.limit("192.0.2.1").key
