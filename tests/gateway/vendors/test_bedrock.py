import json
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer

from gateway.connect_guard import check_base_url
from gateway.vendors.bedrock import BEDROCK, AwsSigner, open_signer
from gateway.vendors.credential import KeyUnusable, Outgoing
from tests.gateway.vendors.cloud_keys import AWS

BASE = check_base_url("https://bedrock-runtime.eu-west-1.amazonaws.com", allow_private=False)
ELSEWHERE = check_base_url("https://llm.example.com", allow_private=False)


def key(**members: Any) -> bytes:
    return json.dumps({**AWS, **members}).encode()


def signed(raw: bytes, **changes: Any) -> str:
    signer = open_signer(raw, changes.pop("base", BASE))
    assert isinstance(signer, AwsSigner)
    facts = {"method": "POST", "path": "/model/m/converse", "query": "",
             "headers": [("host", BASE.authority)], "body": b"{}", **changes}  # fmt: skip
    return signer.lines(Outgoing(**facts), now=1_790_000_000.0).decode()


def test_an_api_key_is_a_bearer_and_signs_nothing() -> None:
    assert BEDROCK.credential_header(b"ABSKkey\n") == (b"authorization", b"Bearer ABSKkey")
    assert open_signer(b"ABSKkey", ELSEWHERE) is None


def test_a_key_pair_signs_each_request() -> None:
    assert BEDROCK.credential_header(key()) == (b"", b"")
    lines = signed(key(session_token="session-canary"))
    assert "/us-east-1/bedrock/aws4_request, SignedHeaders=host;x-amz-date;x-amz-security" in lines
    assert "x-amz-security-token: session-canary\r\n" in lines
    assert signed(key(), body=b"{ }") != signed(key(), body=b"{}")
    assert signed(key(), path="/model/n/converse") != signed(key())


@pytest.mark.parametrize(
    "written",
    [
        {"AccessKeyId": "AKIAEXAMPLE", "SecretAccessKey": "s", "SessionToken": "t", "Version": 1},
        {"Credentials": {"AccessKeyId": "AKIAEXAMPLE", "SecretAccessKey": "s"}},
        {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "s"},
    ],
)
def test_key_files_are_taken_as_awss_tools_write_them(written: dict[str, Any]) -> None:
    lines = signed(json.dumps(written).encode())
    assert "Credential=AKIAEXAMPLE/" in lines
    assert "/eu-west-1/bedrock/" in lines  # from the host


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"{", "no JSON"),
        (b'{"secret_access_key": "canary"}', "'access_key_id' is missing"),
        (b'{"access_key_id": "canary"}', "'secret_access_key' is missing"),
        (b'{"access_key_id": 7, "secret_access_key": "canary"}', "'access_key_id'"),
        (key(secret_access_key="canary canary"), "secret key"),
        (key(access_key_id="canary\r\nx: y"), "access key"),
        (key(region="canary region"), "'region'"),
        (key(session_token=["canary"]), "'session_token'"),
    ],
)
def test_what_is_wrong_with_a_key_file_is_told_by_its_field(raw: bytes, problem: str) -> None:
    with pytest.raises(KeyUnusable) as refused:
        open_signer(raw, BASE)
    assert problem in str(refused.value)
    assert "canary" not in str(refused.value)


def test_a_region_has_to_come_from_somewhere() -> None:
    with pytest.raises(KeyUnusable, match="'region' is missing"):
        open_signer(key(region=None), ELSEWHERE)
    assert "/us-east-1/" in signed(key(), base=ELSEWHERE)


def test_no_secret_is_shown() -> None:
    signer = open_signer(key(session_token="session-canary"), BASE)
    assert signer is not None
    assert "canary" not in repr(signer)
    assert {b"aws-secret-canary/+", b"session-canary"} < set(signer.secrets)


@pytest.mark.parametrize(
    ("status", "code", "is_ours"),
    [
        (403, "UnrecognizedClientException", True),
        (403, "InvalidSignatureException:http://internal.amazon.com/coral/", True),
        (403, "ExpiredTokenException", True),
        (403, "AccessDeniedException", False),
        (400, "ValidationException", False),
        (429, "ThrottlingException", False),
        (500, "ExpiredTokenException", False),
    ],
)
def test_a_refused_key_is_known_by_its_type(*, status: int, code: str, is_ours: bool) -> None:
    assert BEDROCK.bad_key_headers is not None
    headers = [(b"x-amzn-errortype", code.encode())]
    assert BEDROCK.bad_key_headers(status, headers) is is_ours
    body = json.dumps({"message": "no", "code": code.partition(":")[0]}).encode()
    assert BEDROCK.bad_key(status, body) is is_ours


def test_a_refused_api_key_has_no_type() -> None:
    body = b'{"Message":"Authentication failed: Please make sure your API Key is valid."}'
    assert BEDROCK.bad_key(403, body)
    assert not BEDROCK.bad_key(403, b'{"Message":"You don\'t have access to the model."}')
    assert BEDROCK.bad_key(401, b"")


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("token_revoked", "validationException"),
        ("draining", "serviceUnavailableException"),
        ("vendor_unreachable", "modelStreamErrorException"),
        ("else", "internalServerException"),
    ],
)
def test_a_stream_ends_with_an_exception_that_awss_client_reads(reason: str, kind: str) -> None:
    shape = BEDROCK.wire.stream_error_event
    assert shape is not None
    buffer = EventStreamBuffer()
    buffer.add_data(shape(reason=reason, message="It is over.", call_id="c"))
    (message,) = buffer
    assert message.headers[":message-type"] == "exception"
    assert message.headers[":exception-type"] == kind
    assert json.loads(message.payload) == {"message": "It is over."}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, "AccessDeniedException"), (429, "ThrottlingException"), (400, "ValidationException"),
     (502, "InternalServerException")],
)  # fmt: skip
def test_an_error_names_a_type_of_awss(status: int, kind: str) -> None:
    body = BEDROCK.wire.error_body(status=status, reason="r", message="m", call_id="c")
    assert json.loads(body) == {"message": "m", "__type": kind}
