"""A call from its first byte to its row: what the vendor is sent, what the client gets, what is
recorded, for every way in which it can end."""

import asyncio
import gzip
import json
import random
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from gateway.auth.caller import Caller
from gateway.errors import Draining, JournalFull, TokenRevoked
from gateway.proxy import relay as relay_module
from gateway.proxy.routing import RoutingTable
from tests.gateway.proxy.rig import DEADLINE_SECONDS, KEY, TOKEN, Rig, Script, StayOpen

TRANSCRIPTS = Path(__file__).resolve().parents[2] / "transcripts"
CHAT = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "model": "gpt-4o"}
MESSAGES = {"model": "claude", "stream": True, "max_tokens": 9, "messages": []}
OPENAI_STREAM = (TRANSCRIPTS / "openai_chat.sse").read_bytes()
ANTHROPIC_STREAM = (TRANSCRIPTS / "anthropic_messages.sse").read_bytes()
GEMINI_STREAM = (TRANSCRIPTS / "gemini_generate.sse").read_bytes()
RESPONSES = {"model": "gpt-5", "stream": True, "store": True, "input": "hi"}
RESPONSES_STREAM = (
    b'event: response.created\ndata: {"type":"response.created","response":{"model":"gpt-5"}}\n\n'
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta"}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed","response":{"status":'
    b'"completed","usage":{"input_tokens":3,"output_tokens":4,"total_tokens":7}}}\n\n'
)
EVENTS_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nServer: x\r\nSet-Cookie: a=b\r\n"
    b"X-New: 1\r\nX-Request-Id: req-7\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def streams(data: bytes, *, pieces: list[bytes] | None = None) -> Script:
    async def script(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS_HEAD)
        for piece in pieces or [data]:
            writer.write(chunk(piece))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    return script


def answers(raw: bytes, *, then_close: bool = False) -> Script:
    async def script(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        if then_close:
            await writer.drain()
            writer.transport.abort()

    return script


def plain(status: int, document: object, *headers: str) -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def hangs(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(EVENTS_HEAD + chunk(b'data: {"choices":[{"index":0,"delta":{}}]}\n\n'))
    await writer.drain()
    raise StayOpen


async def answers_ok(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    )


async def never_answers(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
    raise StayOpen


@pytest.mark.parametrize(
    ("path", "body", "stream", "used"),
    [
        ("/v1/chat/completions", CHAT, OPENAI_STREAM, "openai"),
        ("/v1/messages?beta=true", MESSAGES, ANTHROPIC_STREAM, "anthropic"),
        ("/v1beta/models/gemini-2:streamGenerateContent?alt=sse", {}, GEMINI_STREAM, "gemini"),
    ],
)
async def test_a_stream_passes_byte_for_byte_however_it_is_cut(
    rig: Rig, path: str, body: object, stream: bytes, used: str
) -> None:
    chance = random.Random(used)
    for number in range(12):
        pieces = [stream[at : at + 1] for at in range(len(stream))]
        if number:
            places = sorted(chance.sample(range(1, len(stream)), number * 3))
            pieces = [
                stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)
            ]
        rig.vendor.script = streams(stream, pieces=pieces)
        answer = await rig.ask(path, body)
        assert answer.status == 200
        assert answer.clean
        assert answer.body == stream
        row = await rig.lines.row()
        assert row["status"] == "complete"
        assert row["usage_source"] == "vendor"
        assert row["vendor"] == used
        assert row["output_tokens"] > 0
        assert row["bytes_down"] == len(stream)
        assert row["vendor_request_id"] == "req-7"


async def test_headers_pass_but_for_those_that_may_not(rig: Rig) -> None:
    rig.vendor.script = streams(OPENAI_STREAM)
    answer = await rig.ask(
        "/v1/chat/completions?x=1&key=" + TOKEN,
        CHAT,
        headers=["X-Own: a", "Cookie: c=d", "X-Forwarded-For: 1.2.3.4", "X-Kaixu-Thing: e"],
    )
    assert answer.headers["x-new"] == "1"
    assert "server" not in answer.headers
    assert "set-cookie" not in answer.headers
    assert answer.headers["x-kaixu-call-id"] == rig.lines.rows[0]["call_id"]
    sent = rig.vendor.heads[0].lower()
    assert sent.startswith(b"post /v1/chat/completions?x=1 http/1.1\r\n")
    assert b"x-own: a\r\n" in sent
    assert b"authorization: bearer " + KEY in sent
    for hidden in (TOKEN.encode(), b"cookie", b"x-forwarded-for", b"x-kaixu", b"host: gateway"):
        assert hidden not in sent


async def test_usage_is_asked_for_and_its_event_taken_out_again(rig: Rig) -> None:
    rig.targets[0] = rig.target("openai", path="/v1", asks_usage=True)
    delta = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"a"}}],"usage":null}\n\n'
    counts = b'{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}'
    usage = b'data: {"id":"1","choices":[],"usage":' + counts + b"}\n\n"
    done = b"data: [DONE]\n\n"
    rig.vendor.script = streams(delta + usage + done)
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert answer.body == delta + done
    sent = json.loads(rig.vendor.bodies[0])
    assert sent.pop("stream_options") == {"include_usage": True}
    assert sent == CHAT
    row = await rig.lines.row()
    assert (row["input_tokens"], row["output_tokens"]) == (3, 4)


