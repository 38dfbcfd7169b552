"""A real request for every route: what its path, query and body name is there, and is valid.

Bodies are made from the routes' own types: required fields only, each with the least value that its
type permits. What a type can't say is told here: a value by the name of a field, a body by the name
of a struct, a thing by the name in a path. A route that needs more than there is fails by name.
"""

import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import inspect

from control_plane.web.route import Route
from tests.control_plane.world import NOBODY, OTHER_OWNER, OWN, World


class NoExample(AssertionError):
    """A route can't be asked: somebody has to say what a valid request is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """In which org, workspace and by whom; `owner_id` is the user that things are made to be of."""

    world: World
    who: str
    org: uuid.UUID
    workspace: uuid.UUID
    owner_id: uuid.UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A request. `has_owner`: what the path names is somebody's own, `Asked.owner_id`'s."""

    path: str
    query: dict[str, str]
    body: Any
    has_owner: bool


async def asked_by(world: World, who: str, *, elsewhere: bool = False) -> Asked:
    """Return a request's circumstances. `elsewhere`: everything is the other org's."""
    if elsewhere:
        org, workspace = world.other_org, world.other_workspace
        owner_id = await world.user_id(OTHER_OWNER)
    else:
        org, workspace = world.org, world.workspace
        owner_id = await world.user_id(who) if who in OWN else world.bystander
    return Asked(world=world, who=who, org=org, workspace=workspace, owner_id=owner_id)


async def example_of(route: Route, asked: Asked) -> Example:
    """Return a request for a route, and make what it names. Raises NoExample."""
    path, before = [], ""
    has_owner = False
    for part in route.path.split("/"):
        if part.startswith("{") and part.endswith("}"):
            name = part[1:-1]
            named = (f"{route.method} {name}", f"{before}/{name}", name)
            make = next((THINGS[key] for key in named if key in THINGS), None)
            if make is None:
                raise NoExample(
                    f"{route}: there is no example of {part}: add '{before}/{name}' to THINGS in "
                    "tests/control_plane/examples.py"
                )
            path.append(str(await make(asked)))
            has_owner = has_owner or name in OWNED
        else:
            path.append(part)
            before = part
    query = {} if route.query is None else await minimal(route.query, asked, route)
    if route.takes_org_by_query:
        query["org"] = str(asked.org)
    body = None if route.body is None else await minimal(route.body, asked, route)
    return Example(
        path="/".join(path),
        query={name: str(value) for name, value in query.items()},
        body=body,
        has_owner=has_owner,
    )


async def minimal(struct: type[msgspec.Struct], asked: Asked, route: Route) -> dict[str, Any]:
    """Return the least valid body of a type."""
    if struct.__name__ in BODIES:
        made: dict[str, Any] = await BODIES[struct.__name__](asked)
        return made
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    body = {}
    for one in info.fields:
        if one.required:
            where = f"{route}: {struct.__name__}.{one.encode_name}"
            body[one.encode_name] = await _value(one.encode_name, one.type, asked, where)
    return body


async def _value(name: str, kind: inspect.Type, asked: Asked, where: str) -> Any:  # noqa: PLR0911
    if name in VALUES:
        return await VALUES[name](asked)
    match kind:
        case inspect.UnionType(types=types):
            return await _value(name, types[0], asked, where)
        case inspect.StrType(pattern=None, min_length=least) if not name.endswith("_id"):
            return uuid.uuid4().hex[: max(least or 0, 8)].ljust(least or 0, "x")
        case inspect.IntType(ge=least, gt=above):
            return least if least is not None else (above or 0) + 1
        case inspect.FloatType(ge=least):
            return least or 1.0
        case inspect.BoolType():
            return True
        case inspect.EnumType(cls=cls):
            return next(iter(cls)).value
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.ListType(item_type=item, min_length=least):
            return [await _value(name, item, asked, where) for _ in range(least or 0)]
        case inspect.DictType(min_length=least) if not least:
            return {}
        case inspect.StructType(cls=cls):
            return {
                one.encode_name: await _value(one.encode_name, one.type, asked, where)
                for one in kind.fields
                if one.required
            }
        case _:
            raise NoExample(
                f"{where}: there is no example of this field: add it to VALUES, or its struct to "
                "BODIES, in tests/control_plane/examples.py"
            )


Make = Callable[[Asked], Awaitable[Any]]


async def _email(_: Asked) -> str:
    return f"{uuid.uuid4().hex}@example.com"


async def _viewer(_: Asked) -> str:
    return "viewer"


async def _org(asked: Asked) -> uuid.UUID:
    return asked.org


async def _workspace(asked: Asked) -> uuid.UUID:
    return asked.workspace


