"""The vendors' own SDKs, with nothing changed but base URL and key."""

from collections.abc import AsyncIterator, Iterator

import anthropic
import openai
import pytest
from anthropic.types import MessageParam
from google import genai
from google.genai import errors as genai_errors
from google.genai import types as genai_types
from openai.types.chat import ChatCompletionMessageParam

from tests.journeys.product import Product, mistyped

pytestmark = pytest.mark.journey

QUESTION = "what are five words here"
CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
MESSAGES: list[MessageParam] = [{"role": "user", "content": QUESTION}]
SECONDS = 30.0
UNKNOWN = "This gateway token is not valid."
SPENT = "The limit of this token, 0 calls a month, is reached."


# ------------------------------------------------------------------------------------------ OpenAI


@pytest.fixture
def chat(product: Product) -> Iterator[openai.OpenAI]:
    url = product.url + "/v1"
    with openai.OpenAI(base_url=url, api_key=product.token, timeout=SECONDS) as client:
        yield client


@pytest.fixture
async def chat_async(product: Product) -> AsyncIterator[openai.AsyncOpenAI]:
    url = product.url + "/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=product.token, timeout=SECONDS) as client:
        yield client


def test_openai_answers(chat: openai.OpenAI, product: Product) -> None:
    raw = chat.chat.completions.with_raw_response.create(
        model="gpt-4o", messages=CHAT, max_completion_tokens=6
    )
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 6)
    row = product.event_of(call_id=raw.headers["x-kaixu-call-id"])
    assert (row["input_tokens"], row["output_tokens"]) == (5, 6)
    assert row["vendor_request_id"] == raw.headers["x-request-id"]


def test_openai_streams_without_the_usage_that_it_did_not_ask_for(
    chat: openai.OpenAI, product: Product
) -> None:
    model = "gpt-sdk-unasked"
    stream = chat.chat.completions.create(model=model, messages=CHAT, stream=True, max_tokens=6)
    chunks = list(stream)
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert len(text.split()) == 6
    row = product.event_of(model_requested=model)
    assert (row["usage_source"], row["input_tokens"], row["output_tokens"]) == ("vendor", 5, 6)


