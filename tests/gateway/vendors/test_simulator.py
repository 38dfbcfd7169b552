import asyncio
import gzip
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.metering.meter import MeterFormat, open_meter
from gateway.metering.usage import Usage

QUESTION = "five words are in here"
CHAT = {"messages": [{"role": "user", "content": QUESTION}]}
APIS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "openai": (
        "/v1/chat/completions",
        {"authorization": "Bearer key"},
        {**CHAT, "stream_options": {"include_usage": True}},
    ),
    "openai.completions": (
        "/v1/completions",
        {"authorization": "Bearer key"},
        {"prompt": QUESTION, "stream_options": {"include_usage": True}},
    ),
    "openai.responses": (
        "/v1/responses",
        {"authorization": "Bearer key"},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]},
    ),
    "anthropic": ("/v1/messages", {"x-api-key": "key"}, {**CHAT, "max_tokens": 2_000}),
    "gemini": (
        "/v1beta/models/{model}:{verb}",
        {"x-goog-api-key": "key"},
        {"contents": [{"role": "user", "parts": [{"text": QUESTION}]}]},
    ),
}
METERS = {
    "openai": MeterFormat.OPENAI_CHAT,
    "openai.completions": MeterFormat.OPENAI_CHAT,
    "openai.responses": MeterFormat.OPENAI_RESPONSES,
    "anthropic": MeterFormat.ANTHROPIC_MESSAGES,
    "gemini": MeterFormat.GEMINI_GENERATE,
}


@dataclass(kw_only=True)
class Simulator:
    url: str
    tally: Path
    session: aiohttp.ClientSession

    def call(
        self, api: str, model: str, *, stream: bool, **headers: str
    ) -> "aiohttp.client._RequestContextManager":
        path, credential, body = APIS[api]
        verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
        url = self.url + path.format(model=model, verb=verb)
        document = {**body, "model": model, "stream": stream}
        return self.session.post(url, json=document, headers={**credential, **headers})

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.tally.read_text().splitlines()]

    async def last_line(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            while len(lines := self.lines()) < 2:  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.01)
        return lines[-1]


@pytest.fixture
async def simulator(tmp_path: Path) -> AsyncIterator[Simulator]:
    tally = tmp_path / "tally.jsonl"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.vendors.simulator", "--tally", str(tally)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(10):
            port = json.loads(await process.stdout.readline())["port"]
        url = f"http://127.0.0.1:{port}"
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            yield Simulator(url=url, tally=tally, session=session)
    finally:
        process.terminate()
        await process.communicate()


def metered(api: str, body: bytes, *, stream: bool) -> Usage:
    meter = open_meter(
        METERS[api],
        stream=stream,
        status=200,
        content_type=b"text/event-stream" if stream else b"application/json",
        content_encoding=b"",
    )
    meter.feed(body)
    return meter.finish(complete=True)


@pytest.mark.parametrize("api", sorted(APIS))
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
async def test_an_answer_its_usage_and_the_tally_agree(
    simulator: Simulator, api: str, *, stream: bool
) -> None:
    headers = {"x-session-id": "s1"}
    async with simulator.call(api, "some-model", stream=stream, **headers) as answer:
        assert answer.status == 200
        usage = metered(api, await answer.read(), stream=stream)
        asked = answer.headers.get("x-request-id") or answer.headers["request-id"]
    assert (usage.source, usage.input_tokens, usage.output_tokens) == ("vendor", 5, 20)
    done = await simulator.last_line()
    first = simulator.lines()[0]
    assert (first["id"], first["session_id"], first["model"]) == (asked, "s1", "some-model")
    assert "key" not in first.values()
    assert (done["id"], done["done"]) == (asked, True)
    assert done["usage"] == {"input_tokens": 5, "output_tokens": 20}


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_each_input_gets_a_vector(simulator: Simulator, encoding: str) -> None:
    url = simulator.url + "/v1/embeddings"
    body = {"model": "m", "input": ["two words", QUESTION], "encoding_format": encoding}
    async with simulator.session.post(url, json=body, headers=APIS["openai"][1]) as answer:
        raw = await answer.read()
    first, second = (row["embedding"] for row in json.loads(raw)["data"])
    assert first == second
    assert isinstance(first, list) == (encoding == "float")
    meter = open_meter(
        MeterFormat.OPENAI_EMBEDDINGS,
        stream=False,
        status=200,
        content_type=b"application/json",
        content_encoding=b"",
    )
    meter.feed(raw)
    usage = meter.finish(complete=True)
    assert (usage.source, usage.input_tokens, usage.output_tokens) == ("vendor", 7, None)
    assert (await simulator.last_line())["usage"] == {"input_tokens": 7, "output_tokens": 0}


