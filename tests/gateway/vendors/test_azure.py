import pytest

from gateway.vendors.azure import AZURE

HOST_ONLY = ""
DEPLOYED = "/openai/deployments/gpt-4o/chat/completions"


def test_the_key_goes_in_azures_header() -> None:
    assert AZURE.credential_header(b"k") == (b"api-key", b"k")


@pytest.mark.parametrize("base", ["", "/openai", "/openai/", "/openai/v1"])
@pytest.mark.parametrize(
    ("path", "there"),
    [
        (DEPLOYED, DEPLOYED),
        ("/openai/responses", "/openai/responses"),
        ("/openai/v1/embeddings", "/openai/v1/embeddings"),
        ("/v1/chat/completions", "/openai/v1/chat/completions"),
        ("/models/chat/completions", "/models/chat/completions"),
    ],
)
def test_a_base_url_may_be_as_any_client_wants_it(base: str, path: str, there: str) -> None:
    assert AZURE.target_path(base, path) == there
    assert AZURE.target_path("/apim" + base, path) == "/apim" + there


def test_it_is_one_of_openais_and_has_paths_of_its_own() -> None:
    assert AZURE.groups == ("openai", "azure")
