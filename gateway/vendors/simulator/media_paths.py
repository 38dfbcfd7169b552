"""What the simulated vendor says of sound and pictures, on OpenAI's paths.

Pure, as `formats.py`. A kilobyte of a file, begun, is one token more of the input; a recording says
the words that an answer has, and spoken words and pictures are noise that nobody can play.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from email.parser import BytesParser
from typing import Any, Final

import orjson

from gateway.vendors.simulator.formats import (
    CREATED,
    FORMATS,
    Ask,
    AskInvalid,
    Spent,
    event_of,
    words_in,
)

_FILE_BYTES_A_TOKEN: Final = 1024
_NOISE: Final = b"\xff\xfb\x90\x00"  # for each character of what is spoken
_PICTURE: Final = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
_TRUE: Final = frozenset({True, "true", "True", "1"})
_DEFAULT_PICTURE_MODEL: Final = "gpt-image-1"


def form_of(body: bytes, content_type: str) -> Mapping[str, Any]:
    """Return the fields of a form: texts, and files as bytes. Raises AskInvalid."""
    message = BytesParser().parsebytes(
        b"content-type: %b\r\n\r\n%b" % (content_type.encode(), body)
    )
    if not message.is_multipart() or message.defects:
        raise AskInvalid("We could not parse your multipart form.")
    fields: dict[str, Any] = {}
    for part in message.walk():
        name = part.get_param("name", header="content-disposition")
        value = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(value, bytes):
            is_file = part.get_filename() is not None
            fields[name] = value if is_file else value.decode("utf-8", "replace")
    return fields


def _ask(document: Mapping[str, Any], *, needs: str, model: object, stream: bool) -> Ask:
    """Return what is asked for; `needs` has to be there. Raises AskInvalid."""
    if not isinstance(model, str) or not document.get(needs):
        raise AskInvalid(f"you must provide a model and {needs}")
    texts = [document.get("prompt"), document.get("input")]
    files = [value for value in document.values() if isinstance(value, bytes)]
    return Ask(
        model=model,
        stream=stream,
        words=None,
        input_tokens=words_in(texts, is_text=True)
        + sum(-(-len(value) // _FILE_BYTES_A_TOKEN) for value in files),
        stream_usage=True,
    )


def _usage(spent: Spent, details: str) -> dict[str, Any]:
    """Return the usage; `details` is what a path calls the parts of its input."""
    return {
        "input_tokens": spent.input_tokens,
        details: {"text_tokens": spent.input_tokens},
        "output_tokens": spent.output_tokens,
        "total_tokens": spent.input_tokens + spent.output_tokens,
    }


# ---------------------------------------------------------------------------------- transcriptions


def _transcript_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    stream = document.get("stream") in _TRUE
    return _ask(document, needs="file", model=document.get("model"), stream=stream)


def _transcript_usage(spent: Spent) -> dict[str, Any]:
    return {"type": "tokens", **_usage(spent, "input_token_details")}


def _transcript_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    del ask, call_id
    return orjson.dumps({"text": text, "usage": _transcript_usage(spent)})


def _transcript_stream(
    ask: Ask, call_id: str, texts: Sequence[str], spent: Spent
) -> Iterator[bytes]:
    del ask, call_id
    for text in texts:
        yield event_of({"type": "transcript.text.delta", "delta": text})
    usage = _transcript_usage(spent)
    yield event_of({"type": "transcript.text.done", "text": "".join(texts), "usage": usage})
    yield b"data: [DONE]\n\n"


# ------------------------------------------------------------------------------------------ speech


def _speech_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    stream = document.get("stream_format") == "sse"
    return _ask(document, needs="input", model=document.get("model"), stream=stream)


def _speech_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    del ask, call_id, spent
    return _NOISE * len(text)


def _speech_stream(ask: Ask, call_id: str, texts: Sequence[str], spent: Spent) -> Iterator[bytes]:
    del ask, call_id
    for text in texts:
        audio = base64.b64encode(_NOISE * len(text)).decode()
        yield event_of({"type": "speech.audio.delta", "audio": audio})
    yield event_of({"type": "speech.audio.done", "usage": _usage(spent, "input_token_details")})


# ---------------------------------------------------------------------------------------- pictures


def _picture_read(
    document: Mapping[str, Any], path_model: str, verb: str, query: Mapping[str, str]
) -> Ask:
    del path_model, verb, query
    needs = "prompt" if "prompt" in document else "image"
    model = document.get("model", _DEFAULT_PICTURE_MODEL)
    return _ask(document, needs=needs, model=model, stream=document.get("stream") in _TRUE)


def _picture_plain(ask: Ask, call_id: str, text: str, spent: Spent) -> bytes:
    del ask, call_id, text
    pictures = [{"b64_json": _PICTURE}]
    usage = _usage(spent, "input_tokens_details")
    return orjson.dumps({"created": CREATED, "data": pictures, "usage": usage})


def _picture_stream(ask: Ask, call_id: str, texts: Sequence[str], spent: Spent) -> Iterator[bytes]:
    del ask, call_id
    picture = {"b64_json": _PICTURE, "created_at": CREATED}
    kind = "image_generation.partial_image"
    for index, _ in enumerate(texts[:3]):
        event = {"type": kind, **picture, "partial_image_index": index}
        yield event_of(event, name=kind)
    kind = "image_generation.completed"
    usage = _usage(spent, "input_tokens_details")
    yield event_of({"type": kind, **picture, "usage": usage}, name=kind)


TRANSCRIPTIONS: Final = replace(
    FORMATS["openai"],
    id_prefix="",
    read=_transcript_read,
    plain=_transcript_plain,
    stream=_transcript_stream,
)
SPEECH: Final = replace(
    FORMATS["openai"],
    id_prefix="",
    media_type="audio/mpeg",
    read=_speech_read,
    plain=_speech_plain,
    stream=_speech_stream,
)
PICTURES: Final = replace(
    FORMATS["openai"],
    id_prefix="",
    read=_picture_read,
    plain=_picture_plain,
    stream=_picture_stream,
)