def test_openai_streams_with_the_usage_that_it_asked_for(chat: openai.OpenAI) -> None:
    *_, last = chat.chat.completions.create(
        model="gpt-4o", messages=CHAT, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 20


async def test_openai_async_answers_and_streams(chat_async: openai.AsyncOpenAI) -> None:
    answer = await chat_async.chat.completions.create(model="gpt-4o", messages=CHAT)
    assert answer.usage is not None
    stream = await chat_async.chat.completions.create(model="gpt-4o", messages=CHAT, stream=True)
    text = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(text) == answer.choices[0].message.content


def test_openai_responds(chat: openai.OpenAI, product: Product) -> None:
    raw = chat.responses.with_raw_response.create(
        model="gpt-5-mini", input=QUESTION, max_output_tokens=6
    )
    answer = raw.parse()
    assert len(answer.output_text.split()) == 6
    assert answer.usage is not None
    row = product.event_of(call_id=raw.headers["x-kaixu-call-id"])
    assert (row["endpoint"], row["finish_reason"]) == ("responses", "incomplete:max_output_tokens")
    assert (row["input_tokens"], row["output_tokens"]) == (5, 6)


def test_openai_streams_a_response(chat: openai.OpenAI, product: Product) -> None:
    model = "gpt-sdk-response"
    with chat.responses.stream(model=model, input=QUESTION) as stream:
        text = [event.delta for event in stream if event.type == "response.output_text.delta"]
        answer = stream.get_final_response()
    assert "".join(text) == answer.output_text
    row = product.event_of(model_requested=model)
    assert (row["status"], row["usage_source"]) == ("complete", "vendor")
    assert (row["input_tokens"], row["output_tokens"]) == (5, 20)


def test_openai_may_not_name_what_it_did_not_store(chat: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        chat.responses.create(model="gpt-5-mini", input="go on", previous_response_id="resp_1")
    assert refused.value.response.headers["x-kaixu-reason"] == "not_yours"
    assert refused.value.param == "previous_response_id"


def test_openai_completes_and_streams_completions(chat: openai.OpenAI, product: Product) -> None:
    model = "gpt-sdk-instruct"
    answer = chat.completions.create(model=model, prompt=QUESTION, suffix="end", max_tokens=6)
    stream = chat.completions.create(
        model=model, prompt=QUESTION, suffix="end", max_tokens=6, stream=True
    )
    chunks = list(stream)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    for row in product.events_of(count=2, model_requested=model):
        assert (row["input_tokens"], row["output_tokens"]) == (6, 6)


def test_openai_embeds(chat: openai.OpenAI, product: Product) -> None:
    model = "text-embedding-sdk"
    answer = chat.embeddings.create(model=model, input=["two words", QUESTION])
    assert [len(row.embedding) for row in answer.data] == [4, 4]
    row = product.event_of(model_requested=model)
    assert (row["endpoint"], row["input_tokens"], row["output_tokens"]) == ("embeddings", 7, None)


def test_openai_moderates(chat: openai.OpenAI, product: Product) -> None:
    model = "moderation-sdk"
    answer = chat.moderations.create(model=model, input=["one", QUESTION])
    assert [result.flagged for result in answer.results] == [False, False]
    row = product.event_of(model_requested=model)
    # Costs nothing, and nothing is said of usage.
    assert (row["endpoint"], row["usage_source"], row["counted"]) == ("moderations", "none", True)


def test_openai_lists_models(chat: openai.OpenAI) -> None:
    assert "gpt-4o" in {model.id for model in chat.models.list()}


def test_openai_raises_its_own_errors(chat: openai.OpenAI, product: Product, spent: str) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        chat.with_options(api_key=mistyped(product.token)).models.list()
    assert refused.value.response.headers["x-kaixu-reason"] == "token_invalid"
    assert UNKNOWN in refused.value.message
    with pytest.raises(openai.RateLimitError) as limited:
        chat.with_options(api_key=spent).chat.completions.create(model="gpt-4o", messages=CHAT)
    assert limited.value.response.headers["x-should-retry"] == "false"
    assert limited.value.response.headers["x-kaixu-reason"] == "monthly_limit"
    assert SPENT in limited.value.message
    with pytest.raises(openai.NotFoundError):
        chat.post("/nothing/here", cast_to=object, body={})
    with pytest.raises(openai.BadRequestError):
        chat.chat.completions.create(model="sim-status-400", messages=CHAT)
    with pytest.raises(openai.InternalServerError) as broken:
        chat.with_options(max_retries=0).chat.completions.create(model="sim-badkey", messages=CHAT)
    assert broken.value.status_code == 502


# --------------------------------------------------------------------------------------- Anthropic


@pytest.fixture
def claude(product: Product) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=product.url, api_key=product.token, timeout=SECONDS
    ) as client:
        yield client


@pytest.fixture
async def claude_async(product: Product) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=product.url, api_key=product.token, timeout=SECONDS
    ) as client:
        yield client


def test_anthropic_answers(claude: anthropic.Anthropic, product: Product) -> None:
    raw = claude.messages.with_raw_response.create(
        model="claude-sonnet-5", max_tokens=6, messages=MESSAGES
    )
    answer = raw.parse()
    assert answer.content[0].type == "text"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (5, 6)
    row = product.event_of(call_id=raw.headers["x-kaixu-call-id"])
    assert (row["input_tokens"], row["output_tokens"]) == (5, 6)
    assert row["vendor_request_id"] == raw.headers["request-id"]


def test_anthropic_streams(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model="claude-sonnet-5", max_tokens=6, messages=MESSAGES) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert len(text.split()) == 6
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 6)


def test_anthropic_counts_and_lists(claude: anthropic.Anthropic) -> None:
    counted = claude.messages.count_tokens(model="claude-sonnet-5", messages=MESSAGES)
    assert counted.input_tokens == 5
    assert "claude-sonnet-5" in {model.id for model in claude.models.list()}


async def test_anthropic_async_answers_and_streams(
    claude_async: anthropic.AsyncAnthropic,
) -> None:
    answer = await claude_async.messages.create(
        model="claude-sonnet-5", max_tokens=6, messages=MESSAGES
    )
    async with claude_async.messages.stream(
        model="claude-sonnet-5", max_tokens=6, messages=MESSAGES
    ) as stream:
        text = "".join([piece async for piece in stream.text_stream])
    assert answer.content[0].type == "text"
    assert answer.content[0].text == text


