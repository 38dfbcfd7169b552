"""How the simulated vendor answers: as a healthy one, or with the fault that a model names."""

import gzip
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from cachetools import LRUCache

from gateway.vendors.simulator.connection import Connection, Request, head
from gateway.vendors.simulator.formats import Ask, Format, Spent, words

BIG_TEXT_BYTES: Final = 16 * 1024  # of one event of a big stream
MEGABYTE: Final = 1_000_000
NOEND_BYTES: Final = 64 * 1024  # written at once of what never ends
NOEND_SECONDS: Final = 0.005  # between two such writes
SESSIONS_MAX: Final = 10_000  # whose refusals are remembered

_BEHAVIOUR: Final = re.compile(r"sim-([a-z]+)(?:-(\d{1,6}))?(?:[-x](\d{1,6}))?")
_RETRY_LATER: Final = (429, 503, 529)
SESSION_HEADERS: Final = ("x-session-id", "session-id", "x-claude-code-session-id")


class Broken(Exception):
    """The answer ends here, and so does the connection."""


class Refusals:
    """Remembers how often the calls of a session have been refused."""

    def __init__(self) -> None:
        self._counts: LRUCache[tuple[str, str], int] = LRUCache(SESSIONS_MAX)

    def is_due(self, session: str, model: str, *, times: int) -> bool:
        """Return whether to refuse this call: `times` in a row, then one is answered, and so on."""
        before = self._counts.pop((session, model), 0)
        if before >= times:
            return False
        self._counts[session, model] = before + 1
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call: what was asked, of which format, and over which connection."""

    connection: Connection
    request: Request
    format: Format
    ask: Ask
    id: str
    key: str
    refusals: Refusals = field(default_factory=Refusals)

    def asking(self, ask: Ask) -> "Call":
        """Return this call with what it asks for."""
        return replace(self, ask=ask)

    @property
    def spent(self) -> Spent:
        """The usage of a normal answer."""
        return Spent(self.ask.input_tokens, self.ask.words_due)

    @property
    def session(self) -> str | None:
        """The session that the client names."""
        headers = self.request.headers
        return next((headers[name] for name in SESSION_HEADERS if name in headers), None)

    @property
    def call_id(self) -> str:
        """The id that the answer's body has."""
        return self.format.id_prefix + self.id

    @property
    def request_id(self) -> str:
        """The id that the answer's head has."""
        return f"req_{self.id}"

    def headers(self) -> list[tuple[str, str]]:
        """Return the headers of every answer to this call."""
        wire = self.format
        common = [("server", "simulator"), (wire.id_header, self.request_id)]
        if wire.name == "openai":
            common += [("openai-version", "2020-10-01"), ("openai-processing-ms", "1")]
        return common

    async def send(
        self, status: int, body: bytes, *, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Send an answer in one piece, JSON compressed where the client takes gzip."""
        more = [*self.headers(), ("content-type", self.format.media_type), *headers]
        is_json = self.format.media_type == "application/json"
        if is_json and "gzip" in self.request.headers.get("accept-encoding", ""):
            body = gzip.compress(body, compresslevel=1)
            more += [("content-encoding", "gzip"), ("vary", "accept-encoding")]
        more.append(("content-length", str(len(body))))
        await self.connection.write(head(status, more) + body)

    async def send_error(
        self, status: int, message: str, *, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Send an error in the format's shape."""
        body = self.format.error(status, message, self.request_id)
        await self.connection.write(
            head(
                status,
                [
                    *self.headers(),
                    ("content-type", "application/json"),
                    *headers,
                    ("content-length", str(len(body))),
                ],
            )
            + body
        )

    async def begin_stream(self, *, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send the head of a chunked answer."""
        kind = self.format.stream_type if self.ask.event_stream else "application/json"
        if self.format.name == "openai":
            kind += "; charset=utf-8"
        more = [*self.headers(), ("content-type", kind), ("cache-control", "no-cache")]
        await self.connection.write(head(200, [*more, *headers, ("transfer-encoding", "chunked")]))

    async def send_piece(self, piece: bytes) -> None:
        """Send a piece of a chunked answer."""
        await self.connection.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    async def end_stream(self) -> None:
        """Send the end of a chunked answer."""
        await self.connection.write(b"0\r\n\r\n")

    def pieces(self) -> Iterator[bytes]:
        """Return the pieces of a normal stream."""
        texts = words(self.ask.words_due)
        return self.format.stream(self.ask, self.call_id, texts, self.spent)

    def plain(self) -> bytes:
        """Return a normal answer in one piece."""
        text = "".join(words(self.ask.words_due))
        return self.format.plain(self.ask, self.call_id, text, self.spent)


# A behaviour answers a call: with what was spent, or None where no whole answer was sent. Its two
# numbers are those in the model's name.
Behaviour = Callable[[Call, int | None, int | None], Awaitable[Spent | None]]


async def answer(
    call: Call, *, headers: Iterable[tuple[str, str]] = (), pause_seconds: float = 0.0
) -> Spent:
    """Answer as a healthy vendor does."""
    if not call.ask.stream:
        if pause_seconds:
            await call.connection.pause(pause_seconds * call.ask.words_due)
        await call.send(200, call.plain(), headers=headers)
        return call.spent
    await call.begin_stream(headers=headers)
    for piece in call.pieces():
        if pause_seconds:
            await call.connection.pause(pause_seconds)
        await call.send_piece(piece)
    await call.end_stream()
    return call.spent


async def _slow(call: Call, events: int | None, milliseconds: int | None) -> Spent:
    longer = call.asking(replace(call.ask, words=events or call.ask.words))
    return await answer(longer, pause_seconds=(milliseconds or 0) / 1000)


async def _big(call: Call, megabytes: int | None, _: int | None) -> Spent:
    number = max(1, -(-(megabytes or 1) * MEGABYTE // BIG_TEXT_BYTES))
    text = "x" * (BIG_TEXT_BYTES - 1) + " "
    spent = Spent(call.ask.input_tokens, number)
    wire = call.format
    if not call.ask.stream:
        await call.send(200, wire.plain(call.ask, call.call_id, text * number, spent))
        return spent
    await call.begin_stream()
    for piece in wire.stream(call.ask, call.call_id, [text] * number, spent):
        await call.send_piece(piece)
    await call.end_stream()
    return spent


async def _hang(call: Call, *_: int | None) -> None:
    await call.connection.pause(None)


async def _reset(call: Call, *_: int | None) -> None:
    call.connection.reset()
    raise Broken


async def _close(call: Call, *_: int | None) -> None:
    del call
    raise Broken


async def _half(call: Call) -> None:
    """Send the first half of an answer whose other half would be due."""
    if not call.ask.stream:
        body = call.plain()
        more = [("content-type", call.format.media_type), ("content-length", str(len(body)))]
        await call.connection.write(head(200, [*call.headers(), *more]) + body[: len(body) // 2])
        return
    await call.begin_stream()
    pieces = list(call.pieces())
    for piece in pieces[: len(pieces) // 2]:
        await call.send_piece(piece)


async def _cut(call: Call, *_: int | None) -> None:
    await _half(call)
    raise Broken


async def _early(call: Call, *_: int | None) -> None:
    if call.ask.stream:
        await _half(call)
        await call.end_stream()
    else:
        body = call.plain()
        await call.send(200, body[: len(body) // 2])


async def _error(call: Call, *_: int | None) -> None:
    if not call.ask.stream:
        await call.send_error(500, "The simulated vendor fails, as it was asked to.")
        return
    await _half(call)
    await call.send_piece(call.format.stream_error("The simulated vendor is overloaded."))
    await call.end_stream()


async def _never_ending(call: Call) -> None:
    while True:
        await call.connection.write(b"%x\r\n%b\r\n" % (NOEND_BYTES, b"x" * NOEND_BYTES))
        await call.connection.pause(NOEND_SECONDS)


async def _noend(call: Call, *_: int | None) -> None:
    await call.begin_stream()
    await call.send_piece(b'data: {"choices":[{"index":0,"delta":{"content":"')
    await _never_ending(call)


async def _nohead(call: Call, *_: int | None) -> None:
    await call.connection.write(b"HTTP/1.1 200 OK\r\nx-endless: ")
    while True:
        await call.connection.write(b"x" * NOEND_BYTES)
        await call.connection.pause(NOEND_SECONDS)


async def _garbage(call: Call, *_: int | None) -> None:
    await call.connection.write(b"\x16\x03\x01 this is no HTTP\r\n\x00\xff\r\n\r\n")
    raise Broken


async def _nonsense(call: Call, *_: int | None) -> None:
    if not call.ask.stream:
        await call.send(200, b"<html>\xff\x00 Service page </html>")
        return
    await call.begin_stream()
    await call.send_piece(b"data: {not json\n\n: \xff\xfe\n\nevent: \x00\ndata: []\n\n")
    await call.end_stream()


async def _status(call: Call, status: int | None, _: int | None) -> None:
    later = [("retry-after", "1")] if status in _RETRY_LATER else []
    message = f"The simulated vendor answers {status}, as it was asked to."
    await call.send_error(status or 500, message, headers=later)


async def _flaky(call: Call, status: int | None, times: int | None) -> Spent | None:
    if call.refusals.is_due(call.session or call.key, call.ask.model, times=times or 1):
        await _status(call, status, None)
        return None
    return await answer(call)


async def _badkey(call: Call, *_: int | None) -> None:
    await call.send_error(401, f"Incorrect API key provided: {call.key}.")


async def _echokey(call: Call, *_: int | None) -> None:
    await call.send_error(400, f"Your request with key {call.key} is not valid.")


async def _redirect(call: Call, *_: int | None) -> None:
    more = [("location", "/v1/elsewhere"), ("content-length", "0")]
    await call.connection.write(head(307, [*call.headers(), *more]))


async def _headers(call: Call, number: int | None, _: int | None) -> Spent:
    return await answer(call, headers=[(f"x-extra-{at}", "x") for at in range(number or 0)])


async def _normal(call: Call, *_: int | None) -> Spent:
    return await answer(call)


BEHAVIOURS: Final[Mapping[str, Behaviour]] = MappingProxyType(
    {
        "badkey": _badkey,
        "big": _big,
        "close": _close,
        "cut": _cut,
        "early": _early,
        "echokey": _echokey,
        "error": _error,
        "flaky": _flaky,
        "garbage": _garbage,
        "hang": _hang,
        "headers": _headers,
        "noend": _noend,
        "nohead": _nohead,
        "nonsense": _nonsense,
        "redirect": _redirect,
        "reset": _reset,
        "slow": _slow,
        "status": _status,
    }
)


def behaviour(model: str) -> tuple[Behaviour, int | None, int | None]:
    """Return what the name of a model asks for, with the two numbers in it."""
    found = _BEHAVIOUR.fullmatch(model)
    if found is None or found[1] not in BEHAVIOURS:
        return _normal, None, None
    first, second = (None if number is None else int(number) for number in found.group(2, 3))
    return BEHAVIOURS[found[1]], first, second
