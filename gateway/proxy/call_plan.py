"""What a request's head alone tells about its call: worked out once for all calls with that head.

Nothing in a plan is an answer to "may they": whose token it is, whether it still holds and what is
left of its limits is asked on every call. It holds the digest of a token, never the token.
"""

from typing import Final

import msgspec

from gateway.auth.authenticate import token_candidates
from gateway.auth.token import TOKEN_CHARS
from gateway.auth.token import digest as digest_of
from gateway.proxy.call_record import header_text
from gateway.proxy.endpoints import Match
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