async def _workspace_text(asked: Asked) -> str:
    return str(asked.workspace)


async def _user(asked: Asked) -> uuid.UUID:
    """Someone who asks for nothing, whom everybody who may can change."""
    if asked.org == asked.world.org:
        return asked.world.bystander
    return asked.owner_id


async def _invitation(asked: Asked) -> uuid.UUID:
    return (await asked.world.invitation(asked.org))[0]


async def _token(asked: Asked) -> uuid.UUID:
    return await asked.world.token_id(asked.org, asked.workspace, asked.owner_id)


async def _session(asked: Asked) -> uuid.UUID:
    """One more session of who asks."""
    person = asked.world.who.get(asked.who)
    if person is None:
        return uuid.uuid4()
    return (await asked.world.people.session(person.account_id, person.email)).session_id


async def _invitation_token(asked: Asked) -> dict[str, Any]:
    """An invitation of who asks, to an org where they are not."""
    if asked.who in NOBODY:
        return {"token": (await asked.world.invitation(asked.org))[1]}
    org = await asked.world.people.org(uuid.uuid4().hex)
    await asked.world.people.member(org, "owner")
    email = asked.world.who[asked.who].email
    return {"token": (await asked.world.invitation(org, email=email))[1]}


async def _new_invitation(asked: Asked) -> dict[str, Any]:
    """With what may be left out: it names a workspace."""
    return {
        "email": await _email(asked),
        "role": "viewer",
        "workspace_id": str(asked.workspace),
        "workspace_role": "viewer",
    }


async def _vendor(asked: Asked) -> str:
    """A vendor of the org's, and one of the operator's with the same name."""
    name = f"v{uuid.uuid4().hex[:12]}"
    for org in (asked.org, None):
        await asked.world.owner.execute(
            """
            INSERT INTO vendors (org_id, name, kind, base_url, sealed_key, models)
            VALUES ($1, $2, 'openai', 'https://vendor.example.com/v1', '', ARRAY[$2 || '-*'])
            """,
            org,
            name,
        )
    return name


async def _alias(asked: Asked) -> str:
    """An alias of the org's, and one of the operator's with the same name."""
    name, vendor = f"a{uuid.uuid4().hex[:12]}", await _vendor(asked)
    owner = asked.world.owner
    await owner.execute(
        "INSERT INTO org_aliases (org_id, name, vendor_name, model) VALUES ($1, $2, $3, 'm')",
        asked.org,
        name,
        vendor,
    )
    await owner.execute(
        "INSERT INTO aliases (name, vendor_name, model) VALUES ($1, $2, 'm')", name, vendor
    )
    return name


async def _token_kind(_: Asked) -> str:
    """Who administers a workspace sets limits in it, not those of it."""
    return "token"


async def _workspace_kind(_: Asked) -> str:
    """Who is in a workspace sees its limits; to see a token's takes seeing the token."""
    return "workspace"


async def _subscription(asked: Asked) -> uuid.UUID:
    """Somebody who is told of alerts."""
    found: uuid.UUID = await asked.world.owner.fetchval(
        """
        INSERT INTO alert_subscriptions (id, org_id, channel, user_id)
        VALUES ($1, $2, 'email', $3) RETURNING id
        """,
        uuid.uuid4(),
        asked.org,
        asked.owner_id,
    )
    return found


async def _alias_body(asked: Asked) -> dict[str, Any]:
    return {"vendor": await _vendor(asked), "model": "m"}


async def _limits_body(_: Asked) -> dict[str, Any]:
    return {"limit": 1}


# By the name in a path, alone, after the part before it, or with a method: what makes such a thing,
# and its id.
THINGS: Final[Mapping[str, Make]] = {
    "org": _org,
    "workspace": _workspace,
    "user": _user,
    "invitation": _invitation,
    "token": _token,
    "session": _session,
    "vendors/name": _vendor,
    "aliases/name": _alias,
    "GET kind": _workspace_kind,
    "limits/kind": _token_kind,
    "GET subject": _workspace,
    "subject": _token,
    "subscription": _subscription,
}
# Of these, the names of what belongs to a user.
OWNED: Final = frozenset({"token"})

# By the name of a field, in whichever body or query.
VALUES: Final[Mapping[str, Make]] = {
    "email": _email,
    "role": _viewer,
    "workspace_id": _workspace_text,
}

# By the name of a struct: what can't be made field by field, or names things where it need not.
BODIES: Final[Mapping[str, Make]] = {
    "InvitationToken": _invitation_token,
    "NewInvitation": _new_invitation,
    "AliasBody": _alias_body,
    "LimitsBody": _limits_body,
}
