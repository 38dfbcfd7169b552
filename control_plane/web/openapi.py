"""The OpenAPI document (3.1), made from the routes: it can't say anything else than they do."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

from control_plane.web.problems import CONTENT_TYPE as PROBLEM_TYPE
from control_plane.web.problems import Problem
from control_plane.web.route import Access, Needs, Route

# What a route may answer with whatever it does.
_ALWAYS: Final = (400, 429, 500, 503)
_SIGNED_IN: Final = (401,)
_IN_ORG: Final = (403, 404)
_WITH_BODY: Final = (413, 415)
_TEMPLATE: Final = "#/components/schemas/{name}"


def openapi_document(routes: Sequence[Route], *, version: str) -> dict[str, Any]:
    """Return the document for these routes."""
    types: list[Any] = [Problem]
    for route in routes:
        types += [t for t in (route.query, route.body, route.answer) if t is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_TEMPLATE)
    schema_of = {id(t): schema for t, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = _operation(route, schema_of, components)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "kAIxU control plane", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "session": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "gateway_token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "kxg_",
                    "description": "A gateway token that has the scope which is named.",
                },
            },
        },
    }


def statuses(route: Route) -> list[int]:
    """Return every status that a route may answer with."""
    found = {route.status, *_ALWAYS, *route.errors}
    if route.access is not Access.PUBLIC:
        found.update(_SIGNED_IN)
    if isinstance(route.access, Needs) or route.access is Access.OPERATOR or route.needs_fresh:
        found.update(_IN_ORG)
    if route.names:
        found.add(404)
    if route.method == "GET":
        found.add(304)
    if route.method == "POST" and route.access is not Access.PUBLIC:
        found.update((409, 422))  # of an Idempotency-Key
    # A body where none is taken is read as well.
    found.update(_WITH_BODY)
    return sorted(found)


def _operation(
    route: Route, schema_of: dict[int, dict[str, Any]], components: dict[str, Any]
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": _operation_id(route),
        "parameters": _parameters(route, components),
        "responses": {
            str(status): _response(route, status, schema_of) for status in statuses(route)
        },
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": not route.body_is_optional,
            "content": {"application/json": {"schema": schema_of[id(route.body)]}},
        }
    if route.access is not Access.PUBLIC:
        operation["security"] = [{"session": []}]
        if route.token_scope is not None:
            operation["security"].append({"gateway_token": [route.token_scope]})
    if isinstance(route.access, Needs):
        operation["x-permission"] = str(route.access.permission)
    operation["x-rate-class"] = str(route.rate_class)
    return operation


def _operation_id(route: Route) -> str:
    words = route.path.strip("/").replace("{", "").replace("}", "").replace("-", "_")
    return f"{route.method.lower()}_{words.replace('/', '_').replace('.', '_')}"


def _parameters(route: Route, components: dict[str, Any]) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    for name in route.names:
        schema = (
            {"type": "string", "minLength": 1}
            if name in route.text_names
            else {"type": "string", "format": "uuid"}
        )
        parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
    if route.takes_org_by_query:
        parameters.append(
            {
                "name": "org",
                "in": "query",
                "required": False,
                "description": "Which org; who is in one only need not say.",
                "schema": {"type": "string", "format": "uuid"},
            }
        )
    if route.query is not None:
        described = components[route.query.__name__]
        required = set(described.get("required", ()))
        for name, schema in described.get("properties", {}).items():
            parameters.append(
                {"name": name, "in": "query", "required": name in required, "schema": schema}
            )
    return parameters


def _response(route: Route, status: int, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    described: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if status >= HTTPStatus.BAD_REQUEST:
        described["content"] = {PROBLEM_TYPE: {"schema": schema_of[id(Problem)]}}
    elif route.answer is not None and status == route.status:
        described["content"] = {route.content_type: {"schema": schema_of[id(route.answer)]}}
    return described
