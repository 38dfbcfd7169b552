"""Calls that are more than JSON both ways: forms that go up, sound and text that come back."""

import asyncio
import gzip
import json
from dataclasses import replace
from typing import Any

import pytest

from tests.gateway.proxy.rig import Answer, Rig, Script

BOUNDARY = "----b1"
FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
SOUND = bytes(range(256)) * 300
TRANSCRIPT = {
    "text": "hi",
    "usage": {
        "type": "tokens",
        "input_tokens": 14,
        "input_token_details": {"text_tokens": 4, "audio_tokens": 10},
        "output_tokens": 5,
        "total_tokens": 19,
    },
}


def form(*fields: tuple[str, bytes]) -> bytes:
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        % (BOUNDARY.encode(), name.encode(), b'; filename="a"' if name == "file" else b"", value)
        for name, value in fields
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


WHISPER = form(("model", b"whisper-1"), ("file", SOUND))


def answers(content_type: str, body: bytes | dict[str, Any]) -> Script:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n".encode()

    async def script(_: bytes, __: bytes, writer: asyncio.StreamWriter) -> None:
        if content_type == "application/json":
            writer.write(head + b"Content-Length: %d\r\n\r\n%b" % (len(raw), raw))
        else:
            writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
            for piece in (raw[:7], raw[7:]):
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
            writer.write(b"0\r\n\r\n")

    return script


async def send(
    rig: Rig, path: str, body: bytes, *headers: str, content_type: str = FORM_TYPE
) -> Answer:
    lines = [f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *headers]
    async with rig.client() as client:
        client.send(rig.request(path, headers=lines) + body)
        return await client.answer()


