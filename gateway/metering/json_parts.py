"""JSON of which only a part is at hand: a body that was cut, or its head and its tail.

A body in one piece is too large to keep when it carries an image, and incomplete when the call was
cut. Both functions give valid JSON again, from what is certain at the document's top level.
"""

import json
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Final

import msgspec

CANDIDATES_MAX: Final = 8  # places looked at in a tail; each costs a parse up to where it fails

_DECODER: Final = json.JSONDecoder()
_SPACE: Final = " \t\r\n"


def objects_in_head(head: bytes) -> Iterator[bytes]:
    """Yield the top-level object (or objects of an array) that `head` begins, as far as complete.

    A member that is cut off is left out, with all after it.
    """
    text = head.decode("utf-8", "replace")
    at = _past_space(text, 0)
    if text[at : at + 1] != "[":
        yield _complete_members(text, at)
        return
    at = _past_space(text, at + 1)
    while text[at : at + 1] == "{":
        end = _end_of_value(text, at)
        if end is None:
            yield _complete_members(text, at)
            return
        yield text[at:end].encode()
        at = _past_space(text, end)
        if text[at : at + 1] == ",":
            at = _past_space(text, at + 1)


def object_in_tail(tail: bytes, name: bytes) -> bytes | None:
    """Return the last members of the top-level object that ends `tail`, from `name` on, or None.

    With a brace put before it, the rest of the document from a top-level `name` on is valid JSON;
    from one that is deeper inside, or within a string, it is not.
    """
    rest = tail.rstrip()
    if rest.endswith(b"]"):  # an array of objects: the last one counts
        rest = rest[:-1].rstrip()
    quoted = b'"' + name + b'"'
    at = len(rest)
    for _ in range(CANDIDATES_MAX):
        at = rest.rfind(quoted, 0, at)
        if at < 0:
            return None
        members = b"{" + rest[at:]
        try:
            msgspec.json.decode(members, type=dict[str, msgspec.Raw])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        return members
    return None


def _complete_members(text: str, at: int) -> bytes:
    members = []
    if text[at : at + 1] == "{":
        at = _past_space(text, at + 1)
        while text[at : at + 1] == '"':
            try:
                _, end = scanstring(text, at + 1, False)
            except ValueError:
                break
            colon = _past_space(text, end)
            if text[colon : colon + 1] != ":":
                break
            value_end = _end_of_value(text, _past_space(text, colon + 1))
            if value_end is None:
                break
            after = _past_space(text, value_end)
            if text[after : after + 1] not in {",", "}"}:
                break  # a number may be cut
            members.append(text[at:value_end])
            at = _past_space(text, after + 1)
    return ("{" + ",".join(members) + "}").encode()


def _end_of_value(text: str, at: int) -> int | None:
    try:
        return _DECODER.raw_decode(text, at)[1]
    except (ValueError, RecursionError):
        return None


def _past_space(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _SPACE:
        at += 1
    return at
