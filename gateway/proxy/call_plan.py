"""What a request's head alone tells about its call: worked out once for all calls with that head.

Nothing in a plan is an answer to "may they": whose token it is, whether it still holds and what is
left of its limits is asked on every call. It holds the digest of a token, never the token.
"""

from typing import Final, NamedTuple

import msgspec

from gateway.auth.authenticate import token_candidates
from gateway.auth.caller import Caller
from gateway.auth.token import TOKEN_CHARS
from gateway.auth.token import digest as digest_of
from gateway.proxy.call_record import header_text
from gateway.proxy.call_row import Purpose, encode_purpose
from gateway.proxy.endpoints import Endpoint, Match
from gateway.proxy.headers import Headers, passed_up

_SESSION_HEADERS: Final = frozenset(
    (b"x-claude-code-session-id", b"session-id", b"x-session-id", b"x-session-affinity")
)


class CallPlan(msgspec.Struct, eq=False):
    """What is the same for every call with a head.

    `match`: what its path means. `digest`: of its token, where it is the one thing in the head that
    may be a token, else None. `session_id`: the client's. `content_types`, `content_encoding`: of
    the body. `passed`: the lines that go to the vendor, by what else decides about them.
    """

    match: Match
    digest: bytes | None
    session_id: str | None
    content_types: tuple[bytes, ...]
    content_encoding: bytes | None
    passed: dict[tuple[bool, bool], bytes]
    _last: "_Encoded | None" = None  # the purpose of the last call with this head

    __repr__ = object.__repr__  # a digest is a secret, and so may be a header

    def lines_up(self, headers: Headers, *, account_headers: bool, stream: bool) -> bytes:
        """Return the lines of the client's that a vendor gets; `headers` are this head's."""
        key = account_headers, stream
        lines = self.passed.get(key)
        if lines is None:
            lines = self.passed[key] = passed_up(
                headers, account_headers=account_headers, stream=stream
            )
        return lines

    def purpose(
        self, *, caller: Caller, vendor: str, endpoint: Endpoint, model: str | None, stream: bool
    ) -> bytes:
        """Return who calls what, as a row has it."""
        last = self._last
        if (
            last is None
            or last.caller is not caller
            or last.endpoint is not endpoint
            or last.model != model
            or last.vendor != vendor
            or last.stream is not stream
        ):
            purpose = Purpose(
                org_id=caller.org_id,
                workspace_id=caller.workspace_id,
                user_id=caller.user_id,
                token_id=caller.token_id,
                vendor=vendor,
                endpoint=endpoint.name,
                client_format=endpoint.wire.name,
                stream=stream,
                counted=endpoint.counts,
                model_requested=model,
                session_id=self.session_id,
            )
            encoded = encode_purpose(purpose)
            last = self._last = _Encoded(caller, endpoint, model, vendor, stream, encoded)
        return last.purpose


class _Encoded(NamedTuple):
    """A purpose as a row has it, and what it was made from."""

    caller: Caller
    endpoint: Endpoint
    model: str | None
    vendor: str
    stream: bool
    purpose: bytes


def plan_of(match: Match, headers: Headers, query: bytes) -> CallPlan:
    """Return the plan of a head; `headers` have lower-case names."""
    sessions: list[bytes] = []
    content_types: tuple[bytes, ...] = ()
    content_encoding: bytes | None = None
    for name, value in headers:
        if name == b"content-type":
            content_types += (value,)
        elif name == b"content-encoding":
            if content_encoding is None:
                content_encoding = value
        elif name in _SESSION_HEADERS:
            sessions.append(value)
    candidates = token_candidates(headers, query)
    is_one = len(candidates) == 1 and len(candidates[0]) == TOKEN_CHARS
    return CallPlan(
        match=match,
        digest=digest_of(candidates[0]) if is_one else None,
        session_id=header_text(sessions[0]) if sessions else None,
        content_types=content_types,
        content_encoding=content_encoding,
        passed={},
    )
