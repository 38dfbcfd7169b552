"""python -m gateway.vendors.simulator: serve until told to stop."""

import argparse
import asyncio
import hashlib
import re
import resource
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import orjson
import uvloop

from gateway.ids import IdMaker
from gateway.vendors.simulator import cohere_paths, mistral_paths, ollama_paths
from gateway.vendors.simulator.behaviours import Broken, Call, Refusals, behaviour
from gateway.vendors.simulator.connection import (
    HEAD_BYTES_MAX,
    ClientLeft,
    Connection,
    Request,
    RequestBad,
    head,
)
from gateway.vendors.simulator.formats import FORMATS, Ask, AskInvalid, Format
from gateway.vendors.simulator.media_paths import PICTURES, SPEECH, TRANSCRIPTIONS, form_of
from gateway.vendors.simulator.openai_answers import MODERATIONS, RERANK
from gateway.vendors.simulator.openai_paths import COMPLETIONS, EMBEDDINGS, RESPONSES
from gateway.vendors.simulator.shelf import Missing, Shelf
from gateway.vendors.simulator.stored_paths import (
    StoredRoute,
    begin_in_background,
    find_route,
    keep_response,
    response_of,
)
from gateway.vendors.simulator.tally import Tally

LISTEN_BACKLOG: Final = 4096
OPEN_FILES: Final = 65_536  # as far as the machine allows

_POSTS: Final = MappingProxyType(
    {
        "/v1/chat/completions": (FORMATS["openai"], "generate"),
        "/v1/completions": (COMPLETIONS, "generate"),
        "/v1/responses": (RESPONSES, "generate"),
        "/v1/embeddings": (EMBEDDINGS, "generate"),
        "/v1/audio/transcriptions": (TRANSCRIPTIONS, "generate"),
        "/v1/audio/translations": (TRANSCRIPTIONS, "generate"),
        "/v1/audio/speech": (SPEECH, "generate"),
        "/v1/images/generations": (PICTURES, "generate"),
        "/v1/images/edits": (PICTURES, "generate"),
        "/v1/images/variations": (PICTURES, "generate"),
        "/v1/moderations": (MODERATIONS, "generate"),
        "/v1/rerank": (RERANK, "generate"),
        "/v1/messages": (FORMATS["anthropic"], "generate"),
        "/v1/messages/count_tokens": (FORMATS["anthropic"], "count"),
        "/v2/chat": (cohere_paths.CHAT, "generate"),
        "/v2/embed": (cohere_paths.EMBED, "generate"),
        "/v2/rerank": (cohere_paths.RERANK, "generate"),
        "/v1/chat": (cohere_paths.CHAT_V1, "generate"),
        "/v1/embed": (cohere_paths.EMBED, "generate"),
        "/mistral/v1/chat/completions": (mistral_paths.CHAT, "generate"),
        "/mistral/v1/fim/completions": (mistral_paths.FIM, "generate"),
        "/mistral/v1/embeddings": (mistral_paths.EMBEDDINGS, "generate"),
        "/api/chat": (ollama_paths.CHAT, "generate"),
        "/api/generate": (ollama_paths.GENERATE, "generate"),
        "/api/embed": (ollama_paths.EMBED, "generate"),
    }
)
_GEMINI_CALL: Final = re.compile(
    r"/v1(?:beta)?/models/([^:]+):(generateContent|streamGenerateContent|countTokens)"
)
_GEMINI_VERBS: Final = MappingProxyType(
    {"generateContent": "generate", "streamGenerateContent": "stream", "countTokens": "count"}
)
_MODELS: Final = re.compile(r"/(mistral/v1|v1|v1beta)/models(?:/([^/:]+))?")
_BEARER: Final = re.compile(r"bearer +([!-~]+)", re.IGNORECASE)
NOTHING_ASKED: Final = Ask(model="", stream=False, words=None, input_tokens=0, stream_usage=False)


class Route(NamedTuple):
    """What a path is: the format it speaks, what it does, and the model in it."""

    format: Format
    verb: str  # generate, stream, count or models
    model: str = ""