def test_anthropic_takes_a_bearer(product: Product) -> None:
    with anthropic.Anthropic(
        base_url=product.url, api_key=None, auth_token=product.token, timeout=SECONDS
    ) as client:
        client.messages.create(model="claude-sonnet-5", max_tokens=2, messages=MESSAGES)


def test_anthropic_raises_its_own_errors(
    claude: anthropic.Anthropic, product: Product, spent: str
) -> None:
    def create(client: anthropic.Anthropic, model: str = "claude-sonnet-5") -> None:
        client.messages.create(model=model, max_tokens=2, messages=MESSAGES)

    with pytest.raises(anthropic.AuthenticationError) as refused:
        create(claude.with_options(api_key=mistyped(product.token)))
    body = refused.value.body
    assert isinstance(body, dict)
    assert body["error"]["type"] == "authentication_error"
    assert UNKNOWN in refused.value.message
    with pytest.raises(anthropic.RateLimitError) as limited:
        create(claude.with_options(api_key=spent))
    assert limited.value.response.headers["x-should-retry"] == "false"
    assert SPENT in limited.value.message
    with pytest.raises(anthropic.APIStatusError) as overloaded:
        create(claude.with_options(max_retries=0), "sim-status-529")
    assert overloaded.value.status_code == 529
    with pytest.raises(anthropic.APIStatusError) as stopped:
        list(
            claude.messages.create(
                model="sim-error", max_tokens=2_000, messages=MESSAGES, stream=True
            )
        )
    assert "overloaded" in str(stopped.value)


# ------------------------------------------------------------------------------------------ Gemini


def gemini_client(product: Product, token: str) -> genai.Client:
    options = genai_types.HttpOptions(base_url=product.url, timeout=int(SECONDS * 1000))
    return genai.Client(api_key=token, http_options=options)


@pytest.fixture
def gemini(product: Product) -> Iterator[genai.Client]:
    client = gemini_client(product, product.token)
    yield client
    client.close()


SHORT = genai_types.GenerateContentConfig(max_output_tokens=6)


def test_gemini_answers_and_streams(gemini: genai.Client, product: Product) -> None:
    model = "gemini-sdk"
    answer = gemini.models.generate_content(model=model, contents=QUESTION, config=SHORT)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata.prompt_token_count == 5
    assert answer.usage_metadata.candidates_token_count == 6
    stream = gemini.models.generate_content_stream(model=model, contents=QUESTION, config=SHORT)
    assert "".join(chunk.text or "" for chunk in stream) == answer.text
    for row in product.events_of(count=2, model_requested=model):
        assert (row["input_tokens"], row["output_tokens"]) == (5, 6)


def test_gemini_counts_and_lists(gemini: genai.Client) -> None:
    counted = gemini.models.count_tokens(model="gemini-2.5-flash", contents=QUESTION)
    assert counted.total_tokens == 5
    names = {model.name for model in gemini.models.list()}
    assert "models/gemini-2.5-flash" in names


# How the SDK is built inside is its own affair.
@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
async def test_gemini_async_answers_and_streams(gemini: genai.Client) -> None:
    answer = await gemini.aio.models.generate_content(
        model="gemini-2.5-flash", contents=QUESTION, config=SHORT
    )
    stream = await gemini.aio.models.generate_content_stream(
        model="gemini-2.5-flash", contents=QUESTION, config=SHORT
    )
    assert "".join([chunk.text or "" async for chunk in stream]) == answer.text
    await gemini.aio.aclose()


def test_gemini_raises_its_own_errors(product: Product, spent: str) -> None:
    for token, code, words in ((mistyped(product.token), 401, UNKNOWN), (spent, 429, SPENT)):
        client = gemini_client(product, token)
        with pytest.raises(genai_errors.ClientError) as refused:
            client.models.generate_content(model="gemini-2.5-flash", contents=QUESTION)
        assert refused.value.code == code
        assert words in str(refused.value.message)
        client.close()
