"""What the simulated vendor says, in the wire formats of OpenAI, Anthropic and Gemini.

OpenAI's is that of chat completions; its other paths, and other vendors, have modules of their own.

Pure: a request's document in, the bytes of an answer out. One word is one token, both ways, so
that usage can be told from a request alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import orjson

WORDS: Final = 20  # of an answer, where the request asks for no other length
WORDS_ASKED_MAX: Final = 1_000  # who asks for more sets a ceiling, and gets WORDS

_SENTENCE: Final = (
    "The simulated vendor answers this call with as many words as it was asked for, one word a "
    "token, so that everybody can check what was metered."
)
_TEXT_MEMBERS: Final = ("content", "text", "system")
CREATED: Final = 1_735_689_600  # all that is dated has this date: answers repeat
VECTOR: Final = (0.5, -0.5, 0.5, -0.5)  # of length 1, as OpenAI's are


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a request asks for, whatever its wire format.

    `words` is the length that it asks for, or None. `stream_usage`: it wants usage in the stream.
    `event_stream` is false where Gemini is to stream one JSON array. `vectors` is how many of them
    (or scores, or verdicts) are asked for instead of words, `in_base64` how they are to be written.
    `version`: in which version of its API a vendor is to answer.
    """

    model: str
    stream: bool
    words: int | None
    input_tokens: int
    stream_usage: bool
    event_stream: bool = True
    vectors: int = 0
    in_base64: bool = False
    version: int = 1

    @property
    def words_due(self) -> int:
        """The number of words to answer with."""
        if self.vectors:
            return 0
        return self.words or WORDS

    @property
    def is_cut(self) -> bool:
        """Whether the answer stops because of the length asked for."""
        return self.words is not None


class Spent(NamedTuple):
    """The usage of one answer."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A wire format, as a vendor speaks it.

    - `read(document, path_model, verb, query)`: what is asked. Raises AskInvalid.
    - `plain(ask, call_id, text, spent)`: an answer in one piece.
    - `stream(ask, call_id, texts, spent)`: the pieces of a stream, one for each text and more.
    - `media_type`: of an answer in one piece.
    - `stream_error(message)`: an error inside a stream. `error(status, message, call_id)`: before.
    """

    name: str
    id_prefix: str
    id_header: str
    models: Sequence[str]
    read: Callable[[Mapping[str, Any], str, str, Mapping[str, str]], Ask]
    plain: Callable[[Ask, str, str, Spent], bytes]
    stream: Callable[[Ask, str, Sequence[str], Spent], Iterator[bytes]]
    count: Callable[[int], bytes]
    error: Callable[[int, str, str], bytes]
    stream_error: Callable[[str], bytes]
    models_body: Callable[[Sequence[str]], bytes]
    model_body: Callable[[str], bytes]
    media_type: str = "application/json"
    stream_type: str = "text/event-stream"


class AskInvalid(ValueError):
    """The request's document lacks what every request of this format has."""


def words(number: int) -> list[str]:
    """Return `number` words, all but the first with a space before them."""
    vocabulary = _SENTENCE.split()
    some = [vocabulary[at % len(vocabulary)] for at in range(number)]
    return some[:1] + [" " + word for word in some[1:]]


def words_in(value: Any, *, is_text: bool = False) -> int:  # noqa: ANN401 - JSON
    """Return how many words the texts in a document have."""
    if isinstance(value, str):
        return len(value.split()) if is_text else 0
    if isinstance(value, list):
        return sum(words_in(item, is_text=is_text) for item in value)
    if isinstance(value, dict):
        return sum(words_in(item, is_text=name in _TEXT_MEMBERS) for name, item in value.items())
    return 0


def length_asked(*asked: object) -> int | None:
    """Return the length that the first number asks for, or None."""
    first = next((number for number in asked if type(number) is int), None)
    return first if first is not None and 0 < first <= WORDS_ASKED_MAX else None


