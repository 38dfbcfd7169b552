"""Recorded exchanges with real vendors, played through a real gateway.

A vendor of the test's own answers each request with the recorded bytes, framed as a network would:
in chunks and writes cut at random places, byte by byte where the answer is short, by length where
it is in one piece. What the client got is held against what the vendor sent, the usage event
against what the vendor reported. Run with -s to see the table.

The recordings are no part of this project: KAIXU_RECORDINGS names their folder, else it is looked
for beside the project.
"""

import asyncio
import base64
import hashlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.gateway.vendors.cloud_keys import AWS, service_account
from tests.journeys.client import Answer, fetch
from tests.journeys.product import PROJECT, Product, Row

RECORDINGS: Final = Path(
    os.environ.get("KAIXU_RECORDINGS") or PROJECT.parent / "shared" / "vendor-recordings"
)
CHAT_VENDORS: Final = (
    "alibaba", "cerebras", "deepseek", "gemini-openai", "groq", "huggingface",
    "mistral", "ollama", "openai", "openrouter", "perplexity", "xai", "zai",
)  # fmt: skip
RESPONSES_VENDORS: Final = (
    "deepseek", "lmstudio", "openai", "openrouter", "xai",
)  # fmt: skip
EMBEDDINGS_VENDORS: Final = (
    "mistral", "openai", "openrouter", "perplexity", "voyage",
)  # fmt: skip
KINDS: Final = {
    **{f"{vendor}.chat": "openai" for vendor in CHAT_VENDORS},
    "openai.completions": "openai",
    "together.completions": "openai",
    **{f"{vendor}.responses": "openai" for vendor in RESPONSES_VENDORS},
    "openai.responses.compact": "openai",
    "openai.responses.input_tokens": "openai",
    **{f"{vendor}.embeddings": "openai" for vendor in EMBEDDINGS_VENDORS},
    "voyage.rerank": "openai",
    "openai.images": "openai",
    "xai.images": "openai",
    "openai.audio.transcriptions": "openai",
    "openai.audio.translations": "openai",
    "openrouter.audio.transcriptions": "openai",
    "mistral.audio": "openai",
    "mistral.ocr": "openai",
    "openai.moderations": "openai",
    "anthropic.messages": "anthropic",
    "anthropic.count_tokens": "anthropic",
    "gemini.generateContent": "gemini",
    "gemini.streamGenerateContent": "gemini",
    "gemini.countTokens": "gemini",
    "gemini.embedContent": "gemini",
    "gemini.interactions": "gemini",
    "cohere.chat": "cohere",
    "cohere.chat.v1": "cohere",
    "cohere.embed": "cohere",
    "cohere.rerank": "cohere",
    "ollama.native": "ollama",
    # Clouds. Their paths are asked for as recorded.
    "azure.openai.chat": "azure",
    "azure.openai.responses": "azure",
    "azure.openai.embeddings": "azure",
    "azure.foundry.chat": "azure",
    **{
        f"bedrock.{name}": "bedrock"
        for name in ("converse", "converse-stream", "invoke", "invoke-with-response-stream",
                     "count-tokens")
    },
    **{
        f"vertex.{name}": "vertex"
        for name in ("generateContent", "streamGenerateContent", "countTokens", "embedContent",
                     "predict")
    },
}  # fmt: skip
# How a client of OpenAI's format asks: by what follows the vendor in the API's name.
PATHS: Final = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "responses.compact": "/v1/responses/compact",
    "responses.input_tokens": "/v1/responses/input_tokens",
    "embeddings": "/v1/embeddings",
    "rerank": "/v1/rerank",
    "audio": "/v1/audio/transcriptions",
    "audio.transcriptions": "/v1/audio/transcriptions",
    "audio.translations": "/v1/audio/translations",
    "ocr": "/v1/ocr",
    "moderations": "/v1/moderations",
}
RETRIEVALS: Final = ("/v1/responses/resp_",)  # where the path of what was made before begins
# What no test plays, by the file's name.
LEFT_OUT: Final = {
    "bedrock-mantle.chat": "another host of Bedrock's, signed for another service; no preset",
    "bedrock-mantle.responses": "as its chat",
    "crusoe.chat": "no preset; OpenAI's format, which other files have",
    "gpustack.chat": "no preset; OpenAI's format, which other files have",
    "heroku.chat": "no preset; OpenAI's format, which other files have",
    "openai.assistants": "an API that its vendor has withdrawn, whose threads are not served",
    "snowflake.chat": "no preset; a format and paths of its own",
    "watsonx.generation": "no preset; a format, paths and tokens of its own",
}
BOUNDARY: Final = re.compile(r"multipart/form-data; boundary=(.+)")
SHORT_BYTES: Final = 4 * 1024  # sent byte by byte up to here
PARALLEL: Final = 16
ASKED: Final = ("openai", "azure")  # whose streams tell usage only when asked
# Set by the connection, not by the vendor's application; or denied on the way down.
NOT_COMPARED: Final = frozenset(
    {"connection", "date", "keep-alive", "server", "set-cookie", "alt-svc",
     "strict-transport-security"}
)  # fmt: skip
# What Gemini says of a key that it does not know, with a status of 400.
UNKNOWN_KEY: Final = b'"API_KEY_INVALID"'
EXCEPTIONS_MAX: Final = 3  # exchanges that differ on purpose, beside a 401 and what is stored
# How the recorded requests name what is stored at the vendor.
STORED: Final = re.compile(
    rb'"(?:previous_response_id|previous_interaction_id|file_id|cachedContent)": ?"|'
    rb'"vector_store_ids": ?\["|'
    rb"https://generativelanguage\.googleapis\.com/v1beta/files/"
)
NOT_YOURS: Final = "a stored object becomes our 404"
# What the gateway refuses by itself: status, reason, and how many exchanges there are.
REFUSALS: Final = {NOT_YOURS: (404, "not_yours", 13)}

