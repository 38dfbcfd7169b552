"""docs/permissions.md says who may do what; here it is held against the table that decides it.

`python -m tests.control_plane.tenancy.test_rbac` writes it anew.
"""

from collections.abc import Iterator
from pathlib import Path

from control_plane.routes import ROUTES
from control_plane.tenancy.rbac import GRANTS, RANKS, Grant, Permission, Role, allows, may_confer
from control_plane.web.route import Access, Needs, Route, Scope

DOCUMENT = Path(__file__).parents[3] / "docs" / "permissions.md"
HEAD = """\
# Who may do what

A member has a role in the org, and may have one in each of its workspaces. What no row here grants
is refused. Nobody makes anyone more than they are themselves.

- **in the org**: roles in the org that may, for all of it.
- **in a workspace**: roles in a workspace that may, for what is in it.
- **of one's own**: roles in the org that may, for what is the asker's own.

| permission | in the org | in a workspace | of one's own |
|---|---|---|---|
"""
ROUTES_HEAD = """
## Routes

*each*: for each thing that is found. *operator*: who runs the installation. *fresh*: after a proof
of who asks, ten minutes ago at most. A gateway token with the scope that is named may ask too.

| route | who may ask | how often |
|---|---|---|
"""


def roles(granted: frozenset[Role]) -> str:
    return ", ".join(sorted(granted, key=lambda role: -RANKS[Role(role)])) or "-"


def row(permission: Permission, grant: Grant) -> str:
    cells = (f"`{permission}`", roles(grant.org), roles(grant.workspace), roles(grant.own))
    return f"| {' | '.join(cells)} |"


def who(route: Route) -> str:
    if isinstance(route.access, Needs):
        scope = {Scope.EACH: ", each", Scope.WORKSPACE: ", in the workspace"}
        told = f"`{route.access.permission}`{scope.get(route.access.scope, '')}"
    else:
        told = {
            Access.PUBLIC: "anyone", Access.SIGNED_IN: "any account", Access.OPERATOR: "operator",
        }[route.access]  # fmt: skip
    if route.token_scope is not None:
        told += f"; token with `{route.token_scope}`"
    return told + (", fresh" if route.needs_fresh else "")


def lines() -> Iterator[str]:
    yield HEAD.rstrip("\n")
    yield from (row(permission, GRANTS[permission]) for permission in Permission)
    yield ROUTES_HEAD.rstrip("\n")
    yield from (f"| `{route}` | {who(route)} | {route.rate_class} |" for route in ROUTES)


def document() -> str:
    return "\n".join(lines()) + "\n"


def test_the_document_is_the_table() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document()


def test_a_higher_role_may_whatever_a_lower_one_may() -> None:
    for permission in Permission:
        for higher in Role:
            for lower in Role:
                if RANKS[higher] > RANKS[lower] and allows(permission, org_role=lower):
                    assert allows(permission, org_role=higher), (permission, higher, lower)


def test_nobody_makes_anyone_more_than_they_are() -> None:
    for by in Role:
        assert {role for role in Role if may_confer(role, by=by)} == {
            role for role in Role if RANKS[role] <= RANKS[by]
        }


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