async def test_usage_that_the_client_asked_for_stays(rig: Rig) -> None:
    rig.targets[0] = rig.target("openai", path="/v1", asks_usage=True)
    rig.vendor.script = streams(OPENAI_STREAM)
    body = {**CHAT, "stream_options": {"include_usage": True}}
    answer = await rig.ask("/v1/chat/completions", body)
    assert answer.body == OPENAI_STREAM
    assert json.loads(rig.vendor.bodies[0]) == body


COHERE_STREAM = (
    b'event: message-start\ndata: {"id":"1","type":"message-start"}\n\n'
    b'event: content-delta\ndata: {"type":"content-delta","index":0}\n\n'
    b'event: message-end\ndata: {"type":"message-end","delta":{"finish_reason":"COMPLETE","usage":'
    b'{"billed_units":{"input_tokens":2},"tokens":{"input_tokens":90,"output_tokens":4}}}}\n\n'
    b"data: [DONE]\n\n"
)
LINES_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/stream+json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
LINES = (
    b'{"is_finished":false,"event_type":"text-generation","text":"a"}\n'
    b'{"is_finished":true,"event_type":"stream-end","finish_reason":"COMPLETE","response":'
    b'{"meta":{"tokens":{"input_tokens":9,"output_tokens":4}}}}\n'
)


async def test_coheres_stream_passes_and_is_metered(rig: Rig) -> None:
    rig.targets = [rig.target("cohere")]
    rig.vendor.script = streams(COHERE_STREAM)
    body = {"model": "command-a", "messages": [], "stream": True}
    answer = await rig.ask("/v2/chat", body)
    assert answer.body == COHERE_STREAM
    assert json.loads(rig.vendor.bodies[0]) == body
    assert rig.vendor.heads[0].startswith(b"POST /v2/chat HTTP/1.1\r\n")
    assert b"authorization: Bearer " + KEY in rig.vendor.heads[0]
    row = await rig.lines.row()
    assert (row["client_format"], row["endpoint"], row["status"]) == (
        "cohere", "chat.v2", "complete"
    )  # fmt: skip
    assert (row["input_tokens"], row["output_tokens"]) == (90, 4)


async def test_a_revoked_stream_of_cohere_ends_with_an_error(rig: Rig) -> None:
    rig.targets = [rig.target("cohere")]
    rig.vendor.script = hangs
    async with rig.client() as client:
        client.send(rig.request("/v2/chat", {"model": "command-a", "stream": True}))
        await client.until(b"{}}]}\n\n\r\n")
        rig.live.cut("token", "token-1", TokenRevoked)
        rest = await client.until(b"0\r\n\r\n")
    assert b'event: message-end\ndata: {"type":"message-end"' in rest
    assert b'"delta":{"error":"This gateway token was revoked.","finish_reason":"ERROR"}' in rest
    assert (await rig.lines.row())["status"] == "revoked"


