"""The requests that a batch carries in its own body, as Anthropic's do: which models they name."""

import json
from typing import Any, Final

from gateway.errors import BodyInvalid
from gateway.proxy.routing import model_problem

# Objects are tuples of (name, value): a name that is there twice is read twice.
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=len, parse_float=len, strict=False
)


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


def _values(members: Any, wanted: str) -> list[Any]:  # noqa: ANN401 - JSON
    if not isinstance(members, tuple):
        return []
    return [value for name, value in members if name == wanted]


def _model(value: Any) -> str:  # noqa: ANN401 - JSON
    problem = model_problem(value) if isinstance(value, str) else "is not a string"
    if problem is not None:
        raise BodyInvalid(f"'model' {problem}.", param="model")
    return str(value)
