"""Refusals as JSON (RFC 9457): what was wrong, with which field, and what to do about it."""

from http import HTTPStatus
from math import ceil
from typing import Final

import msgspec
from aiohttp import web

from control_plane.errors import ControlError

CONTENT_TYPE: Final = "application/problem+json"


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of a refusal; `code` tells cases apart, `field` names what is at fault."""

    title: str
    status: int
    detail: str
    code: str
    request_id: str
    field: str | None = None


def problem(error: ControlError, *, request_id: str) -> web.Response:
    """Return the answer to a request that is refused."""
    status = HTTPStatus(error.status)
    headers = {}
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        headers["retry-after"] = str(ceil(retry_after))
    if status is HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    told = Problem(
        title=status.phrase,
        status=status,
        detail=error.message,
        code=error.code,
        request_id=request_id,
        field=error.field,
    )
    return _response(told, headers)


def plain_problem(status: int, *, request_id: str, detail: str | None = None) -> web.Response:
    """Return the answer for a status that needs no words of its own."""
    phrase = HTTPStatus(status).phrase
    told = Problem(
        title=phrase,
        status=status,
        detail=detail or HTTPStatus(status).description or phrase,
        code=phrase.lower().replace(" ", "_").replace("-", "_"),
        request_id=request_id,
    )
    return _response(told, {})


def _response(told: Problem, headers: dict[str, str]) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(told) + b"\n",
        status=told.status,
        content_type=CONTENT_TYPE,
        headers=headers,
    )
