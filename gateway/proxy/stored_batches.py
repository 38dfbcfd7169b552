"""The requests of a batch, in its own body or in a file's lines: which models they name."""

import json
from typing import Any, Final

import msgspec

from gateway.errors import BodyInvalid
from gateway.proxy.routing import model_problem

# Objects are tuples of (name, value): a name that is there twice is read twice.
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=len, parse_float=len, strict=False
)
_ESCAPE: Final = b"\\u00"  # how an escape begins that can hide a letter of a name


class _LineBody(msgspec.Struct):
    """The request of a line, as far as it decides."""

    model: str


class _Line(msgspec.Struct):
    """A line of a batch, as far as it decides."""

    body: _LineBody


_decode_line: Final = msgspec.json.Decoder(_Line).decode


def batch_models(text: bytes) -> set[str]:
    """Return every model that a batch's requests name. Raises BodyInvalid where one names none."""
    try:
        document = _DECODER.decode(text.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise BodyInvalid from error
    models: set[str] = set()
    for requests in _values(document, "requests"):
        for request in requests if isinstance(requests, list) else ():
            for params in _values(request, "params"):
                named = _values(params, "model")
                if not named:
                    raise BodyInvalid("A request of the batch has no 'model'.", param="model")
                models.update(map(_model, named))
    return models


def models_of_line(line: bytes) -> set[str | None]:
    """Return every model that one line of a batch's file names, None for a request without one.

    Raises BodyInvalid where the line is no JSON object in UTF-8: others may read it nevertheless.
    """
    if _is_plain(line):
        try:
            line.decode()
            return {_model(_decode_line(line).body.model)}
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass  # what it lacks, or whether it is JSON at all, is seen below
    try:
        document = _DECODER.decode(line.decode())
    except (ValueError, RecursionError) as error:
        raise BodyInvalid(_NO_LINE) from error
    if not isinstance(document, tuple):
        raise BodyInvalid(_NO_LINE)
    models: set[str | None] = set()
    for body in _values(document, "body") or [()]:
        named = _values(body, "model")
        models.update(map(_model, named) if named else (None,))
    return models


_NO_LINE: Final = "A line of the batch's file is not a JSON object in UTF-8."


def _is_plain(line: bytes) -> bool:
    """Return whether a line has no name that decides twice or in disguise."""
    return _ESCAPE not in line and line.count(b'"model"') == line.count(b'"body"') == 1


def _values(members: Any, wanted: str) -> list[Any]:  # noqa: ANN401 - JSON
    if not isinstance(members, tuple):
        return []
    return [value for name, value in members if name == wanted]


def _model(value: Any) -> str:  # noqa: ANN401 - JSON
    problem = model_problem(value) if isinstance(value, str) else "is not a string"
    if problem is not None:
        raise BodyInvalid(f"'model' {problem}.", param="model")
    return str(value)
