"""Paths of the clouds that resell models: Azure OpenAI, Amazon Bedrock, Google's Vertex AI.

They name a deployment, or a model, and some the account. Only vendors of that kind are called by
them. What these paths carry is in a known format: OpenAI's, Gemini's, Anthropic's; only Bedrock
has one of its own. All other paths are those of `endpoints.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote_to_bytes

from gateway.errors import MethodNotAllowed, NoRoute, RequestInvalid
from gateway.metering.meter import MeterFormat
from gateway.proxy import endpoints
from gateway.proxy.endpoints import Endpoint, Headers, Match, check_plain
from gateway.proxy.routing import model_problem
from gateway.vendors import anthropic, bedrock, gemini, openai
from gateway.vendors.azure import AZURE
from gateway.vendors.bedrock import BEDROCK
from gateway.vendors.registry import InvalidVendorName, check_vendor_name
from gateway.vendors.vendor import WireFormat
from gateway.vendors.vertex import VERTEX

_POST: Final = frozenset({b"POST"})
_NOT_PLAIN: Final = "The model in the request's path is not plain text."

# A path without one of these is nobody's here.
_MARK: Final = re.compile(r"/(?:deployments|model|models|openai|publishers)/")
# Where the paths of a cloud begin without a vendor's name: `/openai/v1/…` is that of `openai`.
_AT_ROOT: Final = re.compile(
    r"/(?:openai/(?:deployments/|responses\Z)|model/|models/|deployments/|v1/deployments/"
    r"|(?:v1/|v1beta1/)?(?:projects|publishers)/)"
)

# ------------------------------------------------------------------------------------------- Azure

_DEPLOYMENT: Final = re.compile(
    r"(?:/openai|/v1|/openai/v1)?/deployments/(?P<model>[^/]+)(?P<operation>/.+)"
)


def _deployed(endpoint: Endpoint) -> Endpoint:
    return replace(endpoint, model_in="path", group=AZURE.name, has_default_model=False)


def _at_azure(endpoint: Endpoint) -> Endpoint:
    return replace(endpoint, group=AZURE.name)


_DEPLOYED: Final[Mapping[str, Endpoint]] = MappingProxyType(
    {
        "/chat/completions": _deployed(endpoints.CHAT_COMPLETIONS),
        "/completions": _deployed(endpoints.COMPLETIONS),
        "/embeddings": _deployed(endpoints.EMBEDDINGS),
        "/images/generations": _deployed(endpoints.IMAGES_GENERATIONS),
    }
)
_OWN_LIST: Final = endpoints.LIST_MODELS[openai.FORMAT.name]
_AZURE: Final[Mapping[str, Endpoint]] = MappingProxyType(
    {
        "/openai/responses": _at_azure(endpoints.RESPONSES),
        "/openai/v1/chat/completions": _at_azure(endpoints.CHAT_COMPLETIONS),
        "/openai/v1/completions": _at_azure(endpoints.COMPLETIONS),
        "/openai/v1/embeddings": _at_azure(endpoints.EMBEDDINGS),
        "/openai/v1/images/generations": _at_azure(endpoints.IMAGES_GENERATIONS),
        "/openai/v1/responses": _at_azure(endpoints.RESPONSES),
        "/openai/v1/responses/compact": _at_azure(endpoints.RESPONSES_COMPACT),
        "/openai/v1/responses/input_tokens": _at_azure(endpoints.RESPONSES_INPUT_TOKENS),
        "/openai/models": _OWN_LIST,
        "/openai/v1/models": _OWN_LIST,
        "/models/chat/completions": _at_azure(endpoints.CHAT_COMPLETIONS),
        "/models/embeddings": _at_azure(endpoints.EMBEDDINGS),
    }
)

# ----------------------------------------------------------------------------------------- Bedrock

_MODEL: Final = re.compile(r"/model/(?P<model>[^/]+)(?P<operation>/[a-z-]+)")

CONVERSE: Final = Endpoint(
    name="bedrock.converse",
    wire=bedrock.FORMAT,
    methods=_POST,
    meter=MeterFormat.BEDROCK_CONVERSE,
    counts=True,
    generates=True,
    model_in="path",
    body="json",
    group=BEDROCK.name,
)
CONVERSE_STREAM: Final = replace(CONVERSE, name="bedrock.converse-stream", always_streams=True)
INVOKE: Final = replace(CONVERSE, name="bedrock.invoke", meter=MeterFormat.BEDROCK_INVOKE)
INVOKE_STREAM: Final = replace(
    INVOKE, name="bedrock.invoke-with-response-stream", always_streams=True
)
BEDROCK_COUNT_TOKENS: Final = replace(
    CONVERSE,
    name="bedrock.count-tokens",
    meter=MeterFormat.NONE,
    counts=False,
    generates=False,
)
_BEDROCK: Final[Mapping[str, Endpoint]] = MappingProxyType(
    {
        "/converse": CONVERSE,
        "/converse-stream": CONVERSE_STREAM,
        "/invoke": INVOKE,
        "/invoke-with-response-stream": INVOKE_STREAM,
        "/count-tokens": BEDROCK_COUNT_TOKENS,
    }
)

# ------------------------------------------------------------------------------------------ Vertex

_VERTEX: Final = re.compile(
    r"(?P<version>/v1(?:beta1)?)?(?P<before>(?:/projects/[^/]+/locations/[^/]+)?"
    r"/publishers/(?P<publisher>[^/]+)/models/)(?P<model>[^/]+):(?P<verb>[A-Za-z]+)"
)
_VERSION: Final = "/v1"  # where the client's base URL would have had it
_GOOGLE: Final = "google"
_ANTHROPIC: Final = "anthropic"
_COUNTING: Final = "count-tokens"  # in the place of a model, which the body names


def _at_vertex(endpoint: Endpoint, name: str) -> Endpoint:
    return replace(endpoint, name=f"vertex.{name}", group=VERTEX.name, model_in="path")


EMBED_CONTENT: Final = _at_vertex(endpoints.GENERATE_CONTENT, "embedContent")
_OF_GOOGLE: Final[Mapping[str, Endpoint]] = MappingProxyType(
    {
        "generateContent": _at_vertex(endpoints.GENERATE_CONTENT, "generateContent"),
        "streamGenerateContent": _at_vertex(
            endpoints.STREAM_GENERATE_CONTENT, "streamGenerateContent"
        ),
        "countTokens": _at_vertex(endpoints.GEMINI_COUNT_TOKENS, "countTokens"),
        "embedContent": EMBED_CONTENT,
        "predict": replace(EMBED_CONTENT, name="vertex.predict", meter=MeterFormat.VERTEX_PREDICT),
    }
)
_OF_ANTHROPIC: Final[Mapping[str, Endpoint]] = MappingProxyType(
    {
        "rawPredict": _at_vertex(endpoints.MESSAGES, "rawPredict"),
        "streamRawPredict": replace(
            _at_vertex(endpoints.MESSAGES, "streamRawPredict"), always_streams=True
        ),
    }
)
_ANTHROPIC_COUNT: Final = replace(
    endpoints.COUNT_TOKENS, name="vertex.count-tokens", group=VERTEX.name
)
# Mistral's and AI21's models take and give what OpenAI's chat does, and report usage unasked.
_OF_OTHERS: Final[Mapping[str, Endpoint]] = MappingProxyType(
    {
        verb: replace(_at_vertex(endpoints.CHAT_COMPLETIONS, verb), asks_usage=False)
        for verb in ("rawPredict", "streamRawPredict")
    }
)


def find(path: str, *, method: bytes, headers: Headers) -> Match:
    """Return what a path means, of a cloud's or of all others.

    Raises NoRoute, MethodNotAllowed (with `allow`), RequestInvalid.
    """
    match = _read(path) if _MARK.search(path) else None
    if match is None:
        return endpoints.find(path, method=method, headers=headers)
    methods = match.endpoint.methods
    if method not in methods:
        raise MethodNotAllowed(headers={"allow": b", ".join(sorted(methods)).decode()})
    return match


def guess_wire(path: str, headers: Headers) -> WireFormat:
    """Return the wire format that an error is told in where no endpoint was found."""
    if "/model/" in path:
        return bedrock.FORMAT
    found = _VERTEX.search(path)
    if found is not None:
        formats = {_GOOGLE: gemini.FORMAT, _ANTHROPIC: anthropic.FORMAT}
        return formats.get(found["publisher"], openai.FORMAT)
    return endpoints.guess_wire(path, headers)


def _read(path: str) -> Match | None:
    """Return what a cloud's path means, None for any other path."""
    vendor: str | None = None
    below = path
    if not _AT_ROOT.match(path):
        name, slash, rest = path[1:].partition("/")
        try:
            vendor = check_vendor_name(name)
        except InvalidVendorName:
            return None
        below = slash + rest
    for read in (_read_azure, _read_bedrock, _read_vertex):
        match = read(below)
        if match is not None:
            check_plain(path)
            return replace(match, vendor=vendor)
    return None


