import pytest

from gateway.errors import MethodNotAllowed, NoRoute, RequestInvalid
from gateway.metering.meter import MeterFormat
from gateway.proxy import endpoints
from gateway.proxy.cloud_paths import find, guess_wire
from gateway.proxy.endpoints import Match
from gateway.vendors.registry import KINDS

CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
PLACE = "/projects/p-1/locations/us-east5"
GEMINI = f"{PLACE}/publishers/google/models/gemini-2.5-flash"
OPUS = f"{PLACE}/publishers/anthropic/models/claude-opus-5@20260101"


def read(path: str, method: bytes = b"POST") -> Match:
    return find(path, method=method, headers=[])


@pytest.mark.parametrize(
    ("path", "name", "vendor", "model", "sent"),
    [
        ("/openai/deployments/gpt-4o/chat/completions", "chat.completions", None, "gpt-4o", None),
        ("/deployments/gpt-4o/embeddings", "embeddings", None, "gpt-4o",
         "/openai/deployments/gpt-4o/embeddings"),
        ("/v1/deployments/gpt-4o/completions", "completions", None, "gpt-4o",
         "/openai/deployments/gpt-4o/completions"),
        ("/acme/v1/deployments/a.b/chat/completions", "chat.completions", "acme", "a.b",
         "/openai/deployments/a.b/chat/completions"),
        ("/acme/openai/deployments/a/images/generations", "images.generations", "acme", "a",
         "/openai/deployments/a/images/generations"),
        ("/openai/responses", "responses", None, None, None),
        ("/acme/openai/v1/responses", "responses", "acme", None, "/openai/v1/responses"),
        ("/acme/openai/v1/chat/completions", "chat.completions", "acme", None,
         "/openai/v1/chat/completions"),
        ("/acme/models/chat/completions", "chat.completions", "acme", None,
         "/models/chat/completions"),
        (f"/model/{CLAUDE}/invoke", "bedrock.invoke", None, CLAUDE, None),
        (f"/model/{CLAUDE.replace(':', '%3A')}/invoke-with-response-stream",
         "bedrock.invoke-with-response-stream", None, CLAUDE, None),
        ("/aws/model/amazon.nova/converse", "bedrock.converse", "aws", "amazon.nova",
         "/model/amazon.nova/converse"),
        ("/model/amazon.nova/converse-stream", "bedrock.converse-stream", None, "amazon.nova",
         None),
        ("/model/amazon.nova/count-tokens", "bedrock.count-tokens", None, "amazon.nova", None),
        ("/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fx/converse",
         "bedrock.converse", None, "arn:aws:bedrock:us-east-1:1:inference-profile/x", None),
        (f"{GEMINI}:generateContent", "vertex.generateContent", None, "gemini-2.5-flash",
         f"/v1{GEMINI}:generateContent"),
        (f"/v1beta1{GEMINI}:streamGenerateContent", "vertex.streamGenerateContent", None,
         "gemini-2.5-flash", None),
        (f"/gcp/v1{GEMINI}:countTokens", "vertex.countTokens", "gcp", "gemini-2.5-flash",
         f"/v1{GEMINI}:countTokens"),
        (f"/v1{GEMINI}:embedContent", "vertex.embedContent", None, "gemini-2.5-flash", None),
        (f"/v1{GEMINI}:predict", "vertex.predict", None, "gemini-2.5-flash", None),
        (f"{OPUS}:rawPredict", "vertex.rawPredict", None, "claude-opus-5@20260101",
         f"/v1{OPUS}:rawPredict"),
        (f"/v1{OPUS}:streamRawPredict", "vertex.streamRawPredict", None,
         "claude-opus-5@20260101", None),
        (f"{PLACE}/publishers/anthropic/models/count-tokens:rawPredict", "vertex.count-tokens",
         None, None, f"/v1{PLACE}/publishers/anthropic/models/count-tokens:rawPredict"),
        (f"/v1{PLACE}/publishers/mistralai/models/codestral:rawPredict", "vertex.rawPredict", None,
         "codestral", None),
        ("/v1beta1/publishers/google/models/gemini-2.5-flash:generateContent",
         "vertex.generateContent", None, "gemini-2.5-flash", None),
    ],
)  # fmt: skip
def test_a_clouds_path_means_an_operation_and_names_a_model(
    path: str, name: str, vendor: str | None, model: str | None, sent: str | None
) -> None:
    match = read(path)
    assert (match.endpoint.name, match.vendor, match.model_in_path) == (name, vendor, model)
    assert match.path == (sent or path)
    assert match.endpoint.group in {group for kind in KINDS.values() for group in kind.groups}


