"""Requests as no client writes them, made anew from a seed and a number: each can be replayed."""

import json
import random
import zlib
from dataclasses import dataclass
from typing import Final

from tests.gateway.proxy.rig import TOKEN

ID_HEADER: Final = "X-Fuzz-Id"

LENGTHS: Final = [
    b"3", b"+3", b"-3", b"0x3", b"3, 3", b"3 ", b" 3", b"03", b"", b"1_0", b"3;a", b"3\t", b"3,4",
    b"9" * 23, b"\xd9\xa3", b"0", b"65", b"1", b"3\r\nContent-Length: 5",
]  # fmt: skip
CODINGS: Final = [
    b"chunked", b"xchunked", b"Chunked", b"chunked,", b" chunked", b"\tchunked", b"\x0bchunked",
    b"gzip, chunked", b"chunked, identity", b"identity", b"chunked;q=1", b'"chunked"', b"chunked ",
    b"chunked\r\nTransfer-Encoding: chunked", b"chunked\r\nTransfer-Encoding: x", b"",
    b"chunked\r\n ", b",chunked", b"chunKed, chunked",
]  # fmt: skip
NAMES: Final = [
    b"Transfer-Encoding", b"Transfer-Encoding ", b"Transfer_Encoding", b"Transfer-Encoding\t",
    b" Transfer-Encoding", b"TRANSFER-ENCODING", b"Transfer\x00-Encoding", b"Transfer-Encoding\x0c",
]  # fmt: skip
HEADERS: Final = [
    b"Host: other", b"Host: a/x?y=", b"Host:", b"Host : a", b"Expect: 100-continue",
    b"Connection: close", b"Connection: keep-alive, X-Fuzz-Id", b"Connection: Authorization",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
    b"Connection: Content-Length", b"Connection: Transfer-Encoding", b"Upgrade: websocket",
    b"X: a\r\n b", b"X: a\r\n\tb", b"X: \x00", b"X: a\rb", b"X: a\nY: b", b": empty", b"no colon",
    b"X-Forwarded-For: 1.2.3.4", b"Content_Length: 3", b"Trailer: Host", b"TE: trailers, chunked",
    b"X-HTTP-Method-Override: DELETE", b"Cookie: a=b\x80", b"X: " + b"y" * 9_000,
    b"Content-Encoding: gzip", b"Accept-Encoding: gzip;q=0", b"Max-Forwards: 0", b"Range: bytes=0-",
]  # fmt: skip
SIZES: Final = [
    b"%x", b"0x%x", b"0%x", b"%x ", b" %x", b"%x;a=b", b'%x;a="\r\n"', b"%x\t", b"-%x", b"+%x",
    b"%x;" + b"e" * 3_000, b"0000000000000000%x", b"%X", b"%x\x0b", b"%x;a\nb",
]  # fmt: skip
ENDS: Final = [b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"", b"\r\n\r\n", b" \r\n"]
TRAILERS: Final = [
    b"", b"X: y\r\n", b"Content-Length: 5\r\n", b"Host: b\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Authorization: Bearer other\r\n", b"X : y\r\n", b" folded\r\n", b"X-Fuzz-Id: other\r\n",
]  # fmt: skip
LINES: Final = [
    b"POST  %b HTTP/1.1", b"POST %b  HTTP/1.1", b"POST\t%b HTTP/1.1", b" POST %b HTTP/1.1",
    b"POST %b HTTP/1.0", b"POST %b HTTP/1.2", b"POST %b HTTP/2.0", b"POST %b HTTP/0.9", b"POST %b",
    b"post %b HTTP/1.1", b"GET %b HTTP/1.1", b"HEAD %b HTTP/1.1", b"PUT %b HTTP/1.1",
    b"POST http://other%b HTTP/1.1", b"POST %b HTTP/1.1 ", b"POST %b#x HTTP/1.1",
    b"POST /x/..%b HTTP/1.1", b"POST /%b HTTP/1.1", b"POST %b HTTP/01.1", b"POST %b http/1.1",
    b"OPTIONS * HTTP/1.1", b"TRACE %b HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"BREW %b HTTP/1.1",
    b"POST %b?a=%%00 HTTP/1.1", b"POST %b\x00 HTTP/1.1", b"POST %b\x80 HTTP/1.1",
]  # fmt: skip
NOISE: Final = b"\r\n\t\x00\x0b\x80\xff :;,0aZ"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What one connection sends: bytes, in pieces, and the ids in them in their order."""

    number: int
    pieces: tuple[bytes, ...]
    ids: tuple[str, ...]


def fuzz_id(number: int, place: int) -> str:
    """Return an id that tells whether it was damaged on its way."""
    text = f"f{number}.{place}"
    return f"{text}.{zlib.crc32(text.encode()):08x}"


def is_whole(text: str) -> bool:
    """Return whether this is an id as it was made."""
    checked, _, check = text.rpartition(".")
    return f"{zlib.crc32(checked.encode()):08x}" == check


def attempt(seed: str, number: int) -> Attempt:
    """Return the attempt of this number: a request before, a mutated one, a request after."""
    chance = random.Random(f"{seed}/{number}")
    ids = [fuzz_id(number, place) for place in range(4)]
    before = _request(chance, ids[0]) if chance.random() < 0.3 else b""
    mutated = _mutated(chance, ids[1], hidden=_request(chance, ids[2]))
    after = _request(chance, ids[3], b"Connection: close")
    raw = before + mutated + after
    places = sorted(chance.sample(range(1, len(raw)), chance.choice((0, 0, 1, 2))))
    pieces = [raw[a:b] for a, b in zip([0, *places], [*places, len(raw)], strict=True)]
    return Attempt(number=number, pieces=tuple(pieces), ids=tuple(ids))


def _request(chance: random.Random, id_: str, *headers: bytes) -> bytes:
    return _assembled(
        b"POST %b HTTP/1.1" % _PATH, _headers(id_, *headers), _framed(chance, _body(id_))
    )


_PATH: Final = b"/v1/chat/completions"


def _headers(id_: str, *more: bytes) -> list[bytes]:
    return [
        b"Host: gateway",
        f"Authorization: Bearer {TOKEN}".encode(),
        b"Content-Type: application/json",
        f"{ID_HEADER}: {id_}".encode(),
        *more,
    ]


def _body(id_: str, extra: bytes = b"") -> bytes:
    text = {"model": "gpt-4o", "user": id_, "messages": [], "x": extra.decode("latin-1")}
    return json.dumps(text).encode()


def _framed(chance: random.Random, body: bytes) -> tuple[list[bytes], bytes]:
    """Return how a body is framed, as headers, and the framed body."""
    if chance.random() < 0.5:
        return [b"Content-Length: %d" % len(body)], body
    at = chance.randrange(1, len(body))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in (body[:at], body[at:]))
    return [b"Transfer-Encoding: chunked"], chunks + b"0\r\n\r\n"


def _assembled(line: bytes, headers: list[bytes], framed: tuple[list[bytes], bytes]) -> bytes:
    return b"\r\n".join([line, *headers, *framed[0], b"", b""]) + framed[1]


@dataclass(kw_only=True)
class _Parts:
    """A request that is being mutated."""

    line: bytes
    headers: list[bytes]
    framing: list[bytes]
    body: bytes
    framed: bytes
    end: bytes = b"\r\n"  # of one line of the head
    damages: int = 0


def _mutated(chance: random.Random, id_: str, *, hidden: bytes) -> bytes:
    """Return a request with one to three faults; its body may look like a request itself."""
    body = hidden if chance.random() < 0.4 else _body(id_)
    framing, framed = _framed(chance, body)
    parts = _Parts(
        line=b"POST %b HTTP/1.1" % _PATH,
        headers=_headers(id_),
        framing=framing,
        body=body,
        framed=framed,
    )
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        _mutate(chance, parts)
    lines = [parts.line, *parts.headers, *parts.framing]
    odd = chance.randrange(len(lines))
    head = b"".join(
        line + (parts.end if place == odd else b"\r\n") for place, line in enumerate(lines)
    )
    raw = bytearray(head + b"\r\n" + parts.framed)
    for _ in range(parts.damages):
        _damage(chance, raw)
    return bytes(raw)


def _mutate(chance: random.Random, parts: _Parts) -> None:
    match chance.randrange(9):
        case 0:
            template = chance.choice(LINES)
            parts.line = template.replace(b"%b", _PATH).replace(b"%%", b"%")
        case 1:
            place = chance.randrange(len(parts.headers) + 1)
            parts.headers.insert(place, chance.choice(HEADERS))
        case 2:
            coding = chance.choice(NAMES) + b": " + chance.choice(CODINGS)
            parts.framing = [*parts.framing, coding]
        case 3:
            parts.framing = [*parts.framing, b"Content-Length: " + chance.choice(LENGTHS)]
        case 4:
            wrong = max(0, len(parts.body) + chance.randint(-60, 60))
            parts.framing, parts.framed = [b"Content-Length: %d" % wrong], parts.body
        case 5:
            parts.framing = [b"Transfer-Encoding: chunked"]
            parts.framed = _odd_chunks(chance, parts.body)
        case 6:
            parts.end = chance.choice(ENDS)
        case 7:
            chance.shuffle(parts.framing)
            parts.framing = parts.framing * chance.choice((0, 2))
        case _:
            parts.damages += chance.randint(1, 3)


def _damage(chance: random.Random, raw: bytearray) -> None:
    at = chance.randrange(len(raw))
    match chance.randrange(4):
        case 0:
            raw[at] = chance.choice(NOISE)
        case 1:
            raw[at:at] = bytes([chance.choice(NOISE)])
        case 2:
            del raw[at : at + chance.randint(1, 4)]
        case _:
            raw[at:at] = raw[at : at + chance.randint(1, 40)]


def _odd_chunks(chance: random.Random, body: bytes) -> bytes:
    size = chance.choice(SIZES).replace(b"%x", b"%x" % len(body)).replace(b"%X", b"%X" % len(body))
    first = size + chance.choice((b"\r\n", b"\r\n", *ENDS)) + body
    first += chance.choice((b"\r\n", b"\r\n", *ENDS))
    last = chance.choice((b"0", b"0", b"00", b"0;e=1", b"0 ", b"-0", b"0x0"))
    return first + last + b"\r\n" + chance.choice(TRAILERS) + chance.choice((b"\r\n", *ENDS))
