"""However a vendor cuts an answer into chunks and reads: the reply is told the same."""

import asyncio
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits import READ_BUFFER_BYTES
from gateway.proxy.headers import Headers
from gateway.proxy.upstream import UpstreamConnection

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


class Transport:
    """Takes a request, and ends."""

    ended = False

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def writelines(self, parts: object) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.ended

    def abort(self) -> None:
        self.ended = True


class Heard:
    """A reply that keeps what it is told. Whole chunks it takes, if `takes_chunks`."""

    def __init__(self, *, takes_chunks: bool) -> None:
        self.takes_chunks = takes_chunks
        self.body = b""
        self.chunks = 0
        self.how = ""

    def on_head(self, status: int, reason: bytes, headers: Headers) -> None:
        pass

    def on_chunk(self, chunk: bytes, size: int) -> bool:
        if not self.takes_chunks or not chunk.endswith(b"\r\n"):
            return False
        line, _, rest = chunk.partition(b"\r\n")
        assert int(line, 16) == size == len(rest) - 2
        self.body += rest[:size]
        self.chunks += 1
        return True

    def on_data(self, data: bytes) -> None:
        self.body += data

    def on_end(self) -> None:
        self.how += "ended"

    def on_read_done(self) -> None:
        pass

    def on_broken(self, *, any_byte: bool) -> None:
        self.how += f"broken {any_byte}"

    def on_drained(self) -> None:
        pass

    def on_defect(self, error: Exception) -> None:
        self.how += f"defect {error!r}"


def heard(reads: list[bytes], *, takes_chunks: bool = True) -> tuple[Heard, bool]:
    """Return what a reply heard of these reads, and whether the connection may be used again."""
    released: list[UpstreamConnection] = []
    connection = UpstreamConnection(
        released.append, buffer=memoryview(bytearray(READ_BUFFER_BYTES))
    )
    transport = Transport()
    connection.connection_made(cast("asyncio.Transport", transport))
    reply = Heard(takes_chunks=takes_chunks)
    connection.send(reply, b"", b"")
    for read in reads:
        if transport.ended or released:
            break
        connection.get_buffer(-1)[: len(read)] = read
        connection.buffer_updated(len(read))
    if not released:
        connection.connection_lost(None)
    return reply, bool(released)


texts = st.lists(
    st.sampled_from([b"\r\n", b"\n\n", b"a", b"1", b"0\r\n\r\n", b"f\r\n" + b"x" * 15 + b"\r\n"]),
    min_size=1,
    max_size=8,
).map(b"".join)
sizes = st.sampled_from([b"%x", b"%x", b"%X", b"%04x", b"%x;name=value", b"%x "])


def framed(data: bytes, size: bytes) -> bytes:
    return size % len(data) + b"\r\n" + data + b"\r\n"


@st.composite
def answers(draw: st.DrawFn) -> list[bytes]:
    """Return the reads of a chunked answer: chunk by chunk, or cut anywhere; perhaps damaged."""
    chunks = draw(st.lists(st.builds(framed, texts, sizes), max_size=6))
    reads = [HEAD, *chunks, END]
    if draw(st.booleans()):
        at = draw(st.integers(1, len(reads) - 1))
        damage = st.sampled_from([b"1\r\n", b"\r\n", b"x", b"0\r\n", b"-1\r\n", b"0x1\r\n"])
        reads[at] = draw(damage) + reads[at][draw(st.integers(0, 2)) :]
    if draw(st.booleans()):
        whole = b"".join(reads)
        places = draw(st.sets(st.integers(len(HEAD), len(whole)), max_size=9))
        reads = [whole[a:b] for a, b in pairwise(sorted({0, *places, len(whole)}))]
    return reads


@given(answers())
def test_a_chunk_that_goes_by_the_parser_changes_nothing(reads: list[bytes]) -> None:
    passing, parsed = heard(reads), heard(reads, takes_chunks=False)
    assert passing[0].body == parsed[0].body
    assert passing[0].how == parsed[0].how
    assert passing[1] == parsed[1]


@pytest.mark.parametrize("size", [b"%x", b"%X"])
def test_chunks_that_come_alone_go_by_the_parser(size: bytes) -> None:
    chunks = [framed(b"x" * length, size) for length in (1, 15, 16, 171, 255, 256, 2_000)]
    reply, may_be_used_again = heard([HEAD, chunks[0], *chunks, END])
    assert reply.chunks == len(chunks)  # the first one shows where the parser stands
    assert reply.how == "ended"
    assert may_be_used_again


def test_a_read_that_ends_within_the_size_of_a_chunk_is_no_place_to_go_by_the_parser() -> None:
    """The next read alone would look like a chunk of its own."""
    inner = framed(b"x" * 15, b"%x")
    outer = framed(inner[3:] + b"y" * (0x1F - len(inner) + 3), b"%x")
    assert outer.startswith(b"1f\r\n" + b"x" * 15 + b"\r\n")
    reply, _ = heard([HEAD, framed(b"first", b"%x") + outer[:1], outer[1:21], outer[21:], END])
    assert reply.chunks == 0
    assert reply.body == b"first" + outer[4:-2]
    assert reply.how == "ended"


def test_a_chunk_longer_than_is_looked_at_is_the_parsers() -> None:
    long = framed(b"x" * 5_000, b"%x")
    reply, _ = heard([HEAD, long, long, END])
    assert reply.chunks == 0
    assert reply.body == b"x" * 10_000
    assert reply.how == "ended"
