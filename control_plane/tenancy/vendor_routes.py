"""Vendors by the API: an org's own, which go before the operator's; and the operator's, for all.

Both are answered by the same functions: a request that is about no org is about the operator's.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

import asyncpg
import msgspec

from control_plane.errors import BadArgument, NotFound, PreconditionFailed
from control_plane.tenancy.rbac import Permission
from control_plane.tenancy.receipts import Receipt, receipt_of
from control_plane.tenancy.vendor_destinations import check_destination
from control_plane.tenancy.vendor_presets import with_preset
from control_plane.tenancy.vendors import (
    NewVendor,
    add_vendor,
    change_vendor,
    check_vendor,
    list_vendors,
    remove_row,
    rotate_vendor,
)
from control_plane.throttle import RateClass
from control_plane.web.pages import (
    Page,
    PageQuery,
    check_limit,
    decode_cursor,
    page_of,
)
from control_plane.web.request import ApiRequest
from control_plane.web.route import Access, Needs, Route
from gateway.connect_guard import check_base_url
from gateway.sql import load_queries
from gateway.vendors.presets import BASE_URL_FORMS, PLACEHOLDER_KEY, PRESETS
from gateway.vendors.registry import KINDS
from gateway.vendors.seal import PLAINTEXT_BYTES_MAX

_CURRENT_TRANSACTION: Final = load_queries(__package__, "receipts.sql")["current_transaction"]

ModelGlobs = Annotated[list[str], msgspec.Meta(max_length=100)]
VendorKey = Annotated[str, msgspec.Meta(min_length=1, max_length=PLAINTEXT_BYTES_MAX)]
ShortText = Annotated[str, msgspec.Meta(max_length=2048)]


class VendorView(msgspec.Struct, frozen=True, kw_only=True):
    """A vendor, without its key, which nobody can be told.

    `owner`: org or operator. Of the operator's, an org is not told the base URL.
    """

    name: str
    owner: str
    kind: str
    base_url: str | None
    private: bool
    default: bool
    models: list[str] | None
    usage_unasked: bool
    simulator: bool
    disabled: bool
    key_version: int
    created_at: str


class ChangedVendor(VendorView, frozen=True, kw_only=True):
    """A vendor after a change; `receipt` says who has heard that it is called no more."""

    receipt: Receipt | None = None


class RemovedVendor(msgspec.Struct, frozen=True, kw_only=True):
    """A vendor that is no more; `receipt` says which workers call it no more."""

    name: str
    removed: bool
    receipt: Receipt


class VendorBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a vendor is to be; what a preset (its name, or `preset`) says may be left out."""

    key: VendorKey | None = None
    kind: ShortText = ""
    base_url: ShortText = ""
    preset: ShortText | None = None
    private: bool = False
    default: bool = False
    models: ModelGlobs | None = None
    usage_unasked: bool | None = None
    disabled: bool = False

    def __repr__(self) -> str:
        """Return a text without the key."""
        return f"VendorBody(kind={self.kind!r}, base_url={self.base_url!r})"


class VendorPatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to change of a vendor; what is not said stays."""

    default: bool | msgspec.UnsetType = msgspec.UNSET
    models: ModelGlobs | msgspec.UnsetType | None = msgspec.UNSET
    usage_unasked: bool | msgspec.UnsetType = msgspec.UNSET
    disabled: bool | msgspec.UnsetType = msgspec.UNSET


class NewVendorKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A vendor's new key."""

    key: VendorKey

    def __repr__(self) -> str:
        """Return a text without the key."""
        return "NewVendorKey()"


async def read_vendors(request: ApiRequest) -> Page[VendorView]:
    """Return an org's own vendors, then the operator's; or the operator's alone."""
    query = request.query_as(PageQuery)
    limit = check_limit(query.limit)
    after = decode_cursor(query.after, parts=2)
    async with request.transaction() as connection:
        views = await _visible(connection, request)
    key = _sort_key
    rest = [one for one in sorted(views, key=key) if after is None or key(one) > after]
    data, following = page_of(rest[: limit + 1], limit, key=key)
    return Page(data=data, next=following)


async def read_vendor(request: ApiRequest) -> VendorView:
    """Return the vendor that calls of the org go to by this name."""
    async with request.transaction() as connection:
        views = await _visible(connection, request)
    found = [one for one in sorted(views, key=_sort_key) if one.name == request.path["name"]]
    if not found:
        raise _no_vendor()
    return found[0]


