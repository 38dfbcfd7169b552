"""Content decoding of the meter's copy: gzip, deflate, br and zstd, bounded at every step.

The client gets the vendor's compressed bytes; only the copy is opened. A decoder stops for good at
the first thing that is wrong, and what stops it is a `DecodingStopped`: the answer goes on.
"""

import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Protocol

import brotli
import zstandard

DECODED_BYTES_PER_FEED_MAX: Final = 8 * 1024 * 1024  # out of one read; JSON shrinks 5- to 20-fold
ZSTD_WINDOW_BYTES_MAX: Final = 8 * 1024 * 1024  # as RFC 9659 sets it for HTTP
GZIP_MEMBERS_PER_FEED_MAX: Final = 64  # honest answers have one

_ZLIB_HEADER_BYTES: Final = 2


class DecodingStopped(Exception):
    """The content encoding is broken."""


class DecodedTooLarge(DecodingStopped):
    """One read swelled beyond DECODED_BYTES_PER_FEED_MAX."""


class Decoder(Protocol):
    """Opens one content encoding, read by read."""

    def feed(self, chunk: bytes) -> bytes:
        """Return what `chunk` gives. Raises DecodingStopped; the decoder is dead then."""
        ...


class Gzip:
    """Content-Encoding gzip, with any number of members."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    def feed(self, chunk: bytes) -> bytes:
        """Return what `chunk` gives. Raises DecodingStopped."""
        parts: list[bytes] = []
        room = DECODED_BYTES_PER_FEED_MAX
        for _ in range(GZIP_MEMBERS_PER_FEED_MAX):
            part = _inflate(self._member, chunk, room)
            room -= len(part)
            parts.append(part)
            chunk = self._member.unused_data
            if not self._member.eof or not chunk:
                return b"".join(parts)
            self._member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        raise DecodedTooLarge


class Deflate:
    """Content-Encoding deflate: the zlib format by its definition, bare deflate by some servers."""

    def __init__(self) -> None:
        self._header = b""
        self._stream: zlib._Decompress | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Return what `chunk` gives. Raises DecodingStopped."""
        if self._stream is None:
            self._header += chunk
            if len(self._header) < _ZLIB_HEADER_BYTES:
                return b""
            chunk, self._header = self._header, b""
            is_zlib = chunk[0] & 0x0F == zlib.DEFLATED and (chunk[0] << 8 | chunk[1]) % 31 == 0
            self._stream = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
        return _inflate(self._stream, chunk, DECODED_BYTES_PER_FEED_MAX)


class Brotli:
    """Content-Encoding br."""

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    def feed(self, chunk: bytes) -> bytes:
        """Return what `chunk` gives. Raises DecodingStopped."""
        try:
            part: bytes = self._stream.process(
                chunk, output_buffer_limit=DECODED_BYTES_PER_FEED_MAX
            )
        except brotli.error as error:
            raise DecodingStopped from error
        # The library's limit is a hint: it may give somewhat more, and be done with it.
        if len(part) > DECODED_BYTES_PER_FEED_MAX or not self._stream.can_accept_more_data():
            raise DecodedTooLarge
        return part


class _Bounded:
    """Takes what a zstd stream writes, up to a bound."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._room = DECODED_BYTES_PER_FEED_MAX

    def write(self, part: bytes) -> int:
        self._room -= len(part)
        if self._room < 0:
            raise DecodedTooLarge
        self._parts.append(bytes(part))
        return len(part)

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        self._room = DECODED_BYTES_PER_FEED_MAX
        return taken


class Zstd:
    """Content-Encoding zstd."""

    def __init__(self) -> None:
        self._decoded = _Bounded()
        self._stream = zstandard.ZstdDecompressor(
            max_window_size=ZSTD_WINDOW_BYTES_MAX
        ).stream_writer(self._decoded, closefd=False)  # type: ignore[arg-type]

    def feed(self, chunk: bytes) -> bytes:
        """Return what `chunk` gives. Raises DecodingStopped."""
        try:
            self._stream.write(chunk)
        except zstandard.ZstdError as error:
            raise DecodingStopped from error
        return self._decoded.take()


DECODERS: Final[Mapping[bytes, Callable[[], Decoder]]] = MappingProxyType(
    {
        b"gzip": Gzip,
        b"x-gzip": Gzip,
        b"deflate": Deflate,
        b"br": Brotli,
        b"zstd": Zstd,
    }
)


def _inflate(stream: "zlib._Decompress", chunk: bytes, room: int) -> bytes:
    try:
        part = stream.decompress(chunk, room + 1)
    except zlib.error as error:
        raise DecodingStopped from error
    if len(part) > room:
        raise DecodedTooLarge
    return part
