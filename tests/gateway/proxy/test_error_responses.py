import base64
import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.errors import GatewayError, MethodNotAllowed, MonthlyLimitReached, TokenRevoked
from gateway.proxy.endpoints import (
    CHAT_COMPLETIONS,
    MESSAGES,
    RESPONSES,
    STREAM_GENERATE_CONTENT,
    Endpoint,
)
from gateway.proxy.error_responses import error_response, mask_key, stream_error
from gateway.vendors.registry import FORMATS

CALL_ID = "0199-call"
KEY = b"sk-vendor-9f8/7+6=5<4>3&2'1\"0\\z"
ARGUMENTS: dict[str, dict[str, Any]] = {
    "TooManyFailedLookups": {"wait_seconds": 1.0},
    "TooManyOpenCalls": {"calls_max": 3},
}
ALL_ERRORS = [
    one(**ARGUMENTS.get(one.__name__, {}))
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, GatewayError)
]


def answer(
    error: GatewayError, wire: str = "openai", *, keep_alive: bool = True
) -> tuple[bytes, list[bytes], bytes]:
    text = error_response(error, wire=FORMATS[wire], call_id=CALL_ID, keep_alive=keep_alive)
    head, _, body = text.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    return status, lines, body


def test_a_refusal_is_a_whole_answer_in_openais_shape() -> None:
    error = MonthlyLimitReached(
        headers={"x-kaixu-limit": "5", "x-kaixu-remaining": "0", "x-kaixu-reset": "2026-12-01"}
    )
    status, lines, body = answer(error)
    assert status == b"HTTP/1.1 429 Too Many Requests"
    assert lines == [
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"cache-control: no-store",
        b"x-content-type-options: nosniff",
        b"x-kaixu-call-id: 0199-call",
        b"x-kaixu-reason: monthly_limit",
        b"x-kaixu-limit: 5",
        b"x-kaixu-remaining: 0",
        b"x-kaixu-reset: 2026-12-01",
        b"x-should-retry: false",
    ]
    assert json.loads(body) == {
        "error": {
            "message": error.message,
            "type": "rate_limit_error",
            "param": None,
            "code": "monthly_limit",
        }
    }


def test_a_refusal_has_anthropics_shape() -> None:
    _, _, body = answer(TokenRevoked(), "anthropic")
    assert json.loads(body) == {
        "type": "error",
        "error": {"type": "authentication_error", "message": TokenRevoked.message},
        "request_id": CALL_ID,
    }


def test_a_refusal_has_geminis_shape() -> None:
    _, _, body = answer(TokenRevoked(), "gemini")
    assert json.loads(body) == {
        "error": {"code": 401, "message": TokenRevoked.message, "status": "UNAUTHENTICATED"}
    }


@pytest.mark.parametrize("wire", FORMATS)
@pytest.mark.parametrize("error", ALL_ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_has_an_answer_in_every_format(error: GatewayError, wire: str) -> None:
    status, lines, body = answer(error, wire)
    assert status.startswith(b"HTTP/1.1 %d " % error.status)
    assert b"x-kaixu-reason: " + error.reason.encode() in lines
    assert (b"x-should-retry: false" in lines) == (not error.retry)
    assert error.message in json.dumps(json.loads(body), ensure_ascii=False)


def test_an_answer_says_whether_the_connection_goes_on() -> None:
    assert b"connection: close" not in answer(TokenRevoked())[1]
    assert b"connection: close" in answer(TokenRevoked(), keep_alive=False)[1]


def test_the_answer_to_head_has_the_head_only() -> None:
    error = MethodNotAllowed(headers={"allow": "POST"})
    whole = error_response(error, wire=FORMATS["openai"], call_id=CALL_ID, keep_alive=True)
    head = error_response(
        error, wire=FORMATS["openai"], call_id=CALL_ID, keep_alive=True, head_only=True
    )
    assert whole.startswith(head)
    assert head.endswith(b"\r\nallow: POST\r\nx-should-retry: false\r\n\r\n")


@pytest.mark.parametrize(
    ("endpoint", "event"),
    [
        (
            CHAT_COMPLETIONS,
            (
                b'data: {"error":{"message":"Gone.","type":"server_error","param":null,'
                b'"code":"token_revoked"}}\n\n'
            ),
        ),
        (
            RESPONSES,
            (
                b'event: response.failed\ndata: {"type":"response.failed","sequence_number":0,'
                b'"response":{"id":"0199-call","object":"response","status":"failed",'
                b'"error":{"code":"invalid_prompt","message":"Gone."},"output":[]}}\n\n'
            ),
        ),
        (
            MESSAGES,
            (
                b'event: error\ndata: {"type":"error","error":{"type":"authentication_error",'
                b'"message":"Gone."},"request_id":"0199-call"}\n\n'
            ),
        ),
        (STREAM_GENERATE_CONTENT, None),
    ],
)
def test_a_stream_ends_in_its_endpoints_own_error_event(
    endpoint: Endpoint, event: bytes | None
) -> None:
    assert stream_error(endpoint, reason="token_revoked", message="Gone.", call_id=CALL_ID) == event


def test_a_response_that_may_be_asked_for_again_fails_with_another_code() -> None:
    event = stream_error(RESPONSES, reason="draining", message="Later.", call_id=CALL_ID)
    assert event is not None
    assert b'"error":{"code":"server_error","message":"Later."}' in event


@pytest.mark.parametrize(
    "form",
    [
        KEY,
        quote(KEY, safe="").encode(),
        quote(KEY).encode(),
        quote(KEY, safe="").lower().encode(),
        json.dumps(KEY.decode())[1:-1].encode(),
        json.dumps(KEY.decode())[1:-1].replace("/", "\\/").encode(),
        json.dumps(KEY.decode())[1:-1]
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .encode(),
        KEY.hex().encode(),
        KEY.hex().upper().encode(),
    ],
)
def test_a_vendor_key_is_masked_in_every_form(form: bytes) -> None:
    body = b'{"error":"bad key ' + form + b" and " + form + b'."}'
    masked = mask_key(body, KEY)
    stars = b"*" * len(form)
    assert masked == b'{"error":"bad key ' + stars + b" and " + stars + b'."}'


@given(st.binary(max_size=5), st.binary(max_size=5), st.booleans())
def test_a_vendor_key_is_masked_inside_base64(
    before: bytes,
    after: bytes,
    url_safe: bool,  # noqa: FBT001
) -> None:
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
    text = encode(before + KEY + after)
    masked = mask_key(text, KEY)
    assert len(masked) == len(text)
    assert masked.count(b"*") >= len(KEY) * 4 // 3 - 6


def test_what_has_no_key_in_it_stays() -> None:
    body = b'{"error":"bad key sk-***"}'
    assert mask_key(body, KEY) is body
    assert mask_key(b"bad key: bad", b"bad") == b"bad key: bad"