def test_what_carries_a_format_is_metered_and_told_errors_in_it() -> None:
    claude, mistral = read(f"{OPUS}:rawPredict").endpoint, read(
        f"{PLACE}/publishers/mistralai/models/m:streamRawPredict"
    ).endpoint  # fmt: skip
    assert (claude.wire.name, claude.meter) == ("anthropic", MeterFormat.ANTHROPIC_MESSAGES)
    assert (mistral.wire.name, mistral.meter) == ("openai", MeterFormat.OPENAI_CHAT)
    assert read("/model/m/invoke-with-response-stream").endpoint.always_streams
    assert not read("/model/m/count-tokens").endpoint.counts
    assert read("/openai/deployments/m/chat/completions").endpoint.asks_usage


@pytest.mark.parametrize(
    ("path", "model", "there"),
    [
        ("/deployments/a/embeddings", "b c", "/openai/deployments/b%20c/embeddings"),
        ("/model/a/converse", CLAUDE, f"/model/{CLAUDE}/converse"),
        ("/model/a/converse", "arn:x/y", "/model/arn:x%2Fy/converse"),
        (f"{OPUS}:rawPredict", "claude@1",
         f"/v1{PLACE}/publishers/anthropic/models/claude@1:rawPredict"),
    ],
)  # fmt: skip
def test_an_alias_takes_the_models_place_in_the_path(path: str, model: str, there: str) -> None:
    assert read(path).path_for(model) == there


@pytest.mark.parametrize(
    "path",
    [
        "/openai/deployments/gpt-4o/files",
        "/openai/deployments/gpt-4o",
        "/openai/files",
        "/acme/openai/files",
        "/model/m/async-invoke",
        "/model/m",
        "/model/a/b/invoke",
        f"{GEMINI}:rawPredict",
        f"{OPUS}:generateContent",
        f"{PLACE}/cachedContents",
        f"{PLACE}/publishers/anthropic/models/count-tokens:streamRawPredict/x",
        "/v2/projects/p/locations/l/publishers/google/models/m:generateContent",
        "/Acme/model/m/invoke",
    ],
)
def test_what_is_not_in_the_table_is_not_served(path: str) -> None:
    with pytest.raises(NoRoute):
        read(path)


@pytest.mark.parametrize(
    "path",
    [
        "/model/..%2F..%2Fguardrails/invoke",
        "/model/a%2F..%2Fb/invoke",
        "/model/%2e%2e/invoke",
        "/model/a%00/invoke",
        "/model/a%253A/invoke",
        "/model/%ff/invoke",
        "/model/%20a/invoke",
        "/openai/deployments/..%2Fx/chat/completions",
        "/v1/projects/p%2F..%2Fq/locations/l/publishers/google/models/m:predict",
        f"{PLACE}/publishers/google/models/{'m' * 300}:predict",
    ],
)
def test_a_path_that_a_server_could_read_otherwise_is_refused(path: str) -> None:
    with pytest.raises(RequestInvalid):
        read(path)


def test_only_posts_are_served() -> None:
    with pytest.raises(MethodNotAllowed) as refused:
        read("/model/m/invoke", b"GET")
    assert refused.value.headers == {"allow": "POST"}
    assert read("/acme/openai/v1/models", b"GET").endpoint.is_own


@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/openai/v1/responses", "/v1beta/models/gemini:generateContent",
     "/v1/models/a%2Fb:generateContent"],
)  # fmt: skip
def test_all_other_paths_are_as_ever(path: str) -> None:
    assert read(path) == endpoints.find(path, method=b"POST", headers=[])


@pytest.mark.parametrize(
    ("path", "wire"),
    [
        ("/aws/model/m/nonsense", "bedrock"),
        (f"/v1{OPUS}:rawPredict", "anthropic"),
        (f"/v1{GEMINI}:predict", "gemini"),
        (f"{PLACE}/publishers/mistralai/models/m:rawPredict", "openai"),
        ("/openai/deployments/m/chat/completions", "openai"),
        ("/v1/messages", "anthropic"),
    ],
)
def test_an_error_is_told_as_the_paths_client_reads_it(path: str, wire: str) -> None:
    assert guess_wire(path, []).name == wire
