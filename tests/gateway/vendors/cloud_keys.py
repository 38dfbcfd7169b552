"""Key files of clouds, as their owners get them."""

import json
from functools import cache
from typing import Any

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
