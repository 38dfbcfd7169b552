"""Which objects a body names that a vendor keeps under the gateway's own key.

Files, responses, conversations, containers, cached contents belong to the org that made them, so
each id that a body names has to be the caller's. Who owns an id is not known here: bytes in, names
and ids out.

Names are looked for at any depth, in all wire formats alike: vendors take over each other's. Most
bodies cost only a search for the names, quoted, and for an escape that could hide a letter of one;
the others are opened and walked. Of a member that is there twice both values are taken. What
a vendor hands to the model as it stands (tools' schemas and arguments) or keeps for the client
(metadata) may have such names in it and names nothing.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from gateway.errors import BodyInvalid

NAMED_MAX: Final = 1_000  # ids in one body; a conversation with a thousand files is none

# Their value is an id, a list of ids, or an object with an `id`.
_REFERENCES: Final = frozenset(
    {
        "cachedContent",
        "cached_content",
        "comparison_response_id",
        "container",
        "container_id",
        "conversation",
        "conversation_id",
        "fileSearchStoreNames",
        "file_id",
        "file_ids",
        "file_search_store_names",
        "input_file_id",
        "previous_interaction_id",
        "previous_response_id",
        "vector_store_id",
        "vector_store_ids",
        "voice_id",
    }
)
# Their value names something stored only where it is an object with an `id`: a prompt template,
# an answer that was spoken, a voice of one's own.
_OBJECTS: Final = frozenset({"audio", "prompt", "voice"})
_SKILL: Final = "skill_id"  # a stored one, unless its type says that it is the vendor's
_URIS: Final = frozenset({"fileUri", "file_uri"})  # of the Files API, or of anything else
_URI: Final = "uri"  # so does this; most that have it are of something else
OPAQUE: Final = frozenset(
    {
        "args",
        "input_schema",
        "metadata",
        "parameters",
        "parametersJsonSchema",
        "parameters_json_schema",
        "responseJsonSchema",
        "responseSchema",
        "response_json_schema",
        "response_schema",
        "schema",
    }
)
_TOOL_USES: Final = ("tool_use", "server_tool_use", "mcp_tool_use")  # `input` is opaque
# Items of a Responses input that the vendor looks up by `id` where they don't carry this member.
_CARRIES: Final = {
    "file_search_call": "results",
    "image_generation_call": "result",
    "reasoning": "encrypted_content",
}
_REASONING_ID: Final = "rs_"  # OpenAI's; other vendors' reasoning is whole with its `content`

_FILES_API: Final = "generativelanguage"
_FOREIGN_URI: Final = re.compile(r"(?:gs|https?)://[!-~]+", re.IGNORECASE)
# The one way in which the Files API writes the URI of a file; group 1 is the file's name.
_FILE_URI: Final = re.compile(
    r"(?:https://generativelanguage\.googleapis\.com/v1(?:beta)?/)?(files/[A-Za-z0-9_-]+)"
)

_NAMES: Final = sorted(_REFERENCES | _URIS | {_SKILL, _URI})
# Its first letter is looked at before the names: that makes the search six times as fast.
_SUSPECT: Final = re.compile(
    rf'"(?=[{"".join(sorted({name[0] for name in (*_NAMES, *_OBJECTS)}))}])'
    rf'(?:(?:{"|".join(_NAMES)})"|(?:{"|".join(sorted(_OBJECTS))})"\s*+:\s*+\{{)'.encode()
)
# An escape of a letter or underscore: no encoder writes one, but a reader of names opens it.
_ESCAPE: Final = b"\\u00"
_ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7]")
_SUSPECT_ITEM: Final = re.compile(rb'"(?:id|item_reference)"')

# Objects are tuples of (name, value), so that a name may be there twice; arrays are lists. No
# number names anything, and the largest ones are costly to read.
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=len, parse_float=len, strict=False
)


STORED_NAMES: Final = (*_NAMES, *sorted(_OBJECTS))  # every member that may name something stored


class Named(NamedTuple):
    """An id that a body names, and the member that does."""

    param: str
    object_id: str


def named_objects(
    text: bytes, *, items_in: str | None = None, places: Sequence[tuple[int, int]] | None = None
) -> tuple[Named, ...]:
    """Return the stored objects that a body names, each once, in no order.

    `items_in` is the member whose items may name stored ones by their id alone: `input` of the
    Responses API, `items` of a conversation. `places`: where all names of members are (start and
    end), None: anywhere. Raises BodyInvalid where a body can't be read.
    """
    document = _suspect_document(text, items_in=items_in, places=places)
    return () if document is None else _checked(_named_in(document, items_in=items_in))


def item_ids(text: bytes, *, items_in: str) -> frozenset[str]:
    """Return the ids that a body's items have, whether or not they name stored ones."""
    document = _suspect_document(text, items_in=items_in)
    return frozenset(
        object_id
        for name, value in (document if isinstance(document, tuple) else ())
        if name == items_in and isinstance(value, list)
        for item in value
        if isinstance(item, tuple)
        for object_id in _texts(item, "id")
    )


def says(text: bytes, name: str) -> bool:
    """Return whether a body has a member of this name that is not null, however it is written."""
    if name.encode() not in text and _ESCAPE not in text:
        return False
    document = _decoded(text)
    return isinstance(document, tuple) and any(
        member == name and value is not None for member, value in document
    )


