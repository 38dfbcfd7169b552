"""Anthropic's API."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

from gateway.vendors.vendor import (
    Model,
    VendorKind,
    WireFormat,
    below_base,
    error_codes,
    header_value,
    json_body,
    listed_ids,
)

_ERROR_TYPES: Final[Mapping[int, str]] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        501: "not_supported",
        504: "timeout_error",
        529: "overloaded_error",
    }
)
# An event has no status beside it; the reasons that a running stream may end with have one here.
_STREAM_ERROR_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "token_expired": "authentication_error",
        "token_invalid": "authentication_error",
        "token_revoked": "authentication_error",
        "vendor_timeout": "timeout_error",
        "draining": "overloaded_error",
        "database_away": "overloaded_error",
    }
)
_BAD_KEY_CODES: Final = frozenset({"authentication_error"})


def error_body(
    *, status: int, reason: str, message: str, call_id: str, param: str | None = None
) -> bytes:
    """Return `{"type": "error", "error": {type, message}, "request_id"}`."""
    del reason, param  # the reason is in a header; this shape has no place for either
    fallback = "api_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004
    return _error(_ERROR_TYPES.get(status, fallback), message, call_id)


def stream_error_event(*, reason: str, message: str, call_id: str) -> bytes:
    """Return `event: error` with the same body."""
    kind = _STREAM_ERROR_TYPES.get(reason, "api_error")
    return b"event: error\ndata: " + _error(kind, message, call_id) + b"\n\n"


def _error(kind: str, message: str, call_id: str) -> bytes:
    error = {"type": kind, "message": message}
    return json_body({"type": "error", "error": error, "request_id": call_id})


def models_list_body(models: Sequence[Model], *, has_more: bool = False) -> bytes:
    """Return one page of the list."""
    return json_body(
        {
            "data": [_model(model) for model in models],
            "has_more": has_more,
            "first_id": models[0].id if models else None,
            "last_id": models[-1].id if models else None,
        }
    )


def model_body(model: Model) -> bytes:
    """Return one model."""
    return json_body(_model(model))


def _model(model: Model) -> dict[str, str]:
    created = datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.id,
        "created_at": created,
    }


def credential_header(key: bytes) -> tuple[bytes, bytes]:
    """Return `x-api-key`. Raises KeyUnusable."""
    return b"x-api-key", header_value(key)


def bad_key(status: int, body: bytes) -> bool:
    """Return whether the gateway's own key was refused."""
    if status == 401:  # noqa: PLR2004 - Unauthorized
        return True
    return status == 403 and not _BAD_KEY_CODES.isdisjoint(error_codes(body))  # noqa: PLR2004


def model_ids(body: bytes) -> list[str]:
    """Return the ids in `data`. Raises ModelListUnreadable."""
    return listed_ids(body, member="data", name="id")


FORMAT: Final = WireFormat(
    name="anthropic",
    error_body=error_body,
    stream_error_event=stream_error_event,
    models_list_body=models_list_body,
    model_body=model_body,
)

ANTHROPIC: Final = VendorKind(
    name="anthropic",
    wire=FORMAT,
    default_base_url="https://api.anthropic.com",
    needs_usage_asked=False,
    credential_header=credential_header,
    target_path=below_base,
    bad_key=bad_key,
    models_path="/v1/models",
    models_headers=((b"anthropic-version", b"2023-06-01"),),
    model_ids=model_ids,
)
