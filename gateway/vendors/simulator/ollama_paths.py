"""What the simulated vendor says in Ollama's own API: chat, generate, embed, tags.

Pure, as `formats.py`. Streams have lines of JSON, and are what comes where nothing is said.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from gateway.vendors.simulator.formats import (
    FORMATS,
    VECTOR,
    Ask,
    AskInvalid,
    Format,
    Spent,
    length_asked,
    line_of,
    words_in,
)

_DATE: Final = "2025-01-01T00:00:00Z"
_NANOSECONDS: Final = 1_000_000  # how long each part took


def _ask(document: Mapping[str, Any], *, input_tokens: int) -> Ask:
    """Return what is asked for. Raises AskInvalid."""
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise AskInvalid("model is required")
    options = document.get("options")
    return Ask(
        model=model,
        stream=document.get("stream") is not False,
        words=length_asked(options.get("num_predict")) if isinstance(options, dict) else None,
        input_tokens=input_tokens,
        stream_usage=True,
    )


def _error(status: int, message: str, call_id: str) -> bytes:
    del status, call_id
    return orjson.dumps({"error": message})


def _stream_error(message: str) -> bytes:
    return line_of({"error": message})


def _counts(spent: Spent) -> dict[str, int]:
    return {
        "total_duration": 4 * _NANOSECONDS,
        "load_duration": _NANOSECONDS,
        "prompt_eval_count": spent.input_tokens,
        "prompt_eval_duration": _NANOSECONDS,
        "eval_count": spent.output_tokens,
        "eval_duration": 2 * _NANOSECONDS,
    }


def _done(ask: Ask, spent: Spent) -> dict[str, Any]:
    return {"done": True, "done_reason": "length" if ask.is_cut else "stop", **_counts(spent)}


def _listed(model: str) -> dict[str, Any]:
    details = {"format": "gguf", "family": "simulated"}
    return {
        "name": model,
        "model": model,
        "modified_at": _DATE,
        "size": 1,
        "digest": "0" * 64,
        "details": details,
    }


def _models(models: Sequence[str]) -> bytes:
    return orjson.dumps({"models": [_listed(model) for model in models]})


# ----------------------------------------------------------------------------------- chat, generate


def _chat_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    if not isinstance(document.get("messages"), list):
        raise AskInvalid("messages is required")
    return _ask(document, input_tokens=words_in(document["messages"]))


def _generate_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    told = [document.get(name) for name in ("prompt", "suffix", "system")]
    return _ask(document, input_tokens=words_in(told, is_text=True))


def _said(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def _chat_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    del call_id
    frame = {"model": ask.model, "created_at": _DATE}
    return orjson.dumps({**frame, **_said(text), **_done(ask, spent)})


def _generate_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    del call_id
    frame = {"model": ask.model, "created_at": _DATE}
    return orjson.dumps({**frame, "response": text, **_done(ask, spent)})


def _chat_stream(ask: Ask, call_id: str, texts: Sequence[str], spent: Spent) -> Iterator[bytes]:
    del call_id
    frame = {"model": ask.model, "created_at": _DATE}
    for text in texts:
        yield line_of({**frame, **_said(text), "done": False})
    yield line_of({**frame, **_said(""), **_done(ask, spent)})


def _generate_stream(ask: Ask, call_id: str, texts: Sequence[str], spent: Spent) -> Iterator[bytes]:
    del call_id
    frame = {"model": ask.model, "created_at": _DATE}
    for text in texts:
        yield line_of({**frame, "response": text, "done": False})
    yield line_of({**frame, "response": "", **_done(ask, spent)})


# -------------------------------------------------------------------------------------------- embed


def _embed_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    told = document.get("input")
    if not isinstance(told, str | list):
        raise AskInvalid("input is required")
    ask = _ask(document, input_tokens=words_in(told, is_text=True))
    return replace(ask, stream=False, vectors=len(told) if isinstance(told, list) and told else 1)


def _embed_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    del call_id, text
    counts = _counts(spent)
    told = {name: counts[name] for name in ("total_duration", "load_duration", "prompt_eval_count")}
    return orjson.dumps({"model": ask.model, "embeddings": [VECTOR] * ask.vectors, **told})


CHAT: Final[Format] = replace(
    FORMATS["openai"],
    name="ollama",
    id_prefix="",
    models=("llama3.2:latest", "nomic-embed-text:latest"),
    stream_type="application/x-ndjson",
    read=_chat_read,
    plain=_chat_plain,
    stream=_chat_stream,
    error=_error,
    stream_error=_stream_error,
    models_body=_models,
    model_body=lambda model: orjson.dumps(_listed(model)),
)
GENERATE: Final = replace(CHAT, read=_generate_read, plain=_generate_plain, stream=_generate_stream)
EMBED: Final = replace(CHAT, read=_embed_read, plain=_embed_plain)
