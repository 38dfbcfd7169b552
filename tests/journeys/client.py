"""What calls the gateway in the journeys: three wire formats, told whole or as they come."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

SECONDS_MAX: Final = 60.0
QUESTION: Final = "what are five words here"  # five words: five tokens of the simulator's
FORMATS: Final = ("openai", "anthropic", "gemini")


@dataclass(kw_only=True)
class Answer:
    """What a client saw. `broke`: the connection ended before the answer did."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    body: bytes = b""
    broke: str = ""
    last_byte_at: float = 0.0  # Unix seconds
    ended_at: float = 0.0

    @property
    def reason(self) -> str | None:
        return self.headers.get("x-kaixu-reason")

    @property
    def is_whole(self) -> bool:
        """Whether the client has all of a successful answer, to its format's own end."""
        if self.status != 200 or self.broke:
            return False
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            return (
                self.body.endswith(b"data: [DONE]\n\n")
                or b"event: message_stop\n" in self.body
                or b'"finishReason"' in self.body
            )
        return True

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request in one of the formats."""

    format: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


def call(
    format_name: str,
    *,
    token: str,
    model: str,
    stream: bool,
    words: int | None = None,
    session_id: str | None = None,
    prefix: str = "",
    question: str = QUESTION,
) -> Call:
    """Return a request; `prefix` is `/vendor` where one is named."""
    more = {} if session_id is None else {"x-session-id": session_id}
    chat: dict[str, Any] = {
        "model": model,
        "stream": stream,
        "messages": [{"role": "user", "content": question}],
    }
    match format_name:
        case "openai":
            length: dict[str, Any] = {} if words is None else {"max_tokens": words}
            path, credential = "/v1/chat/completions", {"authorization": f"Bearer {token}"}
            body = {**chat, **length}
        case "anthropic":
            path = "/v1/messages"
            credential = {"x-api-key": token, "anthropic-version": "2023-06-01"}
            body = {**chat, "max_tokens": words or 4096}
        case "gemini":
            verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
            path, credential = f"/v1beta/models/{model}:{verb}", {"x-goog-api-key": token}
            length = {} if words is None else {"generationConfig": {"maxOutputTokens": words}}
            body = {"contents": [{"role": "user", "parts": [{"text": question}]}], **length}
        case _:
            raise AssertionError(format_name)
    return Call(format=format_name, path=prefix + path, headers={**credential, **more}, body=body)


async def send(
    url: str, request: Call, *, begun: asyncio.Event | None = None, seconds: float = SECONDS_MAX
) -> Answer:
    """Send a request and read its answer to the end; `begun` is set by its first bytes of body."""
    headers = {"content-type": "application/json", **request.headers}
    body = json.dumps(request.body).encode()
    target = url + request.path
    return await fetch(target, body=body, headers=headers, begun=begun, seconds=seconds)


async def fetch(
    url: str,
    *,
    method: str = "POST",
    headers: Mapping[str, str] = MappingProxyType({}),
    body: bytes = b"",
    begun: asyncio.Event | None = None,
    seconds: float = SECONDS_MAX,
) -> Answer:
    """Send bytes on a connection of their own and read to its end.

    A broken connection is told, not raised; an answer that does not end in time fails the test.
    """
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = {
        "host": parts.netloc,
        "accept-encoding": "identity",
        "connection": "close",
        **({"content-length": str(len(body))} if body or method == "POST" else {}),
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    request = f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body
    try:
        async with asyncio.timeout(seconds):
            return await exchange(parts.hostname or "", parts.port or 80, request, begun=begun)
    except TimeoutError:
        raise AssertionError(f"No end of the answer within {seconds} s: {method} {url}") from None


async def exchange(
    host: str, port: int, request: bytes, *, begun: asyncio.Event | None = None
) -> Answer:
    """Write raw bytes, read to the end of the connection, and take what came apart."""
    raw = bytearray()
    broke = ""
    last_byte_at = 0.0
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        return Answer(broke=repr(error), ended_at=time.time())
    try:
        writer.write(request)
        while piece := await reader.read(2**18):
            last_byte_at = time.time()
            raw += piece
            if begun is not None and raw.partition(b"\r\n\r\n")[2]:
                begun.set()
                begun = None
    except ConnectionError as error:
        broke = repr(error)
    finally:
        writer.transport.abort()
    ended_at = time.time()
    answer = taken_apart(bytes(raw))
    if answer.broke:
        answer.broke += f" {broke}"
    answer.last_byte_at, answer.ended_at = last_byte_at, ended_at
    return answer


def taken_apart(raw: bytes) -> Answer:
    """Return the answer in the bytes of a connection; one that is not whole is broken."""
    head, separator, rest = raw.partition(b"\r\n\r\n")
    if not separator:
        return Answer(broke=f"no head in {raw[:100]!r}")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.split(":", 1) for line in lines]
    headers = {name.lower(): value.strip() for name, value in pairs}
    status = int(first.split(" ")[1])
    if headers.get("transfer-encoding") == "chunked":
        body, broke = dechunked(rest)
    else:
        length = int(headers.get("content-length", len(rest)))
        body, broke = rest, "" if len(rest) == length else f"{len(rest)} bytes of {length}"
    return Answer(status=status, headers=headers, body=body, broke=broke)


def dechunked(raw: bytes) -> tuple[bytes, str]:
    """Return the content of chunks, and what broke them, or nothing."""
    body = bytearray()
    at = 0
    while True:
        end = raw.find(b"\r\n", at)
        if end < 0:
            return bytes(body), "chunks without their end"
        size = int(raw[at:end].split(b";")[0], 16)
        if size == 0:
            return bytes(body), "" if raw[end:] == b"\r\n\r\n" else "bytes after the end"
        body += raw[end + 2 : end + 2 + size]
        if len(raw) < end + 2 + size + 2:
            return bytes(body), "a chunk without its end"
        at = end + 2 + size + 2


def check_error(format_name: str, answer: Answer) -> str:
    """Check that an error has its format's shape; return its message."""
    document = answer.json()
    error = document["error"]
    assert isinstance(error["message"], str)
    assert error["message"]
    match format_name:
        case "openai":
            assert set(error) == {"message", "type", "param", "code"}, document
        case "anthropic":
            assert document["type"] == "error"
            assert isinstance(error["type"], str)
            assert document["request_id"]
        case "gemini":
            assert error["code"] == answer.status
            assert error["status"].isupper()
        case _:
            raise AssertionError(format_name)
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-kaixu-call-id"]
    return str(error["message"])


def check_refusal(format_name: str, answer: Answer, *, status: int, reason: str) -> None:
    """Check that the gateway refused a call, for this reason, in the format's shape."""
    assert (answer.status, answer.reason, answer.broke) == (status, reason, ""), answer
    check_error(format_name, answer)


def last_event(body: bytes) -> tuple[str, Any]:
    """Return name and data of a stream's last event."""
    assert body.endswith(b"\n\n"), body[-200:]
    lines = body[:-2].replace(b"\r\n", b"\n").rpartition(b"\n\n")[2].split(b"\n")
    members = dict(line.split(b": ", 1) for line in lines if b": " in line)
    return members.get(b"event", b"").decode(), json.loads(members[b"data"])


def check_stream_error(format_name: str, answer: Answer) -> None:
    """Check that a stream ended as the format tells an error, and never as if it were whole."""
    assert not answer.is_whole
    if format_name == "gemini":
        assert answer.broke, "the format has no error event: the connection has to break"
        return
    name, data = last_event(answer.body)
    assert isinstance(data["error"]["message"], str)
    if format_name == "anthropic":
        assert (name, data["type"]) == ("error", "error")
