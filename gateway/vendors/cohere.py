"""Cohere's own API, both versions of it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.vendors.vendor import (
    Model,
    VendorKind,
    WireFormat,
    below_base,
    header_value,
    json_body,
    listed_ids,
)


def error_body(
    *, status: int, reason: str, message: str, call_id: str, param: str | None = None
) -> bytes:
    """Return `{"id", "message"}`, all that this shape has a place for."""
    del status, reason, param
    return json_body({"id": call_id, "message": message})


def message_end_event(*, reason: str, message: str, call_id: str) -> bytes:
    """Return `event: message-end` with an error, after which a stream of version 2 ends."""
    del reason
    delta = {"error": message, "finish_reason": "ERROR"}
    event = {"type": "message-end", "id": call_id, "delta": delta}
    return b"event: message-end\ndata: " + json_body(event) + b"\n\n"


def models_list_body(models: Sequence[Model], *, has_more: bool = False) -> bytes:
    """Return the list, always on one page."""
    del has_more
    return json_body({"models": [_model(model) for model in models]})


def model_body(model: Model) -> bytes:
    """Return one model."""
    return json_body(_model(model))


def _model(model: Model) -> Mapping[str, Any]:
    return {"name": model.id, "endpoints": [], "finetuned": False}


def credential_header(key: bytes) -> tuple[bytes, bytes]:
    """Return `authorization: Bearer`. Raises KeyUnusable."""
    return b"authorization", b"Bearer " + header_value(key)


def bad_key(status: int, body: bytes) -> bool:
    """Return whether the gateway's own key was refused: errors have no codes, the status tells."""
    del body
    return status == 401  # noqa: PLR2004 - Unauthorized


def model_ids(body: bytes) -> list[str]:
    """Return the names in `models`. Raises ModelListUnreadable."""
    return listed_ids(body, member="models", name="name")


# A stream of version 1 has lines of JSON and no event of ours: it is aborted.
FORMAT: Final = WireFormat(
    name="cohere",
    error_body=error_body,
    stream_error_event=None,
    models_list_body=models_list_body,
    model_body=model_body,
)

COHERE: Final = VendorKind(
    name="cohere",
    wire=FORMAT,
    default_base_url="https://api.cohere.com",
    needs_usage_asked=False,
    credential_header=credential_header,
    target_path=below_base,
    bad_key=bad_key,
    models_path="/v1/models?page_size=1000",  # all of them; 20 where nothing is said
    model_ids=model_ids,
)
