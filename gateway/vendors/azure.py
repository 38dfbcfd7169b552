"""Azure OpenAI and Azure AI Foundry: OpenAI's shape at addresses of their own.

A base URL may be given as Azure's portal, its SDK or OpenAI's shows it: with nothing behind the
host, with `/openai`, or with `/openai/v1`.
"""

from typing import Final

from gateway.vendors import openai
from gateway.vendors.vendor import VendorKind, header_value

_SUFFIXES: Final = ("/openai/v1", "/openai")
_VERSION: Final = "/v1/"


def credential_header(key: bytes) -> tuple[bytes, bytes]:
    """Return `api-key`. Raises KeyUnusable."""
    return b"api-key", header_value(key)


def target_path(base_path: str, path: str) -> str:
    """Return the path to ask for: deployments as they are, OpenAI's own paths below /openai/v1."""
    base = base_path.rstrip("/")
    for suffix in _SUFFIXES:
        if base.endswith(suffix):
            base = base[: -len(suffix)]
            break
    return base + ("/openai" + path if path.startswith(_VERSION) else path)


AZURE: Final = VendorKind(
    name="azure",
    wire=openai.FORMAT,
    default_base_url="",  # has the resource's name in it
    needs_usage_asked=True,
    credential_header=credential_header,
    target_path=target_path,
    bad_key=openai.bad_key,
    models_path="",  # it lists what could be deployed, not what is
    model_ids=openai.model_ids,
    paths_of=(openai.FORMAT.name, "azure"),
)
