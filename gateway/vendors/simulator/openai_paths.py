"""What the simulated vendor says on OpenAI's paths beside chat completions.

Pure, as `formats.py`: completions, responses and embeddings. Errors and models are the same.
"""

import base64
import struct
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
    openai_usage,
    words_in,
)


def _model(document: Mapping[str, Any], other: str) -> str:
    """Return the model; `other` has to be there as well. Raises AskInvalid."""
    model = document.get("model")
    if not isinstance(model, str) or not isinstance(document.get(other), str | list):
        raise AskInvalid(f"you must provide a model and {other}")
    return model


# ------------------------------------------------------------------------------------- completions


def _completions_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    options = document.get("stream_options")
    return Ask(
        model=_model(document, "prompt"),
        stream=document.get("stream") is True,
        words=length_asked(document.get("max_tokens")),
        input_tokens=words_in([document["prompt"], document.get("suffix")], is_text=True),
        stream_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def _completion(ask: Ask, call_id: str) -> dict[str, Any]:
    return {"id": call_id, "object": "text_completion", "created": CREATED, "model": ask.model}


def _choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": None, "finish_reason": finish_reason}


def _finish_reason(ask: Ask) -> str:
    return "length" if ask.is_cut else "stop"


def _completions_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    choices = [_choice(text, _finish_reason(ask))]
    whole = {**_completion(ask, call_id), "choices": choices, "usage": openai_usage(spent)}
    return orjson.dumps(whole)


def _completions_stream(
    ask: Ask, call_id: str, texts: Sequence[str], spent: Spent
) -> Iterator[bytes]:
    frame = _completion(ask, call_id)
    unsaid = {"usage": None} if ask.stream_usage else {}
    for text in texts:
        yield event_of({**frame, "choices": [_choice(text, None)], **unsaid})
    yield event_of({**frame, "choices": [_choice("", _finish_reason(ask))], **unsaid})
    if ask.stream_usage:
        yield event_of({**frame, "choices": [], "usage": openai_usage(spent)})
    yield b"data: [DONE]\n\n"


# --------------------------------------------------------------------------------------- responses


def _responses_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    told = document.get("input")
    instructions = words_in(document.get("instructions"), is_text=True)
    return Ask(
        model=_model(document, "input"),
        stream=document.get("stream") is True,
        words=length_asked(document.get("max_output_tokens")),
        input_tokens=instructions + words_in(told, is_text=isinstance(told, str)),
        stream_usage=True,
    )


def _response(ask: Ask, call_id: str, status: str) -> dict[str, Any]:
    return {
        "id": call_id,
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": ask.model,
        "output": [],
        "parallel_tool_calls": True,
        "service_tier": "default",
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": None,
    }


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def _message(call_id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": call_id.replace("resp_", "msg_"),
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def _whole_response(ask: Ask, call_id: str, text: str, spent: Spent) -> dict[str, Any]:
    status = "incomplete" if ask.is_cut else "completed"
    response = _response(ask, call_id, status)
    response["output"] = [_message(call_id, status, [_output_text(text)])]
    response["usage"] = {
        "input_tokens": spent.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": spent.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": spent.input_tokens + spent.output_tokens,
    }
    if ask.is_cut:
        response["incomplete_details"] = {"reason": "max_output_tokens"}
    return response


def _responses_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    return orjson.dumps(_whole_response(ask, call_id, text, spent))


def _responses_stream(
    ask: Ask, call_id: str, texts: Sequence[str], spent: Spent
) -> Iterator[bytes]:
    number = 0

    def event(name: str, **members: object) -> bytes:
        nonlocal number
        document = {"type": name, **members, "sequence_number": number}
        number += 1
        return event_of(document, name=name)

    begun = _response(ask, call_id, "in_progress")
    item = _message(call_id, "in_progress", [])
    part: dict[str, Any] = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    text = "".join(texts)
    whole = _whole_response(ask, call_id, text, spent)
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    yield event("response.output_item.added", output_index=0, item=item)
    yield event("response.content_part.added", **part, part=_output_text(""))
    for one in texts:
        yield event("response.output_text.delta", **part, delta=one, logprobs=[])
    yield event("response.output_text.done", **part, text=text, logprobs=[])
    yield event("response.content_part.done", **part, part=_output_text(text))
    yield event("response.output_item.done", output_index=0, item=whole["output"][0])
    yield event(f"response.{whole['status']}", response=whole)


def _responses_stream_error(message: str) -> bytes:
    error = {"code": "server_error", "message": message}
    response = {"object": "response", "status": "failed", "error": error, "output": []}
    document = {"type": "response.failed", "response": response, "sequence_number": 0}
    return event_of(document, name="response.failed")


# -------------------------------------------------------------------------------------- embeddings


def _embeddings_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    told = document.get("input")
    return Ask(
        model=_model(document, "input"),
        stream=False,
        words=None,
        input_tokens=words_in(told, is_text=True),
        stream_usage=False,
        vectors=len(told) if isinstance(told, list) and told else 1,
        in_base64=document.get("encoding_format") == "base64",
    )


def _embeddings_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    del call_id, text
    vector: object = VECTOR
    if ask.in_base64:
        vector = base64.b64encode(struct.pack("<4f", *VECTOR)).decode()
    rows = [
        {"object": "embedding", "index": index, "embedding": vector} for index in range(ask.vectors)
    ]
    usage = {"prompt_tokens": spent.input_tokens, "total_tokens": spent.input_tokens}
    return orjson.dumps({"object": "list", "data": rows, "model": ask.model, "usage": usage})


COMPLETIONS: Final = replace(
    FORMATS["openai"],
    id_prefix="cmpl-",
    read=_completions_read,
    plain=_completions_plain,
    stream=_completions_stream,
)
RESPONSES: Final = replace(
    FORMATS["openai"],
    id_prefix="resp_",
    read=_responses_read,
    plain=_responses_plain,
    stream=_responses_stream,
    stream_error=_responses_stream_error,
)
EMBEDDINGS: Final = replace(
    FORMATS["openai"],
    id_prefix="",
    read=_embeddings_read,
    plain=_embeddings_plain,
)
