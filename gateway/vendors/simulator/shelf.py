"""What the simulated vendor stores: responses, files, batches, conversations, cached contents.

All in memory, under whichever key, bounded. As a real vendor it knows nothing of a gateway's orgs:
who names an id gets what is there. Work that is fetched later (background responses, batches) is
done when it is fetched.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from email.message import Message
from typing import Any, Final, NamedTuple

import orjson

from gateway.vendors.simulator.connection import Request
from gateway.vendors.simulator.formats import CREATED, FORMATS, AskInvalid, Spent, words
from gateway.vendors.simulator.openai_paths import EMBEDDINGS, RESPONSES

OBJECTS_MAX: Final = 10_000  # the oldest go first
BYTES_MAX: Final = 256 * 1024 * 1024  # of all files together
PAGE_ROWS: Final = 20  # of a list, where nothing else is asked for
FILES_URI: Final = "https://generativelanguage.googleapis.com/v1beta/"  # as the real one writes it

Document = dict[str, Any]
_LINE_FORMATS: Final = {
    "/v1/chat/completions": FORMATS["openai"],
    "/v1/responses": RESPONSES,
    "/v1/embeddings": EMBEDDINGS,
}
# Where a body names what is stored: the member, and the collections that it may be in.
_NAMED: Final[Mapping[str, tuple[str, ...]]] = {
    "previous_response_id": ("responses",),
    "conversation": ("conversations",),
    "file_id": ("files",),
    "input_file_id": ("files",),
    "cachedContent": ("cachedContents",),
    "fileUri": ("gemini_files",),
    "file_uri": ("gemini_files",),
    "previous_interaction_id": ("interactions",),
}


class Reply(NamedTuple):
    """An answer: JSON where nothing else is said."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Missing(Exception):
    """There is no such object."""


class Shelf:
    """Keeps objects by collection and id."""

    def __init__(self) -> None:
        self._objects: OrderedDict[tuple[str, str], Document] = OrderedDict()
        self._contents: dict[str, bytes] = {}
        self._bytes = 0
        self._number = 0

    def new_id(self, prefix: str) -> str:
        """Return an id that nothing else has."""
        self._number += 1
        return f"{prefix}{self._number:08x}"

    def put(self, collection: str, object_id: str, document: Document) -> Document:
        """Keep a document; the oldest goes where there are too many."""
        self._objects[collection, object_id] = document
        while len(self._objects) > OBJECTS_MAX:
            (_, oldest), _ = self._objects.popitem(last=False)
            self._drop(oldest)
        return document

    def put_content(self, object_id: str, content: bytes) -> None:
        """Keep a file's content. Raises AskInvalid where there is no room."""
        if self._bytes + len(content) > BYTES_MAX:
            raise AskInvalid("There is no room for this file.")
        self._drop(object_id)
        self._contents[object_id] = content
        self._bytes += len(content)

    def get(self, collection: str, object_id: str) -> Document:
        """Return a document. Raises Missing."""
        try:
            return self._objects[collection, object_id]
        except KeyError:
            raise Missing from None

    def content(self, object_id: str) -> bytes:
        """Return a file's content. Raises Missing."""
        try:
            return self._contents[object_id]
        except KeyError:
            raise Missing from None

    def delete(self, collection: str, object_id: str) -> None:
        """Forget a document. Raises Missing."""
        self.get(collection, object_id)
        del self._objects[collection, object_id]
        self._drop(object_id)

    def _drop(self, object_id: str) -> None:
        content = self._contents.pop(object_id, b"")
        self._bytes -= len(content)

    def all(self, collection: str) -> list[Document]:
        """Return a collection, the newest first."""
        found = [one for (name, _), one in self._objects.items() if name == collection]
        return found[::-1]

    def check_named(self, document: object) -> None:
        """Raise Missing where a body names an object that is not here."""
        for name, value in _members(document):
            collections = _NAMED.get(name)
            named = value.get("id") if isinstance(value, dict) else value
            if collections and isinstance(named, str) and named:
                plain = named.removeprefix(FILES_URI)
                if not any((one, plain) in self._objects for one in collections):
                    raise Missing


def _members(document: object) -> Iterator[tuple[str, object]]:
    if isinstance(document, dict):
        for name, value in document.items():
            yield name, value
            yield from _members(value)
    elif isinstance(document, list):
        for value in document:
            yield from _members(value)


# ------------------------------------------------------------------------------------------- files