pytestmark = [
    pytest.mark.journey,
    pytest.mark.skipif(
        not RECORDINGS.is_dir(),
        reason="no recordings of vendors here: set KAIXU_RECORDINGS to their folder",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A recorded exchange."""

    record: Row

    @property
    def id(self) -> str:
        return str(self.record["id"])

    @property
    def api(self) -> str:
        return str(self.record["api"])

    @property
    def kind(self) -> str:
        return KINDS[self.api]

    @property
    def status(self) -> int:
        return int(self.record["response"]["status"])

    @property
    def generates(self) -> bool:
        counting = (".count_tokens", ".countTokens", ".count-tokens", ".input_tokens")
        return not self.api.endswith(counting) and not self.is_retrieval

    @property
    def answer(self) -> bytes:
        response = self.record["response"]
        if "body_base64" in response:
            return base64.b64decode(response["body_base64"])
        return str(response["body"]).encode()

    @property
    def path(self) -> str:
        """The path that a client asks for, without a vendor's own prefix."""
        request = self.record["request"]
        path = str(request["path"])
        if self.kind == "openai" and not path.startswith(RETRIEVALS):
            path = next((of for name, of in PATHS.items() if self.api.endswith(f".{name}")), path)
        if self.kind == "vertex":  # the recorder took the location out
            path = path.replace("<GOOGLE_CLOUD_LOCATION>", "us-central1")
        return path + (f"?{request['query']}" if request.get("query") else "")

    @property
    def is_retrieval(self) -> bool:
        """Whether it asks for what another exchange has made, which is played before."""
        return self.path.startswith(RETRIEVALS)

    @property
    def method(self) -> str:
        return str(self.record["request"]["method"])

    @property
    def body(self) -> bytes:
        """The recorded request, or the smallest valid one where it was left out."""
        request = self.record["request"]
        if self.method != "POST":
            return b""
        if boundary := BOUNDARY.fullmatch(request["headers"].get("content-type", "")):
            return self._form(boundary[1])  # no recording has the sound in it
        if request.get("body_base64"):
            return base64.b64decode(request["body_base64"])
        if request.get("body"):
            return str(request["body"]).encode()
        content = "left out of the recording"
        if self.kind == "bedrock":
            return json.dumps({"messages": [{"content": [{"text": content}]}]}).encode()
        if self.kind in ("gemini", "vertex"):
            return json.dumps({"contents": [{"parts": [{"text": content}]}]}).encode()
        document = {
            "model": self.record["expected"].get("model") or "some-model",
            "stream": self.record["stream"],
            "max_tokens": 1024,
        }
        if self.path.startswith("/v1/responses"):
            return json.dumps({**document, "input": content}).encode()
        return json.dumps({**document, "messages": [{"role": "user", "content": content}]}).encode()

    def _form(self, boundary: str) -> bytes:
        """The smallest form that asks for the recorded answer."""
        fields = {
            'name="model"': self.record["expected"].get("model") or "some-model",
            'name="stream"': "true" if self.record["stream"] else "false",
            'name="file"; filename="a.wav"': "RIFF",
        }
        parts = [
            f"--{boundary}\r\nContent-Disposition: form-data; {name}\r\n\r\n{value}\r\n"
            for name, value in fields.items()
        ]
        return f"{''.join(parts)}--{boundary}--\r\n".encode()

    @property
    def exception(self) -> str:
        """Why the client gets another answer than the vendor's; nothing where it gets that."""
        if self.status == 401:
            return "a refused key becomes our 502"
        if self.status == 400 and UNKNOWN_KEY in self.answer:
            return "a key refused by a 400 becomes our 502"
        return NOT_YOURS if STORED.search(self.body) else ""

    @property
    def asks_usage(self) -> bool:
        """Whether the client asked for usage in a stream."""
        options = json.loads(self.body or b"{}").get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    @property
    def has_usage_event(self) -> bool:
        """Whether a stream has an event with usage and without choices."""
        for line in self.answer.splitlines() if self.record["stream"] else ():
            if line.startswith(b"data:") and b'"usage"' in line:
                event = json.loads(line[5:])
                if event.get("choices") == [] and isinstance(event.get("usage"), dict):
                    return True
        return False

    @property
    def vendor(self) -> str:
        """The name of the vendor that answers it: it may report usage without being asked."""
        unasked = self.kind in ASKED and self.has_usage_event and not self.asks_usage
        return "rec-" + re.sub("[._]", "-", self.api.lower()) + ("-unasked" if unasked else "")


def exchanges(api: str) -> Iterator[Exchange]:
    with (RECORDINGS / f"{api}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield Exchange(record=json.loads(line))


def framings(exchange: Exchange) -> list[str]:
    found = ["random"]
    if exchange.is_retrieval:
        return found  # its usage is told once
    if len(exchange.answer) <= SHORT_BYTES:
        found.append("bytes")
    if not exchange.record["stream"]:
        found.append("length")
    return found


# ----------------------------------------------------------------------------------- the vendor


@dataclass(kw_only=True)
class ReplayVendor:
    """Answers with what is recorded: `x-replay` names exchange and framing."""

    known: Mapping[str, Exchange]
    port: int = 0
    received: dict[str, bytes] = field(default_factory=dict)
    sent_sha256: dict[str, str] = field(default_factory=dict)
    serving: "dict[asyncio.Task[None] | None, asyncio.StreamWriter]" = field(default_factory=dict)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving[asyncio.current_task()] = writer
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                lines = [line.split(": ", 1) for line in head.split("\r\n")[1:-2]]
                headers = {name.lower(): value for name, value in lines}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if head.startswith("POST /token "):
                    token = b'{"access_token":"ya29.of-the-recordings","expires_in":3600}'
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(token))
                    writer.write(token)
                    continue
                if (replay := headers.get("x-replay")) is None:  # the gateway asks for models
                    writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                    continue
                self.received[replay] = self.received.get(replay, b"") + body
                await self.answer(writer, replay)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, writer: asyncio.StreamWriter, replay: str) -> None:
        identity, _, framing = replay.partition("/")
        exchange = self.known[identity]
        body = exchange.answer
        headers = dict(exchange.record["response"]["headers"])
        if framing == "length":
            headers["content-length"] = str(len(body))
        else:
            headers["transfer-encoding"] = "chunked"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {exchange.status} Recorded\r\n{lines}\r\n".encode())
        self.sent_sha256[replay] = hashlib.sha256(body).hexdigest()
        chance = random.Random(replay)
        if framing == "bytes":
            wire = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
            pieces = [wire[at : at + 6] for at in range(0, len(wire), 6)]
        elif framing == "random":
            chunks = cut(body, chance)
            wire = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in chunks) + b"0\r\n\r\n"
            pieces = cut(wire, chance)
        else:
            pieces = cut(body, chance)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)  # the other side may read what it has


