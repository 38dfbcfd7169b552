"""Aliases by the API: an org's own, which go before the operator's; and the operator's, for all."""

import time
from collections.abc import Mapping
from typing import Annotated, Any, Final

import asyncpg
import msgspec

from control_plane.errors import NotFound, PreconditionFailed
from control_plane.tenancy.aliases import find_alias, list_aliases, remove_alias, set_alias
from control_plane.tenancy.rbac import Permission
from control_plane.tenancy.receipts import Receipt
from control_plane.tenancy.vendor_routes import api_words, vendors_receipt
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


class AliasView(msgspec.Struct, frozen=True, kw_only=True):
    """A name that stands for a vendor's model; `owner`: org or operator."""

    name: str
    owner: str
    vendor: str
    model: str
    created_at: str


class AliasBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where an alias is to lead."""

    vendor: Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class RemovedAlias(msgspec.Struct, frozen=True, kw_only=True):
    """An alias that is no more; `receipt` says which workers have heard."""

    name: str
    removed: bool
    receipt: Receipt


async def read_aliases(request: ApiRequest) -> Page[AliasView]:
    """Return an org's own aliases, then the operator's; or the operator's alone."""
    query = request.query_as(PageQuery)
    limit = check_limit(query.limit)
    after = decode_cursor(query.after, parts=2)
    async with request.transaction() as connection:
        views = [_view(row, owner="operator") for row in await list_aliases(connection)]
        if request.org_id is not None:
            own = await list_aliases(connection, org_id=request.org_id)
            views += [_view(row, owner="org") for row in own]
    key = _sort_key
    rest = [one for one in sorted(views, key=key) if after is None or key(one) > after]
    data, following = page_of(rest[: limit + 1], limit, key=key)
    return Page(data=data, next=following)


async def read_alias(request: ApiRequest) -> AliasView:
    """Return what a name stands for in calls of the org."""
    name = request.path["name"]
    with api_words():
        async with request.transaction() as connection:
            if request.org_id is not None:
                try:
                    found = await find_alias(connection, name, org_id=request.org_id)
                    return _view(found, owner="org")
                except NotFound:
                    pass  # then the operator's
            return _view(await find_alias(connection, name, org_id=None), owner="operator")


async def put_alias(request: ApiRequest) -> AliasView:
    """Let a name stand for a vendor's model."""
    body, name = request.body_as(AliasBody), request.path["name"]

    def check(old: asyncpg.Record | None) -> None:
        if request.if_match is not None and old is None:
            raise PreconditionFailed("There is no such alias yet.", field="If-Match")
        if old is not None:
            request.check_match(_view(old, owner=_owner(request)))

    with api_words():
        async with request.transaction() as connection:
            await set_alias(
                connection,
                name,
                f"{body.vendor}/{body.model}",
                org_id=request.org_id,
                origin=request.origin,
                check=check,
            )
            found = await find_alias(connection, name, org_id=request.org_id)
    return _view(found, owner=_owner(request))


async def delete_alias(request: ApiRequest) -> RemovedAlias:
    """Forget an alias."""
    began = time.monotonic()
    name = request.path["name"]
    with api_words():
        async with request.transaction() as connection:
            removed = await remove_alias(
                connection,
                name,
                org_id=request.org_id,
                origin=request.origin,
                check=lambda old: request.check_match(_view(old, owner=_owner(request))),
            )
    receipt = await vendors_receipt(request, removed["xact"], began=began)
    return RemovedAlias(name=name, removed=True, receipt=receipt)


def _view(row: asyncpg.Record | Mapping[str, Any], *, owner: str) -> AliasView:
    return AliasView(
        name=row["name"],
        owner=owner,
        vendor=row["vendor"],
        model=row["model"],
        created_at=row["created_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    )


def _owner(request: ApiRequest) -> str:
    return "operator" if request.org_id is None else "org"


def _sort_key(view: AliasView) -> tuple[str, str]:
    """Return where an alias stands: an org's own before the operator's."""
    return ("1" if view.owner == "operator" else "0", view.name)


_NAME: Final = frozenset({"name"})


def _routes(prefix: str, *, read: Access | Needs, write: Access | Needs, whose: str) -> list[Route]:
    """Return the routes for an org's aliases, or the operator's."""
    one = f"{prefix}/{{name}}"
    return [
        Route(
            method="GET", path=prefix, summary=f"The aliases {whose}", access=read,
            rate_class=RateClass.READ, handler=read_aliases, query=PageQuery,
            answer=Page[AliasView],
        ),
        Route(
            method="GET", path=one, summary=f"An alias {whose}", access=read,
            rate_class=RateClass.READ, handler=read_alias, answer=AliasView, text_names=_NAME,
        ),
        Route(
            method="PUT", path=one, summary=f"Create or replace an alias {whose}", access=write,
            rate_class=RateClass.WRITE, handler=put_alias, body=AliasBody, answer=AliasView,
            errors=(409, 412), text_names=_NAME,
        ),
        Route(
            method="DELETE", path=one, summary=f"Remove an alias {whose}", access=write,
            rate_class=RateClass.WRITE, handler=delete_alias, answer=RemovedAlias,
            errors=(412,), text_names=_NAME,
        ),
    ]  # fmt: skip


ROUTES: Final = (
    *_routes(
        "/api/v1/aliases",
        read=Needs(permission=Permission.ALIASES_READ),
        write=Needs(permission=Permission.ALIASES_WRITE),
        whose="that the org's calls may name",
    ),
    *_routes(
        "/api/v1/operator/aliases",
        read=Access.OPERATOR,
        write=Access.OPERATOR,
        whose="of the operator, for every org",
    ),
)
