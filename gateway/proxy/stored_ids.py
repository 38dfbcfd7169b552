"""Which objects an answer says that the vendor stored: bytes in, ids out.

A watcher reads a copy of the answer, as meters do, and only of endpoints that store. Ids are taken
from their own places at the top of an answer or event and nowhere else: what a model or a client
wrote may look like an id. Each is told as soon as it is seen. What can't be read names nothing:
its maker then gets a 404, and nobody gets anybody else's.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from gateway.metering.decoding import DECODERS, Decoder, DecodingStopped
from gateway.metering.json_parts import objects_in_head
from gateway.metering.sse import SSE_WHOLE_OUTPUT_BYTES_MAX, SseParser
from gateway.proxy.stored_paths import Answer, Kind

WHOLE_BYTES_MAX: Final = 1024 * 1024  # of an answer in one piece; of a longer one the head is read
HEAD_BYTES_MAX: Final = 64 * 1024
STORED_MAX: Final = 1_000  # told of one answer

_ID: Final = re.compile(r"[!-~]{1,250}")  # what the database takes, and every vendor gives
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Stored(NamedTuple):
    """Something that the vendor keeps. `is_whole`: the answer's own object, not a part of it."""

    object_id: str
    kind: Kind
    parent_id: str | None = None
    is_whole: bool = False


Found = Iterator[Stored]


def _text(document: Any, name: str) -> str | None:  # noqa: ANN401 - JSON
    value = document.get(name) if isinstance(document, dict) else None
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def _member(document: Any, name: str) -> Any:  # noqa: ANN401 - JSON
    return document.get(name) if isinstance(document, dict) else None


def _rows(document: Any, name: str) -> list[Any]:  # noqa: ANN401 - JSON
    rows = _member(document, name)
    return rows if isinstance(rows, list) else []


def _named(kind: Kind, name: str = "id") -> Callable[[Any], Found]:
    def read(document: Any) -> Found:  # noqa: ANN401 - JSON
        object_id = _text(document, name)
        if object_id is not None:
            yield Stored(object_id, kind, None, True)

    return read


_whole_response: Final = _named(Kind.RESPONSE)


def _item(item: Any) -> Found:  # noqa: ANN401 - JSON
    object_id, container_id = _text(item, "id"), _text(item, "container_id")
    if object_id is not None:
        yield Stored(object_id, Kind.ITEM)
    if container_id is not None:
        yield Stored(container_id, Kind.CONTAINER)


def _response(document: Any) -> Found:  # noqa: ANN401 - JSON
    yield from _whole_response(document)
    for item in _rows(document, "output"):
        yield from _item(item)


def _response_event(document: Any) -> Found:  # noqa: ANN401 - JSON
    yield from _response(_member(document, "response"))
    yield from _item(_member(document, "item"))


def _items(document: Any) -> Found:  # noqa: ANN401 - JSON
    for item in _rows(document, "data"):
        yield from _item(item)


def batch_parts(document: Any) -> Found:  # noqa: ANN401 - JSON
    """Yield a batch and the files of its results."""
    batch_id = _text(document, "id")
    if batch_id is None:
        return
    yield Stored(batch_id, Kind.BATCH, None, True)
    for name in ("output_file_id", "error_file_id"):
        file_id = _text(document, name)
        if file_id is not None:
            yield Stored(file_id, Kind.BATCH_OUTPUT, batch_id)


def _message(document: Any) -> Found:  # noqa: ANN401 - JSON
    container_id = _text(_member(document, "container"), "id")
    if container_id is not None:
        yield Stored(container_id, Kind.CONTAINER)


def _message_event(document: Any) -> Found:  # noqa: ANN401 - JSON
    yield from _message(_member(document, "message"))
    yield from _message(_member(document, "delta"))


def _gemini_file(document: Any) -> Found:  # noqa: ANN401 - JSON
    yield from _named(Kind.FILE, "name")(_member(document, "file"))


def _interaction_event(document: Any) -> Found:  # noqa: ANN401 - JSON
    yield from _named(Kind.INTERACTION)(_member(document, "interaction"))


class _Shape(NamedTuple):
    """How one kind of answer is read: whole, and in a stream the events that matter."""

    whole: Callable[[Any], Found]
    event: Callable[[Any], Found] | None = None
    wanted: tuple[bytes, ...] = ()  # one of these is in an event that matters


