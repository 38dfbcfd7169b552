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
    "mistral": ("/mistral/v1/chat/completions", {"authorization": "Bearer key"}, CHAT),
    "mistral.fim": (
        "/mistral/v1/fim/completions",
        {"authorization": "Bearer key"},
        {"prompt": "five words", "suffix": "are in here"},
    ),
    "cohere": ("/v2/chat", {"authorization": "Bearer key"}, CHAT),
    "cohere.v1": ("/v1/chat", {"authorization": "Bearer key"}, {"message": QUESTION}),
    "ollama": ("/api/chat", {"authorization": "Bearer key"}, CHAT),
    "ollama.generate": ("/api/generate", {"authorization": "Bearer key"}, {"prompt": QUESTION}),
}
METERS = {
    "openai": MeterFormat.OPENAI_CHAT,
    "openai.completions": MeterFormat.OPENAI_CHAT,
    "openai.responses": MeterFormat.OPENAI_RESPONSES,
    "anthropic": MeterFormat.ANTHROPIC_MESSAGES,
    "gemini": MeterFormat.GEMINI_GENERATE,
    "mistral": MeterFormat.OPENAI_CHAT,
    "mistral.fim": MeterFormat.OPENAI_CHAT,
    "cohere": MeterFormat.COHERE_CHAT,
    "cohere.v1": MeterFormat.COHERE_META,
    "ollama": MeterFormat.OLLAMA,
    "ollama.generate": MeterFormat.OLLAMA,
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


def metered(meter_format: str, body: bytes, *, stream: bool, content_type: str) -> Usage:
    meter = open_meter(
        meter_format,
        stream=stream,
        status=200,
        content_type=content_type.encode(),
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
        kind = answer.headers["content-type"]
        usage = metered(METERS[api], await answer.read(), stream=stream, content_type=kind)
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
    assert (await simulator.last_line())["usage"] == {"input_tokens": 7, "output_tokens": 0}


FILE = b"\x00" * 2_500
MEDIA: dict[str, tuple[dict[str, Any], MeterFormat, int]] = {
    "/v1/audio/transcriptions": ({"file": FILE}, MeterFormat.OPENAI_AUDIO, 3),
    "/v1/audio/translations": ({"file": FILE, "prompt": "a b"}, MeterFormat.OPENAI_AUDIO, 5),
    "/v1/audio/speech": ({"input": QUESTION}, MeterFormat.OPENAI_AUDIO, 5),
    "/v1/images/generations": ({"prompt": QUESTION}, MeterFormat.OPENAI_EMBEDDINGS, 5),
    "/v1/images/edits": ({"prompt": "a cat", "image": FILE}, MeterFormat.OPENAI_EMBEDDINGS, 5),
    "/v1/images/variations": ({"image": FILE}, MeterFormat.OPENAI_EMBEDDINGS, 3),
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("path", MEDIA)
async def test_sound_and_pictures_are_answered(
    simulator: Simulator, path: str, stream: bool  # noqa: FBT001
) -> None:  # fmt: skip
    fields, meter_format, input_tokens = MEDIA[path]
    is_speech = path.endswith("speech")
    asked = {"stream_format": "sse"} if is_speech else {"stream": "true"}
    media_type = "audio/mpeg" if is_speech else "application/json"
    fields = {"model": "m", **fields, **(asked if stream else {})}
    body: dict[str, Any] = {"json": fields}
    if any(isinstance(value, bytes) for value in fields.values()):
        form = aiohttp.FormData(default_to_multipart=True)
        for name, value in fields.items():
            form.add_field(name, value, filename="a" if isinstance(value, bytes) else None)
        body = {"data": form}
    headers = APIS["openai"][1]
    async with simulator.session.post(simulator.url + path, headers=headers, **body) as answer:
        raw = await answer.read()
    media_type = "text/event-stream" if stream else media_type
    assert (answer.status, answer.content_type) == (200, media_type)
    meter = open_meter(
        meter_format,
        stream=stream,
        status=200,
        content_type=answer.headers["content-type"].encode(),
        content_encoding=b"",
    )
    meter.feed(raw)
    assert meter.saw_end
    usage = meter.finish(complete=True)
    spent = {"input_tokens": input_tokens, "output_tokens": 20}
    assert (await simulator.last_line())["usage"] == spent
    if media_type != "audio/mpeg":
        assert (usage.source, usage.input_tokens, usage.output_tokens) == (
            "vendor", input_tokens, 20
        )  # fmt: skip


async def test_a_form_that_lacks_what_it_needs_is_refused(simulator: Simulator) -> None:
    url = simulator.url + "/v1/audio/transcriptions"
    for body, content_type in (
        (b"no form", "multipart/form-data; boundary=x"),
        (b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--x--\r\n',
         "multipart/form-data; boundary=x"),
    ):  # fmt: skip
        headers = {**APIS["openai"][1], "content-type": content_type}
        async with simulator.session.post(url, data=body, headers=headers) as answer:
            assert answer.status == 400
    assert simulator.lines() == []


RERANK = {"model": "m", "query": "two words", "documents": [QUESTION, "one"], "top_n": 1}
IN_ONE_PIECE: list[tuple[str, dict[str, Any], str, dict[str, int | None]]] = [
    (
        "/v1/embeddings",
        {"model": "m", "input": ["two words", QUESTION]},
        MeterFormat.OPENAI_EMBEDDINGS,
        {"input_tokens": 7, "output_tokens": None},
    ),
    (
        "/v1/images/generations",
        {"prompt": QUESTION},
        MeterFormat.OPENAI_EMBEDDINGS,
        {"input_tokens": 5, "output_tokens": 20},
    ),
    ("/v1/rerank", RERANK, MeterFormat.OPENAI_EMBEDDINGS, {"input_tokens": 8}),
    ("/v1/rerank", RERANK, MeterFormat.COHERE_META, {"input_tokens": None, "searches": 1}),
    ("/v2/rerank", RERANK, MeterFormat.COHERE_META, {"input_tokens": None, "searches": 1}),
    (
        "/v2/embed",
        {"model": "m", "texts": ["two words", QUESTION], "embedding_types": ["float"]},
        MeterFormat.COHERE_META,
        {"input_tokens": 7, "output_tokens": None},
    ),
    ("/v1/embed", {"texts": [QUESTION]}, MeterFormat.COHERE_META, {"input_tokens": 5}),
    (
        "/api/embed",
        {"model": "m", "input": ["two words", QUESTION]},
        MeterFormat.OLLAMA,
        {"input_tokens": 7, "output_tokens": None},
    ),
]


@pytest.mark.parametrize(
    ("path", "body", "meter_format", "expected"),
    IN_ONE_PIECE,
    ids=[f"{path[1:]}-{meter_format}" for path, _, meter_format, _ in IN_ONE_PIECE],
)
async def test_an_answer_in_one_piece_tells_its_usage(
    simulator: Simulator,
    path: str,
    body: dict[str, Any],
    meter_format: str,
    expected: dict[str, int | None],
) -> None:
    headers = {"authorization": "Bearer key"}
    async with simulator.session.post(simulator.url + path, json=body, headers=headers) as answer:
        raw = await answer.read()
    usage = metered(meter_format, raw, stream=False, content_type="application/json")
    assert usage.source == "vendor"
    assert {name: getattr(usage, name) for name in expected} == expected
    assert (await simulator.last_line())["done"] is True


async def test_a_flaky_vendor_refuses_each_session_as_often_as_asked(simulator: Simulator) -> None:
    async def status(session: str, **headers: str) -> int:
        model = "sim-flaky-503-2"
        more = {"x-session-id": session}
        async with simulator.call("openai", model, stream=False, **more, **headers) as answer:
            assert ("retry-after" in answer.headers) == (answer.status == 503)
            return answer.status

    statuses = [await status(name) for name in ("a", "a", "b", "a", "a", "b", "b")]
    assert statuses == [503, 503, 503, 200, 503, 503, 200]


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
        assert {"error", "message"} & set(await answer.json())
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
        ("/v1/models?page_size=9", {"authorization": "Bearer k"}, "models"),
        ("/mistral/v1/models", {"authorization": "Bearer k"}, "data"),
        ("/api/tags", {"authorization": "Bearer k"}, "models"),
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
