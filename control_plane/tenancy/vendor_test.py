"""The test button: whether a vendor answers, asked by a call through the gateway.

It is a call like any other, journaled and metered, with a token that is good for a minute and for
this vendor alone, which may be a disabled one. Nothing in this plane could call the vendor by
itself: it has no key.
"""

import asyncio
import time
import uuid
from typing import Final

import aiohttp
import msgspec

from control_plane.errors import NotFound, Refused
from control_plane.tenancy.rbac import Permission
from control_plane.throttle import RateClass
from control_plane.web.request import ApiRequest
from control_plane.web.route import Access, Needs, Route
from gateway.auth.token import digest, generate, hint
from gateway.sql import load_queries
from gateway.vendors.registry import KINDS
from gateway.vendors.vendor import ModelListUnreadable, VendorKind

ANSWER_SECONDS_MAX: Final = 15.0
ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024
MODELS_MAX: Final = 500  # that are told of
TELL_CHARS_MAX: Final = 500
LOADED_SECONDS_MAX: Final = 3.0  # that a gateway may take to hear of a new vendor
PAUSE_SECONDS: Final = 0.1

_QUERIES: Final = load_queries(__package__, "vendor_test.sql")
_OK: Final = 200
_NO_ROUTE: Final = "no_route"


class VendorTest(msgspec.Struct, frozen=True, kw_only=True):
    """How a vendor answered; `call_id` finds its row in the usage.

    `status` is null where there was no answer. `models` are null where it is refused; then `reason`
    is the gateway's (null: the vendor's own refusal), and `detail` what was said.
    """

    ok: bool
    status: int | None
    latency_ms: float
    models: list[str] | None
    reason: str | None
    detail: str | None
    call_id: str | None


async def test_vendor(request: ApiRequest) -> VendorTest:
    """Ask a vendor for its models. Raises NotFound, Refused."""
    name, token, token_id = request.path["name"], generate("c"), uuid.uuid4()
    async with request.transaction() as connection:
        row = await connection.fetchrow(
            _QUERIES["begin"], token_id, digest(token), hint(token), name
        )
        if row is None:
            raise NotFound("There is no such vendor.", field="name")
        kind = KINDS.get(row["vendor_kind"])
        if kind is None or not kind.models_path:
            raise Refused(
                f"A vendor of kind {row['vendor_kind']} has no list of models to ask for: call "
                "one of its models instead.",
                code="no_test",
            )
        await request.audit(connection, "vendor.test", target_kind="vendor", target_id=name)
    try:
        return await _ask(request.services.settings.gateway_url, name, kind, token)
    finally:
        async with request.transaction() as connection:
            await connection.execute(_QUERIES["end"], token_id)


async def _ask(gateway_url: str, name: str, kind: VendorKind, token: str) -> VendorTest:
    """Ask through the gateway, again while it has not heard of the vendor yet."""
    until = time.monotonic() + LOADED_SECONDS_MAX
    path = kind.models_path if kind.wire.name != "openai" else "/v1/models"
    headers = {"authorization": f"Bearer {token}"}
    headers.update({n.decode(): value.decode() for n, value in kind.models_headers})
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        while True:
            began = time.monotonic()
            try:
                async with session.get(
                    f"{gateway_url}/{name}{path}", headers=headers, allow_redirects=False
                ) as answer:
                    content = await answer.content.read(ANSWER_BYTES_MAX)
                    while chunk := await answer.content.read(ANSWER_BYTES_MAX - len(content)):
                        content += chunk
                    reason = answer.headers.get("x-kaixu-reason")
                    call_id = answer.headers.get("x-kaixu-call-id")
                    status = answer.status
            except (aiohttp.ClientError, TimeoutError) as error:
                return VendorTest(
                    ok=False, status=None, latency_ms=_since(began), models=None,
                    reason="gateway_unreachable", call_id=None,
                    detail=f"The gateway did not answer: {type(error).__name__}.",
                )  # fmt: skip
            if reason != _NO_ROUTE or time.monotonic() > until:
                break
            await asyncio.sleep(PAUSE_SECONDS)
    models, detail = None, None
    if status == _OK and reason is None:
        try:
            models = kind.model_ids(content)[:MODELS_MAX]
        except ModelListUnreadable:
            detail = "The vendor's answer is no list of models."
    else:
        detail = content[:TELL_CHARS_MAX].decode(errors="replace")
    return VendorTest(
        ok=models is not None, status=status, latency_ms=_since(began), models=models,
        reason=reason, detail=detail, call_id=call_id,
    )  # fmt: skip


def _since(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 1)


ROUTES: Final = tuple(
    Route(
        method="POST", path=f"{prefix}/{{name}}/test", summary=f"Whether a vendor {whose} answers",
        access=access, rate_class=RateClass.HEAVY, handler=test_vendor, answer=VendorTest,
        errors=(409,), text_names=frozenset({"name"}),
    )
    for prefix, access, whose in (
        ("/api/v1/vendors", Needs(permission=Permission.VENDORS_WRITE), "of the org"),
        ("/api/v1/operator/vendors", Access.OPERATOR, "of the operator"),
    )
)  # fmt: skip
