"""Queries and bodies: from bytes to the types that a route says; a refusal names the field."""

import re
import uuid
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from control_plane.errors import BadArgument

Struct = TypeVar("Struct", bound=msgspec.Struct)

TEXT_CHARS_MAX: Final = 8_192

_PLACE: Final = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_FIELD: Final = re.compile(r"Object (?:missing required|contains unknown) field `(?P<name>[^`]*)`")


def read_body(body: bytes, struct: type[Struct]) -> Struct:
    """Return a JSON body as a struct. Raises BadArgument, naming the field and what is wrong."""
    try:
        return msgspec.json.decode(body, type=struct)
    except msgspec.ValidationError as error:
        raise _refusal(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadArgument("The body is not JSON.", field="body") from error


def read_query(query: Mapping[str, list[str]], struct: type[Struct]) -> Struct:
    """Return query parameters as a struct, each at most once. Raises BadArgument."""
    single: dict[str, Any] = {}
    for name, values in query.items():
        if len(values) > 1:
            raise BadArgument("This parameter is there more than once.", field=name)
        single[name] = values[0]
    try:
        return msgspec.convert(single, struct, strict=False)
    except msgspec.ValidationError as error:
        raise _refusal(error) from error


def read_uuid(text: str, *, field: str) -> uuid.UUID:
    """Return an id in the one form that we write. Raises BadArgument."""
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        parsed = None
    if parsed is None or str(parsed) != text:
        raise BadArgument("This is not an id: write it as it was given to you.", field=field)
    return parsed


def _refusal(error: msgspec.ValidationError) -> BadArgument:
    match = _PLACE.fullmatch(str(error))
    assert match is not None, "everything matches"
    what, path = match["what"], (match["path"] or "").lstrip(".")
    if named := _FIELD.fullmatch(what):
        path = f"{path}.{named['name']}" if path else named["name"]
    return BadArgument(f"{what}.", field=path[:TEXT_CHARS_MAX] or "body")