def reason(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.headers["x-kaixu-reason"]


# ------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("name", ["transcriptions", "translations"])
async def test_a_form_goes_up_as_it_came_and_its_answer_is_metered(rig: Rig, name: str) -> None:
    rig.vendor.script = answers("application/json", TRANSCRIPT)
    answer = await send(rig, f"/v1/audio/{name}", WHISPER)
    assert (answer.status, json.loads(answer.body)) == (200, TRANSCRIPT)
    assert rig.vendor.bodies == [WHISPER]
    head = rig.vendor.heads[0].lower()
    assert head.startswith(f"post /v1/audio/{name} http/1.1\r\n".encode())
    assert f"content-type: {FORM_TYPE}\r\n".lower().encode() in head
    row = await rig.lines.row()
    assert (row["endpoint"], row["model_requested"]) == (f"audio.{name}", "whisper-1")
    assert (row["counted"], row["stream"], row["status"]) == (True, False, "complete")
    assert (row["input_tokens"], row["audio_input_tokens"], row["output_tokens"]) == (14, 10, 5)
    assert row["bytes_up"] == len(WHISPER)


async def test_an_alias_in_a_form_is_replaced_and_no_other_byte(rig: Rig) -> None:
    rig.aliases = {"ears": ("openai", "gpt-4o-transcribe")}
    rig.vendor.script = answers("application/json", TRANSCRIPT)
    body = form(("file", SOUND), ("model", b"ears"), ("language", b"en"))
    sent = body.replace(b"ears", b"gpt-4o-transcribe")
    assert (await send(rig, "/v1/audio/transcriptions", body)).status == 200
    assert rig.vendor.bodies == [sent]
    assert (await rig.lines.row())["model_requested"] == "ears"
    packed = gzip.compress(body)
    assert (
        await send(rig, "/v1/audio/transcriptions", packed, "Content-Encoding: gzip")
    ).status == 200
    assert rig.vendor.bodies[1] == sent
    assert b"content-encoding" not in rig.vendor.heads[1].lower()


async def test_a_stream_that_a_form_asks_for_is_metered_at_its_end(rig: Rig) -> None:
    events = (
        b'data: {"type":"transcript.text.delta","delta":"hi"}\n\n'
        b'data: {"type":"transcript.text.done","text":"hi","usage":{"type":"tokens",'
        b'"input_tokens":14,"output_tokens":5,"total_tokens":19}}\n\n'
    )
    rig.vendor.script = answers("text/event-stream", events)
    body = form(("model", b"m"), ("stream", b"True"), ("file", SOUND))
    answer = await send(rig, "/v1/audio/transcriptions", body, "Accept-Encoding: gzip")
    assert (answer.body, answer.clean) == (events, True)
    assert b"accept-encoding: identity\r\n" in rig.vendor.heads[0].lower()
    row = await rig.lines.row()
    assert (row["stream"], row["status"], row["usage_source"]) == (True, "complete", "vendor")
    assert (row["input_tokens"], row["output_tokens"]) == (14, 5)


@pytest.mark.parametrize("media_type", ["text/plain; charset=utf-8", "text/vtt"])
async def test_a_transcript_in_plain_text_has_no_usage_and_no_flag(
    rig: Rig, media_type: str
) -> None:
    rig.vendor.script = answers(media_type, b"WEBVTT\n\n00:00.000 --> 00:01.000\nhi\n")
    answer = await send(rig, "/v1/audio/transcriptions", WHISPER)
    assert answer.body.startswith(b"WEBVTT")
    row = await rig.lines.row()
    assert (row["status"], row["usage_source"], row["flags"]) == ("complete", "none", [])


async def test_a_form_is_held_against_the_models_of_a_token(rig: Rig) -> None:
    rig.authenticated.caller = replace(rig.caller, models=("whisper-*",))
    rig.vendor.script = answers("application/json", TRANSCRIPT)
    path = "/v1/audio/transcriptions"
    assert (await send(rig, path, WHISPER)).status == 200
    other = form(("model", b"gpt-4o-transcribe"), ("file", SOUND))
    assert reason(await send(rig, path, other)) == (403, "model_not_allowed")
    more = form(("model", b"whisper-1"), ("models", b"gpt"), ("file", SOUND))
    assert reason(await send(rig, path, more)) == (403, "model_not_allowed")
    twice = form(("model", b"whisper-1"), ("model", b"gpt-4o-transcribe"), ("file", SOUND))
    assert reason(await send(rig, path, twice)) == (400, "body_invalid")
    unnamed = form(("prompt", b"a cat"), ("file", SOUND))
    assert reason(await send(rig, "/v1/images/edits", unnamed)) == (400, "body_invalid")
    assert len(rig.vendor.bodies) == 1


async def test_a_model_that_draws_after_a_picture_is_on_the_list_as_well(rig: Rig) -> None:
    rig.authenticated.caller = replace(rig.caller, models=("gpt-image-*", "gpt-5"))
    rig.vendor.script = answers("application/json", {"data": []})
    picture = {"model": "gpt-image-2", "prompt": "a cat"}
    path = "/v1/images/generations"
    assert (await rig.ask(path, {**picture, "svg": {"model": "gpt-5"}})).status == 200
    for svg in (b'{"model":"o9-pro"}', b'{"model":["o9-pro"]}'):
        body = b'{"model":"gpt-image-2","svg":%b}' % svg
        assert reason(await rig.ask(path, body)) == (403, "model_not_allowed")
    for svg in (
        b'{"model":"gpt-5","model":"o9-pro"}',
        b'{"mod\\u0065l":"o9-pro"}',
        b'{"model":"gpt-5"},"svg":{"model":"o9-pro"}',
        b'{"model":"gpt-5"},"s\\u0076g":{"model":"o9-pro"}',
    ):
        body = b'{"model":"gpt-image-2","svg":%b}' % svg
        assert reason(await rig.ask(path, body)) == (400, "body_invalid")
    for name, status in ((b"gpt-5", 200), (b"o9-pro", 403)):
        edit = form(("model", b"gpt-image-2"), ("svg[model]", name), ("file", SOUND))
        assert (await send(rig, "/v1/images/edits", edit)).status == status


@pytest.mark.parametrize("field", ["file_id", "images[0][file_id]", "input_file_id"])
async def test_a_form_that_names_a_stored_object_is_refused(rig: Rig, field: str) -> None:
    body = form(("model", b"voxtral"), (field, b"file-1"))
    answer = await send(rig, "/v1/audio/transcriptions", body)
    assert reason(answer) == (404, "not_yours")
    assert rig.vendor.heads == []


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/v1/audio/transcriptions", "application/x-www-form-urlencoded"),
        ("/v1/audio/transcriptions", "multipart/mixed; boundary=----b1"),
        ("/v1/audio/translations", "text/plain"),
        ("/v1/images/variations", "application/json"),
        ("/v1/images/generations", FORM_TYPE),
        ("/v1/audio/speech", FORM_TYPE),
        ("/v1/ocr", FORM_TYPE),
        ("/v1/chat/completions", FORM_TYPE),
    ],
)
async def test_another_content_type_than_the_paths_is_refused(
    rig: Rig, path: str, content_type: str
) -> None:
    answer = await send(rig, path, WHISPER, content_type=content_type)
    assert reason(answer) == (415, "body_invalid")