@pytest.mark.parametrize(("sent", "status"), [(LINES, "complete"), (LINES[:70], "vendor_broke")])
async def test_lines_of_json_are_a_stream_with_an_end(rig: Rig, sent: bytes, status: str) -> None:
    async def lines(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        del head, body
        writer.write(LINES_HEAD + chunk(sent) + b"0\r\n\r\n")

    rig.targets = [rig.target("cohere")]
    rig.vendor.script = lines
    answer = await rig.ask("/v1/chat", {"message": "hi", "stream": True})
    assert answer.body == sent
    row = await rig.lines.row()
    assert (row["status"], row["model_requested"]) == (status, None)
    assert row["output_tokens"] == (4 if status == "complete" else None)


async def test_a_refusal_of_ours_has_coheres_shape(rig: Rig) -> None:
    rig.targets = [rig.target("cohere")]
    for path, body in (("/v2/chat", {}), ("/v1/chat", {"conversation_id": "mine"})):
        answer = await rig.ask(path, body)
        assert answer.status in {400, 404}
        error = json.loads(answer.body)
        assert set(error) == {"id", "message"}
        assert error["id"] == answer.headers["x-kaixu-call-id"]
    rig.vendor.script = answers(plain(401, {"id": "1", "message": "Incorrect API key provided"}))
    answer = await rig.ask("/v2/chat", {"model": "command-a", "messages": []})
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (502, "vendor_key")


async def test_a_named_vendor_tells_whose_reranking_it_is(rig: Rig) -> None:
    rig.targets = [rig.target("openai", path="/v1"), rig.target("cohere")]
    meta = {"api_version": {"version": "1"}, "billed_units": {"search_units": 2}}
    rig.vendor.script = answers(plain(200, {"id": "1", "results": [], "meta": meta}))
    answer = await rig.ask("/cohere/v1/rerank", {"query": "q", "documents": ["d"]})
    assert answer.status == 200
    row = await rig.lines.row()
    assert (row["endpoint"], row["searches"], row["input_tokens"]) == ("rerank.v1", 2, None)


@pytest.mark.parametrize(("said", "stream"), [({}, True), ({"stream": False}, False)])
async def test_ollama_streams_unless_it_is_told_not_to(
    rig: Rig, said: dict[str, bool], *, stream: bool
) -> None:
    done = b'{"model":"m","done":true,"total_duration":1,"prompt_eval_count":3,"eval_count":4}\n'

    async def lines(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        del head, body
        kind = b"x-ndjson" if stream else b"json"
        writer.write(LINES_HEAD.replace(b"stream+json", kind) + chunk(done) + b"0\r\n\r\n")

    rig.targets = [rig.target("ollama")]
    rig.vendor.script = lines
    answer = await rig.ask("/api/chat", {"model": "m", "messages": [], **said})
    assert answer.body == done
    row = await rig.lines.row()
    assert (row["endpoint"], row["stream"], row["status"]) == ("ollama.chat", stream, "complete")
    assert (row["input_tokens"], row["output_tokens"]) == (3, 4)


async def test_what_ollama_has_is_told_without_a_unit(rig: Rig) -> None:
    rig.targets = [rig.target("ollama")]
    listed = await rig.ask("/api/tags", method="GET")
    assert json.loads(listed.body) == {"models": []}
    rig.vendor.script = answers(plain(200, {"capabilities": ["completion"]}))
    shown = await rig.ask("/api/show", {"model": "m"})
    assert json.loads(shown.body) == {"capabilities": ["completion"]}
    row = await rig.lines.row()
    assert (row["endpoint"], row["counted"], row["usage_source"]) == ("ollama.show", False, "none")
    refused = await rig.ask("/api/chat", {})
    assert list(json.loads(refused.body)) == ["error"]


async def test_fill_in_the_middle_goes_up_as_it_came(rig: Rig) -> None:
    rig.targets[0] = rig.target("openai", path="/v1", asks_usage=True)
    rig.vendor.script = streams(OPENAI_STREAM)
    body = {"model": "codestral-latest", "prompt": "def f(", "suffix": "return x", "stream": True}
    answer = await rig.ask("/v1/fim/completions", body)
    assert answer.body == OPENAI_STREAM
    assert json.loads(rig.vendor.bodies[0]) == body
    assert rig.vendor.heads[0].startswith(b"POST /v1/fim/completions HTTP/1.1\r\n")
    row = await rig.lines.row()
    assert (row["endpoint"], row["counted"], row["usage_source"]) == (
        "fim.completions", True, "vendor"
    )  # fmt: skip


async def test_completions_are_asked_for_usage_as_chat_is(rig: Rig) -> None:
    rig.targets[0] = rig.target("openai", path="/v1", asks_usage=True)
    text = b'data: {"choices":[{"index":0,"text":"a","finish_reason":"stop"}],"usage":null}\n\n'
    counts = b'{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}'
    usage = b'data: {"choices":[],"usage":' + counts + b"}\n\n"
    rig.vendor.script = streams(text + usage + b"data: [DONE]\n\n")
    body = {"model": "m", "prompt": "def f(", "suffix": "return x", "stream": True}
    answer = await rig.ask("/v1/completions", body)
    assert answer.body == text + b"data: [DONE]\n\n"
    assert json.loads(rig.vendor.bodies[0]) == {**body, "stream_options": {"include_usage": True}}
    row = await rig.lines.row()
    assert (row["endpoint"], row["input_tokens"], row["output_tokens"]) == ("completions", 3, 4)


async def test_responses_tell_usage_unasked_and_go_up_as_they_came(rig: Rig) -> None:
    rig.targets[0] = rig.target("openai", path="/v1", asks_usage=True)
    rig.vendor.script = streams(RESPONSES_STREAM)
    answer = await rig.ask("/v1/responses", RESPONSES)
    assert answer.body == RESPONSES_STREAM
    assert json.loads(rig.vendor.bodies[0]) == RESPONSES
    row = await rig.lines.row()
    assert (row["status"], row["finish_reason"]) == ("complete", "completed")
    assert (row["input_tokens"], row["output_tokens"]) == (3, 4)


async def test_a_response_that_failed_is_noted_as_that(rig: Rig) -> None:
    failed = b'data: {"type":"response.failed","response":{"status":"failed","usage":null}}\n\n'

    async def fails(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS_HEAD + chunk(failed))
        await writer.drain()
        await asyncio.wait_for(passed.wait(), DEADLINE_SECONDS)
        writer.write(b"0\r\n\r\n")

    passed = asyncio.Event()
    rig.vendor.script = fails
    async with rig.client() as client:
        client.send(rig.request("/v1/responses", RESPONSES))
        await client.until(failed)
        passed.set()
        row = await rig.lines.row()
    assert row["status"] == rig.lines.noted[0]["status"] == "vendor_error"


async def test_a_revoked_response_ends_with_a_failure_that_codex_does_not_repeat(rig: Rig) -> None:
    rig.vendor.script = hangs
    async with rig.client() as client:
        client.send(rig.request("/v1/responses", RESPONSES))
        await client.until(b"{}}]}\n\n\r\n")
        rig.live.cut("token", "token-1", TokenRevoked)
        rest = await client.until(b"0\r\n\r\n")
    assert b"event: response.failed\ndata: " in rest
    assert b'"error":{"code":"invalid_prompt","message":"This gateway token was revoked."}' in rest
    assert (await rig.lines.row())["status"] == "revoked"


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/v1/responses", {"model": "m", "input": "hi", "previous_response_id": "resp_1"}, str),
        ("/v1/responses", {"model": "m", "input": [{"id": "msg_1"}]}, str),
        ("/v1/responses/compact", {"model": "m", "previous_response_id": "resp_1"}, str),
        ("/v1/chat/completions", {"model": "m", "messages": [{"file": {"file_id": "f"}}]}, str),
        ("/v1/messages", {**MESSAGES, "container": "container_1"}, None),
        ("/v1beta/models/g:generateContent", {"cachedContent": "cachedContents/1"}, None),
    ],
)
async def test_a_body_that_names_a_stored_object_goes_nowhere(
    rig: Rig, path: str, body: object, kind: type | None
) -> None:
    answer = await rig.ask(path, body)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (404, "not_yours")
    error = json.loads(answer.body)["error"]
    assert "stored" in error["message"]
    assert kind is None or isinstance(error["param"], kind)
    assert rig.vendor.heads == []
    assert rig.lines.opened == {}


