"""What the simulated vendor says in Cohere's API, both versions: chat, embed, rerank.

Pure, as `formats.py`. A stream of version 2 has events, one of version 1 lines of JSON.
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
    event_of,
    length_asked,
    line_of,
    words_in,
)

DEFAULT_MODEL: Final = "command-a-03-2025"  # of version 1, where a model may be left out


def _model(document: Mapping[str, Any], other: str, *, default: str = "") -> str:
    """Return the model; `other` has to be there as well. Raises AskInvalid."""
    model = document.get("model", default)
    if not isinstance(model, str) or not model:
        raise AskInvalid("model is required")
    if not isinstance(document.get(other), str | list):
        raise AskInvalid(f"{other} is required")
    return model


def _error(status: int, message: str, call_id: str) -> bytes:
    del status
    return orjson.dumps({"id": call_id, "message": message})


def _usage(spent: Spent) -> dict[str, Any]:
    counts = {"input_tokens": spent.input_tokens, "output_tokens": spent.output_tokens}
    return {"billed_units": counts, "tokens": counts, "cached_tokens": 0}


def _finish_reason(ask: Ask) -> str:
    return "MAX_TOKENS" if ask.is_cut else "COMPLETE"


def _listed(model: str) -> dict[str, Any]:
    return {"name": model, "endpoints": ["chat"], "finetuned": False, "context_length": 256_000}


def _models(models: Sequence[str]) -> bytes:
    return orjson.dumps({"models": [_listed(model) for model in models]})


# --------------------------------------------------------------------------------- chat, version 2


def _chat_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    return Ask(
        model=_model(document, "messages"),
        stream=document.get("stream") is True,
        words=length_asked(document.get("max_tokens")),
        input_tokens=words_in(document["messages"]),
        stream_usage=True,
    )


def _chat_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    message = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    answer = {"id": call_id, "finish_reason": _finish_reason(ask), "message": message}
    return orjson.dumps({**answer, "usage": _usage(spent)})


def _chat_stream(ask: Ask, call_id: str, texts: Sequence[str], spent: Spent) -> Iterator[bytes]:
    def event(name: str, **members: object) -> bytes:
        return event_of({"type": name, **members}, name=name)

    def content(**members: str) -> dict[str, Any]:
        return {"message": {"content": members}}

    begun = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
    yield event("message-start", id=call_id, delta={"message": begun})
    yield event("content-start", index=0, delta=content(type="text", text=""))
    for text in texts:
        yield event("content-delta", index=0, delta=content(text=text))
    yield event("content-end", index=0)
    end = {"finish_reason": _finish_reason(ask), "usage": _usage(spent)}
    yield event("message-end", delta=end)
    yield b"data: [DONE]\n\n"


def _chat_stream_error(message: str) -> bytes:
    delta = {"error": message, "finish_reason": "ERROR"}
    return event_of({"type": "message-end", "delta": delta}, name="message-end")


# --------------------------------------------------------------------------------- chat, version 1


def _chat_v1_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    history = document.get("chat_history")
    earlier = [turn.get("message") for turn in history or () if isinstance(turn, dict)]
    told = [document.get("message"), document.get("preamble"), *earlier]
    return Ask(
        model=_model(document, "message", default=DEFAULT_MODEL),
        stream=document.get("stream") is True,
        words=length_asked(document.get("max_tokens")),
        input_tokens=words_in(told, is_text=True),
        stream_usage=True,
    )


def _chat_v1(ask: Ask, call_id: str, text: str, spent: Spent) -> dict[str, Any]:
    return {
        "response_id": call_id,
        "generation_id": call_id,
        "text": text,
        "chat_history": [{"role": "CHATBOT", "message": text}],
        "finish_reason": _finish_reason(ask),
        "meta": {"api_version": {"version": "1"}, **_usage(spent)},
    }


def _chat_v1_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    return orjson.dumps(_chat_v1(ask, call_id, text, spent))


def _chat_v1_stream(ask: Ask, call_id: str, texts: Sequence[str], spent: Spent) -> Iterator[bytes]:
    def line(name: str, *, ends: bool = False, **members: object) -> bytes:
        return line_of({"is_finished": ends, "event_type": name, **members})

    yield line("stream-start", generation_id=call_id)
    for text in texts:
        yield line("text-generation", text=text)
    whole = _chat_v1(ask, call_id, "".join(texts), spent)
    yield line("stream-end", ends=True, response=whole, finish_reason=_finish_reason(ask))


def _chat_v1_stream_error(message: str) -> bytes:
    end = {"is_finished": True, "event_type": "stream-end", "finish_reason": "ERROR"}
    return line_of({**end, "error": message, "response": None})


# -------------------------------------------------------------------------------- embed and rerank


def _embed_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    texts = document.get("texts")
    return Ask(
        model=_model(document, "texts", default=DEFAULT_MODEL),
        stream=False,
        words=None,
        input_tokens=words_in(texts, is_text=True),
        stream_usage=False,
        vectors=len(texts) if isinstance(texts, list) and texts else 1,
        version=2 if "embedding_types" in document else 1,
    )


def _embed_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    """Return vectors: by type where types were asked for, which version 2 wants."""
    del text
    vectors: Any = [VECTOR] * ask.vectors
    by_type = ask.version > 1
    billed = {"input_tokens": spent.input_tokens}
    return orjson.dumps(
        {
            "id": call_id,
            "texts": [""] * ask.vectors,
            "embeddings": {"float": vectors} if by_type else vectors,
            "response_type": "embeddings_by_type" if by_type else "embeddings_floats",
            "meta": {"api_version": {"version": str(ask.version)}, "billed_units": billed},
        }
    )


def _rerank_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    model = _model(document, "documents", default=DEFAULT_MODEL)
    ranked = document["documents"]
    if not isinstance(ranked, list) or not isinstance(document.get("query"), str):
        raise AskInvalid("query and documents are required")
    most = length_asked(document.get("top_n"), document.get("top_k")) or len(ranked)
    return Ask(
        model=model,
        stream=False,
        words=None,
        input_tokens=words_in([document["query"], *ranked], is_text=True),
        stream_usage=False,
        vectors=max(1, min(most, len(ranked))),
    )


def scores(number: int) -> list[dict[str, Any]]:
    """Return a ranking: the documents as they came, each half as relevant as the one before."""
    return [{"index": at, "relevance_score": 0.5 ** (at + 1)} for at in range(number)]


def _rerank_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    """Return a ranking, which is metered in searches alone."""
    del text, spent
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    return orjson.dumps({"id": call_id, "results": scores(ask.vectors), "meta": meta})


CHAT: Final[Format] = replace(
    FORMATS["openai"],
    name="cohere",
    id_prefix="",
    models=(DEFAULT_MODEL, "embed-v4.0", "rerank-v3.5"),
    read=_chat_read,
    plain=_chat_plain,
    stream=_chat_stream,
    error=_error,
    stream_error=_chat_stream_error,
    models_body=_models,
    model_body=lambda model: orjson.dumps(_listed(model)),
)
CHAT_V1: Final = replace(
    CHAT,
    stream_type="application/stream+json",
    read=_chat_v1_read,
    plain=_chat_v1_plain,
    stream=_chat_v1_stream,
    stream_error=_chat_v1_stream_error,
)
EMBED: Final = replace(CHAT, read=_embed_read, plain=_embed_plain)
RERANK: Final = replace(CHAT, read=_rerank_read, plain=_rerank_plain)