def route_of(request: Request) -> Route | None:
    """Return what a request's path is, or None."""
    if request.method == "POST":
        if request.path in _POSTS:
            return Route(*_POSTS[request.path])
        if found := _GEMINI_CALL.fullmatch(request.path):
            return Route(FORMATS["gemini"], _GEMINI_VERBS[found[2]], found[1])
    elif request.method == "GET" and request.path == "/api/tags":
        return Route(ollama_paths.CHAT, "models")
    elif request.method == "GET" and (found := _MODELS.fullmatch(request.path)):
        return Route(_lister(request, found[1]), "models", found[2] or "")
    return None


def _lister(request: Request, version: str) -> Format:
    """Return the format of a list of models: by the path's version, or by a vendor's habits."""
    if version == "mistral/v1":
        return mistral_paths.CHAT
    if version == "v1beta" or "x-goog-api-key" in request.headers:
        return FORMATS["gemini"]
    if "page_size" in request.query:
        return cohere_paths.CHAT
    return FORMATS["anthropic" if "anthropic-version" in request.headers else "openai"]


def credential_of(request: Request, format_name: str) -> str:
    """Return the key that came in the header of the format, or nothing."""
    headers = request.headers
    bearer = _BEARER.fullmatch(headers.get("authorization", ""))
    match format_name:
        case "gemini":
            return headers.get("x-goog-api-key", "") or request.query.get("key", "")
        case "anthropic":
            return headers.get("x-api-key", "") or (bearer[1] if bearer else "")
        case _:
            return bearer[1] if bearer else ""


