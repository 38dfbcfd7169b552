"""Ollama's own API. Ollama also speaks OpenAI's, below `/v1`: that is a vendor of kind openai."""

from collections.abc import Sequence
from datetime import UTC, datetime
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
    """Return `{"error": message}`, all that this shape has a place for."""
    del status, reason, call_id, param
    return json_body({"error": message})


def models_list_body(models: Sequence[Model], *, has_more: bool = False) -> bytes:
    """Return the list; this shape has no pages."""
    del has_more
    return json_body({"models": [_model(model) for model in models]})


def model_body(model: Model) -> bytes:
    """Return one model, as the list has it."""
    return json_body(_model(model))


def _model(model: Model) -> dict[str, Any]:
    modified = datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "name": model.id,
        "model": model.id,
        "modified_at": modified,
        "size": 0,
        "digest": "",
        "details": {},
    }


def credential_header(key: bytes) -> tuple[bytes, bytes]:
    """Return `authorization: Bearer`, which a server of one's own ignores. Raises KeyUnusable."""
    return b"authorization", b"Bearer " + header_value(key)


def bad_key(status: int, body: bytes) -> bool:
    """Return whether the gateway's own key was refused: errors have no codes, the status tells."""
    del body
    return status == 401  # noqa: PLR2004 - Unauthorized


def model_ids(body: bytes) -> list[str]:
    """Return the names in `models`. Raises ModelListUnreadable."""
    return listed_ids(body, member="models", name="name")


# A stream has lines of JSON and no event of ours: it is aborted.
FORMAT: Final = WireFormat(
    name="ollama",
    error_body=error_body,
    stream_error_event=None,
    models_list_body=models_list_body,
    model_body=model_body,
)

OLLAMA: Final = VendorKind(
    name="ollama",
    wire=FORMAT,
    default_base_url="http://127.0.0.1:11434",
    needs_usage_asked=False,
    credential_header=credential_header,
    target_path=below_base,
    bad_key=bad_key,
    models_path="/api/tags",
    model_ids=model_ids,
)
