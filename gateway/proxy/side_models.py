"""Models that a body names beside its own: for tools, for plugins, for an agent.

A vendor calls them as well, so a model list holds for them. They are looked for at any depth of
the few members that may name some, but not in what is handed to the model as it stands: the
schema of a function may well have a property called `model`.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from gateway.errors import BodyInvalid
from gateway.proxy.body import DecidingFields, member_spans
from gateway.proxy.stored_objects import OPAQUE

AGENT: Final = "agent"  # of the Interactions API, which takes it in place of a model

_MEMBERS: Final = frozenset({AGENT.encode(), b"plugins", b"tools"})
_NAMES: Final = frozenset({"allowed_models", "model", "models"})  # a name, or a list of names
_PARAMETERS: Final = "parameters"  # a function's schema; of other tools, what they are set to
_FUNCTIONS: Final = ("custom", "function", None)

# Most bodies cost these searches only. An escape can hide a letter; U+017F is an `s` to some.
_ESCAPE: Final = b"\\u"
_SUSPECT: Final = re.compile(rb'"(?:agent|(?:plugin|tool)(?:s|\xc5\xbf))"', re.IGNORECASE)
_SUSPECT_MODEL: Final = re.compile(rb'model(?:s|\xc5\xbf)?"', re.IGNORECASE)

# As in `stored_objects`: objects are tuples of (name, value), arrays are lists.
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=len, parse_float=len, strict=False
)


class SideModel(NamedTuple):
    """A model that a body names, and where; None where no name can be read there."""

    param: str
    model: str | None


def side_models(fields: DecidingFields) -> Iterator[SideModel]:
    """Yield the models that tools, plugins and an agent of a body are.

    Raises BodyInvalid where a member that may name some is there twice, or in disguise.
    """
    text = fields.text
    if _ESCAPE not in text and _SUSPECT.search(text) is None:
        return
    for name, span in member_spans(text, 0, wanted=_MEMBERS, members=fields.members).items():
        value = text[slice(*span)]
        if name == AGENT.encode():
            if value != b"null":
                named = _decoded(value)
                yield SideModel(AGENT, named if isinstance(named, str) else None)
        elif _ESCAPE in value or _SUSPECT_MODEL.search(value):
            yield from _within(name.decode(), _decoded(value))


def _decoded(value: bytes) -> Any:  # noqa: ANN401 - JSON
    try:
        return _DECODER.decode(value.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise BodyInvalid from error


def _within(member: str, document: Any) -> Iterator[SideModel]:  # noqa: ANN401 - JSON
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, tuple):
            is_function = all(inner in _FUNCTIONS for name, inner in value if name == "type")
            for name, inner in value:
                plain = name.casefold()  # some readers take a name in any case
                if plain in _NAMES and not isinstance(inner, tuple):
                    yield from _names(f"{member}[].{plain}", inner)
                elif name not in OPAQUE or (name == _PARAMETERS and not is_function):
                    waiting.append(inner)


def _names(param: str, value: Any) -> Iterator[SideModel]:  # noqa: ANN401 - JSON
    """Yield what the value of one member names: a text, texts, or nothing where it is null."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str):
            yield SideModel(param, one)
        elif one is not None:
            yield SideModel(param, None)