def _read_azure(path: str) -> Match | None:
    exact = _AZURE.get(path)
    if exact is not None:
        return Match(endpoint=exact, vendor=None, path=path)
    found = _DEPLOYMENT.fullmatch(path)
    if found is None:
        return None
    endpoint = _DEPLOYED.get(found["operation"])
    if endpoint is None:
        raise NoRoute
    before = "/openai/deployments/"  # whatever the client's base URL has
    return _with_model(endpoint, before, found["model"], found["operation"])


def _read_bedrock(path: str) -> Match | None:
    found = _MODEL.fullmatch(path)
    if found is None:
        return None
    endpoint = _BEDROCK.get(found["operation"])
    if endpoint is None:
        raise NoRoute
    return _with_model(endpoint, "/model/", found["model"], found["operation"])


def _read_vertex(path: str) -> Match | None:
    found = _VERTEX.fullmatch(path)
    if found is None:
        return None
    before, verb = (found["version"] or _VERSION) + found["before"], found["verb"]
    match found["publisher"]:
        case "google":
            endpoint = _OF_GOOGLE.get(verb)
        case "anthropic" if found["model"] == _COUNTING and verb == "rawPredict":
            whole = f"{before}{_COUNTING}:{verb}"
            return Match(endpoint=_ANTHROPIC_COUNT, vendor=None, path=whole)
        case "anthropic":
            endpoint = _OF_ANTHROPIC.get(verb)
        case _:
            endpoint = _OF_OTHERS.get(verb)
    if endpoint is None:
        raise NoRoute
    return _with_model(endpoint, before, found["model"], f":{verb}")


def _with_model(endpoint: Endpoint, before: str, name: str, after: str) -> Match:
    """Return a match whose path names a model, as sent. Raises RequestInvalid."""
    try:
        model = unquote_to_bytes(name).decode()
    except UnicodeDecodeError as error:
        raise RequestInvalid(_NOT_PLAIN) from error
    problem = model_problem(model)
    if problem is not None:
        raise RequestInvalid(f"The model in the path {problem}.")
    return Match(
        endpoint=endpoint,
        vendor=None,
        path=before + name + after,
        model_in_path=model,
        around=(before, after),
    )
