"""Credentials that are not one header for ever: signatures, and tokens that refresh.

A static key is a header that is made once, when a vendor is loaded. What is here makes its header
lines for each attempt, from the request as it goes up. Pure: the clock is handed in, and what a
credential has to ask for is asked by others.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class KeyUnusable(ValueError):
    """A vendor key that can't be called with: empty, too long, or not what it should be.

    The message never quotes it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A request as it goes up, but for what a credential adds.

    `path` and `query` are as sent; names of `headers` are in lower case, `host` is among them.
    """

    method: str
    path: str
    query: str
    headers: Sequence[tuple[str, str]]
    body: bytes = field(repr=False)


class Signer(Protocol):
    """Makes the header lines that show a vendor who is calling."""

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """What no client may see, were a vendor to repeat it."""
        ...

    def refuses(self, path: str) -> bool:
        """Return whether a path reaches for what this credential is not for."""
        ...

    def on_refused(self) -> None:
        """Note that the vendor refused what `lines` gave."""
        ...

    def lines(self, request: Outgoing, *, now: float) -> bytes | None:
        """Return header lines, each with its end; None where there is no valid credential now.

        `now` is in Unix seconds.
        """
        ...


def json_key(key: bytes, *, what: str) -> Mapping[str, Any] | None:
    """Return the object in a key that is JSON, None for any other key.

    Raises KeyUnusable where it begins like one and is none; nothing of it is quoted.
    """
    if not key.lstrip().startswith(b"{"):
        return None
    try:
        members = json.loads(key)
    except (ValueError, RecursionError):
        raise KeyUnusable(f"The key file is no JSON of {what}.") from None
    if not isinstance(members, dict):
        raise KeyUnusable(f"The key file is no JSON object of {what}.")
    return members


def text_member(members: Mapping[str, Any], *names: str, what: str) -> str:
    """Return the text of the first of `names` that is there. Raises KeyUnusable, naming it."""
    for name in names:
        value = members.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or not value:
            raise KeyUnusable(f"'{name}' in the key file of {what} is no text.")
        return value
    raise KeyUnusable(f"'{names[0]}' is missing in the key file of {what}.")
