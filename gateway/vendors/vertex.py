"""Google's Vertex AI: Gemini's, Anthropic's and others' formats below a project and a location.

A key file holds a service account's JSON, whose key gets tokens that last an hour, or an API key.
The base URL may end in `/v1/projects/P/locations/L`: then only that project and location are
served. Without it, only the service account's own project is.
"""

import hashlib
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway.connect_guard import BaseUrl, BaseUrlInvalid, check_base_url
from gateway.vendors import gemini
from gateway.vendors.credential import KeyUnusable, Outgoing, json_key, text_member
from gateway.vendors.vendor import VendorKind, header_value

SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
ASSERTION_SECONDS: Final = 3600  # the longest that Google takes
TOKEN_SECONDS_MAX: Final = 12 * 3600  # a longer life is not believed
REFRESH_BEFORE_SECONDS: Final = 600.0  # so long before a token's end another one is asked for
EXPIRY_MARGIN_SECONDS: Final = 10.0  # a token is not used in its last moments
PAST_TOKENS_MAX: Final = 4  # kept to be masked: vendors may repeat what a call went up with
RSA_BITS_MIN: Final = 2048

_WHAT: Final = "a service account"
_GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_BASE: Final = re.compile(
    r"(?P<before>.*?)(?:/v1(?:beta1)?)?"
    r"(?P<place>/projects/(?P<project>[^/]+)(?:/locations/(?P<location>[^/]+))?)?"
)
_PATH: Final = re.compile(
    r"(?P<version>/v1(?:beta1)?)"
    r"(?P<place>/projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+))?(?P<rest>/.*)"
)


class TokenRefused(Exception):
    """Google gave no token; the text is safe to log."""


class _TokenAnswer(msgspec.Struct):
    access_token: str
    expires_in: float


class _TokenError(msgspec.Struct):
    error: str = ""


