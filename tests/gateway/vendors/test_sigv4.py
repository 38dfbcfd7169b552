"""Signatures against AWS's published examples, and against AWS's own client."""

from datetime import UTC, datetime
from typing import Any

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from gateway.vendors.sigv4 import Keys, signed_headers

# AWS's test suite for Signature Version 4: https://docs.aws.amazon.com/IAM/latest/UserGuide/
SUITE_KEYS = Keys(access_key="AKIDEXAMPLE", secret_key="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SUITE_TIME = datetime(2015, 8, 30, 12, 36, tzinfo=UTC).timestamp()
FORM = ("content-type", "application/x-www-form-urlencoded; charset=utf-8")


def signed(method: str, path: str, query: str, service: str = "service", **more: Any) -> str:
    added = signed_headers(
        method=method,
        path=path,
        query=query,
        headers=more.get("headers", [("Host", "example.amazonaws.com")]),
        body=more.get("body", b""),
        keys=SUITE_KEYS,
        region="us-east-1",
        service=service,
        now=SUITE_TIME,
    )
    return dict(added)["authorization"].rpartition("Signature=")[2]


@pytest.mark.parametrize(
    ("method", "query", "signature"),
    [
        ("GET", "", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", "", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (
            "GET",
            "Param2=value2&Param1=value1",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
    ],
)
def test_the_suites_examples_are_signed_as_it_says(method: str, query: str, signature: str) -> None:
    assert signed(method, "/", query) == signature


def test_the_guides_example_is_signed_as_it_says() -> None:
    host = ("Host", "iam.amazonaws.com")
    signature = signed(
        "GET", "/", "Action=ListUsers&Version=2010-05-08", "iam", headers=[FORM, host]
    )
    assert signature == "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"


@pytest.fixture(autouse=True)
def _still(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = datetime(2026, 11, 25, 1, 2, 3, tzinfo=UTC)
    monkeypatch.setattr(
        botocore.auth, "get_current_datetime", lambda remove_tzinfo=True: frozen, raising=True
    )


NOW = datetime(2026, 11, 25, 1, 2, 3, tzinfo=UTC).timestamp()
MODELS = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=30)


@given(
    name=MODELS,
    escape=st.sampled_from(["", ":", "%3A0", "arn%3Aaws%3A%2Fx", "~_.-"]),
    operation=st.sampled_from(["converse", "invoke-with-response-stream"]),
    body=st.binary(max_size=200),
    session=st.sampled_from(["", "a-session-token=="]),
    query=st.sampled_from(["", "b=2&a=1&a=0", "x=%20y&z"]),
)
def test_awss_own_client_signs_the_same(  # noqa: PLR0917 - hypothesis hands them in
    name: str, escape: str, operation: str, body: bytes, session: str, query: str
) -> None:
    keys = Keys(access_key="AKIA1", secret_key="s/e+c", session_token=session)
    path = f"/model/{name}{escape}/{operation}"
    host = "bedrock-runtime.us-east-1.amazonaws.com"
    mine = dict(
        signed_headers(
            method="POST",
            path=path,
            query=query,
            headers=[("host", host), ("content-type", "application/json"), ("accept", "*/*")],
            body=body,
            keys=keys,
            region="us-east-1",
            service="bedrock",
            now=NOW,
        )
    )
    url = f"https://{host}{path}" + (f"?{query}" if query else "")
    request = AWSRequest(
        method="POST", url=url, data=body, headers={"Content-Type": "application/json"}
    )
    credentials = Credentials("AKIA1", "s/e+c", session or None)
    botocore.auth.SigV4Auth(credentials, "bedrock", "us-east-1").add_auth(request)
    theirs = {name.lower(): value for name, value in request.headers.items()}
    assert mine["authorization"] == theirs["authorization"]
    assert mine["x-amz-date"] == theirs["x-amz-date"]
    assert mine.get("x-amz-security-token") == theirs.get("x-amz-security-token")


def test_no_secret_is_shown() -> None:
    shown = repr(Keys(access_key="AKIA1", secret_key="very-secret", session_token="also-secret"))
    assert "secret=" not in shown
    assert "very-secret" not in shown
    assert "also-secret" not in shown
