"""Clients of the clouds, with nothing changed but base URL and key: their vendors check everything.

The vendor below gives out Google's tokens and takes no other, and takes only what is signed as
AWS's own client signs it.
"""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anthropic
import boto3
import botocore.exceptions
import openai
import pytest
from botocore.config import Config
from google import genai
from google.genai import types as genai_types
from google.oauth2.credentials import Credentials

from tests.gateway.metering.aws_messages import chunk, event
from tests.gateway.vendors.cloud_keys import AWS, is_signed, service_account
from tests.journeys.product import Product

pytestmark = pytest.mark.journey

TRANSCRIPTS: Final = Path(__file__).resolve().parents[1] / "transcripts"
CLAUDE: Final = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
MESSAGE: Final = {
    "id": "m1", "type": "message", "role": "assistant", "model": "claude-small-1",
    "content": [{"type": "text", "text": "five words"}], "stop_reason": "end_turn",
    "stop_sequence": None, "usage": {"input_tokens": 12, "output_tokens": 57},
}  # fmt: skip
GENERATED: Final = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "five"}]},
                    "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7},
}  # fmt: skip
TOKEN: Final = "ya29.the-token-of-the-journey"
EVENTS: Final = "text/event-stream"
AWS_EVENTS: Final = "application/vnd.amazon.eventstream"
ASK: Final[Any] = {"max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}


def transcript(name: str) -> bytes:
    return (TRANSCRIPTS / name).read_bytes()


def claude_chunks() -> bytes:
    lines = transcript("anthropic_messages.sse").decode().splitlines()
    data = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    metrics = {"inputTokenCount": 12, "outputTokenCount": 57}
    data[-1]["amazon-bedrock-invocationMetrics"] = metrics
    return b"".join(map(chunk, data))


CONVERSED: Final = {"inputTokens": 3, "outputTokens": 4, "totalTokens": 7}


def answer(head: bytes, body: bytes) -> tuple[int, str, bytes]:
    """Status, content type and body of what the clouds say to a request."""
    path = head.split(b" ", 2)[1].decode()
    if path == "/token":
        return 200, "", json.dumps({"access_token": TOKEN, "expires_in": 3600}).encode()
    if path.startswith("/model/"):
        if not is_signed(head, body):
            return 403, "", b'{"message":"no","__type":"InvalidSignatureException"}'
        return bedrock(path.rpartition("/")[2])
    if path.startswith("/v1") and f"authorization: Bearer {TOKEN}\r\n".encode() in head:
        return vertex(path)
    if path.startswith("/openai/") and b"\r\napi-key: key-of-azure\r\n" in head:
        if b'"stream":true' in body.replace(b" ", b""):
            return 200, EVENTS, transcript("openai_chat.sse")
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        choice = {"index": 0, "message": {"role": "assistant", "content": "five words"}}
        return 200, "", json.dumps({"id": "c", "choices": [choice], "usage": usage}).encode()
    return 404, "", b'{"error":{"message":"not here"}}'


def bedrock(operation: str) -> tuple[int, str, bytes]:
    message = {"message": {"role": "assistant", "content": [{"text": "five words"}]}}
    match operation:
        case "invoke":
            return 200, "", json.dumps(MESSAGE).encode()
        case "invoke-with-response-stream":
            return 200, AWS_EVENTS, claude_chunks()
        case "converse":
            whole = {"output": message, "stopReason": "end_turn", "usage": CONVERSED,
                     "metrics": {"latencyMs": 1}}  # fmt: skip
            return 200, "", json.dumps(whole).encode()
        case "count-tokens":
            return 200, "", b'{"inputTokens": 3}'
        case _:
            delta = {"contentBlockIndex": 0, "delta": {"text": "five"}}
            told = {"usage": CONVERSED, "metrics": {"latencyMs": 1}}
            stream = [("messageStart", {"role": "assistant"}), ("contentBlockDelta", delta),
                      ("messageStop", {"stopReason": "end_turn"}), ("metadata", told)]  # fmt: skip
            return 200, AWS_EVENTS, b"".join(event(*one) for one in stream)


def vertex(path: str) -> tuple[int, str, bytes]:
    if "count-tokens" in path:
        return 200, "", b'{"input_tokens": 9}'
    if path.endswith(":rawPredict"):
        return 200, "", json.dumps(MESSAGE).encode()
    if ":streamRawPredict" in path:
        return 200, EVENTS, transcript("anthropic_messages.sse")
    if ":streamGenerateContent" in path:
        return 200, EVENTS, transcript("gemini_generate.sse")
    return 200, "", json.dumps(GENERATED).encode()


class Clouds:
    """The vendor, with its open connections."""

    def __init__(self) -> None:
        self.serving: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving[asyncio.current_task()] = writer
        await serve(reader, writer)

    async def start(self) -> int:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    async def end(self) -> None:
        self.server.close()
        for writer in self.serving.values():
            writer.transport.abort()
        await asyncio.gather(*filter(None, self.serving))


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            body = await reader.readexactly(int(length or 0))
            status, kind, said = answer(head, body)
            if kind in (AWS_EVENTS, EVENTS):
                framing = "transfer-encoding: chunked"
                said = b"%x\r\n%b\r\n0\r\n\r\n" % (len(said), said)
            else:
                framing = f"content-length: {len(said)}"
            lines = f"content-type: {kind or 'application/json'}\r\n{framing}\r\n"
            writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + said)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


