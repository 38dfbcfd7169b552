"""Vendors' JSON, decoded into what is declared of it: in one step, in C, wherever all of it fits.

A `Struct` says which members matter and what they may be. What a vendor writes is read with
suspicion: where a document does not fit, it is read again member by member, and what can't be true
is None and flagged, so that one odd member costs no other.
"""

from types import UnionType
from typing import Annotated, Any, Final, Generic, TypeVar, get_args, get_origin

import msgspec

from gateway.metering.usage import COUNT_MAX, Flag, Flags, split_members, without_nan

# A whole number of tokens or the like. Never negative, and exact in JSON.
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)] | None
# Of audio, which may have a fraction.
Seconds = (
    Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
    | Annotated[float, msgspec.Meta(ge=0, le=COUNT_MAX)]
    | None
)

UNREADABLE_FAULTS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

T = TypeVar("T", bound=msgspec.Struct)


class Lenient(Generic[T]):
    """Decodes one kind of object."""

    def __init__(self, kind: type[T]) -> None:
        """`kind` has defaults for all its members; those it does not name are passed over."""
        self._kind = kind
        self._decode = msgspec.json.Decoder(kind).decode

    def read(self, document: bytes | msgspec.Raw, flags: Flags) -> T | None:
        """Return the object in a document, or None, flagged, where there is none. Never raises."""
        try:
            return self._decode(document)
        except UNREADABLE_FAULTS:
            return _read_members(self._kind, bytes(document), flags)


def _read_members(kind: type[T], document: bytes, flags: Flags) -> T | None:
    members = split_members(document)
    if members is None:
        members = split_members(without_nan(document))
        if members is None:
            flags.raise_(Flag.UNREADABLE)
            return None
        flags.raise_(Flag.BAD_NUMBER)
    told: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        raw = members.get(field.encode_name)
        if raw is not None:
            told[field.name] = _read_member(field, raw, flags)
    return kind(**told)


def _read_member(field: msgspec.structs.FieldInfo, raw: bytes, flags: Flags) -> Any:  # noqa: ANN401
    """Return a member as its field declares it, or the field's default."""
    try:
        return msgspec.json.decode(raw, type=field.type)
    except UNREADABLE_FAULTS:
        pass
    inner = _struct_in(field.type)
    if inner is not None and raw.startswith(b"{"):
        return _read_members(inner, raw, flags)
    if field.type in (Count, Seconds):
        flags.raise_(Flag.BAD_NUMBER)
    elif field.type is not Any:
        flags.raise_(Flag.UNREADABLE)
    return field.default


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:  # noqa: ANN401 - a type
    """Return the struct that a field may hold, if it may hold one."""
    if get_origin(kind) is not UnionType:
        return None
    return next((one for one in get_args(kind) if msgspec.inspect.is_struct_type(one)), None)