async def test_a_compressed_body_hides_no_stored_object(rig: Rig) -> None:
    body = gzip.compress(b'{"model":"m","input":"hi","previous_response_id":"resp_1"}')
    answer = await rig.ask("/v1/responses", body, headers=["Content-Encoding: gzip"])
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (404, "not_yours")


async def test_where_the_vendor_has_a_default_model_a_body_needs_none(rig: Rig) -> None:
    rig.vendor.script = answers(plain(200, {"id": "modr-1", "results": []}))
    answer = await rig.ask("/v1/moderations", {"input": "hi"})
    assert answer.status == 200
    row = await rig.lines.row()
    assert (row["endpoint"], row["counted"], row["usage_source"]) == ("moderations", True, "none")
    assert row["model_requested"] is None
    rig.authenticated.caller = replace(rig.caller, models=("omni-*",))
    answer = await rig.ask("/v1/moderations", {"input": "hi"})
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (400, "body_invalid")


async def test_counting_input_tokens_takes_no_allowance(rig: Rig) -> None:
    rig.vendor.script = answers(plain(200, {"input_tokens": 51}))
    answer = await rig.ask("/v1/responses/input_tokens", {"model": "m", "input": "hi"})
    assert answer.status == 200
    row = await rig.lines.row()
    assert (row["counted"], row["usage_source"]) == (False, "none")
    assert rig.units.taken == 0


async def test_an_alias_goes_up_as_the_model_that_it_stands_for(rig: Rig) -> None:
    rig.aliases = {"fast": ("openai", "gpt-4o-mini"), "g": ("gemini", "gemini-2.0-flash")}
    rig.vendor.script = streams(OPENAI_STREAM)
    await rig.ask("/v1/chat/completions", {**CHAT, "model": "fast"})
    assert json.loads(rig.vendor.bodies[0]) == {**CHAT, "model": "gpt-4o-mini"}
    assert (await rig.lines.row())["model_requested"] == "fast"
    rig.vendor.script = streams(GEMINI_STREAM)
    await rig.ask("/v1beta/models/g:streamGenerateContent?alt=sse", {})
    assert rig.vendor.heads[1].startswith(
        b"POST /v1beta/models/gemini-2.0-flash:streamGenerateContent?alt=sse HTTP/1.1"
    )


