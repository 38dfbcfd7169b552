import gzip
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gateway.metering.decoding import (
    DECODED_BYTES_PER_FEED_MAX,
    DECODERS,
    GZIP_MEMBERS_PER_FEED_MAX,
    DecodedTooLarge,
    DecodingStopped,
)


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(body) + stream.flush()


ENCODINGS: list[tuple[bytes, Callable[[bytes], bytes]]] = [
    (b"gzip", gzip.compress),
    (b"x-gzip", lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:])),
    (b"deflate", zlib.compress),
    (b"deflate", raw_deflate),
    (b"br", brotli.compress),
    (b"zstd", zstandard.ZstdCompressor().compress),
    (
        b"zstd",
        lambda body: b"".join(map(zstandard.ZstdCompressor().compress, (body[:9], body[9:]))),
    ),
]
BODY = '{"text": "Grüße", "usage": {"prompt_tokens": 12}}'.encode() * 3
encodings = pytest.mark.parametrize(
    ("name", "encode"),
    ENCODINGS,
    ids=[f"{number}-{one[0].decode()}" for number, one in enumerate(ENCODINGS)],
)


@encodings
def test_a_body_is_decoded_wherever_it_is_cut(
    name: bytes, encode: Callable[[bytes], bytes]
) -> None:
    encoded = encode(BODY)
    assert DECODERS[name]().feed(encoded) == BODY
    bytewise = DECODERS[name]()
    assert b"".join(bytewise.feed(encoded[at : at + 1]) for at in range(len(encoded))) == BODY


@encodings
def test_what_came_until_a_cut_is_decoded(name: bytes, encode: Callable[[bytes], bytes]) -> None:
    encoded = encode(BODY)
    for upto in range(len(encoded)):
        assert BODY.startswith(DECODERS[name]().feed(encoded[:upto]))


@encodings
def test_a_bomb_is_stopped(name: bytes, encode: Callable[[bytes], bytes]) -> None:
    bomb = encode(bytes(DECODED_BYTES_PER_FEED_MAX + 1024))
    with pytest.raises(DecodedTooLarge):
        DECODERS[name]().feed(bomb)


def test_a_chain_of_small_members_is_stopped() -> None:
    with pytest.raises(DecodedTooLarge):
        DECODERS[b"gzip"]().feed(gzip.compress(b"") * (GZIP_MEMBERS_PER_FEED_MAX + 1))


def test_a_window_beyond_the_bound_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(DecodingStopped):
        DECODERS[b"zstd"]().feed(stream.compress(bytes(1 << 20)) + stream.flush())


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_garbage_stops_the_decoder(name: bytes) -> None:
    with pytest.raises(DecodingStopped):
        DECODERS[name]().feed(b"\x07\x07 this is no compressed body, and long enough to tell")


@given(st.sampled_from(sorted(DECODERS)), st.lists(st.binary(max_size=60), max_size=5))
def test_any_bytes_are_decoded_or_stop_the_decoder(name: bytes, chunks: list[bytes]) -> None:
    decoder = DECODERS[name]()
    try:
        for chunk in chunks:
            decoder.feed(chunk)
    except DecodingStopped:
        pass
