"""Usage read from real exchanges with the vendors, against what each vendor reported.

The recordings are no part of this project: KAIXU_RECORDINGS names their folder, else it is looked
for beside the project. Each exchange is fed whole, in one-byte pieces where it is short, and cut at
random places.
"""

import base64
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.metering.meter import MeterFormat, open_meter
from gateway.metering.usage import METERS, Flag, Usage

RECORDINGS = Path(
    os.environ.get("KAIXU_RECORDINGS")  # noqa: TID251 - the test run's own setting
    or Path(__file__).resolve().parents[3].parent / "shared" / "vendor-recordings"
)
SHORT_BYTES = 20_000  # fed byte by byte up to here
RANDOM_CUTS = 5  # ways in which each exchange is cut at random

CHAT_VENDORS = (
    "alibaba",
    "azure.foundry",
    "azure.openai",
    "bedrock-mantle",
    "cerebras",
    "crusoe",
    "deepseek",
    "gemini-openai",
    "gpustack",
    "groq",
    "heroku",
    "huggingface",
    "mistral",
    "ollama",
    "openai",
    "openrouter",
    "perplexity",
    "snowflake",
    "xai",
    "zai",
)
RESPONSES_VENDORS = (
    "azure.openai",
    "bedrock-mantle",
    "deepseek",
    "lmstudio",
    "openai",
    "openrouter",
    "xai",
)
EMBEDDINGS_VENDORS = ("azure.openai", "mistral", "openai", "openrouter", "perplexity", "voyage")
FORMATS = {
    **{f"{vendor}.chat": MeterFormat.OPENAI_CHAT for vendor in CHAT_VENDORS},
    "mistral.audio": MeterFormat.OPENAI_AUDIO,
    "mistral.ocr": MeterFormat.MISTRAL_OCR,
    "openai.audio.transcriptions": MeterFormat.OPENAI_AUDIO,
    "openai.audio.translations": MeterFormat.OPENAI_AUDIO,
    "openrouter.audio.transcriptions": MeterFormat.OPENAI_AUDIO,
    "xai.images": MeterFormat.OPENAI_EMBEDDINGS,
    "gemini.embedContent": MeterFormat.GEMINI_GENERATE,
    "vertex.embedContent": MeterFormat.GEMINI_GENERATE,
    "openai.completions": MeterFormat.OPENAI_CHAT,
    "together.completions": MeterFormat.OPENAI_CHAT,
    **{f"{vendor}.responses": MeterFormat.OPENAI_RESPONSES for vendor in RESPONSES_VENDORS},
    "openai.responses.compact": MeterFormat.OPENAI_RESPONSES,
    **{f"{vendor}.embeddings": MeterFormat.OPENAI_EMBEDDINGS for vendor in EMBEDDINGS_VENDORS},
    "voyage.rerank": MeterFormat.OPENAI_EMBEDDINGS,
    "openai.images": MeterFormat.OPENAI_EMBEDDINGS,
    "openai.moderations": MeterFormat.NONE,
    "openai.responses.input_tokens": MeterFormat.NONE,
    "anthropic.messages": MeterFormat.ANTHROPIC_MESSAGES,
    "anthropic.count_tokens": MeterFormat.ANTHROPIC_MESSAGES,
    "gemini.generateContent": MeterFormat.GEMINI_GENERATE,
    "gemini.streamGenerateContent": MeterFormat.GEMINI_GENERATE,
    "gemini.countTokens": MeterFormat.GEMINI_GENERATE,
    "gemini.interactions": MeterFormat.GEMINI_INTERACTIONS,
    "vertex.generateContent": MeterFormat.GEMINI_GENERATE,
    "vertex.streamGenerateContent": MeterFormat.GEMINI_GENERATE,
    "vertex.countTokens": MeterFormat.GEMINI_GENERATE,
    "cohere.chat": MeterFormat.COHERE_CHAT,
    "cohere.chat.v1": MeterFormat.COHERE_META,
    "cohere.embed": MeterFormat.COHERE_META,
    "cohere.rerank": MeterFormat.COHERE_META,
    "ollama.native": MeterFormat.OLLAMA,
    "bedrock.converse": MeterFormat.BEDROCK_CONVERSE,
    "bedrock.converse-stream": MeterFormat.BEDROCK_CONVERSE,
    "bedrock.invoke": MeterFormat.BEDROCK_INVOKE,
    "bedrock.invoke-with-response-stream": MeterFormat.BEDROCK_INVOKE,
    "bedrock.count-tokens": MeterFormat.NONE,
    "vertex.predict": MeterFormat.VERTEX_PREDICT,
}
WITHOUT_OUTPUT = {
    "cohere.embed",
    "cohere.rerank",
    "gemini.embedContent",
    "vertex.embedContent",
    "vertex.predict",
    *(api for api, meter in FORMATS.items() if meter == MeterFormat.OPENAI_EMBEDDINGS),
}

