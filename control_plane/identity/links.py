"""Links that are mailed: their secret part, and the addresses that they begin with.

The secret is behind the `#`, which a browser sends to nobody. Only its SHA-256 is kept.
"""

import hashlib
import re
import secrets
import string
from dataclasses import dataclass, field
from typing import Annotated, Final

from msgspec import Meta

from control_plane.errors import BadArgument

TOKEN_CHARS: Final = 43  # of 62: 256 bits
_ALPHABET: Final = string.ascii_letters + string.digits
_TOKEN: Final = re.compile(r"[0-9A-Za-z]{43}")

VERIFY_PATH: Final = "/verify-email"
RESET_PATH: Final = "/reset-password"
CHANGE_PATH: Final = "/confirm-email"

LinkToken = Annotated[str, Meta(min_length=1, max_length=200)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link to be mailed, and what is kept of it."""

    url: str = field(repr=False)
    digest: bytes


def make_link(public_url: str, path: str) -> Link:
    """Return a new link to a page of ours."""
    token = "".join(secrets.choice(_ALPHABET) for _ in range(TOKEN_CHARS))
    return Link(url=f"{public_url}{path}#token={token}", digest=link_digest(token))


def link_digest(token: str) -> bytes:
    """Return what is kept of a link's token. Raises BadArgument for what is none."""
    if not _TOKEN.fullmatch(token):
        raise bad_link()
    return hashlib.sha256(token.encode()).digest()


def bad_link() -> BadArgument:
    """Return the refusal of a link that is not good, whyever."""
    return BadArgument(
        "This link is not good any more: ask for a new one.", field="token", code="link_invalid"
    )