async def test_two_content_types_are_refused(rig: Rig) -> None:
    answer = await send(
        rig, "/v1/images/edits", WHISPER, f"Content-Type: {FORM_TYPE}", content_type="text/plain"
    )
    assert reason(answer) == (415, "body_invalid")


async def test_pictures_are_edited_by_form_or_by_json(rig: Rig) -> None:
    used = {"input_tokens": 50, "output_tokens": 100, "total_tokens": 150}
    rig.vendor.script = answers("application/json", {"data": [], "usage": used})
    body = form(("prompt", b"a cat"), ("background", b"transparent"), ("file", SOUND))
    for path in ("/v1/images/edits", "/v1/images/variations"):
        assert (await send(rig, path, body)).status == 200
        row = await rig.lines.row()
        assert (row["endpoint"], row["output_tokens"]) == (path[4:].replace("/", "."), 100)
        assert row["model_requested"] is None
    picture = {"model": "gpt-image-1", "prompt": "a cat", "images": [{"image_url": "data:,x"}]}
    assert (await rig.ask("/v1/images/edits", picture)).status == 200
    stored = {**picture, "images": [{"file_id": "file-1"}]}
    assert reason(await rig.ask("/v1/images/edits", stored)) == (404, "not_yours")


async def test_json_is_taken_where_a_vendor_takes_it_for_sound(rig: Rig) -> None:
    rig.vendor.script = answers("application/json", TRANSCRIPT)
    sound = {"model": "openai/whisper-1", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    assert (await rig.ask("/v1/audio/transcriptions", sound)).status == 200
    assert json.loads(rig.vendor.bodies[0]) == sound


# ------------------------------------------------------------------------------------------ speech


async def test_speech_comes_back_as_the_bytes_that_it_is(rig: Rig) -> None:
    rig.vendor.script = answers("audio/mpeg", SOUND)
    spoken = {"model": "tts-1", "input": "hi", "voice": "alloy"}
    answer = await rig.ask("/v1/audio/speech", spoken)
    assert (answer.body, answer.headers["content-type"]) == (SOUND, "audio/mpeg")
    row = await rig.lines.row()
    assert (row["endpoint"], row["counted"], row["stream"]) == ("audio.speech", True, False)
    assert (row["status"], row["usage_source"], row["flags"]) == ("complete", "none", [])
    assert row["bytes_down"] == len(SOUND)


async def test_speech_in_events_is_metered(rig: Rig) -> None:
    events = (
        b'data: {"type":"speech.audio.delta","audio":"AAAA"}\n\n'
        b'data: {"type":"speech.audio.done","usage":{"input_tokens":3,"output_tokens":40,'
        b'"total_tokens":43}}\n\n'
    )
    rig.vendor.script = answers("text/event-stream", events)
    spoken = {"model": "gpt-4o-mini-tts", "input": "hi", "voice": "alloy", "stream_format": "sse"}
    answer = await rig.ask("/v1/audio/speech", spoken, headers=["Accept-Encoding: gzip"])
    assert answer.body == events
    assert json.loads(rig.vendor.bodies[0]) == spoken
    assert b"accept-encoding: identity\r\n" in rig.vendor.heads[0].lower()
    row = await rig.lines.row()
    assert (row["stream"], row["input_tokens"], row["output_tokens"]) == (True, 3, 40)


async def test_speech_that_breaks_off_never_looks_whole(rig: Rig) -> None:
    async def breaks(_: bytes, __: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nTransfer-Encoding: chunked")
        writer.write(b"\r\n\r\n5\r\nID3\0\0\r\n")
        await writer.drain()
        writer.transport.abort()

    rig.vendor.script = breaks
    answer = await rig.ask("/v1/audio/speech", {"model": "tts-1", "input": "hi", "voice": "a"})
    assert (answer.body, answer.clean) == (b"ID3\0\0", False)
    assert (await rig.lines.row())["status"] == "vendor_broke"


@pytest.mark.parametrize("voice", [{"voice": {"id": "voice_1"}}, {"voice_id": "voice_1"}])
async def test_a_voice_that_someone_stored_is_refused(rig: Rig, voice: dict[str, Any]) -> None:
    answer = await rig.ask("/v1/audio/speech", {"model": "tts", "input": "hi", **voice})
    assert reason(answer) == (404, "not_yours")


# ---------------------------------------------------------------------------- pages and embeddings


async def test_pages_are_counted(rig: Rig) -> None:
    told = {"pages": [{"index": 0}], "model": "ocr-1", "usage_info": {"pages_processed": 7}}
    rig.vendor.script = answers("application/json", told)
    document = {"type": "document_url", "document_url": "data:application/pdf;base64,AAAA"}
    assert (await rig.ask("/v1/ocr", {"model": "ocr", "document": document})).status == 200
    row = await rig.lines.row()
    assert (row["endpoint"], row["pages"], row["usage_source"]) == ("ocr", 7, "vendor")
    assert row["model_served"] == "ocr-1"
    stored = {"model": "ocr", "document": {"type": "file", "file_id": "f-1"}}
    assert reason(await rig.ask("/v1/ocr", stored)) == (404, "not_yours")


EMBEDDED = {"embeddings": [], "usageMetadata": {"promptTokenCount": 8}}


def batch(*models: str) -> dict[str, Any]:
    content = {"parts": [{"text": "model, {models/e}"}]}
    return {"requests": [{"content": content, "model": model} for model in models]}


async def test_embeddings_of_gemini_are_metered(rig: Rig) -> None:
    rig.vendor.script = answers("application/json", EMBEDDED)
    for path, body in {
        "/v1beta/models/e:embedContent": {"content": {"parts": [{"text": "hi"}]}},
        "/v1beta/models/e:batchEmbedContents": batch("models/e", "models/e"),
        "/v1/models/e:batchEmbedContents": {"requests": [{"content": {}}]},
        "/v1beta/models/f:batchEmbedContents": {},
    }.items():
        assert (await rig.ask(path, body)).status == 200
        assert json.loads(rig.vendor.bodies[-1]) == body
        row = await rig.lines.row()
        assert (row["endpoint"], row["model_requested"]) == (
            path.partition(":")[2],
            path.partition(":")[0][-1],
        )
        assert (row["input_tokens"], row["usage_source"], row["counted"]) == (8, "vendor", True)


@pytest.mark.parametrize("model", ["models/other", "other", "models/models/e", "tunedModels/e"])
async def test_no_request_of_a_batch_has_another_model_than_the_path(rig: Rig, model: str) -> None:
    answer = await rig.ask("/v1beta/models/e:batchEmbedContents", batch("models/e", model))
    assert answer.status == 400
    assert rig.vendor.heads == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"requests":[{"model":"models/e","model":"models/other"}]}',
        b'{"requests":[{"model":"models/e","mod\\u0065l":"models/other"}]}',
        b'{"requests":[{"model":"models/e"}],"requests":[{"model":"models/other"}]}',
        b'{"requests":[{"model":"models/e"}],"r\\u0065quests":[{"model":"models/other"}]}',
        b'{"requests":[{"model":["models/other"]}]}',
        b'{"requests":{"model":"models/other"}}',
        b'{"requests":["models/other"]}',
        b'{"requests":[%b]}' % b",".join([b"{}"] * 1_001),
    ],
)
async def test_a_batch_that_readers_read_differently_is_refused(rig: Rig, body: bytes) -> None:
    assert (await rig.ask("/v1beta/models/e:batchEmbedContents", body)).status == 400
    assert rig.vendor.heads == []


