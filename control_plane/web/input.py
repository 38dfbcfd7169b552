"""Queries and bodies: from bytes to the types that a route says; a refusal names the field."""

import re
import uuid
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect

from control_plane.errors import BadArgument

Struct = TypeVar("Struct", bound=msgspec.Struct)

TEXT_CHARS_MAX: Final = 8_192

_PLACE: Final = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_NO_CHOICE: Final = "Invalid enum value"
_FIELD: Final = re.compile(r"Object (?:missing required|contains unknown) field `(?P<name>[^`]*)`")


def read_body(body: bytes, struct: type[Struct]) -> Struct:
    """Return a JSON body as a struct. Raises BadArgument, naming the field and what is wrong."""
    try:
        return msgspec.json.decode(body, type=struct)
    except msgspec.ValidationError as error:
        raise _refusal(error, struct) from error
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
        raise _refusal(error, struct) from error


def read_uuid(text: str, *, field: str) -> uuid.UUID:
    """Return an id in the one form that we write. Raises BadArgument."""
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        parsed = None
    if parsed is None or str(parsed) != text:
        raise BadArgument("This is not an id: write it as it was given to you.", field=field)
    return parsed


def _refusal(error: msgspec.ValidationError, struct: type[msgspec.Struct]) -> BadArgument:
    match = _PLACE.fullmatch(str(error))
    assert match is not None, "everything matches"
    what, path = match["what"], (match["path"] or "").lstrip(".")
    if named := _FIELD.fullmatch(what):
        path = f"{path}.{named['name']}" if path else named["name"]
    elif what.startswith(_NO_CHOICE) and (choices := _choices(struct, path)):
        what = f"{what}: it is one of {', '.join(choices)}"
    return BadArgument(f"{what}.", field=path[:TEXT_CHARS_MAX] or "body")


def _choices(struct: type[msgspec.Struct], name: str) -> list[str]:
    """Return what a field of a struct may be, where that is one of some texts."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    kinds = [one.type for one in info.fields if one.encode_name == name]
    kinds += [kind for one in kinds if isinstance(one, inspect.UnionType) for kind in one.types]
    choices: list[str] = []
    for kind in kinds:
        if isinstance(kind, inspect.LiteralType):
            choices += map(str, kind.values)
        elif isinstance(kind, inspect.EnumType):
            choices += (str(one.value) for one in kind.cls)
    return choices
