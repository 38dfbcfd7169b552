"""Who calls while faults happen: seeded callers in three formats, some of whom leave."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.faults.machine import Machine
from tests.faults.world import Token
from tests.journeys.client import FORMATS, QUESTION, Answer, call, send

CALLERS: Final = 10
PAUSE_SECONDS_MAX: Final = 0.04  # between two calls of one caller
NOBODY_SECONDS: Final = 0.02  # after a connection that was refused
REFUSED_SECONDS: Final = 0.1  # after a 503
ANSWER_SECONDS_MAX: Final = 30.0  # every call has ended by then, however it ends
STREAM_SHARE: Final = 0.7
LEAVE_SHARE: Final = 0.08
LEAVE_SECONDS_MAX: Final = 0.15
ENDLESS_MODEL: Final = "sim-slow-100000x20"

CALM_MODELS: Final = ("faults", "faults", "sim-slow-8x10", "sim-slow-20x15")


@dataclass(kw_only=True)
class Sent:
    """A call as its client saw it; without an answer the client has left."""

    session_id: str
    machine: str
    token: Token
    model: str
    format: str
    stream: bool
    began: float
    ended: float = 0.0
    answer: Answer | None = None
    stuck: bool = False

    @property
    def is_whole(self) -> bool:
        return self.answer is not None and self.answer.is_whole

    @property
    def status(self) -> int:
        return 0 if self.answer is None else self.answer.status


@dataclass(kw_only=True)
class Load:
    """Callers that call one after the other until told to stop."""

    prefix: str
    machines: Sequence[Machine]
    tokens: Sequence[Token]
    chance: random.Random
    models: Sequence[str] = CALM_MODELS
    leave_share: float = LEAVE_SHARE
    callers: int = CALLERS
    url: Callable[[], str] | None = None  # of what stands in front of all machines
    stopped: bool = False
    _going: asyncio.Event = field(default_factory=asyncio.Event)
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)
    _calling: int = 0
    sent: list[Sent] = field(default_factory=list)

    async def run(self) -> None:
        """Call until stopped; returns when all calls have ended."""
        self.resume()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.callers):
                tasks.create_task(self._caller(random.Random(self.chance.random())))

    async def pause(self) -> None:
        """Have the callers begin no more calls; return once those that are open have ended."""
        self._going.clear()
        await self._quiet.wait()

    def resume(self) -> None:
        """Have them go on."""
        self._going.set()

    async def _caller(self, chance: random.Random) -> None:
        while not self.stopped:
            await self._going.wait()
            self._calling += 1
            self._quiet.clear()
            sent = await self.one(
                machine=chance.choice(self.machines),
                token=chance.choice(self.tokens),
                model=chance.choice(self.models),
                wire=chance.choice(FORMATS),
                stream=chance.random() < STREAM_SHARE,
                words=chance.randrange(2, 8),
                leave_after=(
                    chance.uniform(0, LEAVE_SECONDS_MAX)
                    if chance.random() < self.leave_share
                    else None
                ),
            )
            self._calling -= 1
            if not self._calling:
                self._quiet.set()
            refused = sent.answer is not None and not sent.status
            pause = NOBODY_SECONDS if refused else chance.uniform(0, PAUSE_SECONDS_MAX)
            await asyncio.sleep(REFUSED_SECONDS if sent.status == 503 else pause)

    async def one(
        self,
        *,
        machine: Machine,
        token: Token,
        model: str = "faults",
        wire: str = "openai",
        stream: bool = False,
        words: int | None = 3,
        leave_after: float | None = None,
        begun: asyncio.Event | None = None,
        seconds: float = ANSWER_SECONDS_MAX,
        question: str = QUESTION,
    ) -> Sent:
        """Make one call and take down what became of it."""
        sent = Sent(
            session_id=f"{self.prefix}/{len(self.sent)}",
            machine=machine.name,
            token=token,
            model=model,
            format=wire,
            stream=stream,
            began=time.time(),
        )
        self.sent.append(sent)
        request = call(
            wire,
            token=token.text,
            model=model,
            stream=stream,
            words=words,
            session_id=sent.session_id,
            question=question,
        )
        url = machine.url if self.url is None else self.url()
        try:
            async with asyncio.timeout(leave_after):
                sent.answer = await send(url, request, begun=begun, seconds=seconds)
        except TimeoutError:
            pass  # the client has left
        except AssertionError:
            sent.stuck = True
        sent.ended = time.time()
        return sent


@dataclass(kw_only=True)
class Watched:
    """An endless stream with a token of its own, to be revoked; and what came of it."""

    machine: Machine
    token: Token
    task: "asyncio.Task[Sent]"
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    committed_at: float | None = None  # of its revocation, Unix seconds
    is_cut_off: bool = False  # its machine could not hear of it
    receipt_seconds: float = 0.0

    def note(self, receipt: dict[str, Any], *, database_ahead: float = 0.0) -> None:
        """Take the revocation's receipt down."""
        self.committed_at = receipt["committed_at"].timestamp() - database_ahead
        self.receipt_seconds = receipt["took_ms"] / 1000

    @property
    def held_seconds(self) -> float | None:
        """From the revocation's commit to the last byte; None where it ended before."""
        answer = self.task.result().answer
        if self.committed_at is None or answer is None or not answer.last_byte_at:
            return None
        if answer.ended_at < self.committed_at:
            return None
        return max(0.0, answer.last_byte_at - self.committed_at)
