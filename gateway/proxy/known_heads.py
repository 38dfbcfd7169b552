"""Heads of requests that came before: the same bytes mean the same again.

A client sends one head over and over; only the length of the body differs. What such a head was
found to be, by the parser and by all checks, holds for every other one with the same bytes, so it
is looked up by their digest: without the digits of Content-Length, which are read here, strictly.
Whatever is not quite like that goes to the parser: no head is known that has not been through it.

Remembered are heads of callers that were let in, so strangers push nobody out; without the values
of the headers that open something, which each request brings along.
"""

from collections import OrderedDict
from hashlib import sha256
from typing import Final

import msgspec

from gateway.proxy.call_plan import CallPlan
from gateway.proxy.headers import CREDENTIALS, Headers

KNOWN_BYTES_MAX: Final = 48 * 1024 * 1024  # of all heads of a worker: some 15,000 of most clients'
HEAD_BYTES: Final = 500  # that a head takes besides its lines
LINE_BYTES: Final = 200  # that a line takes besides its text, as name and value in a tuple
KNOWN_HEAD_BYTES_MAX: Final = 4 * 1024  # a longer one is parsed every time
LENGTH_DIGITS_MAX: Final = 8  # of a body that may be as large as bodies are

_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"\r\ncontent-length: "
_ITS_END: Final = b"ength: "  # however the rest of the name is written
_ZERO: Final = ord("0")
_END_BYTES: Final = len(_END)
_LENGTH_BYTES: Final = len(_LENGTH)
_ITS_END_BYTES: Final = len(_ITS_END)
_SECRET: Final = CREDENTIALS | {b"proxy-authorization"}


class KnownHead:
    """A head but for its secrets and the body's length, which are empty in its `lines`."""

    __slots__ = ("_secrets", "lines", "method", "path", "plan", "query", "size")

    def __init__(
        self,
        *,
        method: bytes,
        path: str,
        query: bytes,
        headers: Headers,
        plan: CallPlan,
    ) -> None:
        """Names of `headers` are in lower case."""
        self.method = method
        self.path = path
        self.query = query
        self.plan = plan
        self.lines = [(n, b"" if _is_own(n) else value) for n, value in headers]
        text = sum(len(name) + len(value) for name, value in self.lines)
        # Its plan has most of the text once more, or twice.
        text += len(path) + len(query)
        self.size = HEAD_BYTES + 3 * text + LINE_BYTES * len(self.lines)
        # Which lines have a value of their own in each request, by number.
        self._secrets = [at for at, (name, _) in enumerate(headers) if _is_own(name)]

    def share(self, other: "KnownHead") -> None:
        """Keep lines only once that another head has too: most clients' are alike."""
        pairs = zip(self.lines, other.lines, strict=False)
        shared = [theirs if ours == theirs else ours for ours, theirs in pairs]
        self.lines[: len(shared)] = shared

    def headers(self, raw: bytes) -> Headers:
        """Return the headers of a request whose head is `raw`, as the parser would give them."""
        headers = self.lines.copy()
        lines = raw.split(b"\r\n")
        for at in self._secrets:
            headers[at] = (headers[at][0], lines[at + 1].partition(b":")[2].strip(b" \t"))
        return headers


class Found(msgspec.Struct):
    """Where the parts of a request are in what was read, and what is known of it.

    `digest` stands for the head; `length` is the body's, which begins at `body_at`.
    """

    digest: bytes
    known: KnownHead | None
    body_at: int
    length: int


class KnownHeads:
    """The heads of all clients of one worker."""

    def __init__(self, *, bytes_max: int = KNOWN_BYTES_MAX) -> None:
        """The one that was remembered first goes first."""
        self._bytes_max = bytes_max
        self._bytes = 0
        self._by_digest: OrderedDict[bytes, KnownHead] = OrderedDict()
        self._latest: KnownHead | None = None

    def __len__(self) -> int:
        return len(self._by_digest)

    def find(self, data: bytes) -> Found | None:
        """Return what is known of the head that `data` begins with.

        None where it is none that could be known: not whole, too long, or without one plain
        Content-Length.
        """
        end = data.find(_END, 0, KNOWN_HEAD_BYTES_MAX)
        start = data.find(_ITS_END, 0, end) + _ITS_END_BYTES
        if end < 0 or data[max(0, start - _LENGTH_BYTES) : start].lower() != _LENGTH:
            return None
        stop = data.find(b"\r", start)
        digits = data[start:stop]
        if stop - start > LENGTH_DIGITS_MAX or not digits.isdigit() or digits[0] == _ZERO:
            return None
        digest = sha256(data[:start] + data[stop:end]).digest()
        return Found(digest, self._by_digest.get(digest), end + _END_BYTES, int(digits))

    def remember(self, digest: bytes, head: KnownHead) -> None:
        """Know a head from now on."""
        before = self._by_digest.pop(digest, None)  # of a request that was sent at the same time
        if before is not None:
            self._bytes -= before.size
        if self._latest is not None:
            head.share(self._latest)
        self._latest = self._by_digest[digest] = head
        self._bytes += head.size
        while self._bytes > self._bytes_max:
            self._bytes -= self._by_digest.popitem(last=False)[1].size


def _is_own(name: bytes) -> bool:
    return name in _SECRET or name == b"content-length"
