import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.connect_guard import BaseUrl
from gateway.proxy.headers import downstream_headers, upstream_headers, upstream_query
from gateway.proxy.routing import Target
from gateway.vendors.openai import OPENAI

Headers = list[tuple[bytes, bytes]]


def target(*, account_headers: bool = False, port: int = 443) -> Target:
    return Target(
        vendor_id="id",
        name="openai",
        kind=OPENAI,
        base=BaseUrl(scheme="https", host="api.openai.com", port=port, path="/v1"),
        is_private=False,
        is_default=True,
        models=None,
        asks_usage=True,
        account_headers=account_headers,
        is_simulator=False,
        credential=(b"authorization", b"Bearer sk-vendor"),
        key=b"sk-vendor",
    )


def up(
    sent: bytes,
    *,
    to: Target | None = None,
    stream: bool = True,
    drop_content_encoding: bool = False,
) -> bytes:
    headers = [tuple(line.split(b": ", 1)) for line in sent.split(b"\n") if line]
    return upstream_headers(
        headers,  # type: ignore[arg-type]
        target=to or target(),
        stream=stream,
        body_length=12,
        drop_content_encoding=drop_content_encoding,
    ).replace(b"\r\n", b"\n")


def test_a_request_goes_up_with_the_vendors_host_and_key() -> None:
    sent = b"""\
host: gateway.example.com
authorization: Bearer kxg_token
accept: application/json
anthropic-beta: a,b
anthropic-beta: c
content-length: 999
user-agent: some-sdk/1.0 \xff
connection: keep-alive
accept-encoding: gzip
x-stainless-lang: python
"""
    assert up(sent) == (
        b"""\
host: api.openai.com
authorization: Bearer sk-vendor
accept: application/json
anthropic-beta: a,b
anthropic-beta: c
user-agent: some-sdk/1.0 \xff
x-stainless-lang: python
accept-encoding: identity
content-length: 12
"""
    )
    assert up(b"", to=target(port=8443)).startswith(b"host: api.openai.com:8443\n")


@pytest.mark.parametrize(
    "name",
    [
        "authorization", "x-api-key", "x-goog-api-key", "api-key", "proxy-authorization",
        "cookie", "host", "connection", "keep-alive", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade", "expect", "content-length", "http2-settings",
        "forwarded", "x-forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via",
        "cf-connecting-ip", "cf-access-jwt-assertion", "true-client-ip", "x-client-ip",
        "x-original-url", "x-http-method-override", "x-envoy-external-address",
        "x-goog-iap-jwt-assertion", "x-goog-authenticated-user-email",
        "x-amz-date", "x-amz-security-token", "x-amz-content-sha256",
        "x-kaixu-call-id", "x-kaixu-anything",
        "openai-organization", "openai-project", "x-goog-user-project",
        "x_api_key", "x-api_key", "x_forwarded_for", "x_kaixu_reason", "openai_project",
        "transfer_encoding", "content_length", "content_encoding", "content_type",
    ],
)  # fmt: skip
def test_no_vendor_sees_what_is_between_client_and_gateway(name: str) -> None:
    sent = up(f"accept: a\n{name}: canary\naccept: b".encode())
    assert b"canary" not in sent
    assert b"accept: a\naccept: b\n" in sent


@pytest.mark.parametrize(
    "name",
    [
        "anthropic-version", "openai-beta", "x-goog-api-client", "x-client-request-id",
        "session-id", "session_id", "originator", "x-codex-turn", "traceparent", "content-type",
        "content-encoding", "x-app", "unknown", "x-goog-request-params", "origin", "priority",
    ],
)  # fmt: skip
def test_everything_else_passes_as_sent(name: str) -> None:
    line = f"{name}: a  value, with;=odd \xe9 things".encode("latin-1")
    assert b"\n" + line + b"\n" in up(line)


def test_a_vendor_row_may_let_clients_select_an_account() -> None:
    sent = b"openai-organization: org-1\nopenai-project: p\nx-goog-user-project: q\n"
    assert sent in up(sent, to=target(account_headers=True))
    assert b"_project" not in up(b"openai_project: p", to=target(account_headers=True))