def cut(data: bytes, chance: random.Random) -> list[bytes]:
    number = min(len(data) - 1, chance.randrange(1, 60)) if len(data) > 1 else 0
    places = sorted(chance.sample(range(1, len(data)), number)) if number else []
    cuts = zip([0, *places], [*places, len(data)], strict=True)
    return [data[start:end] for start, end in cuts if end > start]


@asynccontextmanager
async def replaying(known: Mapping[str, Exchange]) -> AsyncIterator[ReplayVendor]:
    vendor = ReplayVendor(known=known)
    server = await asyncio.start_server(vendor.serve, "127.0.0.1", 0)
    vendor.port = server.sockets[0].getsockname()[1]
    yield vendor
    server.close()
    for writer in vendor.serving.values():
        writer.transport.abort()
    await asyncio.gather(*filter(None, vendor.serving))


# ------------------------------------------------------------------------------------ the client


async def play(product: Product, exchange: Exchange, framing: str) -> Answer:
    request = exchange.record["request"]
    credential = {
        "openai": ("authorization", f"Bearer {product.token}"),
        "anthropic": ("x-api-key", product.token),
        "gemini": ("x-goog-api-key", product.token),
        "cohere": ("authorization", f"Bearer {product.token}"),
        "ollama": ("authorization", f"Bearer {product.token}"),
        "azure": ("api-key", product.token),
        "bedrock": ("authorization", f"Bearer {product.token}"),
        "vertex": ("authorization", f"Bearer {product.token}"),
    }[exchange.kind]
    headers = {
        **{name: value for name, value in request.get("headers", {}).items()
           if name not in ("accept-encoding", "connection")},
        credential[0]: credential[1],
        "x-replay": f"{exchange.id}/{framing}",
        "x-session-id": f"{exchange.id}/{framing}",
    }  # fmt: skip
    headers.setdefault("content-type", "application/json")
    url = f"{product.url}/{exchange.vendor}{exchange.path}"
    return await fetch(url, method=exchange.method, headers=headers, body=exchange.body)


