"""Google's Gemini API."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

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

_STATUS_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {
        401: "UNAUTHENTICATED",
        403: "PERMISSION_DENIED",
        404: "NOT_FOUND",
        429: "RESOURCE_EXHAUSTED",
        500: "INTERNAL",
        501: "UNIMPLEMENTED",
        504: "DEADLINE_EXCEEDED",
    }
)
# google.rpc.ErrorInfo reasons that are about the key, or about the project that owns it.
_BAD_KEY_REASONS: Final = frozenset(
    {
        "ACCESS_TOKEN_EXPIRED",
        "API_KEY_ANDROID_APP_BLOCKED",
        "API_KEY_HTTP_REFERRER_BLOCKED",
        "API_KEY_INVALID",
        "API_KEY_IOS_APP_BLOCKED",
        "API_KEY_IP_ADDRESS_BLOCKED",
        "API_KEY_SERVICE_BLOCKED",
        "CONSUMER_INVALID",
        "CONSUMER_SUSPENDED",
    }
)
_NAME_PREFIX: Final = "models/"


def error_body(
    *, status: int, reason: str, message: str, call_id: str, param: str | None = None
) -> bytes:
    """Return `{"error": {code, message, status}}`; the code is the HTTP status."""
    del reason, call_id, param  # they are in headers; this shape has no place for them
    fallback = "UNAVAILABLE" if status >= 500 else "INVALID_ARGUMENT"  # noqa: PLR2004
    name = _STATUS_NAMES.get(status, fallback)
    return json_body({"error": {"code": status, "message": message, "status": name}})


def models_list_body(models: Sequence[Model], *, has_more: bool = False) -> bytes:
    """Return one page of the list; the next one is after its last model."""
    body: dict[str, Any] = {"models": [_model(model) for model in models]}
    if has_more and models:
        body["nextPageToken"] = models[-1].id
    return json_body(body)


def model_body(model: Model) -> bytes:
    """Return one model."""
    return json_body(_model(model))


def _model(model: Model) -> dict[str, Any]:
    return {
        "name": _NAME_PREFIX + model.id,
        "displayName": model.id,
        "supportedGenerationMethods": ["generateContent", "streamGenerateContent", "countTokens"],
    }


def credential_header(key: bytes) -> tuple[bytes, bytes]:
    """Return `x-goog-api-key`. Raises KeyUnusable."""
    return b"x-goog-api-key", header_value(key)


def bad_key(status: int, body: bytes) -> bool:
    """Return whether the gateway's own key was refused: an unknown key is a 400 here."""
    match status:
        case 401:
            return True
        case 403:
            return not _BAD_KEY_REASONS.isdisjoint(error_codes(body))
        case 400:
            return "API_KEY_INVALID" in error_codes(body)
        case _:
            return False


def model_ids(body: bytes) -> list[str]:
    """Return the names in `models`, without their prefix. Raises ModelListUnreadable."""
    names = listed_ids(body, member="models", name="name")
    return [name.removeprefix(_NAME_PREFIX) for name in names]


FORMAT: Final = WireFormat(
    name="gemini",
    error_body=error_body,
    stream_error_event=None,
    models_list_body=models_list_body,
    model_body=model_body,
)

GEMINI: Final = VendorKind(
    name="gemini",
    wire=FORMAT,
    default_base_url="https://generativelanguage.googleapis.com",
    needs_usage_asked=False,
    credential_header=credential_header,
    target_path=below_base,
    bad_key=bad_key,
    models_path="/v1beta/models",
    model_ids=model_ids,
)
