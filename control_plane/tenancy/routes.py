"""Whether every call finds exactly one vendor: asked when one is configured, not when it is called.

The gateway's own routing answers, over what the transaction at hand would leave behind.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from control_plane.errors import Refused
from gateway.proxy.routing import find_ambiguities
from gateway.sql import load_queries
from gateway.vendors.registry import KINDS
from gateway.vendors.vendor import VendorKind

_VENDORS: Final = load_queries(__package__, "vendors.sql")["list"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """A vendor and the models that it takes."""

    name: str
    kind: VendorKind
    models: Sequence[str] | None


async def check_routes(connection: asyncpg.Connection, *, org_id: uuid.UUID | None) -> None:
    """Raise Refused where some model would have two vendors that are equally good.

    An org's vendors go before the operator's, so each are compared among themselves.
    """
    claims = [
        _Claim(name=row["name"], kind=KINDS[row["kind"]], models=row["models"])
        for row in await connection.fetch(_VENDORS, org_id)
        if row["kind"] in KINDS
    ]
    if ambiguities := find_ambiguities(claims):
        raise Refused(ambiguities[0], field="models", code="ambiguous")
