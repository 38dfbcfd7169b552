"""Which paths the gateway serves: one table per wire format, and how a path is read.

A path that is not in a table is not served, so a vendor's administration can't be reached. Paths
are compared as sent: what a server behind us might normalise into another path is refused.
Reserved first segments match before vendor names: `/v1/…` is never a vendor's.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal
from urllib.parse import quote, unquote_to_bytes

from gateway.errors import MethodNotAllowed, NoRoute, RequestInvalid
from gateway.metering.meter import MeterFormat
from gateway.proxy.routing import model_problem
from gateway.proxy.stored_paths import (
    STORED_PATHS,
    STORES_CHAT,
    STORES_CONTAINER,
    STORES_RESPONSE,
    StoredPath,
    StoredUse,
    find_stored,
)
from gateway.vendors import anthropic, cohere, gemini, ollama, openai
from gateway.vendors.registry import InvalidVendorName, check_vendor_name
from gateway.vendors.vendor import StreamErrorEvent, WireFormat

Headers = Sequence[tuple[bytes, bytes]]

_POST: Final = frozenset({b"POST"})
_READ: Final = frozenset({b"GET", b"HEAD"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One operation of a wire format.

    - `wire`: how its client talks; `meter`: a MeterFormat, how its answers tell usage.
    - `counts`: it takes allowance; `generates`: it is metered.
    - `model_in`: where the request names the model; `body`: what the request's body is, a form
      being multipart/form-data.
    - `has_default_model`: the vendor takes one of its own where the body names none.
    - `asks_usage`: its streams tell usage only when `stream_options.include_usage` asks for it.
    - `has_inner_models`: each of the body's `requests` names the model once more.
    - `has_stream_format`: it answers in events where `stream_format` is "sse".
    - `lists_models`: its answer names models that a token may not use.
    - `items_in`: the member of its body whose items may name what is stored by their id alone.
    - `stored`: what it does with stored objects, None where it has nothing to do with any.
    - `stream_error_event`: ends its streams in place of the wire format's.
    - `always_streams`: the path alone says that the answer is a stream.
    - `streams_by_default`: the answer is a stream where the body does not say.
    - `is_own`: the gateway answers by itself, no vendor is called.
    - `group`: whose vendors its paths lead to; empty: all of the wire format.
    """

    name: str
    wire: WireFormat
    methods: frozenset[bytes]
    meter: str = MeterFormat.NONE
    counts: bool = False
    generates: bool = False
    model_in: Literal["body", "path", "none"] = "none"
    body: Literal["json", "form", "form or json", "none", "upload"] = "none"
    has_default_model: bool = False
    asks_usage: bool = False
    has_inner_models: bool = False
    has_stream_format: bool = False
    lists_models: bool = False
    items_in: str | None = None
    stored: StoredUse | None = None
    stream_error_event: StreamErrorEvent | None = None
    always_streams: bool = False
    streams_by_default: bool = False
    is_own: bool = False
    group: str = ""
    routed_by: str = field(init=False)  # the group of vendors that its paths lead to

    def __post_init__(self) -> None:
        object.__setattr__(self, "routed_by", self.group or self.wire.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What a path means: an endpoint, and the vendor that it names, if it does.

    `path` is what follows the vendor's name, as sent; `model_in_path` is decoded, without the
    prefix `models/`. `around`: what stands before and after the model, where the path is not
    Gemini's. `object_id` is the vendor's name for the stored object that the path names, or what
    the upload is recorded under that a request goes on with.
    """

    endpoint: Endpoint
    vendor: str | None
    path: str
    model_in_path: str | None = None
    around: tuple[str, str] | None = None
    object_id: str | None = None

    @property
    def is_resumable(self) -> bool:
        """Whether it uploads what may take several requests."""
        return self.endpoint.body == "upload" and self.endpoint.wire is gemini.FORMAT

    def path_for(self, model: str) -> str:
        """Return `path` with another model in it, for an alias; only where it names a model."""
        assert self.model_in_path is not None
        if self.around is not None:
            before, after = self.around
            return before + quote(model, safe=":@") + after
        version = self.path.split("/", 2)[1]
        verb = self.path.rpartition(":")[2]
        name = quote(model, safe="/:@") if model.startswith(_TUNED) else _quoted_model(model)
        return f"/{version}/{name}:{verb}"


CHAT_COMPLETIONS: Final = Endpoint(
    name="chat.completions",
    wire=openai.FORMAT,
    methods=_POST,
    meter=MeterFormat.OPENAI_CHAT,
    counts=True,
    generates=True,
    model_in="body",
    body="json",
    asks_usage=True,
    stored=STORES_CHAT,
)
COMPLETIONS: Final = replace(CHAT_COMPLETIONS, name="completions", stored=None)
RESPONSES: Final = Endpoint(
    name="responses",
    wire=openai.FORMAT,
    methods=_POST,
    meter=MeterFormat.OPENAI_RESPONSES,
    counts=True,
    generates=True,
    model_in="body",
    body="json",
    items_in="input",
    stored=STORES_RESPONSE,
    stream_error_event=openai.response_failed_event,
)
RESPONSES_COMPACT: Final = replace(RESPONSES, name="responses.compact", stored=None)
RESPONSES_INPUT_TOKENS: Final = replace(
    RESPONSES,
    name="responses.input_tokens",
    meter=MeterFormat.NONE,
    counts=False,
    generates=False,
    stored=None,
)
EMBEDDINGS: Final = Endpoint(
    name="embeddings",
    wire=openai.FORMAT,
    methods=_POST,
    meter=MeterFormat.OPENAI_EMBEDDINGS,
    counts=True,
    generates=True,
    model_in="body",
    body="json",
)
RERANK: Final = replace(EMBEDDINGS, name="rerank")
# Voyage's. They tell nothing but a total.
CONTEXTUALIZED_EMBEDDINGS: Final = replace(EMBEDDINGS, name="embeddings.contextualized")
MULTIMODAL_EMBEDDINGS: Final = replace(EMBEDDINGS, name="embeddings.multimodal")
# Mistral's, which reports unasked.
FIM_COMPLETIONS: Final = replace(
    CHAT_COMPLETIONS, name="fim.completions", asks_usage=False, stored=None
)
IMAGES_GENERATIONS: Final = replace(EMBEDDINGS, name="images.generations", has_default_model=True)
IMAGES_EDITS: Final = replace(IMAGES_GENERATIONS, name="images.edits", body="form or json")
IMAGES_VARIATIONS: Final = replace(IMAGES_EDITS, name="images.variations", body="form")
# OpenAI takes a form; OpenRouter JSON as well.
AUDIO_TRANSCRIPTIONS: Final = replace(
    EMBEDDINGS,
    name="audio.transcriptions",
    meter=MeterFormat.OPENAI_AUDIO,
    body="form or json",
)
AUDIO_TRANSLATIONS: Final = replace(AUDIO_TRANSCRIPTIONS, name="audio.translations")
AUDIO_SPEECH: Final = replace(
    AUDIO_TRANSCRIPTIONS, name="audio.speech", body="json", has_stream_format=True
)
# Mistral's.
OCR: Final = replace(EMBEDDINGS, name="ocr", meter=MeterFormat.MISTRAL_OCR)
MODERATIONS: Final = Endpoint(
    name="moderations",
    wire=openai.FORMAT,
    methods=_POST,
    counts=True,
    model_in="body",
    body="json",
    has_default_model=True,
)
MESSAGES: Final = Endpoint(
    name="messages",
    wire=anthropic.FORMAT,
    methods=_POST,
    meter=MeterFormat.ANTHROPIC_MESSAGES,
    counts=True,
    generates=True,
    model_in="body",
    body="json",
    stored=STORES_CONTAINER,
)
COUNT_TOKENS: Final = Endpoint(
    name="messages.count_tokens",
    wire=anthropic.FORMAT,
    methods=_POST,
    model_in="body",
    body="json",
)
GENERATE_CONTENT: Final = Endpoint(
    name="generateContent",
    wire=gemini.FORMAT,
    methods=_POST,
    meter=MeterFormat.GEMINI_GENERATE,
    counts=True,
    generates=True,
    model_in="path",
    body="json",
)
STREAM_GENERATE_CONTENT: Final = Endpoint(
    name="streamGenerateContent",
    wire=gemini.FORMAT,
    methods=_POST,
    meter=MeterFormat.GEMINI_GENERATE,
    counts=True,
    generates=True,
    model_in="path",
    body="json",
    always_streams=True,
)
GEMINI_COUNT_TOKENS: Final = Endpoint(
    name="countTokens",
    wire=gemini.FORMAT,
    methods=_POST,
    model_in="path",
    body="json",
)
EMBED_CONTENT: Final = replace(GENERATE_CONTENT, name="embedContent")
BATCH_EMBED_CONTENTS: Final = replace(
    EMBED_CONTENT, name="batchEmbedContents", has_inner_models=True
)
COHERE_CHAT: Final = Endpoint(
    name="chat.v2",
    wire=cohere.FORMAT,
    methods=_POST,
    meter=MeterFormat.COHERE_CHAT,
    counts=True,
    generates=True,
    model_in="body",
    body="json",
    stream_error_event=cohere.message_end_event,
)
COHERE_EMBED: Final = replace(
    COHERE_CHAT, name="embed.v2", meter=MeterFormat.COHERE_META, stream_error_event=None
)
COHERE_RERANK: Final = replace(COHERE_EMBED, name="rerank.v2")
COHERE_CHAT_V1: Final = replace(COHERE_EMBED, name="chat.v1", has_default_model=True)
COHERE_EMBED_V1: Final = replace(COHERE_CHAT_V1, name="embed.v1")
COHERE_RERANK_V1: Final = replace(COHERE_CHAT_V1, name="rerank.v1")
COHERE_TOKENIZE: Final = replace(
    COHERE_EMBED, name="tokenize", meter=MeterFormat.NONE, counts=False, generates=False
)
COHERE_DETOKENIZE: Final = replace(COHERE_TOKENIZE, name="detokenize")
OLLAMA_CHAT: Final = Endpoint(
    name="ollama.chat",
    wire=ollama.FORMAT,
    methods=_POST,
    meter=MeterFormat.OLLAMA,
    counts=True,
    generates=True,
    model_in="body",
    body="json",
    streams_by_default=True,
)
OLLAMA_GENERATE: Final = replace(OLLAMA_CHAT, name="ollama.generate")
OLLAMA_EMBED: Final = replace(OLLAMA_CHAT, name="ollama.embed", streams_by_default=False)
OLLAMA_EMBEDDINGS: Final = replace(OLLAMA_EMBED, name="ollama.embeddings")  # the older one
OLLAMA_SHOW: Final = replace(
    OLLAMA_EMBED, name="ollama.show", meter=MeterFormat.NONE, counts=False, generates=False
)


OLLAMA_VERSION: Final = Endpoint(
    name="ollama.version", wire=ollama.FORMAT, methods=frozenset({b"GET"})
)
OLLAMA_PS: Final = replace(OLLAMA_VERSION, name="ollama.ps", lists_models=True)


def _by_format(name: str, *, model_in: Literal["path", "none"]) -> Mapping[str, Endpoint]:
    formats = (openai.FORMAT, anthropic.FORMAT, gemini.FORMAT, cohere.FORMAT, ollama.FORMAT)
    return MappingProxyType(
        {
            wire.name: Endpoint(name=name, wire=wire, methods=_READ, model_in=model_in, is_own=True)
            for wire in formats
        }
    )


LIST_MODELS: Final = _by_format("models.list", model_in="none")
GET_MODEL: Final = _by_format("models.get", model_in="path")

# The whole path decides. Paths with a model in them, and the lists of models, are read below.
_EXACT: Final[Mapping[str, Endpoint]] = MappingProxyType(
    {
        "/v1/chat/completions": CHAT_COMPLETIONS,
        "/v1/completions": COMPLETIONS,
        "/v1/responses": RESPONSES,
        "/v1/responses/compact": RESPONSES_COMPACT,
        "/v1/responses/input_tokens": RESPONSES_INPUT_TOKENS,
        "/v1/embeddings": EMBEDDINGS,
        "/v1/rerank": RERANK,
        "/v1/contextualizedembeddings": CONTEXTUALIZED_EMBEDDINGS,
        "/v1/multimodalembeddings": MULTIMODAL_EMBEDDINGS,
        "/v1/fim/completions": FIM_COMPLETIONS,
        "/v1/images/generations": IMAGES_GENERATIONS,
        "/v1/images/edits": IMAGES_EDITS,
        "/v1/images/variations": IMAGES_VARIATIONS,
        "/v1/audio/transcriptions": AUDIO_TRANSCRIPTIONS,
        "/v1/audio/translations": AUDIO_TRANSLATIONS,
        "/v1/audio/speech": AUDIO_SPEECH,
        "/v1/ocr": OCR,
        "/v1/moderations": MODERATIONS,
        "/v1/messages": MESSAGES,
        "/v1/messages/count_tokens": COUNT_TOKENS,
        "/v2/chat": COHERE_CHAT,
        "/v2/embed": COHERE_EMBED,
        "/v2/rerank": COHERE_RERANK,
        "/v1/chat": COHERE_CHAT_V1,
        "/v1/embed": COHERE_EMBED_V1,
        "/v1/tokenize": COHERE_TOKENIZE,
        "/v1/detokenize": COHERE_DETOKENIZE,
        "/api/chat": OLLAMA_CHAT,
        "/api/generate": OLLAMA_GENERATE,
        "/api/embed": OLLAMA_EMBED,
        "/api/embeddings": OLLAMA_EMBEDDINGS,
        "/api/show": OLLAMA_SHOW,
        "/api/version": OLLAMA_VERSION,
        "/api/ps": OLLAMA_PS,
        "/api/tags": LIST_MODELS[ollama.FORMAT.name],
    }
)
# Where two formats have the same path: by the format of who asks, or of the vendor that is named.
_IN_FORMAT: Final[Mapping[tuple[str, str], Endpoint]] = MappingProxyType(
    {("/v1/rerank", cohere.FORMAT.name): COHERE_RERANK_V1}
)
_IN_FORMAT_PATHS: Final = frozenset(path for path, _ in _IN_FORMAT)
_MATCHES: Final[Mapping[str, Match]] = MappingProxyType(
    {path: Match(endpoint=one, vendor=None, path=path) for path, one in _EXACT.items()}
)
_VERBS: Final[Mapping[str, Endpoint]] = MappingProxyType(
    {
        one.name: one
        for one in (
            GENERATE_CONTENT,
            STREAM_GENERATE_CONTENT,
            GEMINI_COUNT_TOKENS,
            EMBED_CONTENT,
            BATCH_EMBED_CONTENTS,
        )
    }
)


def _stored_endpoint(one: StoredPath) -> Endpoint:
    return Endpoint(
        name=one.name,
        wire=one.wire,
        methods=frozenset({one.method}),
        meter=one.meter,
        counts=one.counts,
        generates=one.generates,
        model_in=one.model_in,
        body=one.body,
        has_default_model=one.has_default_model,
        items_in=one.items_in,
        stored=one.use,
        stream_error_event=(
            openai.response_failed_event if one.name.startswith("responses.") else None
        ),
    )


_STORED: Final[Mapping[StoredPath, Endpoint]] = MappingProxyType(
    {one: _stored_endpoint(one) for one in STORED_PATHS}
)

_MODELS: Final = "models/"
_TUNED: Final = "tunedModels/"
_COLLECTIONS: Final = ("/models/", "/tunedModels/", "/model/", "/deployments/")
_VERSIONS: Final = ("/v1/", "/v1beta/")
_OWN: Final = (*_VERSIONS, "/v2/", "/api/", "/upload/")  # no vendor's name
_OF_COHERE: Final = tuple(path for path, one in _EXACT.items() if one.wire is cohere.FORMAT)
_OF_OLLAMA: Final = tuple(path for path, one in _EXACT.items() if one.wire is ollama.FORMAT)

# Visible characters that mean nothing to a server but themselves, and escapes.
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,=:@%-]+)+")
# An escape that is none; one of a control character, '%', '.', ';' or '\'.
_BAD_ESCAPE: Final = re.compile(
    r"%(?![0-9A-Fa-f]{2})|%(?:[01][0-9A-Fa-f]|7[Ff]|25|2[Ee]|3[Bb]|5[Cc])"
)
_DOTS: Final = frozenset({"", ".", ".."})
_BAD_PATH: Final = "The request's path is not plain: it has '//', '.', '..', ';' or an odd escape."


def find(path: str, *, method: bytes, headers: Headers) -> Match:
    """Return what a path means; header names are in lower case.

    Raises NoRoute, MethodNotAllowed (with `allow`), RequestInvalid.
    """
    match = _MATCHES.get(path)
    if match is None:
        match = _read(path, method=method, headers=headers)
    if match.path in _IN_FORMAT_PATHS:
        match = in_format(match, _format_of_headers(headers).name)
    if method not in match.endpoint.methods:
        raise _not_allowed(match.endpoint.methods)
    return match


def _not_allowed(methods: Iterable[bytes]) -> MethodNotAllowed:
    allow = b", ".join(sorted(methods)).decode()
    return MethodNotAllowed(headers={"allow": allow})


def in_format(match: Match, wire_name: str) -> Match:
    """Return what the same path means in a wire format; unchanged where it means nothing there."""
    endpoint = _IN_FORMAT.get((match.path, wire_name))
    if endpoint is None and match.endpoint.stored is not None and match.path not in _EXACT:
        for one, object_id in find_stored(match.path):
            if one.wire.name == wire_name and {one.method} == match.endpoint.methods:
                return replace(match, endpoint=_STORED[one], object_id=object_id)
    return match if endpoint is None else replace(match, endpoint=endpoint)


def guess_wire(path: str, headers: Headers) -> WireFormat:
    """Return the wire format that an error is told in where no endpoint was found."""
    if "/v1beta/" in path or "/upload/v1/" in path or path.rpartition(":")[2] in _VERBS:
        return gemini.FORMAT
    if "/v1/messages" in path:
        return anthropic.FORMAT
    if path.startswith("/v2/") or path.endswith(_OF_COHERE):
        return cohere.FORMAT
    if path.startswith("/api/") or path.endswith(_OF_OLLAMA):
        return ollama.FORMAT
    return _format_of_headers(headers)


def _read(path: str, *, method: bytes, headers: Headers) -> Match:
    check_plain(path)
    vendor: str | None = None
    below = path
    if not path.startswith(_OWN):
        name, slash, rest = path[1:].partition("/")
        try:
            vendor = check_vendor_name(name)
        except InvalidVendorName:
            raise NoRoute from None
        below = slash + rest
    exact = _EXACT.get(below)
    if exact is not None:
        return Match(endpoint=exact, vendor=vendor, path=below)
    stored = _read_stored(below, vendor=vendor, method=method, headers=headers)
    if stored is not None:
        return stored
    for version in _VERSIONS:
        if below.startswith(version):
            return _read_models(
                below, below[len(version) :], vendor=vendor, method=method, headers=headers
            )
    raise NoRoute


def _read_stored(path: str, *, vendor: str | None, method: bytes, headers: Headers) -> Match | None:
    """Return what a path of stored objects means, None where it is none."""
    found = find_stored(path)
    if not found:
        return None
    wire = _format_of_headers(headers)  # decides only where two formats have the same path
    if wire is openai.FORMAT and any(name == b"x-goog-api-key" for name, _ in headers):
        wire = gemini.FORMAT
    if any(one.wire is wire for one, _ in found):
        found = [(one, object_id) for one, object_id in found if one.wire is wire]
    for one, object_id in found:
        if one.method == method:
            return Match(endpoint=_STORED[one], vendor=vendor, path=path, object_id=object_id)
    raise _not_allowed(one.method for one, _ in found)


def _read_models(
    path: str, rest: str, *, vendor: str | None, method: bytes, headers: Headers
) -> Match:
    """Read what stands behind the version: a list of models, one model, or a model and a verb."""
    is_gemini = path.startswith("/v1beta/")
    wire = gemini.FORMAT if is_gemini else _format_of_headers(headers)
    if rest == "models":
        return Match(endpoint=LIST_MODELS[wire.name], vendor=vendor, path=path)
    collection, slash, name = rest.partition("/")
    collection += slash
    if not name or collection not in (_MODELS, _TUNED):
        raise NoRoute
    named, _, verb = name.rpartition(":")
    endpoint = _VERBS.get(verb)
    if endpoint is not None and named and "/" not in named:
        return Match(
            endpoint=endpoint, vendor=vendor, path=path, model_in_path=_model(collection, named)
        )
    if collection == _TUNED or (method not in _READ and ":" in name):
        raise NoRoute  # an operation that is not in the table
    return Match(
        endpoint=GET_MODEL[wire.name],
        vendor=vendor,
        path=path,
        model_in_path=_model(collection, name),
    )


def check_plain(path: str) -> None:
    """Raise RequestInvalid, or NoRoute, where a server behind us might read another path."""
    if not _PATH.fullmatch(path):
        if path == "/" or (path.endswith("/") and _PATH.fullmatch(path[:-1])):
            raise NoRoute
        raise RequestInvalid(_BAD_PATH)
    if "%" in path:
        if _BAD_ESCAPE.search(path):
            raise RequestInvalid(_BAD_PATH)
        opened = path.replace("%2F", "/").replace("%2f", "/")
        # Escapes are for model names, the last part of a path.
        if not _is_in_model(path):
            raise RequestInvalid(_BAD_PATH)
    else:
        opened = path
    if not _DOTS.isdisjoint(opened[1:].split("/")):
        raise RequestInvalid(_BAD_PATH)


def _is_in_model(path: str) -> bool:
    """Return whether a path's first escape stands behind what a model's name comes after."""
    before = path[: path.index("%")]
    return any(collection in before for collection in _COLLECTIONS)


def _model(collection: str, name: str) -> str:
    """Return the model that a part of a path names. Raises RequestInvalid."""
    try:
        model = unquote_to_bytes(name).decode()
    except UnicodeDecodeError as error:
        raise RequestInvalid(_BAD_PATH) from error
    model = model.removeprefix(_MODELS) if collection == _MODELS else _TUNED + model
    problem = model_problem(model)
    if problem is not None:
        raise RequestInvalid(f"The model in the path {problem}.")
    return model


def _quoted_model(model: str) -> str:
    return _MODELS + quote(model, safe=":@")


def _format_of_headers(headers: Iterable[tuple[bytes, bytes]]) -> WireFormat:
    """Return the wire format whose mark is among a request's headers; without one, OpenAI's."""
    for name, value in headers:
        if name == b"anthropic-version":
            return anthropic.FORMAT
        if name == b"x-goog-api-client":  # Google's SDKs, of which some ask below /v1
            return gemini.FORMAT
        if name == b"x-fern-sdk-name" and value.startswith(b"cohere"):
            return cohere.FORMAT
    return openai.FORMAT
