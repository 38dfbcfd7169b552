"""HTTP/1.1 as the simulated vendor reads and writes it: plainly, so that it can break it."""

import asyncio
import socket
import struct
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

import brotli
import zstandard

HEAD_BYTES_MAX: Final = 64 * 1024
BODY_BYTES_MAX: Final = 128 * 1024 * 1024  # more than the gateway takes
WRITE_BUFFER_BYTES_MAX: Final = 256 * 1024
UNSENT_BYTES_MAX: Final = 128 * 1024  # in the kernel; else a big answer is 4 MB without a wait

_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: no waiting, what is unsent is dropped
_GZIP_OR_ZLIB: Final = zlib.MAX_WBITS | 32


class ClientLeft(Exception):
    """The client closed its connection before its answer was whole."""


class RequestBad(Exception):
    """What came is not a request that this server reads; the connection is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request, read whole. Header names are lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """A client's connection: requests are read from it and answers written, one at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """`reader` and `writer` are the connection's."""
        self._reader = reader
        self._writer = writer
        writer.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)
        plug: socket.socket | None = writer.get_extra_info("socket")
        if plug is not None:
            plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)

    async def read_request(self) -> Request | None:
        """Return the next request, or None where the client closed. Raises RequestBad."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise RequestBad("A broken request head") from error
            return None
        except asyncio.LimitOverrunError as error:
            raise RequestBad("A request head that is too long") from error
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        try:
            method, target, _ = first.split(" ")
            pairs = [line.split(":", 1) for line in lines]
            headers = {name.lower(): value.strip() for name, value in pairs}
            url = urlsplit(target)
        except ValueError as error:
            raise RequestBad("A malformed request head") from error
        return Request(
            method=method,
            path=unquote(url.path),
            query=dict(parse_qsl(url.query)),
            headers=headers,
            body=decoded(await self._read_body(headers), headers.get("content-encoding", "")),
        )

    async def _read_body(self, headers: Mapping[str, str]) -> bytes:
        try:
            if headers.get("transfer-encoding", "").lower() == "chunked":
                return await self._read_chunks()
            length = int(headers.get("content-length", "0"))
            if not 0 <= length <= BODY_BYTES_MAX:
                raise RequestBad("A body that is too large")
            return await self._reader.readexactly(length)
        except (ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise RequestBad("A broken body") from error

    async def _read_chunks(self) -> bytes:
        body = bytearray()
        while True:
            size = int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16)
            if not 0 <= size <= BODY_BYTES_MAX - len(body):
                raise RequestBad("A body that is too large")
            body += (await self._reader.readexactly(size + 2))[:size]
            if size == 0:
                return bytes(body)

    async def write(self, data: bytes) -> None:
        """Write, and wait where the client reads slowly. Raises ClientLeft."""
        if self._writer.is_closing() or self._reader.at_eof():
            raise ClientLeft
        self._writer.write(data)
        try:
            await self._writer.drain()
        except ConnectionError as error:
            raise ClientLeft from error

    async def pause(self, seconds: float | None) -> None:
        """Wait; None is for ever. Raises ClientLeft at once when the client leaves."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                try:
                    await self._reader.read(1)
                except ConnectionError as error:
                    raise ClientLeft from error
                # The end, or a request before the answer to the last: nobody honest does that.
                raise ClientLeft

    def reset(self) -> None:
        """Break the connection off, so that the other side sees a reset."""
        plug: socket.socket | None = self._writer.get_extra_info("socket")
        if plug is not None:
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close the connection once what was written has gone out."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


def head(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return the head of an answer."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} {phrase}\r\n{lines}\r\n".encode()


def decoded(body: bytes, encoding: str) -> bytes:
    """Return a body without its content encoding. Raises RequestBad."""
    try:
        match encoding.lower():
            case "" | "identity":
                return body
            case "gzip" | "deflate":
                return zlib.decompress(body, wbits=_GZIP_OR_ZLIB)
            case "br":
                return bytes(brotli.decompress(body))
            case "zstd":
                with zstandard.ZstdDecompressor().stream_reader(body) as reader:
                    return bytes(reader.read())
            case _:
                raise RequestBad("An unknown content encoding")
    except (zlib.error, brotli.error, zstandard.ZstdError) as error:
        raise RequestBad("A body that does not decode") from error
