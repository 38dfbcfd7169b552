"""Amazon Bedrock's runtime: Converse and InvokeModel, signed or with a Bedrock API key.

A key file holds either the API key, or JSON with `access_key_id`, `secret_access_key` and where
they apply `session_token` and `region`; `aws configure export-credentials` writes it too. Without
a region in it, the host of the base URL tells.
"""

import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from gateway.connect_guard import BaseUrl
from gateway.vendors.credential import KeyUnusable, Outgoing, json_key, text_member
from gateway.vendors.sigv4 import Keys, signed_headers
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

SERVICE: Final = "bedrock"

_WHAT: Final = "AWS credentials"
_REGION: Final = re.compile(r"[a-z]{2,3}(?:-[a-z0-9]{1,16}){2,4}")
_HOST: Final = re.compile(r"(?:^|\.)bedrock-runtime(?:-fips)?\.([a-z0-9-]+)\.")
_TEXT: Final = re.compile(r"[\x21-\x7e]+")

_ERROR_TYPES: Final[Mapping[int, str]] = MappingProxyType(
    {
        401: "UnrecognizedClientException",
        403: "AccessDeniedException",
        404: "ResourceNotFoundException",
        429: "ThrottlingException",
        503: "ServiceUnavailableException",
        504: "ModelTimeoutException",
    }
)
# A stream has no status beside it, and each of these is one that its client knows.
_STREAM_ERROR_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "token_expired": "validationException",
        "token_invalid": "validationException",
        "token_revoked": "validationException",
        "draining": "serviceUnavailableException",
        "database_away": "serviceUnavailableException",
        "vendor_timeout": "modelStreamErrorException",
        "vendor_unreachable": "modelStreamErrorException",
    }
)
# About our key. AccessDeniedException is not: it says that a model is not open to the account.
_BAD_KEY_TYPES: Final = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
# What is said of a Bedrock API key, without a type of its own.
_BAD_API_KEY: Final = b"Authentication failed"
_REFUSED: Final = (400, 403)
_ERROR_TYPE_HEADER: Final = b"x-amzn-errortype"

_STRING: Final = 7  # the type of a header's value in a message


class AwsSigner:
    """A pair of keys for one region, and the host that it signs for."""

    def __init__(self, keys: Keys, *, region: str) -> None:
        """Take what `open_signer` read."""
        self._keys = keys
        self._region = region

    def __repr__(self) -> str:
        return f"AwsSigner(region={self._region!r})"

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """The key pair and the session token: a refused signature is told with all of its text."""
        keys = self._keys
        texts = (keys.access_key, keys.secret_key, keys.session_token)
        return tuple(text.encode() for text in texts if text)

    def refuses(self, path: str) -> bool:  # noqa: ARG002 - as Signer
        """Return False: what an account may call is AWS's to know."""
        return False

    def on_refused(self) -> None:
        """Do nothing: the next signature is a new one anyway."""

    def lines(self, request: Outgoing, *, now: float) -> bytes:
        """Return the lines of a signature over this request."""
        added = signed_headers(
            method=request.method,
            path=request.path,
            query=request.query,
            headers=request.headers,
            body=request.body,
            keys=self._keys,
            region=self._region,
            service=SERVICE,
            now=now,
        )
        return "".join(f"{name}: {value}\r\n" for name, value in added).encode()


def credential_header(key: bytes) -> tuple[bytes, bytes]:
    """Return `authorization: Bearer` for an API key, nothing for what signs. Raises KeyUnusable."""
    members = json_key(key, what=_WHAT)
    if members is None:
        return b"authorization", b"Bearer " + header_value(key.strip())
    _keys(members)
    return b"", b""


def open_signer(key: bytes, base: BaseUrl) -> AwsSigner | None:
    """Return what signs with a key, None for an API key. Raises KeyUnusable."""
    members = json_key(key, what=_WHAT)
    if members is None:
        return None
    if members.get("region") is not None:
        region = text_member(members, "region", what=_WHAT)
    else:
        found = _HOST.search(base.host)
        if found is None:
            raise KeyUnusable(
                f"'region' is missing in the key file of {_WHAT}, and the base URL's host does "
                "not tell it."
            )
        region = found[1]
    if not _REGION.fullmatch(region):
        raise KeyUnusable(f"'region' in the key file of {_WHAT} is no region, as us-east-1 is.")
    return AwsSigner(_keys(members), region=region)


