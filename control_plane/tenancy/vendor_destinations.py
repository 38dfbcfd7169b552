"""Where the vendors of an org may be: at addresses that the operator named, or that are well known.

A vendor's key goes to its base URL, and so do the org's prompts. Which hosts the gateway talks to
is for the operator to say; an org brings its own key to them.
"""

import re
from collections.abc import Iterable
from typing import Final

from control_plane.errors import Forbidden
from gateway.connect_guard import BaseUrl, check_base_url
from gateway.vendors.presets import PRESETS

_KNOWN: Final = frozenset(
    check_base_url(preset.base_url, allow_private=False).origin
    for preset in PRESETS.values()
    if preset.base_url and not preset.is_private
)


def check_destination(
    base_url: BaseUrl,
    *,
    is_private: bool,
    allowed: Iterable[str],
    before: BaseUrl | None,
    was_private: bool = False,
) -> None:
    """Refuse what only the operator may name. Raises Forbidden.

    `allowed` are origins that the operator lets orgs name, `*` standing for a part of a label;
    `before` is where the vendor of this name is now, which someone was allowed to say, and
    `was_private` whether that is on a private network. Whoever holds a domain decides where it
    leads: one that was let for public addresses is not let for private ones.
    """
    stays = before is not None and before.origin == base_url.origin
    if stays and (was_private or not is_private):
        return
    if is_private:
        raise Forbidden(
            "Only who runs this installation may add a vendor on a private network.",
            code="operator_only",
        )
    if base_url.origin not in _KNOWN and not any(_fits(base_url, one) for one in allowed):
        raise Forbidden(
            f"{base_url.origin} is no known vendor's address: only who runs this installation may "
            "name another one, or allow orgs to (KAIXU_ORG_VENDOR_ORIGINS).",
            code="operator_only",
        )


def _fits(base_url: BaseUrl, pattern: str) -> bool:
    labels = re.escape(pattern).replace(r"\*", "[0-9a-z-]+")
    return re.fullmatch(rf"{labels}(?::443)", base_url.origin) is not None
