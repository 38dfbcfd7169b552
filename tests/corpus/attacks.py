"""The attacks that a gateway has to stand, by number, and how one is tried.

Numbers are those of the corpus in its groups: A how requests are read, B sessions, C signing in,
D gateway tokens, G tenants and roles, H how often a thing may be asked for, I where the gateway may
be led to, K what wears it out. Each has a case in the module of its group, or a reason here why it
is tried elsewhere.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from tests.gateway.proxy.rig import TOKEN, Rig

TITLES: Final = {
    1: "a length and chunks at once",
    2: "two transfer codings, one of them identity",
    3: "transfer codings that only look like chunked",
    4: "gzip before chunked",
    5: "chunks on HTTP/1.0",
    6: "lengths that parsers read differently",
    7: "bytes that don't belong into a head",
    8: "chunks with odd sizes and ends",
    9: "trailers that would be headers; ten thousand of them",
    10: "a Host that is none, or not ours",
    11: "a target that names another host",
    12: "methods that nobody serves",
    13: "other versions of HTTP, and offers of one",
    14: "paths that a server might read as others",
    15: "names with an underscore that others read as a hyphen",
    16: "two identities in one request",
    17: "a request line parted by more than single spaces",
    18: "an overlong line, a byte at a time",
    19: "five hundred requests sent ahead",
    20: "credentials named by Connection, to have them dropped",
    21: "nginx and HAProxy in front, and mutated requests",
    22: "a session signed by another algorithm, or by none",
    23: "headers of a session's token that name other keys",
    24: "times of a session that are none, or not now",
    25: "a token of another kind, issuer or audience",
    26: "a session's token with other bytes that mean the same",
    27: "a session that was there before its owner signed in",
    28: "a session that is over, on another node",
    29: "a secret that is short, known or another one's",
    30: "a token of a megabyte",
    31: "half a sign-in used as a whole one",
    32: "a session that is renewed twice at once",
    33: "who has an account, told by answers or by time",
    34: "guessing passwords, of one account and of many",
    35: "passwords of every length",
    36: "codes that are old, early, not digits, or guessed",
    37: "a second factor switched by a session that was left open",
    38: "links to a new password: used twice, late, led astray",
    39: "a recovery code used many times at once",
    40: "passwords that everybody tries first",
    41: "line ends in what a mail is made of",
    42: "a token whose checksum is wrong",
    43: "a token in disguise, or where none may be",
    44: "a token whose user, workspace or org is gone",
    45: "minting a token with more rights than one's own",
    46: "limits that are no number of calls",
    47: "rotation with a time of grace",
    48: "ways around a list of models",
    49: "the credential of one plane on the other",
    73: "every route as everybody",
    74: "ids of another org wherever an id may be",
    75: "fields that are nobody's to set",
    76: "an org without an owner; a role above one's own",
    77: "a role that is lowered while a request runs",
    78: "lists, searches and errors about other orgs",
    79: "ways to switch row security off, or to inherit an org",
    80: "an address that the client claims",
    81: "limits at the edge of their window, on two nodes",
    82: "calls that nobody would count",
    83: "a request that comes again, the same or not",
    84: "a vendor's URL set by somebody who may not",
    85: "URLs that lead inside",
    86: "a name that turns to a private address between check and use",
    87: "a vendor that redirects",
    88: "a client that says where to send the key",
    89: "other URLs that are called, and proxies in the environment",
    100: "heads that drip",
    101: "bodies that drip",
    102: "readers that stop reading",
    103: "ten thousand idle connections",
    104: "heads that are too large",
    105: "bodies that are too large, too deep or too odd",
    106: "compressed bombs, both ways",
    107: "a body in chunks of one byte",
    108: "a flood of passwords to hash",
    109: "multipart where JSON is due",
    110: "a vendor that means no good",
    111: "texts that make a pattern search for ever",
    112: "one tenant that opens streams without end",
}

ELSEWHERE: Final = {
    21: "tests/fuzz compares both sides over mutated requests",
    32: "no session is renewed: a token is good as long as its session, which the database ends",
    73: "tests/control_plane/test_permissions.py asks every route as everybody",
    82: "tests/gateway/proxy/test_calls.py and tests/journeys hold rows against the vendor's tally",
    108: "the control plane hashes passwords, and its tests flood it; the gateway hashes none",
}

SECONDS_MAX: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One number: how it is tried, and what has to come of it."""

    number: int
    expected: str
    attempt: Callable[[Rig], Awaitable[str]]

    def __str__(self) -> str:
        return f"{self.number}: {TITLES[self.number]}"


CHAT: Final = "/v1/chat/completions"
BODY: Final = b'{"model":"gpt-4o","messages":[]}'
HOST: Final = b"Host: gateway\r\n"
AUTH: Final = f"Authorization: Bearer {TOKEN}\r\n".encode()
JSON: Final = b"Content-Type: application/json\r\n"
LENGTH: Final = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
CHUNKS: Final = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
# What must never be answered behind a request that broke the rules.
CANARY: Final = (
    b"POST /v1/messages HTTP/1.1\r\n" + HOST + AUTH + LENGTH + b"X-Canary: 1\r\n\r\n" + BODY
)
ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")


def post(
    *lines: bytes, body: bytes = BODY, line: bytes = b"POST /v1/chat/completions HTTP/1.1"
) -> bytes:
    """Return a request with a token, these lines in its head, and this framed body."""
    return line + b"\r\n" + HOST + AUTH + JSON + b"".join(lines) + b"\r\n" + body


async def answers_well(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(ANSWER)


async def say(rig: Rig, raw: bytes, *, step: int = 0) -> bytes:
    """Send bytes, `step` at a time where it is given; return all that comes until the end."""
    async with asyncio.timeout(SECONDS_MAX), rig.client() as client:
        for at in range(0, len(raw), step or len(raw)):
            client.send(raw[at : at + (step or len(raw))])
            if step:
                await asyncio.sleep(0)
        return await client.reader.read()


def statuses(got: bytes) -> list[int]:
    """Return the status of each answer in what came."""
    return [int(found) for found in _STATUS.findall(got)]


def refused(*requests: bytes) -> Callable[[Rig], Awaitable[str]]:
    """Try requests that are each to be refused, whole and in pieces, with a canary behind them."""

    async def attempt(rig: Rig) -> str:
        rig.vendor.script = answers_well
        found: set[int] = set()
        for request in requests:
            for step in (0, 7) if len(request) < 2_000 else (0,):
                got = await say(rig, request + CANARY, step=step)
                assert len(statuses(got)) == 1, (request[:200], got[:500])
                assert b"nnection: close\r\n" in got, (request[:200], got[:500])
                assert TOKEN.encode() not in got
                found.update(statuses(got))
        assert rig.vendor.heads == []
        return "/".join(map(str, sorted(found))) + ", closed"

    return attempt


async def ask_all(rig: Rig, requests: "list[bytes]") -> list[tuple[int, str | None]]:
    """Send requests, each on a connection of its own; return statuses and reasons."""
    results = []
    for request in requests:
        async with rig.client() as client:
            client.send(request)
            answer = await client.answer()
            results.append((answer.status, answer.headers.get("x-kaixu-reason")))
    return results
