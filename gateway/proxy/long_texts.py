"""Where the long texts of a conversation stand in a body: no member's name can be in them.

Most of a large body is a few texts, a file of code for one. A search for names that leaves them out
takes a third of the time. The decoder tells what the texts are, and a search for the names of their
members where they stand; what is not found where it should be is just not left out.
"""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from gateway.proxy.body import Members, Span

BODY_BYTES_MIN: Final = 8 * 1024  # below it, searching through all of a body costs less
TEXT_BYTES_MIN: Final = 1024  # shorter ones are searched through as well

_ABSENT: Final = msgspec.Raw()
_QUOTE: Final = ord('"')
_COLON: Final = re.compile(rb"[ \t\r\n]*+:[ \t\r\n]*+")
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Part(msgspec.Struct):
    """A part of a message, in any wire format."""

    text: msgspec.Raw = _ABSENT
    content: msgspec.Raw = _ABSENT  # of a tool's result


class _Message(msgspec.Struct):
    """A message, in any wire format."""

    content: msgspec.Raw = _ABSENT
    parts: msgspec.Raw = _ABSENT  # Gemini's


_decode_messages: Final = msgspec.json.Decoder(list[_Message]).decode
_decode_parts: Final = msgspec.json.Decoder(list[_Part]).decode


def outside_long_texts(text: bytes, members: Members) -> list[Span]:
    """Return what is left of a body, in order, without the texts that are long.

    `members` were decoded from it; it is valid JSON. Each text left out is a string that is the
    value of a member, so that no name is in it, and none is cut.
    """
    size = len(text)
    if size < BODY_BYTES_MIN:
        return [(0, size)]
    texts: set[Span] = set()
    for messages in (members.messages, members.input, members.contents):
        if len(messages) >= TEXT_BYTES_MIN:
            texts.update(_places(text, _long_texts(messages)))
    if len(members.system) >= TEXT_BYTES_MIN:
        texts.update(_places(text, _texts_of(members.system, b'"system"')))
    left: list[Span] = []
    at = 0
    for start, end in sorted(texts):
        left.append((at, start))
        at = end
    left.append((at, size))
    return left


def _long_texts(messages: msgspec.Raw) -> Iterator[tuple[bytes, msgspec.Raw]]:
    """Yield the long texts of messages as they are written, each with its member's name."""
    try:
        decoded = _decode_messages(messages)
    except _UNREADABLE:
        return
    for message in decoded:
        if len(message.content) >= TEXT_BYTES_MIN:
            yield from _texts_of(message.content, b'"content"')
        elif len(message.parts) >= TEXT_BYTES_MIN:
            yield from _texts_of(message.parts, b'"parts"')


def _texts_of(value: msgspec.Raw, name: bytes) -> Iterator[tuple[bytes, msgspec.Raw]]:
    """Yield a long value of the member `name`, if it is a text; the long texts of its parts."""
    if memoryview(value)[0] == _QUOTE:
        yield name, value
        return
    try:
        parts = _decode_parts(value)
    except _UNREADABLE:
        return
    for part in parts:
        if len(part.text) >= TEXT_BYTES_MIN:
            yield from _text(part.text, b'"text"')
        elif len(part.content) >= TEXT_BYTES_MIN:
            yield from _text(part.content, b'"content"')


def _text(value: msgspec.Raw, name: bytes) -> Iterator[tuple[bytes, msgspec.Raw]]:
    if memoryview(value)[0] == _QUOTE:
        yield name, value


def _places(text: bytes, texts: Iterator[tuple[bytes, msgspec.Raw]]) -> Iterator[Span]:
    """Yield where texts stand that come one after the other.

    Between strings, a quoted word with a colon behind it is the end of a name, and what follows it
    a value: inside of a string, a quote has a backslash before it. So a text that begins there
    is all of that value.
    """
    at = 0
    for name, value in texts:
        place = text.find(name, at)
        while place >= 0:
            at = place + len(name)
            colon = _COLON.match(text, at)
            if colon is not None and text.startswith(memoryview(value), colon.end()):
                at = colon.end() + len(value)
                yield colon.end(), at
                break
            place = text.find(name, at)
        else:
            return