async def test_openai_tells_usage_in_a_stream_only_when_asked(simulator: Simulator) -> None:
    path, headers, _ = APIS["openai"]
    body = {**CHAT, "model": "m", "stream": True, "max_tokens": 3}
    async with simulator.session.post(simulator.url + path, json=body, headers=headers) as answer:
        text = await answer.text()
    assert "usage" not in text
    assert text.count("data: ") == 3 + 3  # the role, three words, the reason to finish, the end


@pytest.mark.parametrize("api", sorted(APIS))
async def test_a_missing_credential_is_refused_and_not_tallied(
    simulator: Simulator, api: str
) -> None:
    path, _, body = APIS[api]
    url = simulator.url + path.format(model="m", verb="generateContent")
    async with simulator.session.post(url, json={**body, "model": "m"}) as answer:
        assert answer.status == 401
        assert "error" in await answer.json()
    assert simulator.lines() == []


@pytest.mark.parametrize("api", sorted(APIS))
async def test_a_plain_answer_is_compressed_where_that_is_taken(
    simulator: Simulator, api: str
) -> None:
    async with simulator.call(api, "m", stream=False, **{"accept-encoding": "gzip"}) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert (await answer.json()).get("error") is None
    path, headers, body = APIS[api]
    url = simulator.url + path.format(model="m", verb="generateContent")
    packed = gzip.compress(json.dumps({**body, "model": "m"}).encode())
    more = {**headers, "content-encoding": "gzip"}
    async with simulator.session.post(url, data=packed, headers=more) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("api", sorted(APIS))
@pytest.mark.parametrize("model", ["sim-cut", "sim-reset", "sim-close", "sim-garbage"])
async def test_a_broken_answer_is_tallied_and_never_done(
    simulator: Simulator, api: str, model: str
) -> None:
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        async with simulator.call(api, model, stream=True) as answer:
            await answer.read()
    assert [line["model"] for line in simulator.lines()] == [model]


async def test_an_error_has_the_status_that_was_asked_for(simulator: Simulator) -> None:
    async with simulator.call("anthropic", "sim-status-529", stream=True) as answer:
        assert answer.status == 529
        assert answer.headers["retry-after"] == "1"
        assert (await answer.json())["error"]["type"] == "overloaded_error"


async def test_a_slow_stream_takes_its_time(simulator: Simulator) -> None:
    began = time.monotonic()
    async with simulator.call("openai", "sim-slow-10x20", stream=True) as answer:
        text = await answer.text()
    assert time.monotonic() - began > 10 * 0.02
    assert text.count('"delta":{"content":"') == 10


async def test_a_client_that_leaves_is_noticed_at_once(simulator: Simulator) -> None:
    async with simulator.call("openai", "sim-slow-10x60000", stream=True) as answer:
        answer.close()
    assert (await simulator.last_line())["left"] is True


async def test_models_are_listed_in_each_shape(simulator: Simulator) -> None:
    for path, headers, member in (
        ("/v1/models", {"authorization": "Bearer k"}, "data"),
        ("/v1/models", {"x-api-key": "k", "anthropic-version": "2023-06-01"}, "data"),
        ("/v1beta/models", {"x-goog-api-key": "k"}, "models"),
    ):
        async with simulator.session.get(simulator.url + path, headers=headers) as answer:
            assert len((await answer.json())[member]) >= 2


async def test_tokens_are_counted(simulator: Simulator) -> None:
    for api, path, name in (
        ("anthropic", "/v1/messages/count_tokens", "input_tokens"),
        ("gemini", "/v1beta/models/m:countTokens", "totalTokens"),
    ):
        _, headers, body = APIS[api]
        url = simulator.url + path
        async with simulator.session.post(url, json={**body, "model": "m"}, headers=headers) as got:
            assert (await got.json())[name] == 5
    assert simulator.lines() == []


async def test_it_ends_without_a_word_about_connections_that_are_open() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "gateway.vendors.simulator"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    port = json.loads(await process.stdout.readline())["port"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v1/models HTTP/1.1\r\nauthorization: Bearer key\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    process.terminate()
    _, said = await process.communicate()
    assert (process.returncode, said) == (0, b"")
    writer.close()
