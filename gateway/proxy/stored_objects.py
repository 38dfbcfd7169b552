"""Objects that vendors keep under the gateway's own key, and the bodies that name one.

Files, responses, conversations, containers, cached contents belong to the org that made them. The
gateway does not yet record which one that was, so a body that names any is refused: one org never
reaches what another one stored.

Names are looked for at any depth, in all wire formats alike: vendors take over each other's. Most
bodies cost only a search for the names, quoted, and for an escape that could hide a letter of one;
the others are opened and walked. Of a member that is there twice both values are looked at. What
a vendor hands to the model as it stands (tools' schemas and arguments) or keeps for the client
(metadata) may have such names in it and names nothing.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import unquote

from gateway.errors import BodyInvalid, NotYours

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
_OPAQUE: Final = frozenset(
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

_NAMES: Final = sorted(_REFERENCES | _URIS | {_SKILL})
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


def check_names_none(text: bytes, *, has_items: bool = False) -> None:
    """Raise NotYours where a body names a stored object, BodyInvalid where it can't be read.

    `has_items`: the body is of the Responses API, whose `input` may name stored items.
    """
    if not _is_suspect(text) and not (has_items and _SUSPECT_ITEM.search(text)):
        return
    try:
        document = _DECODER.decode(text.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise BodyInvalid from error
    for members in _objects(document):
        for name, value in members:
            if _names_one(name, value, members):
                raise NotYours(_message(name), param=name)
    if has_items:
        for name, value in document:
            if name == "input" and isinstance(value, list) and any(map(_is_stored, value)):
                raise NotYours(_message(name), param=name)


def check_fields_name_none(names: Iterable[str]) -> None:
    """Raise NotYours where a form has a field whose name, or a part of it, is one of an object."""
    for name in names:
        if name in _REFERENCES or name in _URIS or name == _SKILL:
            raise NotYours(_message(name), param=name)


def _is_suspect(text: bytes) -> bool:
    if _SUSPECT.search(text):
        return True
    return _ESCAPE in text and _ESCAPED_LETTER.search(text) is not None


def _message(name: str) -> str:
    return f"'{name}' names an object stored at the vendor that the gateway does not know as yours."


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
                if name not in _OPAQUE and not (is_tool_use and name == "input")
            ]
        elif isinstance(value, list):
            waiting += value


def _names_one(name: str, value: Any, members: tuple[Any, ...]) -> bool:  # noqa: ANN401 - JSON
    if name in _REFERENCES:
        return _is_reference(value)
    if name in _OBJECTS:
        return isinstance(value, tuple) and _is_reference(value)
    if name == _SKILL:
        return _is_reference(value) and _texts(members, "type") != {"anthropic"}
    return name in _URIS and isinstance(value, str) and not _is_foreign(value)


def _is_reference(value: Any) -> bool:  # noqa: ANN401 - JSON
    match value:
        case str():
            return value != ""
        case list():
            return any(map(_is_reference, value))
        case tuple():
            return bool(_texts(value, "id"))
        case _:
            return False


def _is_foreign(uri: str) -> bool:
    """Return whether a URI is plainly not one of the Files API."""
    return bool(_FOREIGN_URI.fullmatch(uri)) and _FILES_API not in unquote(uri).lower()


def _is_stored(item: Any) -> bool:  # noqa: ANN401 - JSON
    """Return whether an item of a Responses input is the name of one that the vendor stored."""
    if not isinstance(item, tuple):
        return False
    ids = _texts(item, "id")
    if not ids:
        return False
    kinds = [value for name, value in item if name == "type"]
    if len(kinds) > 1 or "item_reference" in kinds:
        return True
    kind = kinds[0] if kinds else None
    if not isinstance(kind, str):
        return not _holds(item, "content")
    if kind not in _CARRIES or _holds(item, _CARRIES[kind]):
        return False
    is_whole = kind == "reasoning" and _holds(item, "content")
    return not is_whole or any(one.startswith(_REASONING_ID) for one in ids)


def _texts(members: tuple[Any, ...], wanted: str) -> set[str]:
    """Return the texts that a member has, none where it is absent or null."""
    return {value for name, value in members if name == wanted and isinstance(value, str) and value}


def _holds(members: tuple[Any, ...], wanted: str) -> bool:
    """Return whether a member has something in it, every time that it is there."""
    values = [value for name, value in members if name == wanted]
    return bool(values) and all(values)
