"""Models that a body names once more for each of its `requests`: Gemini's batchEmbedContents.

Google wants them to be the model of the path. Whether it looks is not left to it: a model list must
not be slipped past. An alias is replaced in all of them.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.errors import BodyInvalid
from gateway.proxy.body import DecidingFields, Span, decode_members, member_spans, past_space

REQUESTS_MAX: Final = 1_000  # in one body; Google takes 100

_REQUESTS: Final = frozenset({b"requests"})
_MODEL: Final = frozenset({b"model"})
_PREFIX: Final = "models/"
_BOTH: Final = "'requests' names another model than the path."

_decode_list: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_text: Final = msgspec.json.Decoder(str).decode


def inner_models(fields: DecidingFields, model_in_path: str) -> Sequence[tuple[Span, str]]:
    """Return where a body's requests name their model, and with which prefix.

    Raises BodyInvalid where one is not the model of the path, or can't be read for certain.
    """
    text = fields.text
    span = member_spans(text, 0, wanted=_REQUESTS, members=fields.members).get(b"requests")
    if span is None:
        return ()
    try:
        requests = _decode_list(text[slice(*span)])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BodyInvalid("'requests' is not a list.", param="requests") from error
    if len(requests) > REQUESTS_MAX:
        raise BodyInvalid(f"'requests' has more than {REQUESTS_MAX} in it.", param="requests")
    found: list[tuple[Span, str]] = []
    at = span[0] + 1
    for raw in requests:
        start = past_space(text, at)
        end = start + len(memoryview(raw))
        request = text[start:end]
        inner = member_spans(request, 0, wanted=_MODEL, members=decode_members(request))
        if b"model" in inner:
            place = inner[b"model"]
            prefix = _prefix(request[slice(*place)], model_in_path)
            found.append(((start + place[0], start + place[1]), prefix))
        at = past_space(text, end) + 1  # past the comma, or the end of the list
    return found


def _prefix(value: bytes, model_in_path: str) -> str:
    """Return what a model's name in a body has before the name in the path. Raises BodyInvalid."""
    try:
        named = _decode_text(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BodyInvalid("A 'model' in 'requests' is not a string.", param="requests") from error
    if named.removeprefix(_PREFIX) != model_in_path:
        raise BodyInvalid(_BOTH, param="requests")
    return named.removesuffix(model_in_path)