async def put_vendor(request: ApiRequest) -> VendorView:
    """Create a vendor, or put it in the place of the one of its name; its key is sealed here."""
    settings = request.services.settings
    with api_words():
        vendor = _new_vendor(request.path["name"], request.body_as(VendorBody))
        base_url = check_vendor(vendor, allowed_hosts=settings.vendor_hosts, may_lack_key=True)

        def check(old: asyncpg.Record | None) -> None:
            if request.if_match is not None and old is None:
                raise PreconditionFailed("There is no such vendor yet.", field="If-Match")
            if old is not None:
                request.check_match(_view(old, request=request))
            if not request.signed_in.is_operator:
                before = None if old is None else old["base_url"]
                check_destination(
                    base_url,
                    is_private=vendor.is_private,
                    allowed=settings.org_vendor_origins,
                    before=before and check_base_url(before, allow_private=True),
                    was_private=old is not None and old["is_private"],
                )

        async with request.transaction() as connection:
            await add_vendor(
                connection,
                vendor,
                replace=True,
                allowed_hosts=settings.vendor_hosts,
                org_id=request.org_id,
                origin=request.origin,
                check=check,
            )
            return await _own(connection, request)


async def patch_vendor(request: ApiRequest) -> ChangedVendor:
    """Change what a vendor's key is not tied to; who disables it is told who has heard."""
    began = time.monotonic()
    patch = request.body_as(VendorPatch)
    said = {
        "is_default": patch.default,
        "models": patch.models,
        "usage_unasked": patch.usage_unasked,
        "is_disabled": patch.disabled,
    }
    changes = {name: value for name, value in said.items() if value is not msgspec.UNSET}
    with api_words():
        async with request.transaction() as connection:
            await change_vendor(
                connection,
                request.path["name"],
                changes,
                org_id=request.org_id,
                origin=request.origin,
                check=lambda old: request.check_match(_view(old, request=request)),
            )
            view = await _own(connection, request)
            xact = await connection.fetchval(_CURRENT_TRANSACTION)
    receipt = await vendors_receipt(request, xact, began=began) if patch.disabled is True else None
    return ChangedVendor(**msgspec.structs.asdict(view), receipt=receipt)


async def rotate_vendor_key(request: ApiRequest) -> VendorView:
    """Give a vendor a new key; calls that are open go on with the old one."""
    with api_words():
        async with request.transaction() as connection:
            await rotate_vendor(
                connection,
                request.path["name"],
                request.body_as(NewVendorKey).key,
                org_id=request.org_id,
                origin=request.origin,
            )
            return await _own(connection, request)


async def delete_vendor(request: ApiRequest) -> RemovedVendor:
    """Remove a vendor and forget its key."""
    began = time.monotonic()
    name = request.path["name"]
    with api_words():
        async with request.transaction() as connection:
            xact = await remove_row(
                connection,
                name,
                org_id=request.org_id,
                origin=request.origin,
                check=lambda old: request.check_match(_view(old, request=request)),
            )
    receipt = await vendors_receipt(request, xact, began=began)
    return RemovedVendor(name=name, removed=True, receipt=receipt)


# --------------------------------------------------------------------------------------- details


async def vendors_receipt(request: ApiRequest, xact: str, *, began: float) -> Receipt:
    """Return the receipt of a transaction that has committed."""
    receipt = await receipt_of(
        request.services.database,
        xact,
        is_embedded=request.services.settings.database_is_embedded,
        began=began,
    )
    assert receipt is not None, "there was a transaction"
    return receipt


@contextlib.contextmanager
def api_words() -> Iterator[None]:
    """Say in the API's words what commands are refused with."""
    try:
        yield
    except BadArgument as error:
        fields = {"base-url": "base_url", "key-file": "key"}
        raise BadArgument(
            error.message, field=fields.get(error.field or "", error.field), code=error.code
        ) from error
    except NotFound as error:
        raise NotFound(error.message.partition(":")[0] + ".", field=error.field) from error