@pytest.fixture(scope="module", autouse=True)
def _clouds(product: Product) -> Iterator[None]:
    """The vendor, in a thread beside its clients, and the product that calls it."""
    loop, vendor = asyncio.new_event_loop(), Clouds()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    port = asyncio.run_coroutine_threadsafe(vendor.start(), loop).result()
    url = f"http://127.0.0.1:{port}"
    keys = {
        "bedrock": json.dumps(AWS),
        "vertex": service_account(f"{url}/token").decode(),
        "azure": "key-of-azure",
    }
    for kind, key in keys.items():
        product.add_vendor(kind, kind=kind, base_url=url, key=key)
    yield
    for kind in keys:
        product.kaixu("vendor", "remove", kind)
    asyncio.run_coroutine_threadsafe(vendor.end(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def aws_client(product: Product, token: str) -> Any:
    """AWS's client with made-up credentials; it takes an API key over https only."""
    client = boto3.Session(region_name="us-east-1").client(
        "bedrock-runtime", endpoint_url=product.url, aws_access_key_id="made-up",
        aws_secret_access_key="made-up", config=Config(retries={"max_attempts": 0}),
    )  # fmt: skip

    def with_token(request: Any, **_: Any) -> None:
        request.headers["x-api-key"] = token

    client.meta.events.register("before-send.bedrock-runtime", with_token)
    return client


def test_awss_client_converses_whatever_it_signs_with(product: Product) -> None:
    client = aws_client(product, product.token)
    turn = [{"role": "user", "content": [{"text": "hi"}]}]
    model = "amazon.nova-journey-v1:0"
    whole = client.converse(modelId=model, messages=turn)
    assert whole["output"]["message"]["content"][0]["text"] == "five words"

    def stream() -> list[str]:
        told = client.converse_stream(modelId=model, messages=turn)["stream"]
        return [name for one in told for name in one]

    assert (stream())[-2:] == ["messageStop", "metadata"]
    rows = product.events_of(count=2, model_requested=model)
    assert [row["usage_source"] for row in rows] == ["vendor", "vendor"]
    assert {(row["input_tokens"], row["output_tokens"]) for row in rows} == {(3, 4)}
    assert {row["status"] for row in rows} == {"complete"}
    counted = {"converse": {"messages": turn}}
    answer = client.count_tokens(modelId=model, input=counted)
    assert answer["inputTokens"] == 3


def test_awss_client_reads_a_refusal(product: Product) -> None:
    limited = aws_client(product, product.new_token("--models", "gpt-*")[0])
    turn = [{"role": "user", "content": [{"text": "hi"}]}]
    with pytest.raises(botocore.exceptions.ClientError) as error:
        limited.converse(modelId="amazon.nova", messages=turn)
    assert error.value.response["Error"]["Code"] == "AccessDeniedException"


def test_anthropics_bedrock_client_answers_and_streams(product: Product) -> None:
    client = anthropic.AnthropicBedrock(
        base_url=product.url, api_key=product.token, aws_region="us-east-1", max_retries=0
    )
    whole = client.messages.create(model=CLAUDE, **ASK)
    assert whole.content[0].text == "five words"

    def stream() -> str:
        told = client.messages.create(model=CLAUDE, stream=True, **ASK)
        return str([one.type for one in told][-1])

    assert stream() == "message_stop"
    rows = product.events_of(count=2, model_requested=CLAUDE)
    assert {row["endpoint"] for row in rows} == {
        "bedrock.invoke",
        "bedrock.invoke-with-response-stream",
    }
    assert {row["output_tokens"] for row in rows} == {57}
    assert {row["model_served"] for row in rows} == {"claude-small-1"}


def test_anthropics_vertex_client_answers_streams_and_counts(product: Product) -> None:
    client = anthropic.AnthropicVertex(
        base_url=product.url, project_id="p-1", region="us-east5", max_retries=0,
        access_token=product.token,
    )  # fmt: skip
    model = "claude-opus-5@20260101"
    whole = client.messages.create(model=model, **ASK)
    assert whole.content[0].text == "five words"

    def stream() -> str:
        told = client.messages.create(model=model, stream=True, **ASK)
        return str([one.type for one in told][-1])

    assert stream() == "message_stop"
    counted = client.messages.count_tokens(model=model, messages=ASK["messages"])
    assert counted.input_tokens == 9
    rows = product.events_of(count=3, model_requested=model)
    assert sorted((row["endpoint"], row["counted"], row["output_tokens"]) for row in rows) == [
        ("vertex.count-tokens", False, None),
        ("vertex.rawPredict", True, 57),
        ("vertex.streamRawPredict", True, 57),
    ]
    assert {row["client_format"] for row in rows} == {"anthropic"}


def test_googles_client_speaks_to_vertex(product: Product) -> None:
    client = genai.Client(
        vertexai=True, project="p-1", location="global",
        credentials=Credentials(token=product.token),  # type: ignore[no-untyped-call]
        http_options=genai_types.HttpOptions(base_url=product.url),
    )  # fmt: skip
    model = "gemini-journey"
    whole = client.models.generate_content(model=model, contents="hi")
    assert whole.usage_metadata is not None

    def stream() -> int:
        return len(list(client.models.generate_content_stream(model=model, contents="hi")))

    assert stream() > 1
    rows = product.events_of(count=2, model_requested=model)
    assert {row["endpoint"] for row in rows} == {
        "vertex.generateContent",
        "vertex.streamGenerateContent",
    }
    assert {row["usage_source"] for row in rows} == {"vendor"}


@pytest.mark.parametrize("place", ["", "/azure"])
def test_openais_azure_client_answers_and_streams(product: Product, place: str) -> None:
    client = openai.AzureOpenAI(
        azure_endpoint=product.url + place, api_key=product.token, api_version="2024-10-21",
        max_retries=0,
    )  # fmt: skip
    model = f"gpt-journey{place.replace('/', '-')}"
    messages: Any = [{"role": "user", "content": "hi"}]
    whole = client.chat.completions.create(model=model, messages=messages)
    assert whole.choices[0].message.content == "five words"

    def stream() -> bool:
        told = client.chat.completions.create(model=model, messages=messages, stream=True)
        return all(one.choices for one in told)

    assert stream()
    rows = product.events_of(count=2, model_requested=model)
    assert {(row["vendor"], row["usage_source"]) for row in rows} == {("azure", "vendor")}
