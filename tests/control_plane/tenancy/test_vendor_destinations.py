import pytest

from control_plane.errors import Forbidden
from control_plane.tenancy.vendor_destinations import check_destination
from gateway.connect_guard import check_base_url

AZURE = ("https://*.openai.azure.com", "https://*-aiplatform.googleapis.com")


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "https://api.openai.com/v2",
        "https://acme.openai.azure.com",
        "https://europe-west4-aiplatform.googleapis.com",
    ],
)
def test_orgs_go_where_vendors_are_known_or_the_operator_says(url: str) -> None:
    base_url = check_base_url(url, allow_private=False)
    check_destination(base_url, is_private=False, allowed=AZURE, before=None)


@pytest.mark.parametrize(
    "url",
    [
        "https://a.b.openai.azure.com",
        "https://openai.azure.com",
        "https://acme.openai.azure.com.example.com",
        "https://acme-openai.azure.com",
        "https://llm.example.com",
    ],
)
def test_orgs_go_nowhere_else_but_where_they_were_let_before(url: str) -> None:
    base_url = check_base_url(url, allow_private=False)
    with pytest.raises(Forbidden):
        check_destination(base_url, is_private=False, allowed=AZURE, before=None)
    check_destination(base_url, is_private=False, allowed=(), before=base_url)


def test_a_private_network_is_for_the_operator_alone() -> None:
    base_url = check_base_url("https://api.openai.com", allow_private=True)
    with pytest.raises(Forbidden):
        check_destination(base_url, is_private=True, allowed=(), before=None)


def test_a_name_that_was_let_for_public_addresses_is_not_let_for_private_ones() -> None:
    base_url = check_base_url("https://acme.openai.azure.com", allow_private=True)
    with pytest.raises(Forbidden):
        check_destination(base_url, is_private=True, allowed=AZURE, before=base_url)
    check_destination(base_url, is_private=True, allowed=(), before=base_url, was_private=True)