# Their usage is told in several places, or in base64.
JOINED = {"bedrock.invoke", "bedrock.invoke-with-response-stream", "vertex.predict"}

pytestmark = pytest.mark.skipif(
    not RECORDINGS.is_dir(),
    reason="no recordings of vendors here: set KAIXU_RECORDINGS to their folder",
)


@pytest.mark.parametrize("api", sorted(FORMATS))
def test_usage_is_what_the_vendor_reported(api: str) -> None:
    for number, exchange in enumerate(exchanges(api)):
        body = body_of(exchange)
        usage = measured(api, exchange, [body])
        assert differences(usage, exchange) == [], f"exchange {number}"
        for pieces in cuts(body, seed=number):
            assert measured(api, exchange, pieces) == usage, f"exchange {number}, cut"


@pytest.mark.parametrize("api", sorted(FORMATS))
def test_a_cut_exchange_never_tells_more_than_the_whole(api: str) -> None:
    chance = random.Random(api)
    for number, exchange in enumerate(exchanges(api)):
        body = body_of(exchange)
        whole = measured(api, exchange, [body])
        for _ in range(RANDOM_CUTS):
            upto = chance.randrange(len(body)) if body else 0
            cut = measured(api, exchange, [body[:upto]], complete=False)
            assert Flag.METER_FAILED not in cut.flags
            if cut.source == "vendor":
                assert counts(cut) == counts(whole), f"exchange {number}, cut at {upto}"


def test_every_usage_equals_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    exceptions: list[str] = []
    flags: Counter[str] = Counter()
    for api in sorted(FORMATS):
        equal = 0
        total = 0
        for number, exchange in enumerate(exchanges(api)):
            usage = measured(api, exchange, [body_of(exchange)])
            found = differences(usage, exchange)
            total += 1
            equal += not found
            exceptions += [f"{api}, exchange {number}: {difference}" for difference in found]
            flags.update(usage.flags)
        rows.append((api, total, equal))
    with capsys.disabled():
        print("\n\napi                            exchanges  usage equal")
        for api, total, equal in rows:
            print(f"{api:30} {total:9} {equal:12}")
        print(f"{'all':30} {sum(r[1] for r in rows):9} {sum(r[2] for r in rows):12}")
        print("flags:", ", ".join(f"{flag} {n}" for flag, n in sorted(flags.items())))
        print("exceptions:", "; ".join(exceptions) or "none")
    assert exceptions == []


def counts(usage: Usage) -> dict[str, int | float | None]:
    return {name: getattr(usage, name) for name in METERS}


def exchanges(api: str) -> Iterator[dict[str, Any]]:
    with (RECORDINGS / f"{api}.jsonl").open() as lines:
        for line in lines:
            yield json.loads(line)


def body_of(exchange: dict[str, Any]) -> bytes:
    response = exchange["response"]
    if response.get("body_base64") is not None:
        return base64.b64decode(response["body_base64"])
    return str(response["body"]).encode()


def cuts(body: bytes, *, seed: int) -> Iterator[list[bytes]]:
    if len(body) <= SHORT_BYTES:
        yield [body[at : at + 1] for at in range(len(body))]
    chance = random.Random(seed)
    for _ in range(RANDOM_CUTS if len(body) > 1 else 0):
        places = sorted(
            chance.sample(range(1, len(body)), min(len(body) - 1, chance.randrange(90)))
        )
        yield [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]


def measured(
    api: str, exchange: dict[str, Any], pieces: list[bytes], *, complete: bool = True
) -> Usage:
    response = exchange["response"]
    meter = open_meter(
        FORMATS[api],
        stream=exchange["stream"],
        status=response["status"],
        content_type=response["headers"].get("content-type", "").encode(),
        content_encoding=b"",
        headers=[(n.encode(), value.encode()) for n, value in response["headers"].items()],
    )
    for piece in pieces:
        meter.feed(piece)
    usage = meter.finish(complete=complete)
    expected = exchange["expected"]
    if complete and expected["usage_reported"]:
        assert meter.saw_end
        assert not meter.stream_error
    if complete and expected.get("in_stream_error"):
        assert meter.stream_error
        assert meter.saw_end == (expected["finish_reason"] == "failed")
    return usage


