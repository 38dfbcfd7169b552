"""Events that go by all who read an answer: client, row and what is stored are the same."""

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import DatabaseClock
from gateway.metering.usage import Usage
from gateway.proxy.call_record import CallRecord, RecordKeeper
from gateway.proxy.cloud_paths import find
from gateway.proxy.endpoints import Endpoint
from gateway.proxy.exchange import Connection, Exchange
from gateway.proxy.preparation import Request, Sent
from gateway.proxy.relay import Relay, RelayTimes
from gateway.proxy.stored_answer import StoredAnswer, StoredFacts
from gateway.proxy.stored_ids import Stored
from tests.gateway.proxy.rig import target_at

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"


def event(document: object, name: str = "") -> bytes:
    line = b"event: %b\n" % name.encode() if name else b""
    return line + b"data: " + msgspec.json.encode(document) + b"\n\n"


def delta(text: str, **more: object) -> dict[str, object]:
    return {"model": "m-1", "choices": [{"index": 0, "delta": {"content": text}, **more}]}


USAGE = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
ITEM = {"type": "response.output_item.added", "item": {"type": "message", "id": "msg_1"}}
RESPONSE = {"id": "resp_1", "object": "response", "model": "m-1", "status": "in_progress"}
ENDED = {**RESPONSE, "status": "completed", "usage": {"input_tokens": 7, "output_tokens": 9}}
ENDS_IN_CR = event({"choices": [], "usage": USAGE}).replace(b"\n", b"\r")
BEGINS_WITH_LF = b"\n" + event(delta("after the rest of a line's end"))
EVENTS = {
    CHAT: [
        event(delta("tokens")),
        event(delta('"usage":{} "finish_reason":"stop"')),
        event(delta("", finish_reason=None)),
        event(delta("", finish_reason="stop")),
        event({**delta(""), "usage": None}),
        event({"choices": [], "usage": USAGE}),
        event({"error": {"message": "no"}}),
        b": note\n\n",
        b"data: [DONE]\n\n",
        ENDS_IN_CR,
        BEGINS_WITH_LF,
        b"data: {\n\n",
        b"\n\n",
    ],
    MESSAGES: [
        event({"type": "message_start", "message": {"model": "m-1", "usage": {"input_tokens": 7}}}),
        event({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "message_"}}),
        event({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "text"}}),
        event({"type": "ping"}, "ping"),
        event({"type": "message_start", "message": {"container": {"id": "container_1"}}}),
        event({"type": "message_delta", "delta": {"container": {"id": "container_2"}}}),
        event({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 9}}),
        event({"type": "message_stop"}, "message_stop"),
        event({"type": "error", "error": {"type": "overloaded_error"}}, "error"),
    ],
    RESPONSES: [
        event({"type": "response.created", "response": RESPONSE}, "response.created"),
        event(ITEM, "response.output_item.added"),
        event({"type": "response.output_text.delta", "item_id": "msg_1", "delta": "text"}),
        event({"type": "response.completed", "response": ENDED}, "response.completed"),
        event({"type": "response.failed", "response": {**ENDED, "status": "failed"}}),
    ],
}
BEGINS = {path: events[0] for path, events in EVENTS.items()}
QUIET = {CHAT: EVENTS[CHAT][0], MESSAGES: EVENTS[MESSAGES][2], RESPONSES: EVENTS[RESPONSES][2]}