async def test_an_alias_is_replaced_in_every_request_of_a_batch(rig: Rig) -> None:
    rig.aliases = {"vectors": ("gemini", "gemini-embedding-2")}
    rig.vendor.script = answers("application/json", EMBEDDED)
    body = json.dumps(batch("models/vectors", "vectors", "models/vectors"), indent=1).encode()
    answer = await rig.ask("/v1beta/models/vectors:batchEmbedContents", body)
    assert answer.status == 200
    assert rig.vendor.bodies == [body.replace(b"vectors", b"gemini-embedding-2")]
    assert b"/v1beta/models/gemini-embedding-2:batchEmbedContents" in rig.vendor.heads[0]
    single = b'{"model": "models/vectors", "content": {"parts": [{"text": "vectors"}]}}'
    assert (await rig.ask("/v1beta/models/vectors:embedContent", single)).status == 200
    assert rig.vendor.bodies[1] == single.replace(b"models/vectors", b"models/gemini-embedding-2")


# ------------------------------------------------------------------------------ what takes no unit


async def test_tokens_are_counted_by_cohere_without_taking_a_unit(rig: Rig) -> None:
    rig.targets = [rig.target("cohere")]
    rig.vendor.script = answers("application/json", {"tokens": [1, 2]})
    for name in ("tokenize", "detokenize"):
        assert (await rig.ask(f"/v1/{name}", {"model": "command", "text": "hi"})).status == 200
        row = await rig.lines.row()
        assert (row["endpoint"], row["counted"], row["usage_source"]) == (name, False, "none")
    assert rig.units.taken == 0