def reasoning_of(exchange: dict[str, Any]) -> int | None:
    """What the vendor said of reasoning; `expected` leaves out where Cohere says it."""
    expected = exchange["expected"]
    if exchange["vendor"] != "cohere":
        return expected["reasoning_tokens"]  # type: ignore[no-any-return]
    return expected["vendor_usage"].get("tokens", {}).get("reasoning_tokens")  # type: ignore[no-any-return]


def kept_usage(usage: Usage, api: str) -> Any:
    """A row's usage, without the version of its API that `expected` leaves out."""
    kept = None if usage.vendor_usage is None else json.loads(usage.vendor_usage)
    if kept is not None and api in ("cohere.embed", "cohere.rerank"):
        del kept["api_version"]
    return kept


def differences_where_nothing_is_told(usage: Usage, exchange: dict[str, Any]) -> list[str]:
    expected = exchange["expected"]
    told = {"source": "none", "input_tokens": None, "output_tokens": None}
    flags = (Flag.IN_STREAM_ERROR,) if expected.get("in_stream_error") else ()
    found = [name for name, want in told.items() if getattr(usage, name) != want]
    if kept_usage(usage, exchange["api"]) != expected["vendor_usage"]:  # a price, say
        found.append("vendor usage")
    return found + (["flags"] if usage.flags != flags else [])


def differences(usage: Usage, exchange: dict[str, Any]) -> list[str]:
    """What a usage has that the vendor's report has not, or the other way round."""
    expected = exchange["expected"]
    if not expected["usage_reported"]:
        return differences_where_nothing_is_told(usage, exchange)
    # Who tells nothing but a total has no output.
    total = {"input_total": expected["total_tokens"] or 0, "output_total": None}
    derived = expected.get("derived", total)
    reported = expected["vendor_usage"]
    has_output = not (exchange["api"] in WITHOUT_OUTPUT or "embed" in exchange["request"]["path"])
    want: dict[str, Any] = {
        "source": "vendor",
        "output_tokens": derived["output_total"] if has_output else expected["output_tokens"],
        "cache_read_tokens": expected["cache_read_tokens"],
        "cache_write_tokens": expected["cache_write_tokens"],
        "reasoning_tokens": reasoning_of(exchange),
        "audio_input_tokens": expected["audio_input_tokens"],
        "audio_output_tokens": expected["audio_output_tokens"],
        "seconds": expected.get("audio_seconds", reported.get("prompt_audio_seconds")),
        "pages": expected.get("pages_processed"),
        "model_served": expected["model"],
        "finish_reason": expected["finish_reason"],
    }
    for name in ("cache_write_5m_tokens", "cache_write_1h_tokens"):
        if name in expected:
            want[name] = expected[name]
    flags_due: set[str] = set()
    if derived.get("cache_read_exceeds_input"):
        want["cache_read_tokens"] = derived["input_total"]
        flags_due.add(Flag.CACHE_EXCEEDS_INPUT)
    if derived.get("total_differs_by"):
        flags_due.add(Flag.TOTAL_DIFFERS)
    if expected.get("ambiguous"):
        flags_due.add(Flag.FIELDS_WITHDRAWN)
    if set(expected.get("iterations_by_type", ())) - {"message"}:
        flags_due.add(Flag.ITERATIONS_ON_TOP)
    found = [
        f"{name} {getattr(usage, name)!r}, not {value!r}"
        for name, value in want.items()
        if getattr(usage, name) != value
    ]
    parts = (usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens)
    if sum(part or 0 for part in parts) != derived["input_total"]:
        found.append(f"input {parts}, not {derived['input_total']}")
    if set(usage.flags) != flags_due:
        found.append(f"flags {usage.flags}, not {flags_due}")
    if kept_usage(usage, exchange["api"]) != reported:
        found.append(f"vendor usage {usage.vendor_usage!r}, not {reported}")
    if usage.vendor_usage is not None and exchange["response"]["fidelity"] == "raw":
        verbatim = usage.vendor_usage in body_of(exchange)
        gathered = exchange["api"] == "anthropic.messages" and exchange["stream"]
        joined = exchange["api"] in JOINED
        if not verbatim and not gathered and not joined and exchange["api"] != "ollama.native":
            found.append("vendor usage is not verbatim")
    return found
