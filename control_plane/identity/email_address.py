"""E-mail addresses: which we take, and what two spellings of one have in common."""

import re
from dataclasses import dataclass
from typing import Final

from control_plane.errors import BadArgument

EMAIL_CHARS_MAX: Final = 254  # RFC 5321, 4.5.3.1.3

# ASCII only: look-alikes of an address are other addresses. No encoded word (RFC 2047, `=?...?=`):
# in a mail's header it would be read as something else. Linear in the length of the text.
_ADDRESS: Final = re.compile(
    r"(?!.{0,63}=\?)[0-9A-Za-z!#$%&'*+/=?^_`{|}~-][0-9A-Za-z.!#$%&'*+/=?^_`{|}~-]{0,63}"
    r"@(?=.{1,253}\Z)[0-9A-Za-z](?:[0-9A-Za-z-]{0,62})(?:\.[0-9A-Za-z](?:[0-9A-Za-z-]{0,62}))*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailAddress:
    """An address as it was written, and the key by which it is found."""

    text: str
    key: str


def parse_email(text: str, *, field: str = "email") -> EmailAddress:
    """Return an address. Raises BadArgument."""
    if len(text) > EMAIL_CHARS_MAX or not _ADDRESS.fullmatch(text):
        raise BadArgument(
            "This is no e-mail address that we can write to: name@example.com, ASCII only.",
            field=field,
        )
    return EmailAddress(text=text, key=text.lower())