_SHAPES: Final[Mapping[Answer, _Shape]] = MappingProxyType(
    {
        Answer.RESPONSE: _Shape(
            _response, _response_event, (b'"response.created"', b'"response.output_item.')
        ),
        Answer.CHAT_COMPLETION: _Shape(
            _named(Kind.CHAT_COMPLETION), _named(Kind.CHAT_COMPLETION), (b'"id"',)
        ),
        Answer.MESSAGE: _Shape(_message, _message_event, (b'"container"',)),
        Answer.CONVERSATION: _Shape(_named(Kind.CONVERSATION)),
        Answer.ITEMS: _Shape(_items),
        Answer.FILE: _Shape(_named(Kind.FILE)),
        Answer.BATCH: _Shape(batch_parts),
        Answer.CACHED_CONTENT: _Shape(_named(Kind.CACHED_CONTENT, "name")),
        Answer.GEMINI_FILE: _Shape(_gemini_file),
        Answer.INTERACTION: _Shape(
            _named(Kind.INTERACTION), _interaction_event, (b'"interaction.',)
        ),
    }
)


def wants_nothing(raw: bytes) -> bool:  # noqa: ARG001 - as others that tell what is wanted
    """Return False: no event has to be fed."""
    return False


class Watcher:
    """Tells what one answer says is stored, each once, whatever way it is cut. Never raises."""

    def __init__(self, answer: Answer, *, is_stream: bool, decoder: Decoder | None) -> None:
        """`decoder` opens the answer's content encoding."""
        self._shape = _SHAPES[answer]
        self._first_only = answer is Answer.CHAT_COMPLETION and is_stream
        self._decoder = decoder
        self._parser: SseParser | None = None
        if is_stream and self._shape.event is not None:
            self._parser = SseParser(self._holds_wanted, event_bytes_max=SSE_WHOLE_OUTPUT_BYTES_MAX)
        self._held = bytearray()
        self._cut = False  # there was more than is held
        self._told: set[str] = set()
        self._stopped = False

    def _holds_wanted(self, raw: bytes) -> bool:
        for one in self._shape.wanted:  # noqa: SIM110 - half as dear as a generator
            if raw.find(one) >= 0:
                return True
        return False

    @property
    def wants(self) -> Callable[[bytes], bool] | None:
        """What tells whether whole events have to be fed; None: whatever comes next has to be."""
        if self._stopped:
            return wants_nothing
        is_between = self._parser is not None and self._parser.is_between
        return self._holds_wanted if is_between and self._decoder is None else None

    def feed(self, chunk: bytes) -> list[Stored]:
        """Take in bytes of the answer as they came; return what they tell that is new."""
        if self._stopped:
            return []
        if self._decoder is not None:
            try:
                chunk = self._decoder.feed(chunk)
            except DecodingStopped:
                self._stopped = True
                return []
        if self._parser is None:
            room = WHOLE_BYTES_MAX - len(self._held)
            self._cut = self._cut or len(chunk) > room
            self._held += chunk[: max(0, room)]
            return []
        found: list[Stored] = []
        for event in self._parser.feed(chunk):
            found += self._read(event.data, self._shape.event)
        if found and self._first_only:
            self._stopped = True
        return found

    def finish(self) -> list[Stored]:
        """Return what an answer in one piece tells, once it is whole or cut off."""
        if self._parser is not None or self._stopped or not self._held:
            return []
        self._stopped = True
        whole = bytes(self._held)
        if not self._cut and _is_json(whole):
            return self._read(whole, self._shape.whole)
        found: list[Stored] = []
        for document in objects_in_head(whole[:HEAD_BYTES_MAX]):
            found += self._read(document, self._shape.whole)
        return found

    def _read(self, document: bytes, read: Callable[[Any], Found] | None) -> list[Stored]:
        assert read is not None
        try:
            decoded = msgspec.json.decode(document)
        except _UNREADABLE:
            return []
        found = []
        for one in read(decoded):
            if one.object_id not in self._told and len(self._told) < STORED_MAX:
                self._told.add(one.object_id)
                found.append(one)
        return found


def _is_json(document: bytes) -> bool:
    try:
        msgspec.json.decode(document, type=msgspec.Raw)
    except _UNREADABLE:
        return False
    return True


def open_watcher(answer: Answer, *, content_type: bytes, content_encoding: bytes) -> Watcher | None:
    """Return what watches an answer, by its head; None where it can't be read."""
    encoding = content_encoding.strip().lower()
    decoder: Decoder | None = None
    if encoding not in (b"", b"identity"):
        made = DECODERS.get(encoding)
        if made is None:
            return None
        decoder = made()
    media_type = content_type.partition(b";")[0].strip().lower()
    return Watcher(answer, is_stream=media_type == b"text/event-stream", decoder=decoder)