async def test_a_plain_answer_keeps_its_length_and_the_connections_stay_warm(rig: Rig) -> None:
    document = {
        "id": "1",
        "model": "gpt-4o",
        "choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    raw = plain(200, document)
    rig.vendor.script = answers(raw)
    async with rig.client() as client:
        for _ in range(3):
            client.send(rig.request("/v1/chat/completions", {**CHAT, "stream": False}))
            answer = await client.answer()
            assert answer.body == json.dumps(document).encode()
            assert answer.headers["content-length"] == str(len(answer.body))
    assert rig.vendor.connections == 1
    assert [row["output_tokens"] for row in rig.lines.rows] == [2, 2, 2]
    assert len({row["id"] for row in rig.lines.rows}) == 3


async def test_a_vendors_error_passes_and_has_a_row(rig: Rig) -> None:
    error = {"error": {"message": "slow down", "type": "rate_limit_error"}}
    rig.vendor.script = answers(plain(429, error, "Retry-After: 7"))
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert answer.status == 429
    assert answer.headers["retry-after"] == "7"
    assert answer.body == json.dumps(error).encode()
    row = await rig.lines.row()
    assert (row["status"], row["http_status"], row["usage_source"]) == ("vendor_error", 429, "none")
    assert row["output_tokens"] is None


async def test_a_refused_vendor_key_is_our_fault_and_says_so(rig: Rig) -> None:
    told = {"error": {"message": "Incorrect API key " + KEY.decode(), "code": "invalid_api_key"}}
    rig.vendor.script = answers(plain(401, told))
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert answer.status == 502
    assert answer.headers["x-kaixu-reason"] == "vendor_key"
    assert answer.headers["x-should-retry"] == "false"
    assert KEY not in answer.body
    row = await rig.lines.row()
    assert (row["status"], row["http_status"]) == ("vendor_error", 401)


async def test_our_key_is_masked_in_a_vendors_error(rig: Rig) -> None:
    told = b'{"error":{"message":"bad thing near ' + KEY + b' here"}}'
    rig.vendor.script = answers(plain(500, told))
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert answer.status == 500
    assert answer.body == told.replace(KEY, b"*" * len(KEY))


async def test_a_revoked_call_ends_with_the_formats_error_event(rig: Rig) -> None:
    rig.vendor.script = hangs
    async with rig.client() as client:
        client.send(rig.request("/v1/chat/completions", CHAT))
        await client.until(b"{}}]}\n\n\r\n")
        assert rig.live.cut("token", "token-1") == 1
        rest = await client.until(b"0\r\n\r\n")
        assert b'data: {"error":{' in rest
        assert b"token_revoked" in rest
    row = await rig.lines.row()
    assert (row["status"], row["reason"]) == ("revoked", "token_revoked")
    await asyncio.wait_for(rig.vendor.closed.wait(), DEADLINE_SECONDS)


async def test_a_revoked_gemini_stream_breaks(rig: Rig) -> None:
    rig.vendor.script = hangs
    async with rig.client() as client:
        client.send(rig.request("/v1beta/models/g:streamGenerateContent?alt=sse", {}))
        await client.until(b"{}}]}\n\n\r\n")
        rig.live.cut("org", "org-1")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.until(b"0\r\n\r\n")
    assert (await rig.lines.row())["status"] == "revoked"


async def test_an_event_under_way_ends_before_ours(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "BOUNDARY_WAIT_SECONDS", 0.01)

    async def half(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS_HEAD + chunk(b'data: {"choices":['))
        await writer.drain()
        raise StayOpen

    rig.vendor.script = half
    async with rig.client() as client:
        client.send(rig.request("/v1/chat/completions", CHAT))
        await client.until(b'"choices":[\r\n')
        rig.live.cut("user", "user-1")
        rest = await client.until(b"0\r\n\r\n")
        assert b'\n\ndata: {"error":{' in rest


async def test_a_call_revoked_before_its_answer_gets_a_401(rig: Rig) -> None:
    rig.vendor.script = never_answers
    async with rig.client() as client:
        client.send(rig.request("/v1/chat/completions", CHAT))
        await asyncio.wait_for(rig.vendor.asked.wait(), DEADLINE_SECONDS)
        rig.live.cut("token", "token-1", TokenRevoked)
        answer = await client.answer()
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (401, "token_revoked")
    assert (await rig.lines.row())["status"] == "revoked"


async def test_a_client_that_leaves_cancels_the_vendors_work(rig: Rig) -> None:
    rig.vendor.script = hangs
    async with rig.client() as client:
        client.send(rig.request("/v1/chat/completions", CHAT))
        await client.until(b"{}}]}\n\n\r\n")
        client.leave()
        row = await rig.lines.row()
    assert row["status"] == "client_closed"
    assert row["usage_source"] == "none"
    await asyncio.wait_for(rig.vendor.closed.wait(), DEADLINE_SECONDS)


async def test_a_client_that_leaves_after_the_end_mark_had_the_whole_answer(rig: Rig) -> None:
    async def no_last_chunk(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS_HEAD + chunk(OPENAI_STREAM))
        await writer.drain()
        raise StayOpen

    rig.vendor.script = no_last_chunk
    async with rig.client() as client:
        client.send(rig.request("/v1/chat/completions", CHAT))
        await client.until(b"[DONE]\n\n")
        noted = rig.lines.noted[0]
        client.leave()
        row = await rig.lines.row()
    assert row["status"] == noted["status"] == "complete"
    assert row["output_tokens"] == noted["output_tokens"]


async def test_what_follows_an_end_mark_still_counts(rig: Rig) -> None:
    rig.vendor.script = streams(b"", pieces=[ANTHROPIC_STREAM, ANTHROPIC_STREAM])
    answer = await rig.ask("/v1/messages", MESSAGES)
    assert answer.body == ANTHROPIC_STREAM * 2
    row = await rig.lines.row()
    assert (row["status"], row["bytes_down"]) == ("complete", 2 * len(ANTHROPIC_STREAM))
    assert len(rig.lines.rows) == 1


async def test_a_stream_that_breaks_ends_with_an_error_event(rig: Rig) -> None:
    first = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    rig.vendor.script = answers(EVENTS_HEAD + chunk(first), then_close=True)
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert answer.body.startswith(first + b'data: {"error":{')
    row = await rig.lines.row()
    assert (row["status"], row["reason"]) == ("vendor_broke", "vendor_unreachable")


async def test_a_plain_answer_that_breaks_never_looks_whole(rig: Rig) -> None:
    raw = plain(200, {"a": "b" * 100})
    rig.vendor.script = answers(raw[:-20], then_close=True)
    answer = await rig.ask("/v1/chat/completions", {**CHAT, "stream": False})
    assert not answer.clean
    assert (await rig.lines.row())["status"] == "vendor_broke"


async def test_a_stream_without_its_format_s_end_is_labelled(rig: Rig) -> None:
    first = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    rig.vendor.script = streams(first)
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert answer.body == first
    assert (await rig.lines.row())["status"] == "vendor_broke"


async def test_a_reused_connection_that_died_is_tried_once_more(rig: Rig) -> None:
    rig.vendor.script = streams(OPENAI_STREAM)
    await rig.ask("/v1/chat/completions", CHAT)
    first = await rig.lines.row()

    async def dies_then_answers(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        if rig.vendor.connections == 1:
            writer.transport.abort()
        else:
            await streams(OPENAI_STREAM)(head, body, writer)

    rig.vendor.script = dies_then_answers
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert answer.body == OPENAI_STREAM
    dead, retry = rig.lines.rows[1:]
    assert (dead["status"], dead["reason"], dead["attempt"]) == ("vendor_broke", "no_answer", 1)
    assert (retry["status"], retry["attempt"], retry["retry_of"]) == ("complete", 2, dead["id"])
    assert retry["call_id"] == dead["call_id"] != first["call_id"]
    assert rig.units.taken == 3


async def test_a_new_connection_that_dies_is_not_tried_again(rig: Rig) -> None:
    rig.vendor.script = answers(b"", then_close=True)
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (502, "vendor_unreachable")
    row = await rig.lines.row()
    assert (row["status"], row["reason"]) == ("vendor_broke", "no_answer")
    assert rig.vendor.connections == 1


async def test_a_spent_limit_reaches_no_vendor(rig: Rig) -> None:
    rig.units.left = 0
    answer = await rig.ask("/v1/messages", MESSAGES)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (429, "monthly_limit")
    assert answer.headers["x-should-retry"] == "false"
    assert json.loads(answer.body)["error"]["type"] == "rate_limit_error"
    assert rig.vendor.heads == []
    assert rig.lines.opened == {}


async def test_counting_tokens_takes_no_unit_but_has_a_row(rig: Rig) -> None:
    rig.vendor.script = answers(plain(200, {"input_tokens": 5}))
    answer = await rig.ask("/v1/messages/count_tokens", {"model": "claude", "messages": []})
    assert json.loads(answer.body) == {"input_tokens": 5}
    row = await rig.lines.row()
    assert (row["counted"], row["usage_source"]) == (False, "none")
    assert rig.units.taken == 0


async def test_a_full_journal_refuses_before_anything_is_sent(rig: Rig) -> None:
    rig.lines.full = JournalFull()
    before = rig.units.left
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (503, "journal_full")
    assert rig.vendor.heads == []
    assert rig.units.left == before


async def test_without_a_lease_nothing_is_admitted(rig: Rig) -> None:
    rig.lease = False
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (503, "database_away")


async def test_a_model_that_the_token_may_not_use_is_refused(rig: Rig) -> None:
    rig.authenticated.caller = replace(rig.caller, models=("claude-*",))
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (403, "model_not_allowed")


async def test_a_path_is_read_as_the_orgs_own_vendor_reads_it(rig: Rig) -> None:
    shared = RoutingTable([replace(rig.target("cohere"), name="ours")])
    own = RoutingTable([replace(rig.target("openai"), name="ours")], base=shared)

    def routing(caller: Caller | None) -> RoutingTable:
        return shared if caller is None else own

    rig.calls._routing = rig.calls._preparation._routing = routing
    rig.vendor.script = answers(plain(200, {"results": []}))
    asked = {"model": "m", "query": "q", "documents": ["d"]}
    assert (await rig.ask("/ours/v1/rerank", asked)).status == 200
    assert (await rig.lines.row())["endpoint"] == "rerank"


@pytest.mark.parametrize("lists", ["vendors", "parent_vendors"])
async def test_a_vendor_that_the_token_may_not_call_is_refused(rig: Rig, lists: str) -> None:
    def only(*names: str) -> Caller:
        if lists == "vendors":
            return replace(rig.caller, vendors=names)
        return replace(rig.caller, parent_vendors=names)

    rig.authenticated.caller = only("anthropic")
    for path in ("/v1/chat/completions", "/openai/v1/chat/completions"):
        answer = await rig.ask(path, CHAT)
        assert (answer.status, answer.headers["x-kaixu-reason"]) == (403, "vendor_not_allowed")
    rig.aliases = {"gpt-4o": ("openai", "gpt-5")}
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (403, "vendor_not_allowed")
    assert rig.vendor.heads == []
    assert rig.units.taken == 0
    rig.authenticated.caller = only("anthropic", "openai")
    rig.vendor.script = answers_ok
    assert (await rig.ask("/v1/chat/completions", CHAT)).status == 200


async def test_a_token_is_used_from_its_networks_alone(rig: Rig) -> None:
    elsewhere, here = ip_network("203.0.113.0/24"), ip_network("127.0.0.0/8")
    for own, parents in (
        ((elsewhere,), None),
        (None, (elsewhere,)),
        ((here,), (elsewhere,)),
        ((), None),
    ):
        rig.authenticated.caller = replace(rig.caller, addresses=own, parent_addresses=parents)
        for path, method in (("/v1/chat/completions", "POST"), ("/v1/models", "GET")):
            body = CHAT if method == "POST" else None
            spoof = ["X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.7"]
            answer = await rig.ask(path, body, method=method, headers=spoof)
            assert (answer.status, answer.headers["x-kaixu-reason"]) == (403, "address_not_allowed")
    assert rig.vendor.heads == []
    rig.authenticated.caller = replace(rig.caller, addresses=(elsewhere, here))
    rig.vendor.script = answers_ok
    assert (await rig.ask("/v1/chat/completions", CHAT)).status == 200


async def test_a_vendor_that_is_not_there_is_a_502_without_a_row(rig: Rig) -> None:
    gone = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = gone.sockets[0].getsockname()[1]
    gone.close()
    await gone.wait_closed()
    rig.targets[0] = replace(rig.targets[0], base=replace(rig.targets[0].base, port=port))
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (502, "vendor_unreachable")
    assert rig.lines.opened == {}
    assert rig.units.taken == 0
    assert rig.metrics.vendor_errors == [("openai", "vendor_unreachable")]


async def test_a_vendor_that_never_answers_is_given_up(rig: Rig) -> None:
    rig.vendor.script = never_answers
    rig.times.first_byte_seconds = -1
    async with rig.client() as client:
        client.send(rig.request("/v1/chat/completions", CHAT))
        await asyncio.wait_for(rig.vendor.asked.wait(), DEADLINE_SECONDS)
        await rig.calls.sweep()
        answer = await client.answer()
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (504, "vendor_timeout")
    assert (await rig.lines.row())["status"] == "deadline"


async def test_garbage_from_a_vendor_is_a_502(rig: Rig) -> None:
    rig.vendor.script = answers(b"this is not HTTP\r\n\r\n")
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (502, "vendor_unreachable")
    assert (await rig.lines.row())["status"] == "vendor_broke"


async def test_ten_thousand_headers_from_a_vendor_are_a_502(rig: Rig) -> None:
    rig.vendor.script = answers(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n")
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (502, "vendor_unreachable")


async def test_a_redirect_is_passed_on_and_not_followed(rig: Rig) -> None:
    rig.vendor.script = answers(
        b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
    )
    answer = await rig.ask("/v1/chat/completions", CHAT)
    assert answer.status == 302
    assert rig.vendor.connections == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/v1/chat/completions", b"{", 400, "body_invalid"),
        ("/v1/chat/completions", b'{"model":"a","model":"b"}', 400, "body_invalid"),
        ("/v1/chat/completions", b'{"model":"a","m\\u006fdel":"b"}', 400, "body_invalid"),
        ("/v1/chat/completions", b"[]", 400, "body_invalid"),
        ("/v1/chat/completions", b'{"messages":[]}', 400, "body_invalid"),
        ("/v1/nothing", b"{}", 404, "no_route"),
        ("/nobody/v1/chat/completions", b'{"model":"a"}', 404, "no_route"),
        ("/v1/models/../admin", b"{}", 400, "body_invalid"),
    ],
)
async def test_bad_input_is_refused_clearly(
    rig: Rig, path: str, body: bytes, status: int, reason: str
) -> None:
    answer = await rig.ask(path, body)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (status, reason)
    assert "message" in json.loads(answer.body)["error"]
    assert rig.vendor.heads == []


async def test_a_get_of_a_post_path_says_what_is_allowed(rig: Rig) -> None:
    answer = await rig.ask("/v1/chat/completions", method="GET")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


async def test_a_head_of_the_root_needs_no_token(rig: Rig) -> None:
    answer = await rig.ask("/", method="HEAD", token="nothing")
    assert answer.status == 200


async def test_an_unknown_token_is_refused_in_the_format_of_the_path(rig: Rig) -> None:
    answer = await rig.ask("/v1/messages", MESSAGES, token="kxg_other")
    assert answer.status == 401
    assert json.loads(answer.body)["error"]["type"] == "authentication_error"
    answer = await rig.ask("/v1beta/models/g:generateContent", {}, token="kxg_other")
    assert json.loads(answer.body)["error"]["status"] == "UNAUTHENTICATED"


async def test_a_slow_client_holds_the_vendor_back(rig: Rig) -> None:
    sent = 0

    async def endless(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(EVENTS_HEAD)
        piece = chunk(b"data: " + b"x" * 65_000 + b"\n\n")
        while True:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)

    rig.vendor.script = endless
    async with rig.client() as client:
        client.send(rig.request("/v1/chat/completions", CHAT))
        await client.until(b"data: ")
        relay = next(iter(rig.calls._relays))
        assert relay.connection is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not relay.connection.paused:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        assert sent < 32 * 1024 * 1024
    assert (await rig.lines.row())["status"] == "client_closed"


async def test_pages_of_configured_origins_may_call(rig: Rig) -> None:
    rig.vendor.script = streams(OPENAI_STREAM)
    preflight = await rig.ask(
        "/v1/chat/completions",
        method="OPTIONS",
        headers=["Origin: https://ide.example", "Access-Control-Request-Method: POST"],
    )
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == "https://ide.example"
    answer = await rig.ask("/v1/chat/completions", CHAT, headers=["Origin: https://ide.example"])
    assert answer.headers["access-control-allow-origin"] == "https://ide.example"
    assert answer.body == OPENAI_STREAM
    refused = await rig.ask("/v1/nothing", {}, headers=["Origin: https://ide.example"])
    assert refused.headers["access-control-allow-origin"] == "https://ide.example"


async def test_pages_of_other_origins_may_not(rig: Rig) -> None:
    for origin in ("https://evil.example", "https://ide.example.evil.example", "null"):
        answer = await rig.ask(
            "/v1/chat/completions",
            method="OPTIONS",
            headers=[f"Origin: {origin}", "Access-Control-Request-Method: POST"],
        )
        assert answer.status == 405
        assert "access-control-allow-origin" not in answer.headers


async def test_a_call_that_outlives_a_drain_is_no_revocation(rig: Rig) -> None:
    rig.vendor.script = hangs
    async with rig.client() as client:
        client.send(rig.request("/v1/chat/completions", CHAT))
        await client.until(b"{}}]}\n\n\r\n")
        rig.live.cut_all(Draining)
        await client.until(b"0\r\n\r\n")
    row = await rig.lines.row()
    assert (row["status"], row["reason"]) == ("deadline", "draining")


async def test_what_comes_behind_an_answer_reaches_nobody(rig: Rig) -> None:
    whole = plain(200, {"a": 1})
    rig.vendor.script = answers(whole + plain(200, {"of": "somebody else"}))
    async with rig.client() as client:
        for _ in range(2):
            client.send(rig.request("/v1/chat/completions", {**CHAT, "stream": False}))
            answer = await client.answer()
            assert answer.body == b'{"a": 1}'
    assert rig.vendor.connections == 2  # what was said twice is not trusted again
    assert [row["status"] for row in rig.lines.rows] == ["complete", "complete"]


async def test_interim_answers_are_skipped(rig: Rig) -> None:
    rig.vendor.script = answers(
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + plain(200, {"a": 1})
    )
    answer = await rig.ask("/v1/chat/completions", {**CHAT, "stream": False})
    assert (answer.status, answer.body) == (200, b'{"a": 1}')
    assert "link" not in answer.headers


async def test_an_answer_without_a_length_ends_with_its_connection(rig: Rig) -> None:
    async def until_close(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"a":1}')
        await writer.drain()
        writer.close()

    rig.vendor.script = until_close
    answer = await rig.ask("/v1/chat/completions", {**CHAT, "stream": False})
    assert (answer.body, answer.clean) == (b'{"a":1}', True)
    assert (await rig.lines.row())["status"] == "complete"


async def test_fallback_models_are_held_against_the_tokens_list(rig: Rig) -> None:
    rig.authenticated.caller = replace(rig.caller, models=("gpt-*",))
    rig.vendor.script = streams(OPENAI_STREAM)
    allowed = await rig.ask("/v1/chat/completions", {**CHAT, "models": ["gpt-4", "gpt-5"]})
    assert allowed.status == 200
    refused = await rig.ask("/v1/chat/completions", {**CHAT, "models": ["gpt-4", "o1-pro"]})
    assert (refused.status, refused.headers["x-kaixu-reason"]) == (403, "model_not_allowed")
    hidden = b'{"model":"gpt-4","m\\u006fdels":["o1-pro"]}'
    assert (await rig.ask("/v1/chat/completions", hidden)).status == 400


async def test_an_answer_that_nobody_could_meter_is_refused(rig: Rig) -> None:
    answer = await rig.ask("/v1/chat/completions", {**CHAT, "background": True})
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (400, "body_invalid")
    assert json.loads(answer.body)["error"]["param"] == "background"
    rig.vendor.script = answers(plain(200, {"created": 1, "data": []}))
    picture = {"model": "gpt-image-1", "prompt": "a", "background": "transparent"}
    assert (await rig.ask("/v1/images/generations", picture)).status == 200
