"""The keys that sessions are signed with, and the tokens that stand for sessions (JWT, RFC 7519).

A token says which session it stands for, and nothing that could change: no role, no org. Several
keys are valid at once, each under its id, so that a new one can take over without anyone signing in
again. A token of another kind is not a session's, though the same key signed it: `typ` says which.
"""

import hashlib
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import jwt
import msgspec

from control_plane.errors import BadArgument, Unauthenticated

ALGORITHM: Final = "HS256"
ISSUER: Final = "kaixu"
AUDIENCE: Final = "kaixu-control-plane"
SESSION_TYPE: Final = "session+jwt"
SECRET_BYTES_MIN: Final = 32
KEYS_MAX: Final = 4
TOKEN_CHARS_MAX: Final = 4096
LEEWAY: Final = timedelta(seconds=30)
SESSION_LIFE: Final = timedelta(days=14)
SETTING: Final = "JWT_SECRET"

_KID_HEX_DIGITS: Final = 16
_HEADER_NAMES: Final = frozenset({"alg", "kid", "typ"})
_REQUIRED: Final = ("iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp")
# The last character of 32 bytes in base64url has two bits that say nothing: they are zero, so that
# a session has one token only. (What comes before is signed.)
_FORM: Final = re.compile(r"[\w-]+\.[\w-]+\.[\w-]{42}[AEIMQUYcgkosw048]", re.ASCII)
# What reading and checking a token raises where it is none of ours: a parser's depth and a number's
# size are the sender's choice.
_FAULTS: Final = (
    jwt.PyJWTError, msgspec.ValidationError, ValueError, TypeError, ArithmeticError, RecursionError,
)  # fmt: skip
_KNOWN_DEFAULTS: Final = frozenset({"secret", "changeme", "change-me", "your-256-bit-secret"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClaims:
    """What a valid token says."""

    session_id: uuid.UUID
    account_id: uuid.UUID


class _Payload(msgspec.Struct, frozen=True, kw_only=True):
    """What a token says, in the types in which we say it: no number as a text, no part of one."""

    sub: uuid.UUID
    sid: uuid.UUID
    jti: uuid.UUID
    iat: int
    nbf: int
    exp: int


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The keyring: the first key signs, all of them verify."""

    secrets: Mapping[str, bytes] = field(repr=False)  # by key id; the first one is the current

    def sign(self, claims: SessionClaims, *, issued_at: int, expires_at: int) -> str:
        """Return a token for a session; the times are Unix seconds."""
        kid, secret = next(iter(self.secrets.items()))
        payload = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(claims.account_id),
            "sid": str(claims.session_id),
            "jti": str(claims.session_id),
            "iat": issued_at,
            "nbf": issued_at,
            "exp": expires_at,
        }
        headers = {"kid": kid, "typ": SESSION_TYPE}
        return jwt.encode(payload, secret, algorithm=ALGORITHM, headers=headers)

    def verify(self, token: str) -> SessionClaims:
        """Return what a token says. Raises Unauthenticated, without saying why."""
        try:
            return self._verify(token)
        except _FAULTS as error:
            raise refusal() from error

    def _verify(self, token: str) -> SessionClaims:
        if len(token) > TOKEN_CHARS_MAX or not _FORM.fullmatch(token):
            raise ValueError("not in the form of ours")
        header = jwt.get_unverified_header(token)
        if set(header) != _HEADER_NAMES or header["typ"] != SESSION_TYPE:
            raise ValueError("not the head of a session's token")
        if not isinstance(header["kid"], str) or header["kid"] not in self.secrets:
            raise ValueError("a key that nobody has")
        payload = jwt.decode(
            token,
            self.secrets[header["kid"]],
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=ISSUER,
            leeway=LEEWAY,
            options={"require": list(_REQUIRED), "strict_aud": True},
        )
        told = msgspec.convert(payload, _Payload)
        if told.exp - told.iat > SESSION_LIFE.total_seconds():
            raise ValueError("longer than any session")
        return SessionClaims(session_id=told.sid, account_id=told.sub)


def refusal() -> Unauthenticated:
    """Return the one refusal for whatever is wrong with a token: it tells an attacker nothing."""
    return Unauthenticated("Sign in: this request has no session that is open.")


def parse_session_keys(text: str) -> SessionKeys:
    """Return the keyring in a setting: secrets separated by white space, the current one first.

    Raises BadArgument for one that is too short, known, or there twice; it never quotes one.
    """
    secrets = text.split()
    if not 1 <= len(secrets) <= KEYS_MAX:
        raise BadArgument(f"Give 1 to {KEYS_MAX} secrets, the current one first.", field=SETTING)
    keys: dict[str, bytes] = {}
    for secret in secrets:
        content = secret.encode()
        is_known = any(known in secret.lower() for known in _KNOWN_DEFAULTS)
        if len(content) < SECRET_BYTES_MIN or is_known or len(set(content)) < len(content) // 4:
            raise BadArgument(
                f"A secret is {SECRET_BYTES_MIN} random bytes or more, as `openssl rand -base64 "
                "48` makes them.",
                field=SETTING,
            )
        keys[hashlib.sha256(content).hexdigest()[:_KID_HEX_DIGITS]] = content
    if len(keys) < len(secrets):
        raise BadArgument("A secret is there twice.", field=SETTING)
    return SessionKeys(keys)
