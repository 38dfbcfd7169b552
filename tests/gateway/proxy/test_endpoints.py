import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GatewayError, MethodNotAllowed, NoRoute, RequestInvalid
from gateway.proxy.endpoints import Match, find, guess_wire, in_format

Headers = list[tuple[bytes, bytes]]

ANTHROPIC = [(b"anthropic-version", b"2023-06-01")]
COHERE = [(b"x-fern-sdk-name", b"cohere-ai")]
GOOGLE = [(b"x-goog-api-client", b"google-genai-sdk/3.4.0")]


def read(method: str, path: str, headers: Headers | None = None) -> Match:
    return find(path, method=method.encode(), headers=headers or [])


@pytest.mark.parametrize(
    ("line", "name", "wire", "vendor", "model"),
    [
        ("POST /v1/chat/completions", "chat.completions", "openai", None, None),
        ("POST /v1/completions", "completions", "openai", None, None),
        ("POST /v1/responses", "responses", "openai", None, None),
        ("POST /v1/responses/compact", "responses.compact", "openai", None, None),
        ("POST /v1/responses/input_tokens", "responses.input_tokens", "openai", None, None),
        ("POST /azure/v1/responses", "responses", "openai", "azure", None),
        ("POST /v1/embeddings", "embeddings", "openai", None, None),
        ("POST /v1/rerank", "rerank", "openai", None, None),
        ("POST /v1/images/generations", "images.generations", "openai", None, None),
        ("POST /v1/images/edits", "images.edits", "openai", None, None),
        ("POST /v1/images/variations", "images.variations", "openai", None, None),
        ("POST /v1/audio/transcriptions", "audio.transcriptions", "openai", None, None),
        ("POST /v1/audio/translations", "audio.translations", "openai", None, None),
        ("POST /groq/v1/audio/translations", "audio.translations", "openai", "groq", None),
        ("POST /v1/audio/speech", "audio.speech", "openai", None, None),
        ("POST /mistral/v1/ocr", "ocr", "openai", "mistral", None),
        ("POST /v1/tokenize", "tokenize", "cohere", None, None),
        ("POST /v1/detokenize", "detokenize", "cohere", None, None),
        ("POST /v1beta/models/e:embedContent", "embedContent", "gemini", None, "e"),
        ("POST /v1/models/e:batchEmbedContents", "batchEmbedContents", "gemini", None, "e"),
        ("POST /api/embeddings", "ollama.embeddings", "ollama", None, None),
        ("GET /api/version", "ollama.version", "ollama", None, None),
        ("GET /gpu/api/ps", "ollama.ps", "ollama", "gpu", None),
        ("POST /v1/moderations", "moderations", "openai", None, None),
        ("POST /v1/fim/completions", "fim.completions", "openai", None, None),
        ("POST /mistral/v1/fim/completions", "fim.completions", "openai", "mistral", None),
        ("POST /v1/contextualizedembeddings", "embeddings.contextualized", "openai", None, None),
        ("POST /v1/multimodalembeddings", "embeddings.multimodal", "openai", None, None),
        ("POST /v2/chat", "chat.v2", "cohere", None, None),
        ("POST /v2/embed", "embed.v2", "cohere", None, None),
        ("POST /v2/rerank", "rerank.v2", "cohere", None, None),
        ("POST /v1/chat", "chat.v1", "cohere", None, None),
        ("POST /v1/embed", "embed.v1", "cohere", None, None),
        ("POST /command/v2/chat", "chat.v2", "cohere", "command", None),
        ("POST /api/chat", "ollama.chat", "ollama", None, None),
        ("POST /api/generate", "ollama.generate", "ollama", None, None),
        ("POST /api/embed", "ollama.embed", "ollama", None, None),
        ("POST /api/show", "ollama.show", "ollama", None, None),
        ("POST /gpu/api/chat", "ollama.chat", "ollama", "gpu", None),
        ("GET /api/tags", "models.list", "ollama", None, None),
        ("POST /v1/messages", "messages", "anthropic", None, None),
        ("POST /v1/messages/count_tokens", "messages.count_tokens", "anthropic", None, None),
        ("POST /groq/v1/chat/completions", "chat.completions", "openai", "groq", None),
        ("POST /openai/v1/chat/completions", "chat.completions", "openai", "openai", None),
        ("POST /my-claude/v1/messages", "messages", "anthropic", "my-claude", None),
        ("GET /v1/models", "models.list", "openai", None, None),
        ("HEAD /v1/models", "models.list", "openai", None, None),
        ("GET /openai/v1/models", "models.list", "openai", "openai", None),
        ("GET /v1beta/models", "models.list", "gemini", None, None),
        ("GET /google/v1beta/models", "models.list", "gemini", "google", None),
        ("GET /v1/models/gpt-5", "models.get", "openai", None, "gpt-5"),
        ("GET /v1/models/ft:gpt-5:org::id", "models.get", "openai", None, "ft:gpt-5:org::id"),
        ("GET /v1/models/a%2Fb", "models.get", "openai", None, "a/b"),
        ("GET /v1/models/a/b", "models.get", "openai", None, "a/b"),
        ("GET /v1beta/models/gemini-2.5", "models.get", "gemini", None, "gemini-2.5"),
        ("GET /v1beta/models/models%2Fgemini", "models.get", "gemini", None, "gemini"),
    ],
)
def test_a_path_means_an_endpoint_and_maybe_a_vendor(
    line: str, name: str, wire: str, vendor: str | None, model: str | None
) -> None:
    method, path = line.split(" ")
    match = read(method, path)
    assert (match.endpoint.name, match.endpoint.wire.name) == (name, wire)
    assert (match.vendor, match.model_in_path) == (vendor, model)
    assert match.path == (path if vendor is None else path.removeprefix("/" + vendor))


