"""Key files of clouds, as their owners get them."""

import json
import re
from functools import cache
from typing import Any

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

AWS = {
    "access_key_id": "AKIAEXAMPLE",
    "secret_access_key": "aws-secret-canary/+",
    "region": "us-east-1",
}


@cache
def private_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def service_account(token_uri: str = "https://oauth2.googleapis.com/token", **other: Any) -> bytes:
    pem = private_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    members = {
        "type": "service_account",
        "project_id": "p-1",
        "private_key_id": "key-1",
        "private_key": pem,
        "client_email": "gateway@p-1.iam.gserviceaccount.com",
        "token_uri": token_uri,
        **other,
    }
    return json.dumps(
        {name: value for name, value in members.items() if value is not None}
    ).encode()


def is_signed(head: bytes, body: bytes) -> bool:
    """Whether AWS would take a request: its own client signs the same, from what arrived."""
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = dict(line.split(": ", 1) for line in lines if line)
    request = AWSRequest(method=method, url=f"http://{headers['host']}{path}", data=body)
    names = re.search(r"SignedHeaders=([^,]+)", headers["authorization"])
    assert names is not None
    for name in names[1].split(";"):
        request.headers[name] = headers[name]
    request.context["timestamp"] = headers["x-amz-date"]
    auth = botocore.auth.SigV4Auth(
        Credentials(AWS["access_key_id"], AWS["secret_access_key"]), "bedrock", "us-east-1"
    )
    to_sign = auth.string_to_sign(request, auth.canonical_request(request))
    return headers["authorization"].endswith("Signature=" + auth.signature(to_sign, request))
