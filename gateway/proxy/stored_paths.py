"""The paths of what vendors store: who made it may have it, nobody else.

One table: each path with its method, what it does to stored objects, and how its answers are
metered. A path that names an object is called at the vendor that holds it, and only for the org
that made it; a path that lists gives the caller's own. `endpoints.py` joins it to its own tables;
a path that is in none is not served.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal

from gateway.metering.meter import MeterFormat
from gateway.vendors import anthropic, gemini, openai
from gateway.vendors.vendor import WireFormat


class Kind(StrEnum):
    """What is stored."""

    RESPONSE = "response"
    ITEM = "item"  # of a response or a conversation
    CONVERSATION = "conversation"
    CHAT_COMPLETION = "chat.completion"
    CONTAINER = "container"
    FILE = "file"
    BATCH_INPUT = "batch_input"  # a file whose every line was looked at
    BATCH_OUTPUT = "batch_output"  # a file of a batch, which is its parent
    BATCH = "batch"
    CACHED_CONTENT = "cached_content"
    INTERACTION = "interaction"
    UPLOAD = "upload"  # that takes several requests: what goes on with it has to be its org's


class Answer(StrEnum):
    """Where an answer tells what the vendor stored; read in `stored_ids.py`."""

    RESPONSE = "response"  # id; id and container_id of each item
    CHAT_COMPLETION = "chat.completion"
    MESSAGE = "message"  # Anthropic's: its container
    CONVERSATION = "conversation"
    ITEMS = "items"  # a list of them
    FILE = "file"
    BATCH = "batch"  # and the files of its results
    CACHED_CONTENT = "cached_content"
    GEMINI_FILE = "gemini_file"
    INTERACTION = "interaction"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredUse:
    """What an endpoint does with stored objects.

    - `tells`: how its answers name what was stored; the caller's org owns that from then on.
    - `names`: its path names an object, which has to be the caller's.
    - `lists`: the member of its answers that lists objects; only the caller's own are passed on.
    - `retrieves`: its answers tell the usage of an object that was made before.
    - `defers`: the usage of what it begins is told later, by what retrieves it.
    - `tells_results_url`: its answers say where a batch's results are; that has to lead back here.
    - `is_batch`: a token with a limit or a list of models needs a permission for it.
    - `always`: its answers name something stored whatever `store` says; else by `store`, whose
      default is `stores_by_default`.
    """

    tells: Answer | None = None
    names: bool = False
    lists: str | None = None
    retrieves: bool = False
    defers: bool = False
    tells_results_url: bool = False
    is_batch: bool = False
    always: bool = True
    stores_by_default: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPath:
    """One method of one path. `{id}` is the object's id, `{}` a part that is its own business.

    `prefix` stands before the id where the vendor's own name for the object has one. `item_of` is
    the member of the body whose items may name stored ones.
    """

    name: str
    wire: WireFormat
    method: bytes
    template: str
    use: StoredUse
    body: Literal["json", "none", "upload"] = "none"
    meter: str = MeterFormat.NONE
    counts: bool = False
    generates: bool = False
    model_in: Literal["body", "none"] = "none"
    has_default_model: bool = False
    prefix: str = ""
    items_in: str | None = None
    pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        text = re.escape(self.template)
        text = text.replace(r"\{id\}", f"(?P<id>{_ID})").replace(r"\{\}", _ID)
        object.__setattr__(self, "pattern", re.compile(text))


_ID: Final = r"[A-Za-z0-9_=.~-]{1,200}"

_NAMES: Final = StoredUse(names=True)
_RETRIEVES: Final = StoredUse(names=True, retrieves=True)
_OPENAI_LIST: Final = StoredUse(lists="data")


def _openai() -> Iterator[StoredPath]:
    wire = openai.FORMAT

    def path(
        name: str,
        method: str,
        template: str,
        use: StoredUse,
        **more: Any,  # noqa: ANN401 - fields
    ) -> StoredPath:
        return StoredPath(
            name=name, wire=wire, method=method.encode(), template=template, use=use, **more
        )

    one = "/v1/responses/{id}"
    meter = MeterFormat.OPENAI_RESPONSES
    yield path("responses.get", "GET", one, _RETRIEVES, meter=meter)
    yield path("responses.delete", "DELETE", one, _NAMES)
    yield path("responses.cancel", "POST", one + "/cancel", _RETRIEVES, meter=meter, body="json")
    yield path("responses.input_items", "GET", one + "/input_items", _NAMES)

    every, one = "/v1/conversations", "/v1/conversations/{id}"
    made = StoredUse(tells=Answer.CONVERSATION)
    yield path("conversations.create", "POST", every, made, body="json", items_in="items")
    yield path("conversations.get", "GET", one, _NAMES)
    yield path("conversations.update", "POST", one, _NAMES, body="json")
    yield path("conversations.delete", "DELETE", one, _NAMES)
    items = one + "/items"
    added = StoredUse(names=True, tells=Answer.ITEMS)
    yield path("conversations.items.list", "GET", items, _NAMES)
    yield path("conversations.items.create", "POST", items, added, body="json", items_in="items")
    yield path("conversations.items.get", "GET", items + "/{}", _NAMES)
    yield path("conversations.items.delete", "DELETE", items + "/{}", _NAMES)

    one = "/v1/chat/completions/{id}"
    chat = MeterFormat.OPENAI_CHAT
    yield path("chat.completions.get", "GET", one, _RETRIEVES, meter=chat)
    yield path("chat.completions.update", "POST", one, _NAMES, body="json")
    yield path("chat.completions.delete", "DELETE", one, _NAMES)
    yield path("chat.completions.messages", "GET", one + "/messages", _NAMES)

    every, one = "/v1/batches", "/v1/batches/{id}"
    begun = StoredUse(tells=Answer.BATCH, defers=True, is_batch=True)
    seen = StoredUse(names=True, tells=Answer.BATCH, retrieves=True)
    meter = MeterFormat.OPENAI_BATCH
    yield path("batches.create", "POST", every, begun, body="json", counts=True)
    yield path("batches.list", "GET", every, _OPENAI_LIST)
    yield path("batches.get", "GET", one, seen, meter=meter)
    yield path("batches.cancel", "POST", one + "/cancel", seen, meter=meter, body="json")

    # The content of a batch's results tells its usage; that of other files tells none.
    yield from _files(wire, meter=MeterFormat.OPENAI_BATCH_OUTPUT)


def _files(wire: WireFormat, *, meter: str) -> Iterator[StoredPath]:
    """Yield the paths of files, which two formats share."""
    every, one = "/v1/files", "/v1/files/{id}"
    made, content = StoredUse(tells=Answer.FILE), _NAMES
    if meter != MeterFormat.NONE:
        content = _RETRIEVES
    rows: tuple[tuple[str, bytes, str, StoredUse], ...] = (
        ("files.create", b"POST", every, made),
        ("files.list", b"GET", every, _OPENAI_LIST),
        ("files.get", b"GET", one, _NAMES),
        ("files.content", b"GET", one + "/content", content),
        ("files.delete", b"DELETE", one, _NAMES),
    )
    for name, method, template, use in rows:
        yield StoredPath(
            name=name,
            wire=wire,
            method=method,
            template=template,
            use=use,
            body="upload" if use is made else "none",
            meter=meter if use.retrieves else MeterFormat.NONE,
        )


def _anthropic() -> Iterator[StoredPath]:
    wire = anthropic.FORMAT

    def path(
        name: str,
        method: str,
        template: str,
        use: StoredUse,
        **more: Any,  # noqa: ANN401 - fields
    ) -> StoredPath:
        return StoredPath(
            name=f"messages.batches.{name}",
            wire=wire,
            method=method.encode(),
            template=template,
            use=use,
            **more,
        )

    every, one = "/v1/messages/batches", "/v1/messages/batches/{id}"
    begun = StoredUse(tells=Answer.BATCH, defers=True, is_batch=True, tells_results_url=True)
    seen = StoredUse(names=True, tells_results_url=True)
    yield path("create", "POST", every, begun, body="json", counts=True)
    yield path("list", "GET", every, StoredUse(lists="data", tells_results_url=True))
    yield path("get", "GET", one, seen)
    yield path("cancel", "POST", one + "/cancel", seen, body="json")
    yield path("delete", "DELETE", one, _NAMES)
    meter = MeterFormat.ANTHROPIC_BATCH_RESULTS
    yield path("results", "GET", one + "/results", _RETRIEVES, meter=meter)
    yield from _files(wire, meter=MeterFormat.NONE)


def _gemini(version: str) -> Iterator[StoredPath]:
    """Yield Google's paths; its SDK for Python asks below /v1, the others below /v1beta."""
    wire = gemini.FORMAT

    def path(
        name: str,
        method: str,
        template: str,
        use: StoredUse,
        **more: Any,  # noqa: ANN401 - fields
    ) -> StoredPath:
        return StoredPath(
            name=name, wire=wire, method=method.encode(), template=template, use=use, **more
        )

    every, one, prefix = (
        f"/{version}/cachedContents",
        f"/{version}/cachedContents/{{id}}",
        "cachedContents/",
    )
    made = StoredUse(tells=Answer.CACHED_CONTENT)
    yield path(
        "cachedContents.create", "POST", every, made, body="json", counts=True, model_in="body"
    )
    yield path("cachedContents.list", "GET", every, StoredUse(lists="cachedContents"))
    yield path("cachedContents.get", "GET", one, _NAMES, prefix=prefix)
    yield path("cachedContents.patch", "PATCH", one, _NAMES, prefix=prefix, body="json")
    yield path("cachedContents.delete", "DELETE", one, _NAMES, prefix=prefix)

    every, one, prefix = f"/{version}/files", f"/{version}/files/{{id}}", "files/"
    made = StoredUse(tells=Answer.GEMINI_FILE)
    for method in ("POST", "PUT"):  # it may take several requests, at the same path
        yield path("files.create", method, "/upload" + every, made, body="upload")
    yield path("files.list", "GET", every, StoredUse(lists="files"))
    yield path("files.get", "GET", one, _NAMES, prefix=prefix)
    yield path("files.delete", "DELETE", one, _NAMES, prefix=prefix)

    every, one = f"/{version}/interactions", f"/{version}/interactions/{{id}}"
    meter = MeterFormat.GEMINI_INTERACTIONS
    made = StoredUse(tells=Answer.INTERACTION, always=False, stores_by_default=True)
    yield path(
        "interactions.create",
        "POST",
        every,
        made,
        body="json",
        meter=meter,
        counts=True,
        generates=True,
        model_in="body",
        has_default_model=True,  # or an agent
    )
    yield path("interactions.get", "GET", one, _RETRIEVES, meter=meter)
    yield path("interactions.cancel", "POST", one + "/cancel", _RETRIEVES, meter=meter, body="json")
    yield path("interactions.delete", "DELETE", one, _NAMES)


STORED_PATHS: Final = (*_openai(), *_anthropic(), *_gemini("v1beta"), *_gemini("v1"))

# What endpoints with paths of other tables store.
STORES_RESPONSE: Final = StoredUse(tells=Answer.RESPONSE, always=False, stores_by_default=True)
STORES_CHAT: Final = StoredUse(tells=Answer.CHAT_COMPLETION, always=False)
STORES_CONTAINER: Final = StoredUse(tells=Answer.MESSAGE)


def find_stored(path: str) -> list[tuple[StoredPath, str | None]]:
    """Return what a path may mean, in all wire formats and methods, each with the object's id.

    The path is plain and without a vendor's name.
    """
    if not path.startswith(_BEGINNINGS):
        return []
    found = []
    for one in STORED_PATHS:
        matched = one.pattern.fullmatch(path)
        if matched is not None:
            found.append((one, one.prefix + matched["id"] if one.use.names else None))
    return found


_BEGINNINGS: Final = tuple({one.template.partition("{")[0].rstrip("/") for one in STORED_PATHS})