class Server:
    """Answers requests, connection by connection."""

    def __init__(self, tally: Tally) -> None:
        """`tally` takes every call."""
        self._tally = tally
        self._refusals = Refusals()
        self._ids = IdMaker(time.time)
        self._shelf = Shelf()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:  # the process ends; Python 3.11 would report an error
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        with suppress(ClientLeft, Broken, ConnectionError):
            try:
                while request := await connection.read_request():
                    await self._answer(connection, request)
                    if request.headers.get("connection", "").lower() == "close":
                        break
            except RequestBad as bad:
                body = FORMATS["openai"].error(400, str(bad), "")
                closing = [("connection", "close"), ("content-length", str(len(body)))]
                await connection.write(head(400, closing) + body)
        await connection.close()

    async def _answer(self, connection: Connection, request: Request) -> None:
        stored = find_route(self._shelf, request)
        route = None if stored is not None else route_of(request)
        if stored is not None:
            await self._answer_stored(connection, request, stored)
            return
        wire = FORMATS["openai"] if route is None else route.format
        key = credential_of(request, wire.name)
        call = Call(
            connection=connection,
            request=request,
            format=wire,
            ask=NOTHING_ASKED,
            id=self._ids.new(),
            key=key,
            refusals=self._refusals,
        )
        if route is None:
            await call.send_error(404, f"Invalid URL ({request.method} {request.path})")
        elif not key:
            await call.send_error(401, "You didn't provide an API key.")
        elif route.verb == "models":
            await self._list(call, route.model)
        else:
            try:
                document = document_of(request)
                ask = wire.read(document, route.model, route.verb, request.query)
                self._shelf.check_named(document)
            except (AskInvalid, RecursionError) as error:
                await call.send_error(400, str(error))
                return
            except Missing:
                await call.send_error(404, "There is no object of this name.")
                return
            call = call.asking(ask)
            if document.get("background") is True and wire is RESPONSES:
                await self._begin(call, document)
                return
            if route.verb == "count":
                await call.send(200, wire.count(ask.input_tokens))
            else:
                self._keep(call, document)
                await self._generate(call)

    async def _answer_stored(
        self, connection: Connection, request: Request, route: StoredRoute
    ) -> None:
        """Answer what is about stored objects."""
        wire = route.format
        key = credential_of(request, wire.name)
        call = Call(
            connection=connection,
            request=request,
            format=wire,
            ask=NOTHING_ASKED,
            id=self._ids.new(),
            key=key,
            refusals=self._refusals,
        )
        if not key:
            await call.send_error(401, "You didn't provide an API key.")
            return
        try:
            answer = route.answer()
        except Missing:
            await call.send_error(404, "There is no object of this name.")
        except (AskInvalid, RecursionError) as error:
            await call.send_error(400, str(error))
        else:
            kind, length = ("content-type", answer.content_type), str(len(answer.body))
            headers = [*call.headers(), *answer.headers, kind, ("content-length", length)]
            await connection.write(head(answer.status, headers) + answer.body)

    def _keep(self, call: Call, document: Mapping[str, Any]) -> None:
        """Keep an answer that is about to be given, where it is to be kept."""
        if call.format is RESPONSES:
            whole = response_of(dict(document), call.plain())
            keep_response(self._shelf, dict(document), whole)
        elif call.request.path == "/v1/chat/completions" and document.get("store") is True:
            self._shelf.put("chat_completions", call.call_id, orjson.loads(call.plain()))

    async def _begin(self, call: Call, document: Mapping[str, Any]) -> None:
        """Answer that the work is begun, and is to be fetched."""
        await self._note(call)
        whole = response_of(dict(document), call.plain())
        begun = begin_in_background(self._shelf, whole)
        await call.send(200, orjson.dumps(begun))
        self._note_done(call, call.spent._asdict())

    async def _list(self, call: Call, model: str) -> None:
        if not model:
            await call.send(200, call.format.models_body(call.format.models))
        elif model in call.format.models:
            await call.send(200, call.format.model_body(model))
        else:
            await call.send_error(404, f"The model '{model}' does not exist.")

    async def _note(self, call: Call) -> None:
        """Have a call in the tally before anything of its answer goes out."""
        self._tally.note(
            {
                "id": call.request_id,
                "session_id": call.session,
                "path": call.request.path,
                "model": call.ask.model,
                "stream": call.ask.stream,
                "at": time.time(),
                "key_sha256": hashlib.sha256(call.key.encode()).hexdigest(),
            }
        )
        await self._tally.sync()

    def _note_done(self, call: Call, usage: Mapping[str, int]) -> None:
        self._tally.note({"id": call.request_id, "done": True, "at": time.time(), "usage": usage})

    async def _generate(self, call: Call) -> None:
        await self._note(call)
        behave, first, second = behaviour(call.ask.model)
        try:
            spent = await behave(call, first, second)
        except ClientLeft:
            self._tally.note({"id": call.request_id, "left": True, "at": time.time()})
            raise
        if spent is not None:
            self._note_done(call, spent._asdict())


def document_of(request: Request) -> Mapping[str, Any]:
    """Return the JSON object in a request's body, or the fields of its form. Raises AskInvalid."""
    content_type = request.headers.get("content-type", "")
    if content_type.startswith("multipart/form-data"):
        return form_of(request.body, content_type)
    try:
        document = orjson.loads(request.body)
    except orjson.JSONDecodeError as error:
        raise AskInvalid("We could not parse the JSON body of your request.") from error
    if not isinstance(document, dict):
        raise AskInvalid("The JSON body of your request is not an object.")
    return document


async def run(*, host: str, port: int, tally: Tally) -> None:
    """Listen, say where, and serve until SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    server = await asyncio.start_server(
        Server(tally).serve, host, port, limit=HEAD_BYTES_MAX, backlog=LISTEN_BACKLOG
    )
    sys.stdout.write(orjson.dumps({"port": server.sockets[0].getsockname()[1]}).decode() + "\n")
    sys.stdout.flush()
    await stopped.wait()
    server.close()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m gateway.vendors.simulator")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--tally", type=Path, help="the file that takes a line for every call")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, most))
    tally = Tally(options.tally)
    try:
        uvloop.run(run(host=options.host, port=options.port, tally=tally))
    finally:
        tally.close()


if __name__ == "__main__":
    main()