@pytest.mark.parametrize("prefix", ["", "/google"])
@pytest.mark.parametrize("version", ["v1", "v1beta"])
@pytest.mark.parametrize("verb", ["generateContent", "streamGenerateContent", "countTokens"])
@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("models/models%2Fgemini-2.5-flash", "gemini-2.5-flash"),
        ("models/a%2fb", "a/b"),
        ("models/llama3:8b", "llama3:8b"),
        ("models/llama3%3A8b", "llama3:8b"),
        ("models/name@2026", "name@2026"),
        ("tunedModels/mine-1", "tunedModels/mine-1"),
    ],
)
def test_gemini_names_model_and_verb_in_the_path(
    prefix: str, version: str, verb: str, name: str, model: str
) -> None:
    path = f"/{version}/{name}:{verb}"
    match = read("POST", prefix + path)
    assert match.endpoint.name == verb
    assert match.endpoint.always_streams == (verb == "streamGenerateContent")
    assert match.endpoint.counts == match.endpoint.generates == (verb != "countTokens")
    assert (match.model_in_path, match.path) == (model, path)


def test_a_path_of_two_formats_is_told_by_who_asks_or_by_the_vendor() -> None:
    match = read("POST", "/v1/rerank")
    assert (match.endpoint.name, match.endpoint.wire.name) == ("rerank", "openai")
    assert not match.endpoint.has_default_model
    by_client = read("POST", "/v1/rerank", COHERE)
    assert (by_client.endpoint.name, by_client.endpoint.wire.name) == ("rerank.v1", "cohere")
    named = read("POST", "/command/v1/rerank")
    assert named.endpoint.wire.name == "openai"
    assert in_format(named, "cohere").endpoint is by_client.endpoint
    assert in_format(named, "openai") == named
    chat = read("POST", "/v1/chat/completions", COHERE)
    assert in_format(chat, "cohere") == chat


def test_an_alias_takes_the_place_of_the_model_in_the_path() -> None:
    match = read("POST", "/g/v1beta/models/fast:generateContent")
    assert match.path_for("gemini-2.5-pro") == "/v1beta/models/gemini-2.5-pro:generateContent"
    assert match.path_for("a/b c") == "/v1beta/models/a%2Fb%20c:generateContent"
    assert match.path_for("tunedModels/x") == "/v1beta/tunedModels/x:generateContent"