def _new_vendor(name: str, body: VendorBody) -> NewVendor:
    """Return what a body asks for. Raises BadArgument."""
    if body.preset is not None and body.preset not in PRESETS:
        raise BadArgument(
            f"There is no such preset; there are {', '.join(PRESETS)}.", field="preset"
        )
    known = PRESETS.get(body.preset or name)
    kind = body.kind or ("" if known is None else known.kind)
    if not kind:
        raise BadArgument(f"Say its kind, one of {', '.join(KINDS)}.", field="kind")
    has_url = known is not None and known.kind == kind and known.base_url
    if not body.base_url and not has_url:
        form = BASE_URL_FORMS.get(kind)
        told = "Say its base URL." if form is None else f"Say its base URL: {form}"
        raise BadArgument(told, field="base_url")
    said = NewVendor(
        name=name,
        kind=body.kind,
        base_url=body.base_url,
        key=body.key or PLACEHOLDER_KEY,
        is_private=body.private,
        is_default=body.default,
        models=body.models,
        is_disabled=body.disabled,
    )
    vendor = with_preset(said, preset=body.preset, usage_unasked=body.usage_unasked)
    return vendor if body.key or vendor.is_private else replace(vendor, key="")


async def _visible(connection: asyncpg.Connection, request: ApiRequest) -> list[VendorView]:
    """Return the vendors that the asker may know of."""
    views = [_view(row, request=request) for row in await list_vendors(connection)]
    if request.org_id is None:
        return views
    of_operator = [msgspec.structs.replace(one, owner="operator", base_url=None) for one in views]
    own = await list_vendors(connection, org_id=request.org_id)
    return [*(_view(row, request=request) for row in own), *of_operator]


async def _own(connection: asyncpg.Connection, request: ApiRequest) -> VendorView:
    rows = await list_vendors(connection, org_id=request.org_id)
    return next(_view(row, request=request) for row in rows if row["name"] == request.path["name"])


def _view(row: asyncpg.Record | Mapping[str, Any], *, request: ApiRequest) -> VendorView:
    return VendorView(
        name=row["name"],
        owner="operator" if request.org_id is None else "org",
        kind=row["kind"],
        base_url=row["base_url"],
        private=row["is_private"],
        default=row["is_default"],
        models=row["models"],
        usage_unasked=row["usage_unasked"],
        simulator=row["is_simulator"],
        disabled=row["is_disabled"],
        key_version=row["key_version"],
        created_at=row["created_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    )


def _sort_key(view: VendorView) -> tuple[str, str]:
    """Return where a vendor stands: an org's own before the operator's."""
    return ("1" if view.owner == "operator" else "0", view.name)


def _no_vendor() -> NotFound:
    return NotFound("There is no such vendor.", field="name")


_NAME: Final = frozenset({"name"})


def _routes(prefix: str, *, read: Access | Needs, write: Access | Needs, whose: str) -> list[Route]:
    """Return the routes for an org's vendors, or the operator's."""
    one = f"{prefix}/{{name}}"
    return [
        Route(
            method="GET", path=prefix, summary=f"The vendors {whose}", access=read,
            rate_class=RateClass.READ, handler=read_vendors, query=PageQuery,
            answer=Page[VendorView],
        ),
        Route(
            method="GET", path=one, summary=f"A vendor {whose}", access=read,
            rate_class=RateClass.READ, handler=read_vendor, answer=VendorView, text_names=_NAME,
        ),
        Route(
            method="PUT", path=one, summary=f"Create or replace a vendor {whose}", access=write,
            rate_class=RateClass.WRITE, handler=put_vendor, body=VendorBody, answer=VendorView,
            errors=(403, 409, 412), text_names=_NAME,
        ),
        Route(
            method="PATCH", path=one, summary=f"Change a vendor {whose}", access=write,
            rate_class=RateClass.WRITE, handler=patch_vendor, body=VendorPatch,
            answer=ChangedVendor, errors=(409, 412), text_names=_NAME,
        ),
        Route(
            method="POST", path=f"{one}/rotate", summary=f"Give a vendor {whose} a new key",
            access=write, rate_class=RateClass.WRITE, handler=rotate_vendor_key, body=NewVendorKey,
            answer=VendorView, errors=(409,), text_names=_NAME,
        ),
        Route(
            method="DELETE", path=one, summary=f"Remove a vendor {whose}", access=write,
            rate_class=RateClass.WRITE, handler=delete_vendor, answer=RemovedVendor,
            errors=(409, 412), text_names=_NAME,
        ),
    ]  # fmt: skip


ROUTES: Final = (
    *_routes(
        "/api/v1/vendors",
        read=Needs(permission=Permission.VENDORS_READ),
        write=Needs(permission=Permission.VENDORS_WRITE),
        whose="that the org's calls may go to",
    ),
    *_routes(
        "/api/v1/operator/vendors",
        read=Access.OPERATOR,
        write=Access.OPERATOR,
        whose="of the operator, for every org",
    ),
)