def _keys(members: Mapping[str, Any]) -> Keys:
    if isinstance(members.get("Credentials"), dict):  # as `aws sts` writes it
        members = members["Credentials"]
    names = {
        "access_key": ("access_key_id", "aws_access_key_id", "AccessKeyId"),
        "secret_key": ("secret_access_key", "aws_secret_access_key", "SecretAccessKey"),
    }
    texts = {field: text_member(members, *named, what=_WHAT) for field, named in names.items()}
    session = ("session_token", "aws_session_token", "SessionToken")
    if any(members.get(name) is not None for name in session):
        texts["session_token"] = text_member(members, *session, what=_WHAT)
    for field, text in texts.items():
        if not _TEXT.fullmatch(text):
            raise KeyUnusable(f"The {field.replace('_', ' ')} in the key file is no visible ASCII.")
    return Keys(**texts)


def error_body(
    *, status: int, reason: str, message: str, call_id: str, param: str | None = None
) -> bytes:
    """Return `{"message", "__type"}`; AWS's clients read the type where no header has it."""
    del reason, call_id, param
    fallback = "InternalServerException" if status >= 500 else "ValidationException"  # noqa: PLR2004
    return json_body({"message": message, "__type": _ERROR_TYPES.get(status, fallback)})


def stream_error_event(*, reason: str, message: str, call_id: str) -> bytes:
    """Return a message of type exception, in AWS's framing."""
    del call_id
    headers = {
        ":exception-type": _STREAM_ERROR_TYPES.get(reason, "internalServerException"),
        ":content-type": "application/json",
        ":message-type": "exception",
    }
    return _message(headers, json_body({"message": message}))


def _message(headers: Mapping[str, str], payload: bytes) -> bytes:
    lines = b"".join(
        struct.pack(f">B{len(name)}sBH{len(value)}s", len(name), name.encode(), _STRING,
                    len(value), value.encode())
        for name, value in headers.items()
    )  # fmt: skip
    prelude = struct.pack(">II", 16 + len(lines) + len(payload), len(lines))
    whole = prelude + struct.pack(">I", zlib.crc32(prelude)) + lines + payload
    return whole + struct.pack(">I", zlib.crc32(whole))


def models_list_body(models: Sequence[Model], *, has_more: bool = False) -> bytes:
    """Return the list as ListFoundationModels has it; it has no pages."""
    del has_more
    return json_body({"modelSummaries": [{"modelId": model.id} for model in models]})


def model_body(model: Model) -> bytes:
    """Return one model."""
    return json_body({"modelDetails": {"modelId": model.id}})


def bad_key(status: int, body: bytes) -> bool:
    """Return whether the gateway's own key was refused, as far as the body tells."""
    if status == 401:  # noqa: PLR2004 - Unauthorized
        return True
    if status not in _REFUSED:
        return False
    told_bare = _BAD_API_KEY in body[:256]
    return told_bare or not _BAD_KEY_TYPES.isdisjoint(error_codes(b'{"error":' + body + b"}"))


def bad_key_headers(status: int, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Return whether it was refused, by the type in a header: `Type:http://…`."""
    return status in _REFUSED and any(
        name == _ERROR_TYPE_HEADER
        and value.partition(b":")[0].strip().decode("latin-1") in _BAD_KEY_TYPES
        for name, value in headers
    )


def model_ids(body: bytes) -> list[str]:
    """Return the ids in `modelSummaries`. Raises ModelListUnreadable."""
    return listed_ids(body, member="modelSummaries", name="modelId")


FORMAT: Final = WireFormat(
    name="bedrock",
    error_body=error_body,
    stream_error_event=stream_error_event,
    models_list_body=models_list_body,
    model_body=model_body,
)

BEDROCK: Final = VendorKind(
    name="bedrock",
    wire=FORMAT,
    default_base_url="",  # has the region in it
    needs_usage_asked=False,
    credential_header=credential_header,
    target_path=below_base,
    bad_key=bad_key,
    models_path="",  # another host's, and of Bedrock's administration
    model_ids=model_ids,
    open_signer=open_signer,
    bad_key_headers=bad_key_headers,
)
