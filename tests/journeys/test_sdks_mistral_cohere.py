"""Mistral's and Cohere's own SDKs, with nothing changed but base URL and key; Ollama's API.

Mistral speaks OpenAI's format, so its vendor is named by the path; Cohere's are found by the model.
"""

from collections.abc import Iterator
from typing import Any

import aiohttp
import cohere
import pytest
from cohere.core.api_error import ApiError
from mistralai.client import Mistral
from mistralai.client.errors import SDKError
from mistralai.client.models import BaseModelCard, UserMessage

from tests.journeys.product import Product, mistyped

pytestmark = [pytest.mark.journey, pytest.mark.usefixtures("more_vendors")]

QUESTION = "what are five words here"
SECONDS = 30


# ----------------------------------------------------------------------------------------- Mistral

MESSAGES = [UserMessage(content=QUESTION)]


def mistral_client(product: Product, token: str) -> Mistral:
    url = f"{product.url}/sim-mistral"
    return Mistral(api_key=token, server_url=url, timeout_ms=SECONDS * 1000)


@pytest.fixture
def mistral(product: Product) -> Iterator[Mistral]:
    with mistral_client(product, product.token) as client:
        yield client


def test_mistral_answers_and_streams(mistral: Mistral, product: Product) -> None:
    model = "mistral-sdk-chat"
    answer = mistral.chat.complete(model=model, messages=MESSAGES, max_tokens=6)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 6)
    with mistral.chat.stream(model=model, messages=MESSAGES, max_tokens=6) as stream:
        chunks = [event.data for event in stream]
    text = "".join(str(chunk.choices[0].delta.content) for chunk in chunks)
    assert answer.choices[0].message is not None
    assert text == answer.choices[0].message.content
    # Nobody asked for usage: it is the vendor's habit.
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6
    for row in product.events_of(count=2, model_requested=model):
        assert (row["vendor"], row["usage_source"]) == ("sim-mistral", "vendor")
        assert (row["input_tokens"], row["output_tokens"]) == (5, 6)


def test_mistral_fills_in_the_middle(mistral: Mistral, product: Product) -> None:
    model = "codestral-sdk"
    asked: dict[str, Any] = {"model": model, "prompt": "def f():", "suffix": "return a"}
    answer = mistral.fim.complete(**asked, max_tokens=6)
    with mistral.fim.stream(**asked, max_tokens=6) as stream:
        text = "".join(str(event.data.choices[0].delta.content) for event in stream)
    assert answer.choices[0].message is not None
    assert text == answer.choices[0].message.content
    for row in product.events_of(count=2, model_requested=model):
        assert (row["endpoint"], row["input_tokens"]) == ("fim.completions", 4)
        assert (row["usage_source"], row["output_tokens"]) == ("vendor", 6)


def test_mistral_embeds(mistral: Mistral, product: Product) -> None:
    model = "mistral-sdk-embed"
    answer = mistral.embeddings.create(model=model, inputs=["two words", QUESTION])
    assert [len(row.embedding or ()) for row in answer.data] == [4, 4]
    row = product.event_of(model_requested=model)
    assert (row["endpoint"], row["input_tokens"], row["output_tokens"]) == ("embeddings", 7, 0)


def test_mistral_lists_models(mistral: Mistral) -> None:
    listed = mistral.models.list().data or []
    assert {model.type for model in listed} == {"base"}
    (one,) = [model for model in listed if isinstance(model, BaseModelCard)][:1]
    assert mistral.models.retrieve(model_id=one.id) == one


def test_mistral_raises_its_own_errors(mistral: Mistral, product: Product, spent: str) -> None:
    def refusal(client: Mistral, model: str = "mistral-sdk") -> SDKError:
        with pytest.raises(SDKError) as refused:
            client.chat.complete(model=model, messages=MESSAGES)
        return refused.value

    with mistral_client(product, mistyped(product.token)) as client:
        unknown = refusal(client)
    assert unknown.status_code == 401
    assert "token is not valid" in unknown.body
    with mistral_client(product, spent) as client:
        limited = refusal(client)
    assert limited.status_code == 429
    assert limited.headers["x-kaixu-reason"] == "monthly_limit"
    assert "0 calls a month, is reached" in limited.body
    assert refusal(mistral, "sim-status-400").status_code == 400
    assert refusal(mistral, "sim-badkey").status_code == 502


# ------------------------------------------------------------------------------------------ Cohere


def cohere_client(product: Product, token: str) -> cohere.ClientV2:
    return cohere.ClientV2(api_key=token, base_url=product.url, timeout=SECONDS, max_retries=0)


@pytest.fixture
def v2(product: Product) -> Iterator[cohere.ClientV2]:
    with cohere_client(product, product.token) as client:
        yield client


@pytest.fixture
def v1(product: Product) -> Iterator[cohere.Client]:
    with cohere.Client(
        api_key=product.token, base_url=product.url, timeout=SECONDS, max_retries=0
    ) as client:
        yield client


CHAT: list[cohere.ChatMessageV2] = [cohere.UserChatMessageV2(content=QUESTION)]


def test_cohere_answers_and_streams(v2: cohere.ClientV2, product: Product) -> None:
    model = "sim-cohere-chat"
    answer = v2.chat(model=model, messages=CHAT, max_tokens=6)
    assert answer.finish_reason == "MAX_TOKENS"
    assert answer.usage is not None
    assert answer.usage.tokens is not None
    assert (answer.usage.tokens.input_tokens, answer.usage.tokens.output_tokens) == (5, 6)
    events = list(v2.chat_stream(model=model, messages=CHAT, max_tokens=6))
    told = [event.model_dump() for event in events if event.type == "content-delta"]
    text = "".join(event["delta"]["message"]["content"]["text"] for event in told)
    assert answer.message.content is not None
    assert answer.message.content[0].type == "text"
    assert text == answer.message.content[0].text
    assert events[-1].type == "message-end"
    for row in product.events_of(count=2, model_requested=model):
        assert (row["vendor"], row["endpoint"]) == ("sim-cohere", "chat.v2")
        assert (row["input_tokens"], row["output_tokens"]) == (5, 6)
        assert (row["usage_source"], row["finish_reason"]) == ("vendor", "MAX_TOKENS")