class Client:
    """The client's connection."""

    address = "127.0.0.1"
    body_holders = ()
    is_behind = False
    draining = False

    def __init__(self) -> None:
        self.read = b""

    def unsent_bytes(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self.read += data

    def writer(self) -> Callable[[bytes], None]:
        return self.write

    def on_answered(self, exchange: Exchange) -> None:
        self.read += b"<answered>"

    def on_over(self, exchange: Exchange) -> None:
        pass

    def abort(self) -> None:
        self.read += b"<aborted>"


class Log:
    """The journal: the rows without what differs from one to the next by its nature."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def open_call(self, *_: object, **__: object) -> None:
        pass

    def _keep(self, what: str, row: bytes) -> None:
        document = msgspec.json.decode(row)
        for name in ("ended_at", "time", "month", "duration_ms", "ttfb_ms"):
            document.pop(name, None)
        self.told.append((what, document))

    def note_end(self, call_id: str, row: bytes) -> None:
        self._keep("note", row)

    def close_call(self, call_id: str, row: bytes) -> None:
        self._keep("close", row)


def endpoint_of(path: str) -> Endpoint:
    match = find(path, method=b"POST", headers=[])
    assert match is not None
    return match.endpoint


class Passed:
    """What came of an answer whose body came in these chunks, each in a read of its own."""

    def __init__(
        self, path: str, chunks: Sequence[bytes], *, by: bool, asked_usage: bool, stores: bool
    ) -> None:
        client, log = Client(), Log()
        self.stored: list[Stored] = []
        clock = DatabaseClock()
        clock.observe(sent=0.0, received=0.0, database_time=1.0)
        keeper = RecordKeeper(log=log, clock=clock, now=lambda: 1.0, on_closed=self._on_closed)
        exchange = Exchange(
            cast("Connection", client), method=b"POST", path=path, query=b"", headers=[]
        )
        exchange.body_whole = True
        request = Request(
            endpoint=endpoint_of(path),
            path=path,
            target=target_at(1, "openai"),
            model="m",
            stream=True,
            sent=Sent(body=b"{}", asked_usage=asked_usage, drop_content_encoding=False),
        )
        record = CallRecord(keeper)
        use = request.endpoint.stored
        relay = Relay(
            exchange,
            request,
            record,
            call_id="c",
            may_retry=False,
            times=RelayTimes(),
            loop=asyncio.get_running_loop(),
            stored=None
            if use is None or not stores
            else StoredAnswer(StoredFacts(tells=use.tells), vendor_id="v", note=self.stored.extend),
        )
        record.open(
            attempt_id="c", call_id="c", attempt=1, retry_of=None, vendor="vendor",
            endpoint_name="e", purpose=b'{"model":"m"}', block_ids=(), started=0.0,
        )  # fmt: skip
        relay.on_head(200, b"OK", [(b"content-type", b"text/event-stream")])
        self.went_by = 0
        for data in chunks:
            if relay.outcome.is_told:
                break
            if by and relay.on_chunk(b"%x\r\n%b\r\n" % (len(data), data), len(data)):
                self.went_by += 1
                continue
            relay.on_data(data)
            relay.on_read_done()
        if not relay.outcome.is_told:
            relay.on_end()
        self.read = client.read
        self.rows = log.told
        self.usage: Usage

    def _on_closed(self, *, usage: Usage, **_: object) -> None:
        self.usage = usage


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    """Return a path, and the chunks of an answer to it: events whole, in two, or several."""
    path = draw(st.sampled_from([CHAT, MESSAGES, RESPONSES]))
    events = [BEGINS[path]] * draw(st.integers(0, 1))
    events += draw(st.lists(st.sampled_from(EVENTS[path]) | st.just(QUIET[path]), max_size=9))
    chunks = []
    for one in events:
        at = draw(st.sampled_from([0, 0, 1, len(one) // 2, len(one) - 8, len(one) - 1]))
        chunks += [one[:at], one[at:]]
    joined = draw(st.sets(st.integers(1, max(1, len(chunks) - 1)), max_size=4))
    for at in sorted(joined, reverse=True):
        chunks[at - 1 : at + 1] = [b"".join(chunks[at - 1 : at + 1])]
    return path, [chunk for chunk in chunks if chunk]


def unframed(read: bytes) -> bytes:
    """Return what a client makes of an answer, however it was cut into chunks."""
    head, _, rest = read.partition(b"\r\n\r\n")
    body = b""
    while rest and not rest.startswith(b"<"):
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return b"%b\n%b\n%b" % (head, body, rest)


@given(answer=answers(), asked_usage=st.booleans(), stores=st.booleans())
async def test_what_goes_by_changes_nothing(
    *, answer: tuple[str, list[bytes]], asked_usage: bool, stores: bool
) -> None:
    path, chunks = answer
    asked_usage = asked_usage and path == CHAT
    by = Passed(path, chunks, by=True, asked_usage=asked_usage, stores=stores)
    read = Passed(path, chunks, by=False, asked_usage=asked_usage, stores=stores)
    assert unframed(by.read) == unframed(read.read)
    assert by.rows == read.rows
    assert by.usage == read.usage
    assert by.stored == read.stored


async def test_what_ends_an_event_that_was_taken_out_does_not_go_by() -> None:
    chunks = [BEGINS[CHAT], ENDS_IN_CR, BEGINS_WITH_LF]
    passed = [
        Passed(CHAT, chunks, by=by, asked_usage=True, stores=False).read for by in (True, False)
    ]
    assert unframed(passed[0]) == unframed(passed[1])
    assert b"prompt_tokens" not in passed[0]


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
async def test_most_of_a_stream_goes_by(path: str) -> None:
    """Also where the answer may name something that is stored."""
    passed = Passed(
        path, [BEGINS[path]] + [QUIET[path]] * 20, by=True, asked_usage=path == CHAT, stores=True
    )
    assert passed.went_by >= 19
