import json
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway.connect_guard import check_base_url
from gateway.vendors.credential import KeyUnusable, Outgoing
from gateway.vendors.vertex import (
    PAST_TOKENS_MAX,
    VERTEX,
    ServiceAccount,
    TokenRefused,
    open_signer,
)
from tests.gateway.vendors.cloud_keys import private_key, service_account

NOW = 1_790_000_000.0
OUTGOING = Outgoing(method="POST", path="/", query="", headers=(), body=b"")
TAIL = "/publishers/google/models/m:generateContent"


def account(key: bytes | None = None, *, path: str = "") -> ServiceAccount:
    base = check_base_url(f"https://aiplatform.googleapis.com{path}", allow_private=False)
    signer = open_signer(key or service_account(), base)
    assert signer is not None
    return signer


def answer(**members: Any) -> bytes:
    return json.dumps({"access_token": "ya29.token-canary", "expires_in": 3599, **members}).encode()


def test_an_api_key_needs_no_token() -> None:
    base = check_base_url("https://aiplatform.googleapis.com", allow_private=False)
    assert VERTEX.credential_header(b"AIza-key") == (b"x-goog-api-key", b"AIza-key")
    assert open_signer(b"AIza-key", base) is None
    assert VERTEX.credential_header(service_account()) == (b"", b"")


def test_a_token_is_asked_for_with_an_assertion_that_the_account_signed() -> None:
    form = parse_qs(account().request(NOW).decode())
    assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
    (assertion,) = form["assertion"]
    claims = jwt.decode(
        assertion,
        private_key().public_key(),
        algorithms=["RS256"],
        audience="https://oauth2.googleapis.com/token",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert claims["iss"] == "gateway@p-1.iam.gserviceaccount.com"
    assert (claims["iat"], claims["exp"] - claims["iat"]) == (int(NOW), 3600)
    assert claims["scope"] == "https://www.googleapis.com/auth/cloud-platform"
    assert jwt.get_unverified_header(assertion)["kid"] == "key-1"


def test_a_token_is_used_until_its_end_and_replaced_before() -> None:
    one = account()
    assert (one.is_due(NOW), one.has_token(NOW), one.lines(OUTGOING, now=NOW)) == (
        True,
        False,
        None,
    )
    one.held.replace(one.read(200, answer(), NOW))
    assert one.lines(OUTGOING, now=NOW) == b"authorization: Bearer ya29.token-canary\r\n"
    assert not one.is_due(NOW + 2998)
    assert one.is_due(NOW + 3000)
    assert one.has_token(NOW + 3580)
    assert one.lines(OUTGOING, now=NOW + 3590) is None
    assert one.secrets == (b"ya29.token-canary",)


def test_a_refused_token_is_replaced_at_once() -> None:
    one = account()
    one.held.replace(one.read(200, answer(), NOW))
    one.on_refused()
    assert (one.is_due(NOW), one.has_token(NOW)) == (True, True)
    one.held.replace(one.read(200, answer(), NOW))
    assert not one.is_due(NOW)


def test_tokens_that_a_vendor_may_still_repeat_stay_secret() -> None:
    one = account()
    for number in range(PAST_TOKENS_MAX + 2):
        one.held.replace(one.read(200, answer(access_token=f"ya29.{number}"), NOW))
    assert sorted(one.secrets) == [b"ya29.%d" % n for n in range(1, PAST_TOKENS_MAX + 2)]
    one.held.replace(one.read(200, answer(access_token="ya29.5"), NOW))
    assert len(one.secrets) == PAST_TOKENS_MAX + 1  # the same token again is no other


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (
            400,
            b'{"error":"invalid_grant","error_description":"canary"}',
            "status 400, invalid_grant",
        ),
        (500, b"<html>canary", "status 500"),
        (403, b'{"error":"Canary With Spaces"}', "status 403"),
        (0, b"", "no answer"),
        (200, b'{"access_token":"a canary"}', "no token"),
        (200, answer(access_token="can ary\r\n"), "no token"),
        (200, answer(access_token=""), "no token"),
        (200, answer(expires_in=0), "expired"),
    ],
)
def test_what_is_no_token_is_said_without_quoting_it(status: int, body: bytes, told: str) -> None:
    with pytest.raises(TokenRefused) as refused:
        account().read(status, body, NOW)
    assert told in str(refused.value)
    assert "anary" not in str(refused.value)