def test_headers_that_connection_names_end_here() -> None:
    sent = up(b"connection: close, X-Hop\nx-hop: 1\nconnection: x-other\nx-other: 2\nx-stay: 3")
    assert b"x-hop" not in sent
    assert b"x-other" not in sent
    assert b"x-stay: 3" in sent
    assert b"authorization: Bearer sk-vendor" in up(b"connection: authorization, host")
    assert b"host: api.openai.com" in up(b"connection: authorization, host")


def test_a_body_that_is_sent_decoded_says_so() -> None:
    sent = b"content-encoding: zstd\ncontent-type: application/json"
    assert b"content-encoding" not in up(sent, drop_content_encoding=True)
    assert b"content-type: application/json" in up(sent, drop_content_encoding=True)


def test_a_request_without_a_body_has_no_length() -> None:
    sent = upstream_headers(
        [], target=target(), stream=False, body_length=None, drop_content_encoding=False
    )
    assert b"content-length" not in sent


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        (b"", b"identity"),
        (b"accept-encoding: gzip, deflate, br, zstd", b"gzip, deflate, br, zstd"),
        (b"accept-encoding: gzip;q=0.8, BR ;q=1.0", b"gzip;q=0.8, BR ;q=1.0"),
        (b"accept-encoding: gzip;q=0, br; q=0.000, zstd;q=0.001", b"zstd;q=0.001"),
        (b"accept-encoding: compress, snappy", b"identity"),
        (b"accept-encoding: *", b"identity"),
        (b"accept-encoding: gzip\naccept-encoding: dcb, br", b"gzip, br"),
        (b"accept-encoding: identity;q=0, gzip", b"identity;q=0, gzip"),
    ],
)
def test_an_answer_may_come_in_what_client_and_meter_both_read(sent: bytes, asked: bytes) -> None:
    assert b"accept-encoding: " + asked + b"\n" in up(sent, stream=False)
    assert b"accept-encoding: identity\n" in up(sent, stream=True)


def test_an_answer_comes_down_without_what_is_not_the_clients() -> None:
    sent = [
        (b"date", b"now"),
        (b"server", b"cloudflare"),
        (b"set-cookie", b"a=1"),
        (b"x-request-id", b"req_1"),
        (b"alt-svc", b"h3"),
        (b"strict-transport-security", b"max-age=1"),
        (b"connection", b"keep-alive, X-Hop"),
        (b"x-hop", b"1"),
        (b"content-length", b"10"),
        (b"transfer-encoding", b"chunked"),
        (b"x-ratelimit-remaining-tokens", b"1"),
        (b"x-kaixu-reason", b"forged"),
        (b"retry-after", b"1"),
        (b"set-cookie", b"b=1"),
        (b"x-request-id", b"again"),
        (b"content-encoding", b"gzip"),
        (b"openai-organization", b"org"),
    ]
    names = [
        b"date", b"x-request-id", b"x-ratelimit-remaining-tokens", b"retry-after",
        b"x-request-id", b"content-encoding", b"openai-organization",
    ]  # fmt: skip
    passed = downstream_headers(sent)
    assert [name for name, _ in passed] == names
    assert all(header in sent for header in passed)


@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        (b"", b""),
        (b"beta=true", b"beta=true"),
        (b"key=kxg_x", b""),
        (b"key", b""),
        (b"alt=sse&key=kxg_x", b"alt=sse"),
        (b"key=a&alt=sse&key=b&&x=%20+", b"alt=sse&&x=%20+"),
        (b"%6bey=a&k%65%79=b&monkey=1&Key=2&keys=3", b"monkey=1&Key=2&keys=3"),
    ],
)
def test_a_query_goes_up_without_the_key(sent: bytes, passed: bytes) -> None:
    assert upstream_query(sent) == passed


@given(st.binary(max_size=40).filter(lambda query: b"k" not in query and b"%" not in query))
def test_a_query_without_a_key_stays_byte_for_byte(query: bytes) -> None:
    assert upstream_query(query) == query