async def test_ollama_says_its_version_and_what_it_runs(rig: Rig) -> None:
    rig.targets = [rig.target("ollama")]
    rig.vendor.script = answers("application/json", {"version": "0.12"})
    answer = await rig.ask("/api/version", method="GET")
    assert json.loads(answer.body) == {"version": "0.12"}
    head = rig.vendor.heads[0].lower()
    assert head.startswith(b"get /api/version http/1.1\r\n")
    assert b"content-length" not in head
    row = await rig.lines.row()
    assert (row["endpoint"], row["counted"], row["model_requested"]) == (
        "ollama.version", False, None
    )  # fmt: skip
    assert (await rig.ask("/api/ps", method="GET")).status == 200
    assert (await rig.ask("/api/version", {"a": 1}, method="GET")).status == 400
    assert rig.units.taken == 0
    rig.authenticated.caller = replace(rig.caller, models=("llama*",))
    assert reason(await rig.ask("/api/ps", method="GET")) == (403, "model_not_allowed")
    assert (await rig.ask("/api/version", method="GET")).status == 200


async def test_the_older_embeddings_of_ollama_tell_no_usage(rig: Rig) -> None:
    rig.targets = [rig.target("ollama")]
    rig.vendor.script = answers("application/json", {"embedding": [0.5]})
    assert (await rig.ask("/api/embeddings", {"model": "m", "prompt": "hi"})).status == 200
    row = await rig.lines.row()
    assert (row["endpoint"], row["counted"], row["usage_source"]) == (
        "ollama.embeddings", True, "none"
    )  # fmt: skip
    assert row["flags"] == []