async def play_all(
    product: Product, plays: list[tuple[Exchange, str]]
) -> dict[tuple[str, str], Answer]:
    answers: dict[tuple[str, str], Answer] = {}
    waiting = iter(plays)

    async def player() -> None:
        for exchange, framing in waiting:
            answers[exchange.id, framing] = await play(product, exchange, framing)

    async with asyncio.TaskGroup() as group:
        for _ in range(PARALLEL):
            group.create_task(player())
    return answers


def key_of(name: str, kind: str, port: int) -> str:
    """What the vendor is called with; a cloud's signs, or gets tokens from the vendor below."""
    if kind == "bedrock":
        return json.dumps(AWS)
    if kind == "vertex":
        uri = f"http://127.0.0.1:{port}/token"
        return service_account(uri, project_id="example-project").decode()
    return f"key-of-{name}"


async def add_vendors(product: Product, names: Mapping[str, str], port: int) -> None:
    waiting = iter(names.items())

    async def adder() -> None:
        for name, kind in waiting:
            base_url = f"http://127.0.0.1:{port}" + ("/v1" if kind == "openai" else "")
            options = ["--usage-unasked"] if name.endswith("-unasked") else []
            await asyncio.to_thread(
                product.add_vendor,
                name, kind=kind, base_url=base_url, key=key_of(name, kind, port), options=options,
            )  # fmt: skip

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(adder())


