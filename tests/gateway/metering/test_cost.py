"""What a call and an event may cost, in calls of Python functions: a figure without noise.

A function of Python costs 50 ns and more before it does anything. Each bound is what is needed now
and a tenth: who goes beyond it has put something on everybody's path.
"""

import cProfile
import pstats
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.auth.caller import Caller
from gateway.clock import DatabaseClock
from gateway.ids import IdMaker
from gateway.metering.journal import Journal
from gateway.metering.meter import Meter, MeterFormat, open_meter
from gateway.metering.usage import Usage
from gateway.metrics import Metrics
from gateway.proxy.call_plan import plan_of
from gateway.proxy.call_record import CallRecord, RecordKeeper, Status
from gateway.proxy.endpoints import find

RUNS = 20
COMPLETION = (
    b'{"id":"c","object":"chat.completion","created":1767225600,"model":"m","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"words"},"finish_reason":"stop"}],"usage":'
    b'{"prompt_tokens":123,"completion_tokens":200,"total_tokens":323,"prompt_tokens_details":'
    b'{"cached_tokens":10},"completion_tokens_details":{"reasoning_tokens":64}}}'
)
MESSAGE = (
    b'{"id":"m","type":"message","role":"assistant","model":"m","content":[{"type":"text","text":'
    b'"words"}],"stop_reason":"end_turn","usage":{"input_tokens":123,"cache_read_input_tokens":0,'
    b'"cache_creation":{"ephemeral_5m_input_tokens":0},"output_tokens":200}}'
)
CHUNK = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1767225600,"model":"m","choices":'
    b'[{"index":0,"delta":{"content":"words"},"finish_reason":null}]}\n\n'
)
DELTA = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"w"}}\n\n'
)


def calls_of(act: Callable[[], object]) -> float:
    """Return how many functions of Python one run takes, once everything is warm."""
    act()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(RUNS):
        act()
    profile.disable()
    found = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    made: int = sum(row[1] for (file, _, _), row in found.items() if file != "~")
    return made / RUNS


def meter(kind: MeterFormat, *, stream: bool = False) -> Meter:
    return open_meter(
        kind,
        stream=stream,
        status=200,
        content_type=b"text/event-stream" if stream else b"application/json",
        content_encoding=b"",
    )


@pytest.mark.parametrize(
    ("kind", "answer", "most"),
    [(MeterFormat.OPENAI_CHAT, COMPLETION, 38), (MeterFormat.ANTHROPIC_MESSAGES, MESSAGE, 34)],
)
def test_an_answer_in_one_piece(kind: MeterFormat, answer: bytes, most: int) -> None:
    def act() -> Usage:
        metering = meter(kind)
        metering.feed(answer)
        return metering.finish(complete=True)

    assert act().output_tokens == 200
    assert calls_of(act) <= most


@pytest.mark.parametrize(
    ("kind", "event"),
    [(MeterFormat.OPENAI_CHAT, CHUNK), (MeterFormat.ANTHROPIC_MESSAGES, DELTA)],
)
def test_an_event_that_tells_nothing(kind: MeterFormat, event: bytes) -> None:
    metering = meter(kind, stream=True)
    for _ in range(10):
        metering.feed(event)

    def act() -> None:
        metering.feed(event)
        assert not metering.is_over

    assert calls_of(act) <= 4  # act itself, the meter, its parser, its reader


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal.create(tmp_path, worker_id="w", boot_id="boot")
    yield journal
    journal.close()


async def test_a_record_from_its_open_line_to_its_row_and_its_metrics(journal: Journal) -> None:
    await journal.step()
    ids = IdMaker(time.time)
    clock = DatabaseClock()
    clock.observe(sent=0.0, received=0.0, database_time=1_790_000_000.0)
    keeper = RecordKeeper(
        log=journal,
        clock=clock,
        now=time.monotonic,
        on_closed=Metrics(version="1").call_finished,
    )
    caller = Caller(
        token_id="t",
        parent_id=None,
        org_id="o",
        workspace_id="w",
        user_id="u",
        scopes=frozenset(),
        models=None,
        expires_at=2e9,
        limits=(),
    )
    plan = plan_of(find("/v1/chat/completions", method=b"POST", headers=[]), [], b"")
    endpoint = plan.match.endpoint
    usage = Usage(input_tokens=1, output_tokens=2, source="vendor", vendor_usage=b"{}")

    def act() -> None:
        call_id = ids.new()
        record = CallRecord(keeper)
        record.open(
            attempt_id=call_id,
            call_id=call_id,
            attempt=1,
            retry_of=None,
            vendor="v",
            endpoint_name=endpoint.name,
            purpose=plan.purpose(
                caller=caller, vendor="v", endpoint=endpoint, model="m", stream=False
            ),
            block_ids=("b",),
            started=keeper.now(),
        )
        record.first_byte(200)
        record.close(Status.COMPLETE, usage, bytes_up=1, bytes_down=2)

    assert calls_of(act) <= 43
    assert journal.open_calls == 0
    batch = journal.read_unshipped(rows_max=100, bytes_max=10**6)
    assert len(batch.rows) == RUNS + 1