def event_of(document: object, *, name: str = "") -> bytes:
    """Return one event of a stream."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + orjson.dumps(document) + b"\n\n"


def line_of(document: object) -> bytes:
    """Return one line of a stream that has no events but lines of JSON."""
    return orjson.dumps(document) + b"\n"


# ------------------------------------------------------------------------------------------ OpenAI


def _openai_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    model = document.get("model")
    if not isinstance(model, str) or not isinstance(document.get("messages"), list):
        raise AskInvalid("you must provide a model and messages")
    options = document.get("stream_options")
    return Ask(
        model=model,
        stream=document.get("stream") is True,
        words=length_asked(document.get("max_completion_tokens"), document.get("max_tokens")),
        input_tokens=words_in(document["messages"]),
        stream_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def openai_usage(spent: Spent) -> dict[str, Any]:
    """Return the usage of a chat completion."""
    return {
        "prompt_tokens": spent.input_tokens,
        "completion_tokens": spent.output_tokens,
        "total_tokens": spent.input_tokens + spent.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _openai_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text,
        "refusal": None,
        "annotations": [],
    }
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": "length" if ask.is_cut else "stop",
    }
    return orjson.dumps(
        {
            "id": call_id,
            "object": "chat.completion",
            "created": CREATED,
            "model": ask.model,
            "choices": [choice],
            "usage": openai_usage(spent),
            "service_tier": "default",
            "system_fingerprint": "fp_simulator",
        }
    )


def _openai_stream(ask: Ask, call_id: str, texts: Sequence[str], spent: Spent) -> Iterator[bytes]:
    frame: dict[str, Any] = {
        "id": call_id,
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": ask.model,
        "service_tier": "default",
        "system_fingerprint": "fp_simulator",
    }
    unsaid = {"usage": None} if ask.stream_usage else {}

    def chunk(delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event_of({**frame, "choices": [choice], **unsaid})

    yield chunk({"role": "assistant", "content": "", "refusal": None})
    for text in texts:
        yield chunk({"content": text})
    yield chunk({}, "length" if ask.is_cut else "stop")
    if ask.stream_usage:
        yield event_of({**frame, "choices": [], "usage": openai_usage(spent)})
    yield b"data: [DONE]\n\n"


def _openai_error(status: int, message: str, call_id: str) -> bytes:
    del call_id
    code = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}.get(status)
    kind = "server_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def _openai_stream_error(message: str) -> bytes:
    error = {"message": message, "type": "server_error", "param": None, "code": None}
    return event_of({"error": error})


def _openai_model(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": CREATED, "owned_by": "simulator"}


def _openai_models(models: Sequence[str]) -> bytes:
    return orjson.dumps({"object": "list", "data": [_openai_model(model) for model in models]})


# --------------------------------------------------------------------------------------- Anthropic


def _anthropic_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, query
    model = document.get("model")
    if not isinstance(model, str) or not isinstance(document.get("messages"), list):
        raise AskInvalid("model, messages: Field required")
    if verb == "generate" and type(document.get("max_tokens")) is not int:
        raise AskInvalid("max_tokens: Field required")
    told = {name: document.get(name) for name in ("messages", "system")}
    return Ask(
        model=model,
        stream=document.get("stream") is True,
        words=length_asked(document.get("max_tokens")),
        input_tokens=words_in(told),
        stream_usage=True,
    )


def _anthropic_message(ask: Ask, call_id: str, usage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "message",
        "role": "assistant",
        "model": ask.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def _anthropic_usage(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }


def _anthropic_stop(ask: Ask) -> str:
    return "max_tokens" if ask.is_cut else "end_turn"


def _anthropic_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    message = _anthropic_message(ask, call_id, _anthropic_usage(*spent))
    message["content"] = [{"type": "text", "text": text}]
    message["stop_reason"] = _anthropic_stop(ask)
    return orjson.dumps(message)


def _anthropic_stream(
    ask: Ask, call_id: str, texts: Sequence[str], spent: Spent
) -> Iterator[bytes]:
    def event(name: str, **members: object) -> bytes:
        return event_of({"type": name, **members}, name=name)

    usage = _anthropic_usage(spent.input_tokens, 1)
    yield event("message_start", message=_anthropic_message(ask, call_id, usage))
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield event("ping")
    for text in texts:
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
    yield event("content_block_stop", index=0)
    stop = {"stop_reason": _anthropic_stop(ask), "stop_sequence": None}
    yield event("message_delta", delta=stop, usage={"output_tokens": spent.output_tokens})
    yield event("message_stop")


def _anthropic_count(input_tokens: int) -> bytes:
    return orjson.dumps({"input_tokens": input_tokens})


def _anthropic_error(status: int, message: str, call_id: str) -> bytes:
    kinds = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
        529: "overloaded_error",
    }
    kind = kinds.get(status, "api_error" if status >= 500 else "invalid_request_error")  # noqa: PLR2004
    error = {"type": kind, "message": message}
    return orjson.dumps({"type": "error", "error": error, "request_id": call_id})


def _anthropic_stream_error(message: str) -> bytes:
    error = {"type": "overloaded_error", "message": message}
    return event_of({"type": "error", "error": error}, name="error")


def _anthropic_model(model: str) -> dict[str, Any]:
    return {
        "type": "model",
        "id": model,
        "display_name": model,
        "created_at": "2025-01-01T00:00:00Z",
    }


def _anthropic_models(models: Sequence[str]) -> bytes:
    rows = [_anthropic_model(model) for model in models]
    ends = {"first_id": models[0], "last_id": models[-1]}
    return orjson.dumps({"data": rows, "has_more": False, **ends})


# ------------------------------------------------------------------------------------------ Gemini


def _gemini_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    counted = document.get("generateContentRequest")
    if verb == "count" and isinstance(counted, dict):
        document = counted
    if not isinstance(document.get("contents"), list):
        raise AskInvalid("contents is not specified")
    config = document.get("generationConfig")
    told = [document["contents"], document.get("systemInstruction")]
    return Ask(
        model=path_model,
        stream=verb == "stream",
        words=length_asked(config.get("maxOutputTokens")) if isinstance(config, dict) else None,
        input_tokens=words_in(told),
        stream_usage=True,
        event_stream=query.get("alt") == "sse",
    )


def _gemini_document(
    ask: Ask, call_id: str, text: str, spent: Spent, *, ends: bool
) -> dict[str, Any]:
    candidate: dict[str, Any] = {
        "content": {"parts": [{"text": text}], "role": "model"},
        "index": 0,
    }
    if ends:
        candidate["finishReason"] = "MAX_TOKENS" if ask.is_cut else "STOP"
    usage = {
        "promptTokenCount": spent.input_tokens,
        "candidatesTokenCount": spent.output_tokens,
        "totalTokenCount": spent.input_tokens + spent.output_tokens,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": spent.input_tokens}],
    }
    return {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": ask.model,
        "responseId": call_id,
    }


def _gemini_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    return orjson.dumps(_gemini_document(ask, call_id, text, spent, ends=True))


def _gemini_stream(ask: Ask, call_id: str, texts: Sequence[str], spent: Spent) -> Iterator[bytes]:
    for number, text in enumerate(texts, start=1):
        ends = number == len(texts)
        so_far = Spent(spent.input_tokens, spent.output_tokens if ends else number)
        document = orjson.dumps(_gemini_document(ask, call_id, text, so_far, ends=ends))
        if ask.event_stream:
            yield b"data: " + document + b"\r\n\r\n"
        else:
            yield (b"[" if number == 1 else b",\r\n") + document
    if not ask.event_stream:
        yield b"]"


def _gemini_count(input_tokens: int) -> bytes:
    details = [{"modality": "TEXT", "tokenCount": input_tokens}]
    return orjson.dumps({"totalTokens": input_tokens, "promptTokensDetails": details})


def _gemini_error(status: int, message: str, call_id: str) -> bytes:
    del call_id
    names = {
        401: "UNAUTHENTICATED",
        403: "PERMISSION_DENIED",
        404: "NOT_FOUND",
        429: "RESOURCE_EXHAUSTED",
        500: "INTERNAL",
    }
    name = names.get(status, "UNAVAILABLE" if status >= 500 else "INVALID_ARGUMENT")  # noqa: PLR2004
    return orjson.dumps({"error": {"code": status, "message": message, "status": name}})


def _gemini_stream_error(message: str) -> bytes:
    return b"data: " + _gemini_error(503, message, "") + b"\r\n\r\n"


def _gemini_model(model: str) -> dict[str, Any]:
    return {
        "name": f"models/{model}",
        "version": "001",
        "displayName": model,
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "streamGenerateContent", "countTokens"],
    }


def _gemini_models(models: Sequence[str]) -> bytes:
    return orjson.dumps({"models": [_gemini_model(model) for model in models]})


def _no_count(input_tokens: int) -> bytes:
    raise AssertionError(f"OpenAI's format does not count tokens ({input_tokens})")


FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        "openai": Format(
            name="openai",
            id_prefix="chatcmpl-",
            id_header="x-request-id",
            models=("gpt-4o", "gpt-4o-mini", "gpt-5-mini"),
            read=_openai_read,
            plain=_openai_plain,
            stream=_openai_stream,
            count=_no_count,
            error=_openai_error,
            stream_error=_openai_stream_error,
            models_body=_openai_models,
            model_body=lambda model: orjson.dumps(_openai_model(model)),
        ),
        "anthropic": Format(
            name="anthropic",
            id_prefix="msg_",
            id_header="request-id",
            models=("claude-sonnet-5", "claude-haiku-4-5"),
            read=_anthropic_read,
            plain=_anthropic_plain,
            stream=_anthropic_stream,
            count=_anthropic_count,
            error=_anthropic_error,
            stream_error=_anthropic_stream_error,
            models_body=_anthropic_models,
            model_body=lambda model: orjson.dumps(_anthropic_model(model)),
        ),
        "gemini": Format(
            name="gemini",
            id_prefix="",
            id_header="x-request-id",
            models=("gemini-2.5-flash", "gemini-2.5-pro"),
            read=_gemini_read,
            plain=_gemini_plain,
            stream=_gemini_stream,
            count=_gemini_count,
            error=_gemini_error,
            stream_error=_gemini_stream_error,
            models_body=_gemini_models,
            model_body=lambda model: orjson.dumps(_gemini_model(model)),
        ),
    }
)
