"""Clients, vendor and revocations do what they like at random; then every call has one row, and
nothing that a call took is held any more."""

import asyncio
import contextlib
import random
from dataclasses import replace

from gateway.errors import TokenRevoked
from gateway.permit_limit import PermitLimit
from tests.gateway.proxy.rig import DEADLINE_SECONDS, Rig, StayOpen, open_rig
from tests.gateway.proxy.test_calls import CHAT, EVENTS_HEAD, OPENAI_STREAM, chunk, plain

PATH = "/v1/chat/completions"
WHOLE = {**CHAT, "stream": False}
LIMIT = PermitLimit(subject_kind="token", subject="token-1", calls=1, window_seconds=None)
SEEDS = 12
CLIENTS = 4
MILLISECOND = 0.001

STREAM = b"".join(
    (
        EVENTS_HEAD,
        *(chunk(OPENAI_STREAM[at : at + 50]) for at in range(0, len(OPENAI_STREAM), 50)),
        b"0\r\n\r\n",
    )
)


class Disorder:
    """What happens, by one seed."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig = rig
        self.random = random.Random(seed)

    async def rounds(self) -> None:
        for _ in range(self.random.randint(0, 6)):
            await asyncio.sleep(0)

    async def vendor(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        await self.rounds()
        if writer.transport.is_closing():
            return
        refusal = b"HTTP/1.1 %d X\r\nContent-Length: 3\r\n\r\nabc"
        ends = [b"", b"garbage\r\n\r\n", refusal % 500, refusal % 401]
        answer = STREAM if b'"stream": true' in body else plain(200, {"a": "y" * 30_000})
        fate = self.random.random()
        if fate < 0.1:
            raise StayOpen
        if fate < 0.3:
            answer = self.random.choice(ends)
        elif fate < 0.5:
            answer = answer[: self.random.randrange(len(answer))]
        while answer and not writer.transport.is_closing():
            size = self.random.choice([10, 1000, 100_000])
            writer.write(answer[:size])
            answer = answer[size:]
            await self.rounds()
        if fate < 0.5:
            writer.transport.abort()

    def request(self) -> bytes:
        rig = self.rig
        return self.random.choice(
            [
                rig.request(PATH, CHAT),
                rig.request(PATH, WHOLE),
                rig.request(PATH, {**WHOLE, "pad": "x" * 40_000}),
                rig.request("/v1/models", method="GET"),
                b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                rig.request(PATH, b"{bad"),
                rig.request(PATH, CHAT, token="nobody's"),
                rig.request(PATH, CHAT)[:-10],
                b"BAD\r\n\r\n",
            ]
        )

    async def client(self) -> None:
        for _ in range(self.random.randint(1, 6)):
            async with self.rig.client() as client:
                sent = b"".join(self.request() for _ in range(self.random.randint(1, 4)))
                while sent and not client.writer.transport.is_closing():
                    size = self.random.choice([50, 1000, 100_000])
                    client.send(sent[:size])
                    sent = sent[size:]
                    await self.rounds()
                with contextlib.suppress(TimeoutError, ConnectionError):
                    async with asyncio.timeout(self.random.choice([1, 10, 50]) * MILLISECOND):
                        await client.reader.read(-1)

    async def revocations(self) -> None:
        while True:
            await asyncio.sleep(self.random.random() * 5 * MILLISECOND)
            self.rig.live.cut("token", "token-1", TokenRevoked)
            self.rig.lease = self.random.random() < 0.9


async def test_whatever_happens_each_call_has_one_row_and_leaves_nothing_behind() -> None:
    """Not every seed gets a call to the vendor; all of them together do."""
    assert sum([await calls_in_disorder(seed) for seed in range(SEEDS)]) > SEEDS


async def calls_in_disorder(seed: int) -> int:
    """Let everyone do what they like, and return how many calls went to the vendor."""
    async with open_rig() as rig:
        rig.authenticated.caller = replace(rig.caller, permits=(LIMIT,))
        units = rig.units.left
        disorder = Disorder(rig, seed)
        rig.vendor.script = disorder.vendor
        async with asyncio.TaskGroup() as tasks:
            revoking = tasks.create_task(disorder.revocations())
            await asyncio.gather(*(disorder.client() for _ in range(CLIENTS)))
            revoking.cancel()
        rig.live.cut("token", "token-1", TokenRevoked)
        assert await rig.lane.ended(by=asyncio.get_running_loop().time() + DEADLINE_SECONDS)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while rig.lane.connections:  # noqa: ASYNC110 - the last ones say nothing
                await asyncio.sleep(0)
        assert sorted(row["id"] for row in rig.lines.rows) == sorted(rig.lines.opened), seed
        assert units - rig.units.left == len(rig.lines.opened)
        assert rig.permits.out == []
        assert rig.lane.budget.held_bytes == 0
        return len(rig.lines.opened)