_TOKEN_ANSWER: Final = msgspec.json.Decoder(_TokenAnswer)
_TOKEN_ERROR: Final = msgspec.json.Decoder(_TokenError)
_ERROR_WORD: Final = re.compile(r"[a-z_]{1,40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """What a service account calls with, for about an hour. Times are Unix seconds."""

    text: bytes = field(repr=False)
    expires_at: float
    refresh_at: float


@dataclass(slots=True, eq=False)
class HeldToken:
    """The token that an account has at present, which all that call with the account may share."""

    token: AccessToken | None = None
    was_refused: bool = False
    past: deque[bytes] = field(default_factory=lambda: deque(maxlen=PAST_TOKENS_MAX), repr=False)

    def replace(self, token: AccessToken) -> None:
        """Use this token from now on."""
        if self.token is not None and self.token.text != token.text:
            self.past.append(self.token.text)
        self.token = token
        self.was_refused = False


class ServiceAccount:
    """A service account, and the token that it has at present.

    `identity` is the same for all that share a token: `held` is one for all of them, which others
    see to. They ask for the token as well: `request` says how, `read` reads the answer.
    """

    def __init__(
        self,
        *,
        email: str,
        key_id: str,
        private_key: RSAPrivateKey,
        token_uri: BaseUrl,
        project: str | None,
        location: str | None,
        identity: bytes,
    ) -> None:
        """Take what `open_signer` read."""
        self.identity = identity
        self.token_uri = token_uri
        self.held = HeldToken()
        self._email = email
        self._key_id = key_id
        self._private_key = private_key
        self._project = project
        self._location = location

    def __repr__(self) -> str:
        return f"ServiceAccount(email={self._email!r}, project={self._project!r})"

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """The token, and those before it: all that a vendor is ever sent."""
        token = self.held.token
        return (*(() if token is None else (token.text,)), *self.held.past)

    def refuses(self, path: str) -> bool:
        """Return whether a path names another project, or location where the base URL has one."""
        found = _PATH.fullmatch(path)
        if found is None or found["place"] is None:
            return False
        is_elsewhere = self._location is not None and found["location"] != self._location
        return is_elsewhere or (self._project is not None and found["project"] != self._project)

    def has_token(self, now: float) -> bool:
        """Return whether a call could be made."""
        token = self.held.token
        return token is not None and now < token.expires_at - EXPIRY_MARGIN_SECONDS

    def is_due(self, now: float) -> bool:
        """Return whether another token is to be asked for."""
        token = self.held.token
        return token is None or self.held.was_refused or now >= token.refresh_at

    def on_refused(self) -> None:
        """Note that the vendor refused the token: it may have been revoked before its end."""
        self.held.was_refused = True

    def lines(self, request: Outgoing, *, now: float) -> bytes | None:  # noqa: ARG002 - as Signer
        """Return `authorization: Bearer`, None without a valid token."""
        token = self.held.token
        if token is None or not self.has_token(now):
            return None
        return b"authorization: Bearer %b\r\n" % token.text

    def request(self, now: float) -> bytes:
        """Return the form that asks for a token."""
        claims = {
            "iss": self._email,
            "scope": SCOPE,
            "aud": str(self.token_uri),
            "iat": int(now),
            "exp": int(now) + ASSERTION_SECONDS,
        }
        headers = {"kid": self._key_id} if self._key_id else None
        assertion = jwt.encode(claims, self._private_key, algorithm="RS256", headers=headers)
        return urlencode({"grant_type": _GRANT, "assertion": assertion}).encode()

    def read(self, status: int, body: bytes, now: float) -> AccessToken:
        """Return the token in an answer, whose status is 0 where none came. Raises TokenRefused."""
        if status != 200:  # noqa: PLR2004 - OK
            told = f"status {status}{_error_word(body)}" if status else "no answer"
            raise TokenRefused(told)
        try:
            answer = _TOKEN_ANSWER.decode(body)
            text = header_value(answer.access_token.encode())
        except (msgspec.MsgspecError, UnicodeError, RecursionError, KeyUnusable):
            raise TokenRefused("the answer has no token in it") from None
        seconds = min(answer.expires_in, TOKEN_SECONDS_MAX)
        if not seconds > EXPIRY_MARGIN_SECONDS:
            raise TokenRefused("the token has expired already")
        ahead = min(REFRESH_BEFORE_SECONDS, seconds / 2)
        return AccessToken(text=text, expires_at=now + seconds, refresh_at=now + seconds - ahead)


def _error_word(body: bytes) -> str:
    """Return the code of an OAuth error, behind a comma; nothing where there is none."""
    try:
        word = _TOKEN_ERROR.decode(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return f", {word}" if _ERROR_WORD.fullmatch(word) else ""


def credential_header(key: bytes) -> tuple[bytes, bytes]:
    """Return `x-goog-api-key` for an API key, nothing for an account. Raises KeyUnusable."""
    if json_key(key, what=_WHAT) is None:
        return gemini.credential_header(key.strip())
    return b"", b""


def open_signer(key: bytes, base: BaseUrl) -> ServiceAccount | None:
    """Return the service account in a key, None for an API key. Raises KeyUnusable."""
    members = json_key(key, what=_WHAT)
    if members is None:
        return None
    if members.get("type") != "service_account":
        raise KeyUnusable(
            f"'type' in the key file of {_WHAT} is not 'service_account': other credentials of "
            "Google's are a person's, or a machine's own."
        )
    place = _BASE.fullmatch(base.path)
    project, location = (place["project"], place["location"]) if place else (None, None)
    if project is None:
        project = text_member(members, "project_id", what=_WHAT)
    return ServiceAccount(
        email=text_member(members, "client_email", what=_WHAT),
        key_id=_optional(members, "private_key_id"),
        private_key=_private_key(text_member(members, "private_key", what=_WHAT)),
        token_uri=_token_uri(text_member(members, "token_uri", what=_WHAT), base),
        project=project,
        location=location,
        identity=hashlib.sha256(key).digest(),
    )


def _optional(members: Mapping[str, Any], name: str) -> str:
    return "" if members.get(name) is None else text_member(members, name, what=_WHAT)


def _private_key(pem: str) -> RSAPrivateKey:
    try:
        private_key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError):
        private_key = None
    if not isinstance(private_key, RSAPrivateKey) or private_key.key_size < RSA_BITS_MIN:
        raise KeyUnusable(f"'private_key' in the key file of {_WHAT} is no RSA key in PEM.")
    return private_key


def _token_uri(url: str, base: BaseUrl) -> BaseUrl:
    """Return where tokens come from: over http only where the vendor itself is called so."""
    try:
        return check_base_url(url, allow_private=base.scheme == "http")
    except BaseUrlInvalid as error:
        raise KeyUnusable(
            f"'token_uri' in the key file of {_WHAT}: {error.problem} {error.fix}"
        ) from None


def target_path(base_path: str, path: str) -> str:
    """Return the path to ask for: what the base URL says of version and place is not doubled.

    A path without project and location is at those of the base URL, if it has any.
    """
    base = _BASE.fullmatch(base_path.rstrip("/"))
    asked = _PATH.fullmatch(path)
    if base is None or asked is None:
        return base_path.rstrip("/") + path
    place = asked["place"]
    if place is None and base["location"] is not None:
        place = base["place"]
    return f"{base['before']}{asked['version']}{place or ''}{asked['rest']}"


VERTEX: Final = VendorKind(
    name="vertex",
    wire=gemini.FORMAT,
    default_base_url="https://aiplatform.googleapis.com",
    needs_usage_asked=False,
    credential_header=credential_header,
    target_path=target_path,
    bad_key=gemini.bad_key,
    models_path="",  # it lists what could be enabled, by publisher
    model_ids=gemini.model_ids,
    open_signer=open_signer,
    paths_of=("vertex",),
)