def form_of(request: Request) -> dict[str, bytes]:
    """Return the fields of a form. Raises AskInvalid."""
    boundary = _boundary_of(request)
    fields = {}
    for part in request.body.split(b"--" + boundary)[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        found = re.search(rb'name="([^"]*)"', head)
        if found is None:
            raise AskInvalid("A part of the form has no name.")
        fields[found[1].decode()] = value[:-2]
    return fields


def _boundary_of(request: Request) -> bytes:
    message = Message()
    message["content-type"] = request.headers.get("content-type", "")
    boundary = message.get_param("boundary")
    if not isinstance(boundary, str):
        raise AskInvalid("The request is no form.")
    return boundary.encode()


def add_file(shelf: Shelf, request: Request, *, format_name: str) -> Document:
    """Keep an uploaded file, in OpenAI's or Anthropic's shape. Raises AskInvalid."""
    fields = form_of(request)
    if "file" not in fields:
        raise AskInvalid("There is no file in the form.")
    content = fields["file"]
    if format_name == "anthropic":
        object_id = shelf.new_id("file_")
        document = {
            "type": "file",
            "id": object_id,
            "filename": "file",
            "mime_type": "text/plain",
            "size_bytes": len(content),
            "created_at": "2025-01-01T00:00:00Z",
            "downloadable": True,
        }
    else:
        purpose = fields.get("purpose", b"user_data").decode("utf-8", "replace")
        object_id = shelf.new_id("file-")
        document = openai_file(object_id, size=len(content), purpose=purpose)
    shelf.put_content(object_id, content)
    return shelf.put("files", object_id, document)


def openai_file(object_id: str, *, size: int, purpose: str) -> Document:
    """Return a file as OpenAI tells of one."""
    return {
        "id": object_id,
        "object": "file",
        "bytes": size,
        "created_at": CREATED,
        "filename": "file.jsonl",
        "purpose": purpose,
        "status": "processed",
    }


def add_gemini_file(shelf: Shelf, request: Request) -> Document:
    """Keep a file that Gemini's API uploads in one request. Raises AskInvalid."""
    content = request.body
    metadata: Document = {}
    if request.headers.get("content-type", "").startswith("multipart/"):
        parts = request.body.split(b"--" + _boundary_of(request))[1:-1]
        if len(parts) != 2:  # noqa: PLR2004 - what the file is, and the file
            raise AskInvalid("There are not two parts.")
        told, content = (part.partition(b"\r\n\r\n")[2][:-2] for part in parts)
        try:
            metadata = orjson.loads(told).get("file", {})
        except (orjson.JSONDecodeError, AttributeError) as error:
            raise AskInvalid("The first part is not JSON.") from error
    return new_gemini_file(shelf, metadata, size=len(content))


def new_gemini_file(shelf: Shelf, metadata: Document, *, size: int) -> Document:
    """Keep what is told of a Gemini file."""
    name = shelf.new_id("files/f")
    document = {
        "name": name,
        "displayName": metadata.get("displayName") or metadata.get("display_name") or "",
        "mimeType": metadata.get("mimeType") or metadata.get("mime_type") or "text/plain",
        "sizeBytes": str(size),
        "state": "ACTIVE",
        "uri": FILES_URI + name,
    }
    return shelf.put("gemini_files", name, document)


# ----------------------------------------------------------------------------------------- batches


def finish_openai_batch(shelf: Shelf, batch: Document) -> Document:
    """Do the work of a batch, once: an answer for each line of its file."""
    if batch["status"] != "in_progress":
        return batch
    lines: list[bytes] = []
    usage = Spent(0, 0)
    for line in shelf.content(batch["input_file_id"]).splitlines():
        try:
            asked = orjson.loads(line)
            shelf.check_named(asked)
            wire = _LINE_FORMATS[asked["url"]]
            ask = wire.read(asked["body"], "", "generate", {})
        except (ValueError, KeyError, TypeError, Missing):
            continue
        spent = Spent(ask.input_tokens, ask.words_due)
        usage = Spent(usage.input_tokens + spent[0], usage.output_tokens + spent[1])
        object_id = shelf.new_id(wire.id_prefix)
        body = wire.plain(ask, object_id, "".join(words(ask.words_due)), spent)
        response = {"status_code": 200, "request_id": object_id, "body": orjson.Fragment(body)}
        answer = {"id": object_id, "custom_id": asked.get("custom_id"), "response": response}
        lines.append(orjson.dumps({**answer, "error": None}))
    content = b"".join(line + b"\n" for line in lines)
    file_id = shelf.new_id("file-")
    shelf.put_content(file_id, content)
    shelf.put("files", file_id, openai_file(file_id, size=len(content), purpose="batch_output"))
    batch.update(
        status="completed",
        output_file_id=file_id,
        request_counts={"total": len(lines), "completed": len(lines), "failed": 0},
        usage={
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sum(usage),
        },
    )
    return batch


def anthropic_results(shelf: Shelf, requests: list[Document]) -> bytes:
    """Return the results of a batch, a line for each request. Raises AskInvalid."""
    wire = FORMATS["anthropic"]
    lines = []
    for asked in requests:
        ask = wire.read(asked.get("params", {}), "", "generate", {})
        spent = Spent(ask.input_tokens, ask.words_due)
        text = "".join(words(ask.words_due))
        message = wire.plain(ask, shelf.new_id("msg_"), text, spent)
        result = {"type": "succeeded", "message": orjson.Fragment(message)}
        lines.append(orjson.dumps({"custom_id": asked.get("custom_id"), "result": result}) + b"\n")
    return b"".join(lines)


# ------------------------------------------------------------------------------------------- lists


def openai_page(rows: list[Document], query: Mapping[str, str], *, after: str) -> Document:
    """Return a page of a list; `after` is the name of the parameter that says where it begins."""
    start = query.get(after)
    ids = [row["id"] for row in rows]
    at = ids.index(start) + 1 if start in ids else 0
    limit = int(query["limit"]) if query.get("limit", "").isdigit() else PAGE_ROWS
    page = rows[at : at + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": at + limit < len(rows),
    }


def reply(document: object, status: int = 200) -> Reply:
    """Return an answer in JSON."""
    return Reply(status, orjson.dumps(document))