# ------------------------------------------------------------------------------------- the checks


def differences_of_bytes(exchange: Exchange, answer: Answer, sent_sha256: str) -> list[str]:
    found = []
    if answer.broke:
        found.append(f"broke: {answer.broke}")
    if answer.status != exchange.status:
        found.append(f"status {answer.status}, not {exchange.status}")
    if hashlib.sha256(answer.body).hexdigest() != sent_sha256:
        found.append(f"{len(answer.body)} other bytes than {len(exchange.answer)} sent")
    for name, value in exchange.record["response"]["headers"].items():
        if name not in NOT_COMPARED and answer.headers.get(name) != value:
            found.append(f"header {name}: {answer.headers.get(name)!r}, not {value!r}")
    return found


def differences_of_request(exchange: Exchange, received: bytes) -> list[str]:
    """The vendor gets what the client sent; where usage has to be asked for, that and no more."""
    if received == exchange.body:
        return []
    if not received:
        return ["the vendor got nothing"]
    got, sent = json.loads(received), json.loads(exchange.body)
    options = got.pop("stream_options", {})
    spliced = options.pop("include_usage", None) is True and sent.get("stream") is True
    if not spliced or options != (sent.pop("stream_options", None) or {}) or got != sent:
        return ["the vendor got another request than the client sent"]
    if exchange.kind not in ASKED or exchange.asks_usage or exchange.vendor.endswith("-unasked"):
        return ["usage was asked for without need"]
    return []


def differences_of_usage(exchange: Exchange, rows: list[Row]) -> list[str]:
    if len(rows) != 1:
        return [f"{len(rows)} rows"]
    row = rows[0]
    found = []
    if row["counted"] is not exchange.generates:
        found.append(f"counted {row['counted']}")
    if row["bytes_down"] is None or row["http_status"] != exchange.status:
        found.append(f"status {row['http_status']}, {row['bytes_down']} bytes")
    expected = exchange.record["expected"]
    inputs = [row[f"{name}_tokens"] for name in ("input", "cache_read", "cache_write")]
    if not expected["usage_reported"]:
        if any(number is not None for number in (*inputs, row["output_tokens"])):
            found.append(f"usage where none was reported: {inputs}, {row['output_tokens']}")
        if row["usage_source"] == "vendor":
            found.append("usage_source vendor where none was reported")
        return found
    # Who tells nothing but a total, or units, has no output.
    sums = {"input_total": expected["total_tokens"] or 0, "output_total": 0}
    derived = expected.get("derived", sums)
    units = expected.get("billed_units", {}).get("search_units")
    dues = {
        "searches": units,
        "seconds": expected.get("audio_seconds"),
        "pages": expected.get("pages_processed"),
    }
    found += [
        f"{name} {row[name]}, not {due}"
        for name, due in dues.items()
        if due is not None and row[name] != due
    ]
    if sum(number or 0 for number in inputs) != derived["input_total"]:
        found.append(f"input {inputs}, not {derived['input_total']}")
    if (row["output_tokens"] or 0) != derived["output_total"]:
        found.append(f"output {row['output_tokens']}, not {derived['output_total']}")
    if row["usage_source"] != "vendor" or row["status"] != "complete":
        found.append(f"usage_source {row['usage_source']}, status {row['status']}")
    return found