def named_in_line(text: bytes) -> tuple[Named, ...]:
    """Return the stored objects that one line of a batch names: in its body, and beside it.

    Raises BodyInvalid where it can't be read.
    """
    document = _suspect_document(text, items_in="input")
    if document is None:
        return ()
    found = list(_named_in(document, items_in=None))
    for name, value in document if isinstance(document, tuple) else ():
        if name == "body" and isinstance(value, tuple):
            found += _named_in(value, items_in="input")
    return _checked(found)


def _suspect_document(
    text: bytes, *, items_in: str | None, places: Sequence[tuple[int, int]] | None = None
) -> Any:  # noqa: ANN401 - JSON
    """Return a body opened, None where nothing in it can be the name of an object."""
    for start, end in ((0, len(text)),) if places is None else places:
        if (
            _SUSPECT.search(text, start, end) is not None
            or (
                text.find(_ESCAPE, start, end) >= 0
                and _ESCAPED_LETTER.search(text, start, end) is not None
            )
            or (items_in is not None and _SUSPECT_ITEM.search(text, start, end) is not None)
        ):
            return _decoded(text)
    return None


def _decoded(text: bytes) -> Any:  # noqa: ANN401 - JSON
    try:
        return _DECODER.decode(text.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise BodyInvalid from error


def _named_in(document: Any, *, items_in: str | None) -> Iterator[Named]:  # noqa: ANN401 - JSON
    for members in _objects(document):
        for name, value in members:
            for object_id in _ids_named(name, value, members):
                yield Named(name, object_id)
    for name, value in document if items_in and isinstance(document, tuple) else ():
        if name == items_in and isinstance(value, list):
            for item in value:
                for object_id in _stored_ids(item):
                    yield Named(name, object_id)


def _checked(found: Iterable[Named]) -> tuple[Named, ...]:
    unique = tuple(dict.fromkeys(found))
    if len(unique) > NAMED_MAX:
        raise BodyInvalid(f"The request body names more than {NAMED_MAX} stored objects.")
    return unique


def name_of_object(names: Iterable[str]) -> str | None:
    """Return the first name that is one of a stored object: of a form's fields, or their parts."""
    for name in names:
        if name in _REFERENCES or name in _URIS or name == _SKILL:
            return name
    return None


def _objects(document: Any) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401 - JSON
    """Yield every object in a document, but for those in opaque values."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, tuple):
            yield value
            kinds = [inner for name, inner in value if name == "type"]
            is_tool_use = value is not document and len(kinds) == 1 and kinds[0] in _TOOL_USES
            waiting += [
                inner
                for name, inner in value
                if name not in OPAQUE and not (is_tool_use and name == "input")
            ]
        elif isinstance(value, list):
            waiting += value


def _ids_named(name: str, value: Any, members: tuple[Any, ...]) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Yield the ids that one member names."""
    if name in _URIS:
        if isinstance(value, str) and not _is_foreign(value):
            plain = _FILE_URI.fullmatch(value)
            yield plain[1] if plain else value
    elif name == _URI:
        if isinstance(value, str) and not _is_foreign(value):
            opened = unquote(value).lower()
            plain = _FILE_URI.fullmatch(value)
            if plain or _FILES_API in opened or opened.lstrip("/").startswith("files/"):
                yield plain[1] if plain else value
    elif (
        name in _REFERENCES
        or (name in _OBJECTS and isinstance(value, tuple))
        or (name == _SKILL and _texts(members, "type") != {"anthropic"})
    ):
        yield from _ids_in(value)


def _ids_in(value: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    match value:
        case str():
            if value:
                yield value
        case list():
            for one in value:
                yield from _ids_in(one)
        case tuple():
            yield from _texts(value, "id")


def _is_foreign(uri: str) -> bool:
    """Return whether a URI is plainly not one of the Files API."""
    return bool(_FOREIGN_URI.fullmatch(uri)) and _FILES_API not in unquote(uri).lower()


def _stored_ids(item: Any) -> set[str]:  # noqa: ANN401 - JSON
    """Return the ids of an item that is only the name of one that the vendor stored."""
    if not isinstance(item, tuple):
        return set()
    ids = _texts(item, "id")
    if not ids:
        return ids
    kinds = [value for name, value in item if name == "type"]
    if len(kinds) > 1 or "item_reference" in kinds:
        return ids
    kind = kinds[0] if kinds else None
    if not isinstance(kind, str):
        return set() if _holds(item, "content") else ids
    if kind not in _CARRIES or _holds(item, _CARRIES[kind]):
        return set()
    is_whole = kind == "reasoning" and _holds(item, "content")
    return ids if not is_whole or any(one.startswith(_REASONING_ID) for one in ids) else set()


def _texts(members: tuple[Any, ...], wanted: str) -> set[str]:
    """Return the texts that a member has, none where it is absent or null."""
    return {value for name, value in members if name == wanted and isinstance(value, str) and value}


def _holds(members: tuple[Any, ...], wanted: str) -> bool:
    """Return whether a member has something in it, every time that it is there."""
    values = [value for name, value in members if name == wanted]
    return bool(values) and all(values)
