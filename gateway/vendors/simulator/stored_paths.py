"""The simulated vendor's paths to what it stores: one table, answered from its shelf."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import orjson

from gateway.vendors.simulator.connection import Request
from gateway.vendors.simulator.formats import FORMATS, AskInvalid, Format, Spent, words
from gateway.vendors.simulator.resumable import answer_resumable, is_resumable
from gateway.vendors.simulator.shelf import (
    Document,
    Missing,
    Reply,
    Shelf,
    add_file,
    add_gemini_file,
    anthropic_results,
    finish_openai_batch,
    openai_page,
    reply,
)

_ID: Final = r"([A-Za-z0-9_.~-]+)"
_VERSION: Final = "/v1(?:beta)?"
_EVENTS: Final = "text/event-stream"


class StoredRoute(NamedTuple):
    """A path of stored objects: its format, and what answers it."""

    format: Format
    answer: Callable[[], Reply]


def find_route(shelf: Shelf, request: Request) -> StoredRoute | None:
    """Return what a request is that is about stored objects, or None."""
    for wire_name, method, pattern, act in _TABLE:
        if method != request.method:
            continue
        if wire_name and wire_name != _format_of(request):
            continue
        found = pattern.fullmatch(request.path)
        if found is not None:
            wire = FORMATS[wire_name or _format_of(request)]
            return StoredRoute(wire, partial(act, shelf, request, *found.groups()))
    return None


def _format_of(request: Request) -> str:
    if request.path.startswith(("/v1beta/", "/upload/")) or "x-goog-api-key" in request.headers:
        return "gemini"
    is_anthropic = "x-api-key" in request.headers or "anthropic-version" in request.headers
    return "anthropic" if is_anthropic or "/messages/" in request.path else "openai"


def _document(request: Request) -> Document:
    if not request.body:
        return {}
    try:
        document = orjson.loads(request.body)
    except orjson.JSONDecodeError as error:
        raise AskInvalid("We could not parse the JSON body of your request.") from error
    if not isinstance(document, dict):
        raise AskInvalid("The JSON body of your request is not an object.")
    return document


def _get(collection: str, prefix: str = "") -> Callable[..., Reply]:
    return lambda shelf, _, object_id: reply(shelf.get(collection, prefix + object_id))


def _delete(collection: str, prefix: str = "", kind: str = "") -> Callable[..., Reply]:
    def act(shelf: Shelf, _: Request, object_id: str) -> Reply:
        shelf.delete(collection, prefix + object_id)
        return reply({"id": object_id, "object": kind, "deleted": True} if kind else {})

    return act


def _update(collection: str, prefix: str = "") -> Callable[..., Reply]:
    def act(shelf: Shelf, request: Request, object_id: str) -> Reply:
        stored = shelf.get(collection, prefix + object_id)
        stored.update({k: v for k, v in _document(request).items() if k in ("metadata", "ttl")})
        return reply(stored)

    return act


def _list(collection: str, after: str) -> Callable[..., Reply]:
    return lambda shelf, request: reply(
        openai_page(shelf.all(collection), request.query, after=after)
    )


def _gemini_list(collection: str, member: str) -> Callable[..., Reply]:
    return lambda shelf, _: reply({member: shelf.all(collection)})


# ---------------------------------------------------------------------- responses, conversations


def keep_response(shelf: Shelf, document: Document, whole: Document) -> None:
    """Keep a response that was answered, as its request asks."""
    if document.get("store") is not False:
        shelf.put("responses", whole["id"], whole)


def begin_in_background(shelf: Shelf, whole: Document) -> Document:
    """Keep a response that is to be fetched; return what is told of it now."""
    shelf.put("responses", whole["id"], whole)
    return {**whole, "status": "queued", "output": [], "usage": None, "background": True}


def _get_response(shelf: Shelf, request: Request, object_id: str) -> Reply:
    whole = shelf.get("responses", object_id)
    if request.query.get("stream") != "true":
        return reply(whole)
    event = {"type": f"response.{whole['status']}", "response": whole, "sequence_number": 0}
    text = f"event: {event['type']}\ndata: {orjson.dumps(event).decode()}\n\n"
    return Reply(200, text.encode(), _EVENTS)


def _input_items(shelf: Shelf, _: Request, object_id: str) -> Reply:
    shelf.get("responses", object_id)
    return reply({"object": "list", "data": [], "has_more": False})


def _new_conversation(shelf: Shelf, request: Request) -> Reply:
    document = _document(request)
    shelf.check_named(document)
    object_id = shelf.new_id("conv_")
    made = {"id": object_id, "object": "conversation", "metadata": document.get("metadata", {})}
    shelf.put("conversation_items", object_id, {"items": []})
    return reply(shelf.put("conversations", object_id, made))


def _add_items(shelf: Shelf, request: Request, object_id: str) -> Reply:
    items = shelf.get("conversation_items", object_id)["items"]
    document = _document(request)
    shelf.check_named(document)
    added = [{**item, "id": shelf.new_id("msg_")} for item in document.get("items", [])]
    items.extend(added)
    return reply({"object": "list", "data": added, "has_more": False})


def _items(shelf: Shelf, _: Request, object_id: str) -> Reply:
    items = shelf.get("conversation_items", object_id)["items"]
    return reply({"object": "list", "data": items, "has_more": False})


def _item(shelf: Shelf, _: Request, object_id: str, item_id: str) -> Reply:
    for item in shelf.get("conversation_items", object_id)["items"]:
        if item["id"] == item_id:
            return reply(item)
    raise Missing


def _delete_item(shelf: Shelf, _: Request, object_id: str, item_id: str) -> Reply:
    stored = shelf.get("conversation_items", object_id)
    stored["items"] = [item for item in stored["items"] if item["id"] != item_id]
    return reply(shelf.get("conversations", object_id))


# -------------------------------------------------------------------------------- files, batches


def _new_file(shelf: Shelf, request: Request) -> Reply:
    return reply(add_file(shelf, request, format_name=_format_of(request)))


def _content(shelf: Shelf, _: Request, object_id: str) -> Reply:
    shelf.get("files", object_id)
    return Reply(200, shelf.content(object_id), "application/octet-stream")


def _new_batch(shelf: Shelf, request: Request) -> Reply:
    document = _document(request)
    shelf.check_named(document)
    object_id = shelf.new_id("batch_")
    made: dict[str, Any] = {
        "id": object_id,
        "object": "batch",
        "endpoint": document.get("endpoint"),
        "input_file_id": document.get("input_file_id"),
        "status": "in_progress",
        "output_file_id": None,
        "error_file_id": None,
        "usage": None,
    }
    return reply(shelf.put("batches", object_id, made))


def _get_batch(shelf: Shelf, _: Request, object_id: str) -> Reply:
    return reply(finish_openai_batch(shelf, shelf.get("batches", object_id)))


def _cancel_batch(shelf: Shelf, _: Request, object_id: str) -> Reply:
    batch = shelf.get("batches", object_id)
    if batch["status"] == "in_progress":
        batch["status"] = "cancelled"
    return reply(batch)


def _new_message_batch(shelf: Shelf, request: Request) -> Reply:
    document = _document(request)
    shelf.check_named(document)
    requests = document.get("requests")
    if not isinstance(requests, list):
        raise AskInvalid("requests: Field required")
    object_id = shelf.new_id("msgbatch_")
    shelf.put("message_results", object_id, {"requests": requests})
    made = {
        "id": object_id,
        "type": "message_batch",
        "processing_status": "ended",
        "request_counts": {"processing": 0, "succeeded": len(requests)},
        "results_url": f"https://api.anthropic.com/v1/messages/batches/{object_id}/results",
    }
    return reply(shelf.put("message_batches", object_id, made))


def _results(shelf: Shelf, _: Request, object_id: str) -> Reply:
    requests = shelf.get("message_results", object_id)["requests"]
    return Reply(200, anthropic_results(shelf, requests), "application/x-jsonl")


# ------------------------------------------------------------------------------------------ Gemini


def _new_cached_content(shelf: Shelf, request: Request) -> Reply:
    document = _document(request)
    shelf.check_named(document)
    name = shelf.new_id("cachedContents/c")
    made = {"name": name, "model": document.get("model"), "usageMetadata": {"totalTokenCount": 1}}
    return reply(shelf.put("cachedContents", name, made))


def _new_gemini_file(shelf: Shelf, request: Request) -> Reply:
    if is_resumable(request):
        return answer_resumable(shelf, request)
    return reply({"file": add_gemini_file(shelf, request)})


def _new_interaction(shelf: Shelf, request: Request) -> Reply:
    document = _document(request)
    shelf.check_named(document)
    told = document.get("input")
    spent = Spent(len(told.split()) if isinstance(told, str) else 1, 5)
    object_id = shelf.new_id("v1_")
    whole = {
        "id": object_id,
        "object": "interaction",
        "status": "completed",
        "model": document.get("model"),
        "outputs": [{"type": "text", "text": "".join(words(spent.output_tokens))}],
        "usage": {
            "total_tokens": sum(spent),
            "total_input_tokens": spent.input_tokens,
            "total_cached_tokens": 0,
            "total_output_tokens": spent.output_tokens,
            "total_tool_use_tokens": 0,
            "total_thought_tokens": 0,
        },
    }
    if document.get("store") is not False:
        shelf.put("interactions", object_id, whole)
    if document.get("background") is True:
        return reply({**whole, "status": "in_progress", "outputs": [], "usage": None})
    return reply(whole)


def response_of(document: Document, body: bytes) -> Document:
    """Return a whole response with what only its request says."""
    whole: Document = orjson.loads(body)
    whole["previous_response_id"] = document.get("previous_response_id")
    return whole


def _cancel(collection: str) -> Callable[..., Reply]:
    return _get(collection)


_CHAT = _get("chat_completions")
_ROWS: Final[tuple[tuple[str, str, str, Callable[..., Reply]], ...]] = (
    ("openai", "GET", f"/v1/responses/{_ID}", _get_response),
    ("openai", "DELETE", f"/v1/responses/{_ID}", _delete("responses", kind="response")),
    ("openai", "POST", f"/v1/responses/{_ID}/cancel", _cancel("responses")),
    ("openai", "GET", f"/v1/responses/{_ID}/input_items", _input_items),
    ("openai", "POST", "/v1/conversations", _new_conversation),
    ("openai", "GET", f"/v1/conversations/{_ID}", _get("conversations")),
    ("openai", "POST", f"/v1/conversations/{_ID}", _update("conversations")),
    ("openai", "DELETE", f"/v1/conversations/{_ID}", _delete("conversations", kind="x.deleted")),
    ("openai", "GET", f"/v1/conversations/{_ID}/items", _items),
    ("openai", "POST", f"/v1/conversations/{_ID}/items", _add_items),
    ("openai", "GET", f"/v1/conversations/{_ID}/items/{_ID}", _item),
    ("openai", "DELETE", f"/v1/conversations/{_ID}/items/{_ID}", _delete_item),
    ("openai", "GET", f"/v1/chat/completions/{_ID}", _CHAT),
    ("openai", "POST", f"/v1/chat/completions/{_ID}", _update("chat_completions")),
    ("openai", "DELETE", f"/v1/chat/completions/{_ID}", _delete("chat_completions", kind="x")),
    ("openai", "GET", f"/v1/chat/completions/{_ID}/messages", _CHAT),
    ("openai", "GET", "/v1/files", _list("files", "after")),
    ("anthropic", "GET", "/v1/files", _list("files", "after_id")),
    ("", "POST", "/v1/files", _new_file),
    ("", "GET", f"/v1/files/{_ID}", _get("files")),
    ("", "DELETE", f"/v1/files/{_ID}", _delete("files", kind="file")),
    ("", "GET", f"/v1/files/{_ID}/content", _content),
    ("openai", "GET", "/v1/batches", _list("batches", "after")),
    ("openai", "POST", "/v1/batches", _new_batch),
    ("openai", "GET", f"/v1/batches/{_ID}", _get_batch),
    ("openai", "POST", f"/v1/batches/{_ID}/cancel", _cancel_batch),
    ("anthropic", "GET", "/v1/messages/batches", _list("message_batches", "after_id")),
    ("anthropic", "POST", "/v1/messages/batches", _new_message_batch),
    ("anthropic", "GET", f"/v1/messages/batches/{_ID}", _get("message_batches")),
    ("anthropic", "POST", f"/v1/messages/batches/{_ID}/cancel", _cancel("message_batches")),
    ("anthropic", "DELETE", f"/v1/messages/batches/{_ID}", _delete("message_batches", kind="x")),
    ("anthropic", "GET", f"/v1/messages/batches/{_ID}/results", _results),
    (
        "gemini",
        "GET",
        f"{_VERSION}/cachedContents",
        _gemini_list("cachedContents", "cachedContents"),
    ),
    ("gemini", "POST", f"{_VERSION}/cachedContents", _new_cached_content),
    ("gemini", "GET", f"{_VERSION}/(cachedContents/{_ID[1:]}", _get("cachedContents")),
    ("gemini", "PATCH", f"{_VERSION}/(cachedContents/{_ID[1:]}", _update("cachedContents")),
    ("gemini", "DELETE", f"{_VERSION}/(cachedContents/{_ID[1:]}", _delete("cachedContents")),
    ("gemini", "GET", f"{_VERSION}/files", _gemini_list("gemini_files", "files")),
    ("gemini", "POST", f"/upload{_VERSION}/files", _new_gemini_file),
    ("gemini", "PUT", f"/upload{_VERSION}/files", _new_gemini_file),
    ("gemini", "GET", f"{_VERSION}/(files/{_ID[1:]}", _get("gemini_files")),
    ("gemini", "DELETE", f"{_VERSION}/(files/{_ID[1:]}", _delete("gemini_files")),
    ("gemini", "POST", f"{_VERSION}/interactions", _new_interaction),
    ("gemini", "GET", f"{_VERSION}/interactions/{_ID}", _get("interactions")),
    ("gemini", "POST", f"{_VERSION}/interactions/{_ID}/cancel", _cancel("interactions")),
    ("gemini", "DELETE", f"{_VERSION}/interactions/{_ID}", _delete("interactions")),
)
# What is any format's comes last.
_TABLE: Final = tuple(
    (wire, method, re.compile(pattern), act)
    for wire, method, pattern, act in sorted(_ROWS, key=lambda row: not row[0])
)
