"""OpenAI's API, and that of every vendor that took over its shape."""

from collections.abc import Sequence
from functools import lru_cache
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

_CACHED_PATHS_MAX: Final = 128  # calls have a dozen; others name what is stored

# Names for a refused key on a 403 or 400. A 401 needs none.
_BAD_KEY_CODES: Final = frozenset(
    {
        "API_KEY_INVALID",  # Google's OpenAI-compatible endpoint
        "account_deactivated",
        "authentication_error",
        "invalid_api_key",
        "invalid_authentication_error",
        "key_disabled",
    }
)
_REFUSED: Final = (400, 403)
# Reasons that no other attempt would change. Of all codes that the Responses API knows, Codex shows
# the message of `invalid_prompt` at once; after `server_error` it tries again.
_FINAL_REASONS: Final = frozenset({"token_expired", "token_invalid", "token_revoked"})


def error_body(
    *, status: int, reason: str, message: str, call_id: str, param: str | None = None
) -> bytes:
    """Return `{"error": {message, type, param, code}}`; the code is the gateway's reason."""
    del call_id  # it is in a header; this shape has no place for it
    return json_body({"error": _error(_error_type(status), reason, message, param)})


def stream_error_event(*, reason: str, message: str, call_id: str) -> bytes:
    """Return `data: {"error": …}`, the event after which a chat stream ends."""
    del call_id
    error = _error("server_error", reason, message, None)
    return b"data: " + json_body({"error": error}) + b"\n\n"


def response_failed_event(*, reason: str, message: str, call_id: str) -> bytes:
    """Return `event: response.failed`, after which a stream of the Responses API ends."""
    code = "invalid_prompt" if reason in _FINAL_REASONS else "server_error"
    response = {
        "id": call_id,
        "object": "response",
        "status": "failed",
        "error": {"code": code, "message": message},
        "output": [],
    }
    event = {"type": "response.failed", "sequence_number": 0, "response": response}
    return b"event: response.failed\ndata: " + json_body(event) + b"\n\n"


def _error(kind: str, code: str, message: str, param: str | None) -> dict[str, str | None]:
    return {"message": message, "type": kind, "param": param, "code": code}


def _error_type(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case _ if status >= 500:  # noqa: PLR2004 - server errors
            return "server_error"
        case _:
            return "invalid_request_error"


def models_list_body(models: Sequence[Model], *, has_more: bool = False) -> bytes:
    """Return the list; this shape has no pages."""
    del has_more
    return json_body({"object": "list", "data": [_model(model) for model in models]})


def model_body(model: Model) -> bytes:
    """Return one model."""
    return json_body(_model(model))


def _model(model: Model) -> dict[str, Any]:
    """Return OpenAI's four members, and the two without which Mistral's SDKs read no entry."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owner,
        "type": "base",
        "capabilities": {},  # nothing is said of them
    }


def credential_header(key: bytes) -> tuple[bytes, bytes]:
    """Return `authorization: Bearer`. Raises KeyUnusable."""
    return b"authorization", b"Bearer " + header_value(key)


@lru_cache(maxsize=_CACHED_PATHS_MAX)
def target_path(base_path: str, path: str) -> str:
    """Return the path to ask for: the base URL has the version (…/openai/v1), so `/v1` goes."""
    return below_base(base_path, path.removeprefix("/v1") if path.startswith("/v1/") else path)


def bad_key(status: int, body: bytes) -> bool:
    """Return whether the gateway's own key was refused."""
    if status == 401:  # noqa: PLR2004 - Unauthorized
        return True
    return status in _REFUSED and not _BAD_KEY_CODES.isdisjoint(error_codes(body))


def model_ids(body: bytes) -> list[str]:
    """Return the ids in `data`, or in a bare list. Raises ModelListUnreadable."""
    return listed_ids(body, member="data", name="id")


FORMAT: Final = WireFormat(
    name="openai",
    error_body=error_body,
    stream_error_event=stream_error_event,
    models_list_body=models_list_body,
    model_body=model_body,
)

OPENAI: Final = VendorKind(
    name="openai",
    wire=FORMAT,
    default_base_url="https://api.openai.com/v1",
    needs_usage_asked=True,
    credential_header=credential_header,
    target_path=target_path,
    bad_key=bad_key,
    models_path="/models",
    model_ids=model_ids,
)
