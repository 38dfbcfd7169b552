"""What the simulated vendor says as Mistral, below `/mistral/v1`: chat, fim, embeddings.

Pure, as `formats.py`. It is OpenAI's format, but usage comes unasked, in the last event of a
stream, which has a choice as well.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from gateway.vendors.simulator.formats import (
    CREATED,
    FORMATS,
    VECTOR,
    Ask,
    AskInvalid,
    Spent,
    event_of,
    length_asked,
    words_in,
)
from gateway.vendors.simulator.openai_paths import EMBEDDINGS as OPENAI_EMBEDDINGS

_MODELS: Final = ("mistral-small-latest", "codestral-latest", "mistral-embed")


def _usage(spent: Spent) -> dict[str, Any]:
    return {
        "prompt_tokens": spent.input_tokens,
        "total_tokens": spent.input_tokens + spent.output_tokens,
        "completion_tokens": spent.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def _finish_reason(ask: Ask) -> str:
    return "length" if ask.is_cut else "stop"


def _plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    message = {"role": "assistant", "content": text, "tool_calls": None}
    choice = {"index": 0, "message": message, "finish_reason": _finish_reason(ask)}
    return orjson.dumps(
        {
            "id": call_id,
            "object": "chat.completion",
            "created": CREATED,
            "model": ask.model,
            "choices": [choice],
            "usage": _usage(spent),
        }
    )


def _stream(ask: Ask, call_id: str, texts: Sequence[str], spent: Spent) -> Iterator[bytes]:
    frame = {
        "id": call_id,
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": ask.model,
    }

    def choices(finish_reason: str | None = None, **delta: str) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "finish_reason": finish_reason}]

    yield event_of({**frame, "choices": choices(role="assistant", content="")})
    for text in texts:
        yield event_of({**frame, "choices": choices(content=text)})
    last = choices(_finish_reason(ask), content="")
    yield event_of({**frame, "choices": last, "usage": _usage(spent)})
    yield b"data: [DONE]\n\n"


def _embeddings_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    del text
    rows = [{"object": "embedding", "index": at, "embedding": VECTOR} for at in range(ask.vectors)]
    frame = {"id": call_id, "object": "list", "model": ask.model}
    return orjson.dumps({**frame, "data": rows, "usage": _usage(spent)})


def _fim_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    model = document.get("model")
    if not isinstance(model, str) or not isinstance(document.get("prompt"), str):
        raise AskInvalid("model, prompt: Field required")
    return Ask(
        model=model,
        stream=document.get("stream") is True,
        words=length_asked(document.get("max_tokens")),
        input_tokens=words_in([document["prompt"], document.get("suffix")], is_text=True),
        stream_usage=True,
    )


CHAT: Final = replace(FORMATS["openai"], id_prefix="", models=_MODELS, plain=_plain, stream=_stream)
FIM: Final = replace(CHAT, read=_fim_read)
EMBEDDINGS: Final = replace(CHAT, read=OPENAI_EMBEDDINGS.read, plain=_embeddings_plain)
