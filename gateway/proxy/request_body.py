"""A request's body, whatever it is: JSON, a form with parts, or none. What it says, and its edits.

Which of them a path takes is in the table of endpoints; what else comes is refused with 415.
"""

from collections.abc import Sequence
from typing import Final

from gateway.errors import NotYours, UnsupportedBody
from gateway.proxy import body as bodies
from gateway.proxy import multipart
from gateway.proxy.body import DecidingFields
from gateway.proxy.endpoints import Endpoint
from gateway.proxy.inner_models import inner_models
from gateway.proxy.multipart import FormFields
from gateway.proxy.stored_objects import name_of_object
from gateway.vendors import gemini

_MODELS: Final = "models/"
_JSON: Final = b"application/json"

Fields = DecidingFields | FormFields


def read_fields(
    body: bytes,
    *,
    endpoint: Endpoint,
    content_types: Sequence[bytes],
    content_encoding: bytes | None,
    model_required: bool,
) -> Fields:
    """Return what a whole body says.

    Raises BodyInvalid, UnsupportedBody, BodyTooLarge; NotYours where a form names a stored object.
    """
    if endpoint.body != "json" and _is_form(content_types, endpoint=endpoint):
        form = multipart.read_form(
            body,
            content_type=content_types[0],
            content_encoding=content_encoding,
            model_required=model_required,
        )
        param = name_of_object(multipart.name_segments(form.names))
        if param is not None:
            raise NotYours(f"'{param}' names a stored object, which no form may.", param=param)
        return form
    for content_type in content_types:
        if content_type == _JSON:
            continue
        bodies.check_content_type(content_type)
    return bodies.read_deciding_fields(
        body, content_encoding=content_encoding, model_required=model_required
    )


def check_models_of_path(fields: Fields, model_in_path: str, *, endpoint: Endpoint) -> None:
    """Raise BodyInvalid where a body names another model than its path."""
    if isinstance(fields, DecidingFields):
        bodies.check_same_model(fields, model_in_path)
        if endpoint.has_inner_models:
            inner_models(fields, model_in_path)


def renamed(
    fields: Fields,
    *,
    endpoint: Endpoint,
    model: str | None,
    model_in_path: str | None,
    asks_usage: bool,
) -> bytes | None:
    """Return the body as it goes up, decoded; None where it goes up as it came.

    `model` is the vendor's name for an alias, else None.
    """
    if isinstance(fields, FormFields):
        return None if model is None else multipart.with_model(fields, model)
    inner: list[tuple[bodies.Span, bytes]] = []
    if model is not None and model_in_path is not None:
        if endpoint.has_inner_models:
            inner = [
                (span, bodies.quoted(_with_prefix(prefix, model)))
                for span, prefix in inner_models(fields, model_in_path)
            ]
        if fields.model is None or not fields.model.endswith(model_in_path):
            model = None  # the vendor decides by the path
        else:
            model = _with_prefix(fields.model.removesuffix(model_in_path), model)
    elif model is not None and endpoint.wire is gemini.FORMAT and fields.model is not None:
        model = _with_prefix(_MODELS if fields.model.startswith(_MODELS) else "", model)
    if model is None and not asks_usage and not inner:
        return None
    return bodies.edited(fields, model=model, asks_usage=asks_usage, inner=inner)


def _with_prefix(prefix: str, model: str) -> str:
    """Return a model as a body of Gemini's names it, which has its collection before it."""
    return model if "/" in model else prefix + model


def _is_form(content_types: Sequence[bytes], *, endpoint: Endpoint) -> bool:
    """Return whether a body is a form, False for JSON. Raises UnsupportedBody."""
    if len(content_types) > 1:
        raise UnsupportedBody("A form has one Content-Type.")
    content_type = content_types[0] if content_types else b""
    if multipart.is_form(content_type):
        return True
    media_type = content_type.partition(b";")[0].strip(b" \t").lower()
    if endpoint.body == "form or json" and media_type == b"application/json":
        return False
    takes = " or JSON" if endpoint.body == "form or json" else ""
    raise UnsupportedBody(f"This endpoint takes a multipart/form-data{takes} body.")
