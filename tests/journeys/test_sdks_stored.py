"""What the SDKs store at vendors, and what they say and hear: files, batches, responses, cached
contents, sound. Python's and Node's, with nothing changed but base URL and key.
"""

import io
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import anthropic
import openai
import pytest
from anthropic.types import MessageParam
from google import genai
from google.genai import errors as genai_errors
from google.genai import types as genai_types

from tests.journeys.node_sdks import Result, play
from tests.journeys.product import Product, eventually, mistyped

pytestmark = pytest.mark.journey

QUESTION: Final = "what are five words here"
SECONDS: Final = 30.0
SOUND: Final = ("speech.wav", b"RIFF" + bytes(2_000), "audio/wav")
MESSAGES: Final[list[MessageParam]] = [{"role": "user", "content": QUESTION}]


def totals(product: Product, session: str, *, rows: int) -> tuple[int, int]:
    """Return what the rows of a session add up to, once they are all there."""
    found = product.events_of(count=rows, session_id=session)
    inputs = sum(row["input_tokens"] or 0 for row in found)
    return inputs, sum(row["output_tokens"] or 0 for row in found)


# ------------------------------------------------------------------------------------------ OpenAI


def openai_client(product: Product, session: str) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{product.url}/v1",
        api_key=product.token,
        timeout=SECONDS,
        default_headers={"x-session-id": session},
    )


def test_openai_keeps_files(product: Product) -> None:
    with openai_client(product, "stored/openai/files") as client:
        made = client.files.create(file=("notes.txt", b"some words"), purpose="user_data")
        assert client.files.retrieve(made.id).id == made.id
        assert client.files.content(made.id).read() == b"some words"
        assert made.id in {one.id for one in client.files.list()}
        assert client.files.delete(made.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(made.id)


def test_openai_runs_batches_that_are_metered_once(product: Product) -> None:
    session = "stored/openai/batches"
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 6}
    asked = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    lines = [json.dumps({"custom_id": name, **asked}) for name in ("a", "b")]
    with openai_client(product, session) as client:
        file = ("batch.jsonl", "\n".join(lines).encode())
        given = client.files.create(file=file, purpose="batch")
        begun = client.batches.create(
            input_file_id=given.id, endpoint="/v1/chat/completions", completion_window="24h"
        )

        def finished() -> str | None:
            return client.batches.retrieve(begun.id).output_file_id

        output = eventually(finished, seconds=SECONDS, what="the batch's results")
        results = [json.loads(line) for line in client.files.content(output).text.splitlines()]
        client.batches.retrieve(begun.id)
        assert begun.id in {one.id for one in client.batches.list()}
    assert sorted(one["custom_id"] for one in results) == ["a", "b"]

    def metered() -> tuple[int, int] | None:
        rows = [row for row in product.events() if row["session_id"] == session]
        inputs = sum(row["input_tokens"] or 0 for row in rows)
        return (inputs, sum(row["output_tokens"] or 0 for row in rows)) if inputs else None

    assert eventually(metered, seconds=SECONDS, what="the batch's usage") == (10, 12)


def test_openai_keeps_responses(product: Product) -> None:
    session = "stored/openai/responses"
    with openai_client(product, session) as client:
        made = client.responses.create(model="gpt-5-mini", input=QUESTION, max_output_tokens=6)
        again = client.responses.retrieve(made.id)
        assert again.output_text == made.output_text
        client.responses.create(
            model="gpt-5-mini", input=QUESTION, max_output_tokens=6, previous_response_id=made.id
        )
        client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(made.id)
    assert totals(product, session, rows=5) == (10, 12)


def test_openai_gets_nothing_of_others(product: Product) -> None:
    with (
        openai_client(product, "stored/openai/others") as client,
        pytest.raises(openai.NotFoundError) as refused,
    ):
        client.files.retrieve("file-of-somebody-else")
    assert refused.value.response.headers["x-kaixu-reason"] == "not_yours"


def test_openai_speaks_and_hears(product: Product) -> None:
    session = "stored/openai/audio"
    with openai_client(product, session) as client:
        spoken = client.audio.speech.create(model="tts-1", voice="alloy", input=QUESTION)
        assert spoken.read()
        heard = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=SOUND)
        stream = client.audio.transcriptions.create(
            model="gpt-4o-transcribe", file=io.BytesIO(SOUND[1]), stream=True
        )
        *_, last = stream
    assert last.type == "transcript.text.done"
    assert last.text == heard.text
    rows = product.events_of(count=3, session_id=session)
    assert {row["status"] for row in rows} == {"complete"}


# --------------------------------------------------------------------------------------- Anthropic


@pytest.fixture
def claude(product: Product) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=product.url, api_key=product.token, timeout=SECONDS
    ) as client:
        yield client


def test_anthropic_runs_batches_that_are_metered_once(
    claude: anthropic.Anthropic, product: Product
) -> None:
    session = "stored/anthropic/batches"
    client = claude.with_options(default_headers={"x-session-id": session})
    params: Any = {"model": "claude-sonnet-5", "max_tokens": 6, "messages": MESSAGES}
    made = client.messages.batches.create(
        requests=[{"custom_id": name, "params": params} for name in ("a", "b")]
    )

    def ended() -> bool:
        return client.messages.batches.retrieve(made.id).processing_status == "ended"

    eventually(ended, seconds=SECONDS, what="the batch ends")
    for _ in range(2):
        # Goes where `results_url` says: to the gateway, as everything else.
        results = list(client.messages.batches.results(made.id))
        assert sorted(one.custom_id for one in results) == ["a", "b"]
        assert {one.result.type for one in results} == {"succeeded"}
    assert made.id in {one.id for one in client.messages.batches.list()}

    def metered() -> tuple[int, int] | None:
        rows = [row for row in product.events() if row["session_id"] == session]
        told = [row for row in rows if row["input_tokens"]]
        assert len(told) <= 1
        return (told[0]["input_tokens"], told[0]["output_tokens"]) if told else None

    assert eventually(metered, seconds=SECONDS, what="the batch's usage") == (10, 12)