def ec_key() -> str:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    return pem.decode()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"type": "authorized_user"}, "'type'"),
        ({"client_email": None}, "'client_email' is missing"),
        ({"project_id": None}, "'project_id' is missing"),
        ({"private_key": None}, "'private_key' is missing"),
        ({"private_key": "canary"}, "'private_key'"),
        ({"private_key": ec_key()}, "'private_key'"),
        ({"token_uri": None}, "'token_uri' is missing"),
        ({"token_uri": "http://canary.example.com"}, "'token_uri'"),
        ({"token_uri": "https://169.254.169.254/token"}, "'token_uri'"),
        ({"private_key_id": 7}, "'private_key_id'"),
    ],
)
def test_what_is_wrong_with_a_key_file_is_told_by_its_field(
    changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(KeyUnusable) as refused:
        account(service_account(**changes))
    assert problem in str(refused.value)
    assert "canary" not in str(refused.value)


def test_no_secret_is_shown() -> None:
    one = account()
    one.held.replace(one.read(200, answer(), NOW))
    one.held.replace(one.read(200, answer(access_token="ya29.another-canary"), NOW))
    shown = repr(one) + repr(one.held)
    assert "canary" not in shown
    assert "PRIVATE" not in shown


@pytest.mark.parametrize(
    ("base", "path", "refused"),
    [
        ("", f"/v1/projects/p-1/locations/global{TAIL}", False),
        ("", f"/v1/projects/p-2/locations/global{TAIL}", True),
        ("", f"/v1/projects/p%2D1/locations/global{TAIL}", True),
        ("", f"/v1{TAIL}", False),
        ("/v1/projects/p-2", f"/v1/projects/p-2/locations/a{TAIL}", False),
        ("/v1/projects/p-2", f"/v1/projects/p-1/locations/a{TAIL}", True),
        ("/v1/projects/p-2/locations/a", f"/v1beta1/projects/p-2/locations/a{TAIL}", False),
        ("/v1/projects/p-2/locations/a", f"/v1/projects/p-2/locations/b{TAIL}", True),
    ],
)
def test_only_the_accounts_own_project_is_served(*, base: str, path: str, refused: bool) -> None:
    assert account(path=base).refuses(path) is refused


@pytest.mark.parametrize(
    ("base", "path", "there"),
    [
        ("", f"/v1/projects/p/locations/l{TAIL}", f"/v1/projects/p/locations/l{TAIL}"),
        ("/v1", f"/v1/projects/p/locations/l{TAIL}", f"/v1/projects/p/locations/l{TAIL}"),
        ("/v1", f"/v1beta1/projects/p/locations/l{TAIL}", f"/v1beta1/projects/p/locations/l{TAIL}"),
        ("/v1/projects/p/locations/l", f"/v1/projects/p/locations/l{TAIL}",
         f"/v1/projects/p/locations/l{TAIL}"),
        ("/v1/projects/p/locations/l", f"/v1beta1{TAIL}", f"/v1beta1/projects/p/locations/l{TAIL}"),
        ("/v1/projects/p", f"/v1{TAIL}", f"/v1{TAIL}"),
        ("/proxy/v1", f"/v1{TAIL}", f"/proxy/v1{TAIL}"),
    ],
)  # fmt: skip
def test_what_the_base_url_says_is_not_said_twice(base: str, path: str, there: str) -> None:
    assert VERTEX.target_path(base, path) == there
