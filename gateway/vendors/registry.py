"""Every kind of vendor and every wire format, by name; and what a vendor may be called."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from gateway.vendors import anthropic, azure, bedrock, cohere, gemini, ollama, openai, vertex
from gateway.vendors.vendor import VendorKind, WireFormat

VENDOR_NAME_CHARS_MAX: Final = 40

KINDS: Final[Mapping[str, VendorKind]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            openai.OPENAI,
            anthropic.ANTHROPIC,
            gemini.GEMINI,
            cohere.COHERE,
            ollama.OLLAMA,
            azure.AZURE,
            bedrock.BEDROCK,
            vertex.VERTEX,
        )
    }
)
FORMATS: Final[Mapping[str, WireFormat]] = MappingProxyType(
    {
        wire.name: wire
        for wire in (
            openai.FORMAT,
            anthropic.FORMAT,
            gemini.FORMAT,
            cohere.FORMAT,
            ollama.FORMAT,
            bedrock.FORMAT,
        )
    }
)

# First segments of paths that the gateway itself serves; they match before `/{vendor}/…`. The path
# `openai/deployments` is reserved as well, but not the name `openai`.
RESERVED_VENDOR_NAMES: Final = frozenset(
    {
        "api",
        "deployments",
        "model",
        "models",
        "projects",
        "publishers",
        "upload",
        "v1",
        "v1beta",
        "v1beta1",
        "v2",
    }
)

_VENDOR_NAME: Final = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,{VENDOR_NAME_CHARS_MAX - 1}}}")


class InvalidVendorName(ValueError):
    """A name that no vendor can have; the message says why and is safe to show."""


def check_vendor_name(name: str) -> str:
    """Return `name`. Raises InvalidVendorName where no path could begin with it."""
    if not _VENDOR_NAME.fullmatch(name):
        raise InvalidVendorName(
            f"A vendor's name has 1 to {VENDOR_NAME_CHARS_MAX} lower-case letters, digits, '-' "
            "and '_', and begins with a letter or digit."
        )
    if name in RESERVED_VENDOR_NAMES:
        raise InvalidVendorName(f"'{name}' begins paths of the gateway itself.")
    return name