def test_anthropic_keeps_files(claude: anthropic.Anthropic) -> None:
    files = claude.beta.files
    made = files.upload(file=("notes.txt", b"some words", "text/plain"))
    assert files.retrieve_metadata(made.id).id == made.id
    assert files.download(made.id).read() == b"some words"
    assert made.id in {one.id for one in files.list()}
    files.delete(made.id)
    with pytest.raises(anthropic.NotFoundError):
        files.retrieve_metadata(made.id)


# ------------------------------------------------------------------------------------------ Gemini


@contextmanager
def gemini_client(product: Product, *, version: str) -> Iterator[genai.Client]:
    options = genai_types.HttpOptions(
        api_version=version, base_url=product.url, timeout=int(SECONDS * 1000)
    )
    client = genai.Client(api_key=product.token, http_options=options)
    yield client
    client.close()


# Where nothing is said, this SDK asks below /v1.
versions = pytest.mark.parametrize("version", ["v1beta", "v1"])


@versions
def test_gemini_keeps_contents_in_a_cache(product: Product, version: str) -> None:
    model = "gemini-2.5-flash"
    cache = genai_types.CreateCachedContentConfig(contents=QUESTION, ttl="60s")
    with gemini_client(product, version=version) as gemini:
        made = gemini.caches.create(model=model, config=cache)
        assert made.name is not None
        config = genai_types.GenerateContentConfig(cached_content=made.name, max_output_tokens=6)
        answer = gemini.models.generate_content(model=model, contents=QUESTION, config=config)
        assert answer.text
        assert gemini.caches.get(name=made.name).name == made.name
        assert made.name in {one.name for one in gemini.caches.list()}
        gemini.caches.delete(name=made.name)


@versions
def test_gemini_uploads_files_in_several_requests(product: Product, version: str) -> None:
    chunk = 8 * 1024 * 1024  # this SDK's
    config = genai_types.UploadFileConfig(mime_type="text/plain", display_name="words")
    with gemini_client(product, version=version) as gemini:
        for content in (b"some words", bytes(chunk + 1)):
            made = gemini.files.upload(file=io.BytesIO(content), config=config)
            assert made.name is not None
            assert (made.size_bytes, made.display_name) == (len(content), "words")
            assert gemini.files.get(name=made.name).uri == made.uri
            assert made.name in {one.name for one in gemini.files.list()}
            part = genai_types.Part.from_uri(file_uri=str(made.uri), mime_type="text/plain")
            answer = gemini.models.generate_content(
                model="gemini-2.5-flash", contents=[QUESTION, part]
            )
            assert answer.text
            gemini.files.delete(name=made.name)
            with pytest.raises(genai_errors.ClientError):
                gemini.files.get(name=made.name)


def test_gemini_may_not_name_its_files(product: Product) -> None:
    config = genai_types.UploadFileConfig(mime_type="text/plain", name="mine")
    with (
        gemini_client(product, version="v1beta") as gemini,
        pytest.raises(genai_errors.ClientError) as refused,
    ):
        gemini.files.upload(file=io.BytesIO(b"some words"), config=config)
    assert refused.value.code == 400


# -------------------------------------------------------------------------------------------- Node

NODE: Final[Mapping[str, Mapping[str, Mapping[str, object]]]] = {
    "openai_stored": {
        "files": {
            "content": "some words",
            "listed": True,
            "deleted": True,
            "status_after": 404,
        },
        "batches": {"custom_ids": ["a", "b"], "words": [6, 6]},
        "stored_response": {"same": True, "next": 20},
        "not_ours": {"name": "NotFoundError", "status": 404, "reason": "not_yours"},
    },
    "openai_audio": {
        "speech": {"has_sound": True},
        "transcription": {"words": 20},
        "transcription_stream": {"last": "transcript.text.done", "words": 20},
    },
    "anthropic_stored": {
        "batches": {"custom_ids": ["a", "b"], "words": [6, 6], "listed": True},
        "files": {"content": "some words", "status_after": 404},
    },
    "genai_stored": {
        "caches": {"words": 6, "listed": True},
        "files": {"size": "10", "listed": True, "words": 6, "status_after": 404},
    },
}


@pytest.fixture(scope="module")
def played(node: str, product: Product) -> Mapping[str, Mapping[str, Result]]:
    environment = {
        "TEST_GATEWAY_URL": product.url,
        "TEST_TOKEN": product.token,
        "TEST_TOKEN_UNKNOWN": mistyped(product.token),
    }
    with ThreadPoolExecutor(len(NODE)) as pool:
        lines = pool.map(lambda script: play(node, script, environment), NODE)
        return dict(zip(NODE, lines, strict=True))


@pytest.mark.parametrize(
    ("script", "scenario"),
    [(script, scenario) for script, table in NODE.items() for scenario in table],
)
def test_node_stores_and_fetches(
    played: Mapping[str, Mapping[str, Result]], script: str, scenario: str
) -> None:
    line = played[script][scenario]
    assert "error" not in line, line["error"]
    assert line["result"] == NODE[script][scenario]