@pytest.mark.parametrize(
    ("path", "headers", "wire"),
    [
        ("/v1/models", ANTHROPIC, "anthropic"),
        ("/v1/models/claude", ANTHROPIC, "anthropic"),
        ("/v1/models", GOOGLE, "gemini"),
        ("/v1/models", COHERE, "cohere"),
        ("/v1/models", [(b"x-fern-sdk-name", b"elevenlabs")], "openai"),
        ("/v1/models", [(b"x-goog-api-key", b"kxg_")], "openai"),
        ("/v1beta/models", ANTHROPIC, "gemini"),
    ],
)
def test_headers_tell_the_shape_of_a_model_list(path: str, headers: Headers, wire: str) -> None:
    assert read("GET", path, headers).endpoint.wire.name == wire


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1/chat/completions/",
        "/v1/images",
        "/v1/audio",
        "/v1/audio/voices",
        "/v1/vector_stores",
        "/v1/responses/resp_1/output",
        "/v1/files/a/b/c",
        "/upload/v2/files",
        "/upload/v1/files/f",
        "/v1beta/batches/x",
        "/v1/organization/usage/completions",
        "/v1/v1/chat/completions",
        "/v1beta/chat/completions",
        "/v1beta/models/x:batchGenerateContent",
        "/v1beta/models/x:asyncBatchEmbedContent",
        "/v1beta/models/:generateContent",
        "/v1beta/tunedModels/x",
        "/v1beta/tunedModels",
        "/v1beta/models/a/b:generateContent",
        "/v1/models/",
        "/api/v1/chat/completions",
        "/model/x/invoke",
        "/v2/chat/completions",
        "/api",
        "/api/pull",
        "/api/delete",
        "/gpu/api/create",
        "/api/models/x",
        "/v2/models",
        "/v1/chat/",
        "/v1/fim",
        "/command/v2/",
        "/openai/deployments/gpt/chat/completions",
        "/Groq/v1/chat/completions",
        "/groq/groq/v1/chat/completions",
        "/groq",
        "/metrics",
        "/.git/config",
    ],
)
def test_what_is_in_no_table_is_not_there(path: str) -> None:
    with pytest.raises(NoRoute):
        read("POST", path)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../admin",
        "/v1/./models",
        "//evil/v1/models",
        "/v1//models",
        "/v1/%2e%2e/admin",
        "/v1/models/%2E%2E",
        "/v1/models/..%2F..%2Fadmin:generateContent",
        "/v1/models/x%2F%2Fy",
        "/v1/models/x%2F",
        "/v1/models/x%00",
        "/v1/models/x%0d%0a",
        "/v1/models/x%7f",
        "/v1/models/x%5cy",
        "/v1/models/x\\y",
        "/v1/models/x;y",
        "/v1/models/x%3by",
        "/v1/models/x%252fy",
        "/v1/models/x%2",
        "/v1/models/x%zz",
        "/v1/models/x%ff",
        "/v1/models/x%20",
        "/v1/models/" + "x" * 257,
        "/v1%2Fmodels",
        "/v1/chat%2Fcompletions",
        "/groq%2Fv1/models",
        "/v1/chat/completions%2F",
        '/v1/models/x"y',
        "/v1/models/<x>",
    ],
)
def test_a_path_that_servers_may_read_differently_is_refused(path: str) -> None:
    for method in ("GET", "POST"):
        with pytest.raises(RequestInvalid):
            read(method, path)


@pytest.mark.parametrize(
    ("line", "allow"),
    [
        ("GET /v1/chat/completions", "POST"),
        ("GET /v1/responses", "POST"),
        ("DELETE /v1/models/gpt-5", "GET, HEAD"),
        ("POST /v1/models", "GET, HEAD"),
        ("GET /v1beta/models/x:generateContent", "POST"),
        ("TRACE /groq/v1/messages", "POST"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(line: str, allow: str) -> None:
    method, path = line.split(" ")
    with pytest.raises(MethodNotAllowed) as caught:
        find(path, method=method.encode(), headers=[])
    assert caught.value.headers == {"allow": allow}


@pytest.mark.parametrize(
    ("path", "headers", "wire"),
    [
        ("/v1/nothing", [], "openai"),
        ("/v1/nothing", ANTHROPIC, "anthropic"),
        ("/v1/messages", [], "anthropic"),
        ("/claude/v1/messages/batches", [], "anthropic"),
        ("/v1beta/files", [], "gemini"),
        ("/google/v1beta/files", [], "gemini"),
        ("/v1/models/x:generateContent", [], "gemini"),
        ("/v1/nothing", GOOGLE, "gemini"),
        ("/v1/nothing", COHERE, "cohere"),
        ("/v2/nothing", [], "cohere"),
        ("/command/v1/chat", [], "cohere"),
        ("/command/v2/embed", [], "cohere"),
        ("/v1/chat/completions", [], "openai"),
        ("/api/nothing", [], "ollama"),
        ("/gpu/api/chat", [], "ollama"),
        ("/", [], "openai"),
    ],
)
def test_an_error_is_told_in_the_format_that_the_client_seems_to_talk(
    path: str, headers: Headers, wire: str
) -> None:
    assert guess_wire(path, headers).name == wire


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=60))
def test_any_path_is_found_or_refused(rest: str) -> None:
    for path in ("/" + rest, "/v1/models/" + rest, f"/v1beta/models/{rest}:generateContent"):
        try:
            match = read("POST", path)
        except GatewayError:
            continue
        assert path.endswith(match.path)
        if match.model_in_path is not None:
            assert not {"", ".", ".."} & set(match.model_in_path.split("/"))
            assert match.model_in_path.isprintable()