def differences_of_refusal(exchange: Exchange, answer: Answer, rows: list[Row]) -> list[str]:
    """A vendor that refuses our key: the client gets 502. What we refuse: no call at all."""
    if exchange.exception in REFUSALS:
        status, reason, _ = REFUSALS[exchange.exception]
        if (answer.status, answer.reason) != (status, reason):
            return [f"{answer.status} {answer.reason}, not {status} {reason}"]
        return [f"{len(rows)} rows"] if rows else []
    if (answer.status, answer.reason) != (502, "vendor_key"):
        return [f"{answer.status} {answer.reason}, not 502 vendor_key"]
    return [] if len(rows) == 1 else [f"{len(rows)} rows"]


def test_every_file_is_played_or_left_out_for_a_reason() -> None:
    assert {path.stem for path in RECORDINGS.glob("*.jsonl")} == {*KINDS, *LEFT_OUT}
    assert not KINDS.keys() & LEFT_OUT.keys()


async def test_recorded_exchanges_pass_unchanged_and_are_metered_right(product: Product) -> None:
    known = {one.id: one for api in KINDS for one in exchanges(api)}
    plays = [(one, framing) for one in known.values() for framing in framings(one)]
    async with replaying(known) as vendor:
        names = {one.vendor: one.kind for one in known.values()}
        await add_vendors(product, names, vendor.port)
        answers = await play_all(product, [one for one in plays if not one[0].is_retrieval])
        answers |= await play_all(product, [one for one in plays if one[0].is_retrieval])

    sessions = {f"{one.id}/{framing}" for one, framing in plays if one.exception not in REFUSALS}
    rows: dict[str, list[Row]] = {}
    for _ in range(20):
        rows = {}
        for row in await asyncio.to_thread(product.events):
            if row["session_id"] in sessions:
                rows.setdefault(row["session_id"], []).append(row)
        if len(rows) == len(sessions):
            break
        await asyncio.sleep(0.2)

    counts: Counter[tuple[str, str]] = Counter()
    excepted: Counter[tuple[str, str]] = Counter()
    found: list[str] = []
    for exchange, framing in plays:
        replay = f"{exchange.id}/{framing}"
        answer = answers[exchange.id, framing]
        of_usage: list[str] = []
        if exchange.exception:
            excepted[exchange.api, exchange.exception] += 1
            of_bytes = differences_of_refusal(exchange, answer, rows.get(replay, []))
            if exchange.exception in REFUSALS and replay in vendor.received:
                of_bytes.append("the vendor was asked")
        else:
            of_bytes = differences_of_bytes(exchange, answer, vendor.sent_sha256.get(replay, ""))
            of_bytes += differences_of_request(exchange, vendor.received.get(replay, b""))
            of_usage = differences_of_usage(exchange, rows.get(replay, []))
            counts[exchange.api, "bytes"] += not of_bytes
            counts[exchange.api, "usage"] += not of_usage
        counts[exchange.api, "all"] += 1
        found += [f"{replay}: {one}" for one in of_bytes + of_usage]
    show(counts, excepted)
    reasons = Counter(one.exception for one in known.values() if one.status != 401)
    for exception, (_, _, exchanges_due) in REFUSALS.items():
        assert reasons.pop(exception) == exchanges_due
    assert reasons.total() - reasons.pop("") <= EXCEPTIONS_MAX
    assert not found, "\n".join(found)


def show(counts: Counter[tuple[str, str]], excepted: Counter[tuple[str, str]]) -> None:
    print(f"\n{'api':30} {'exchanges':>9} {'bytes equal':>11} {'usage equal':>11}  exceptions")
    for api in KINDS:
        reasons = [f"{n}: {why}" for (of, why), n in excepted.items() if of == api]
        numbers = [counts[api, what] for what in ("all", "bytes", "usage")]
        print(f"{api:30} {numbers[0]:9} {numbers[1]:11} {numbers[2]:11}  {'; '.join(reasons)}")
    print("An exchange is counted once for each way in which it was framed.")