def test_cohere_answers_and_streams_in_version_1(v1: cohere.Client, product: Product) -> None:
    model = "sim-cohere-chat-v1"
    answer = v1.chat(model=model, message=QUESTION, max_tokens=6)
    events = list(v1.chat_stream(model=model, message=QUESTION, max_tokens=6))
    text = "".join(event.text for event in events if event.event_type == "text-generation")
    assert text == answer.text
    assert events[-1].event_type == "stream-end"
    for row in product.events_of(count=2, model_requested=model):
        assert (row["endpoint"], row["usage_source"]) == ("chat.v1", "vendor")
        assert (row["input_tokens"], row["output_tokens"]) == (5, 6)


@pytest.mark.parametrize("version", [1, 2])
def test_cohere_embeds(
    v1: cohere.Client, v2: cohere.ClientV2, product: Product, version: int
) -> None:
    model = f"sim-cohere-embed-v{version}"
    texts = ["two words", QUESTION]
    if version == 1:
        found = v1.embed(model=model, texts=texts, input_type="search_query")
        vectors: Any = found.embeddings
    else:
        asked = v2.embed(
            model=model, texts=texts, input_type="search_query", embedding_types=["float"]
        )
        vectors = asked.embeddings.float_
    assert [len(vector) for vector in vectors] == [4, 4]
    row = product.event_of(model_requested=model)
    assert (row["endpoint"], row["input_tokens"]) == (f"embed.v{version}", 7)
    assert row["output_tokens"] is None


@pytest.mark.parametrize("version", [1, 2])
def test_cohere_ranks(
    v1: cohere.Client, v2: cohere.ClientV2, product: Product, version: int
) -> None:
    model = f"sim-cohere-rerank-v{version}"
    client = v1 if version == 1 else v2
    answer = client.rerank(model=model, query="which one", documents=["this", "that"], top_n=1)
    assert [result.index for result in answer.results] == [0]
    row = product.event_of(model_requested=model)
    assert (row["endpoint"], row["searches"]) == (f"rerank.v{version}", 1)
    assert (row["usage_source"], row["input_tokens"]) == ("vendor", None)


def test_cohere_lists_models(product: Product) -> None:
    url = f"{product.url}/sim-cohere"  # whichever vendor is the format's default
    with cohere.ClientV2(
        api_key=product.token, base_url=url, timeout=SECONDS, max_retries=0
    ) as client:
        assert "command-a-03-2025" in {model.name for model in client.models.list().models}


def test_cohere_raises_its_own_errors(v2: cohere.ClientV2, product: Product, spent: str) -> None:
    def create(client: cohere.ClientV2, model: str = "sim-cohere") -> None:
        client.chat(model=model, messages=CHAT)

    with (
        cohere_client(product, mistyped(product.token)) as client,
        pytest.raises(cohere.UnauthorizedError) as unknown,
    ):
        create(client)
    assert "token is not valid" in str(unknown.value.body)
    with (
        cohere_client(product, spent) as client,
        pytest.raises(cohere.TooManyRequestsError) as limited,
    ):
        create(client)
    assert "0 calls a month, is reached" in str(limited.value.body)
    assert (limited.value.headers or {})["x-kaixu-reason"] == "monthly_limit"
    named = f"{product.url}/sim-cohere"
    with cohere.ClientV2(
        api_key=product.token, base_url=named, timeout=SECONDS, max_retries=0
    ) as client:
        with pytest.raises(cohere.BadRequestError):
            create(client, "sim-status-400")
        with pytest.raises(ApiError) as broken:
            create(client, "sim-badkey")
    assert broken.value.status_code == 502


# ------------------------------------------------------------------------------------------ Ollama


@pytest.mark.parametrize(
    ("path", "endpoint", "body"),
    [
        ("chat", "ollama.chat", {"messages": [{"role": "user", "content": QUESTION}]}),
        ("generate", "ollama.generate", {"prompt": QUESTION}),
    ],
)
async def test_ollama_streams_lines(
    product: Product, path: str, endpoint: str, body: dict[str, Any]
) -> None:
    model = f"sim-ollama-{path}"
    asked = {**body, "model": model, "options": {"num_predict": 6}}
    headers = {"authorization": f"Bearer {product.token}"}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session,
        session.post(f"{product.url}/api/{path}", json=asked, headers=headers) as answer,
    ):
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = (await answer.text()).splitlines()
    assert len(lines) == 6 + 1
    row = product.event_of(model_requested=model)
    assert (row["endpoint"], row["stream"], row["status"]) == (endpoint, True, "complete")
    assert (row["usage_source"], row["input_tokens"], row["output_tokens"]) == ("vendor", 5, 6)
    assert row["finish_reason"] == "length"


async def test_ollama_embeds(product: Product) -> None:
    model = "sim-ollama-embed"
    headers = {"authorization": f"Bearer {product.token}"}
    asked = {"model": model, "input": ["two words", QUESTION]}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session,
        session.post(f"{product.url}/api/embed", json=asked, headers=headers) as answer,
    ):
        assert len((await answer.json())["embeddings"]) == 2
    row = product.event_of(model_requested=model)
    assert (row["endpoint"], row["input_tokens"], row["output_tokens"]) == ("ollama.embed", 7, None)
