"""No SQL is put together from pieces: statements are in .sql files, values are parameters."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

PROJECT: Final = Path(__file__).resolve().parents[1]
# Whatever takes a statement, by its name; asyncpg's methods and psycopg's alike.
TAKES_SQL: Final = frozenset(
    {
        "execute", "executemany", "fetch", "fetchrow", "fetchval", "fetchmany", "prepare", "cursor",
        "copy_from_query",
    }
)  # fmt: skip
BUILDS_TEXT: Final = frozenset({"format", "format_map", "join", "replace", "safe_substitute"})
# By file: what stands there for a reason.
ALLOWED: Final = {
    # Before there is a server to connect to; CREATE DATABASE takes no parameter, the name is fixed.
    "control_plane/postgres.py": "CREATE DATABASE x ",
}
STATEMENT: Final = re.compile(
    r"\s*(SELECT\s.+\sFROM|INSERT\s+INTO|UPDATE\s+\S+\s+SET|DELETE\s+FROM|ALTER\s+(TABLE|ROLE)|"
    r"CREATE\s+(TABLE|ROLE|DATABASE|FUNCTION)|DROP\s+(TABLE|ROLE|DATABASE)|GRANT\s.+\sTO|SET\s+ROLE)"
    r"\s",
    re.IGNORECASE | re.DOTALL,
)


def findings(source: str, *, allowed: str | None = None) -> Iterator[tuple[int, str]]:
    """Yield the line and the reason of each statement that is put together in Python.

    `allowed`: a text that a statement may be.
    """
    tree = ast.parse(source)
    built = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _is_built(node.value, frozenset())
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    # The constant parts of what is put together: told of once, as the whole.
    parts = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr | ast.BinOp)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            arguments = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "query")]
            if node.func.attr in TAKES_SQL and any(_is_built(one, built) for one in arguments):
                yield node.lineno, f"{node.func.attr} is given a text that was put together"
        if not isinstance(node, ast.expr) or id(node) in docstrings or _text(node) == allowed:
            continue
        if STATEMENT.match(_text(node)):
            if _is_built(node, frozenset()):
                yield node.lineno, "a statement is put together"
            elif isinstance(node, ast.Constant) and id(node) not in parts:
                yield node.lineno, "a statement is in Python: it belongs into a .sql file"


def _is_built(node: ast.AST, names: "frozenset[str] | set[str]") -> bool:
    """Return whether an expression puts a text together from what is not all constant."""
    match node:
        case ast.JoinedStr(values=values):
            return any(isinstance(one, ast.FormattedValue) for one in values)
        case ast.BinOp(op=ast.Add() | ast.Mod(), left=left, right=right):
            both = (left, right)
            is_text = any(_is_text(one) or _is_built(one, names) for one in both)
            return is_text and not all(isinstance(one, ast.Constant) for one in both)
        case ast.Call(func=ast.Attribute(attr=attr, value=value)):
            return attr in BUILDS_TEXT and (_is_text(value) or _is_built(value, names))
        case ast.Name(id=name):
            return name in names
        case ast.IfExp(body=body, orelse=other):
            return _is_built(body, names) or _is_built(other, names)
        case ast.NamedExpr(value=value) | ast.Await(value=value):
            return _is_built(value, names)
        case _:
            return False


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _text(node: ast.AST) -> str:
    """Return the constant text that an expression begins with; "" where there is none."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=values):
            return "".join(
                str(one.value) if isinstance(one, ast.Constant) else "x " for one in values
            )
        case ast.BinOp(left=left, right=right):
            return _text(left) + " " + (_text(right) or "x") + " "
        case ast.Call(func=ast.Attribute(value=value)):
            return _text(value)
        case _:
            return ""


@pytest.mark.parametrize("plane", ["gateway", "control_plane"])
def test_no_statement_is_put_together(plane: str) -> None:
    files = sorted((PROJECT / plane).rglob("*.py"))
    assert len(files) > 20
    found = [
        f"{file.relative_to(PROJECT)}:{line}: {why}"
        for file in files
        for line, why in findings(
            file.read_text(encoding="utf-8"),
            allowed=ALLOWED.get(file.relative_to(PROJECT).as_posix()),
        )
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        'await c.fetch(f"SELECT {x}")',
        'await c.fetchval("SELECT " + x)',
        'await c.execute("SELECT %s" % x)',
        'await c.execute("SELECT {}".format(x))',
        'await c.execute(" ".join(parts))',
        'await c.execute(query=f"{x}")',
        'q = f"SELECT {x}"\nawait c.fetchrow(q)',
        'await c.prepare(A if y else f"{x}")',
        'QUERY = f"SELECT a FROM {table} WHERE b"',
        'QUERY = "DELETE FROM " + table + " WHERE b"',
        'QUERY = "UPDATE t SET a = 1 WHERE b"',
        "c.cursor(f'''INSERT INTO {t} VALUES (1)''')",
    ],
)
def test_it_finds_what_is(source: str) -> None:
    assert list(findings(source))


@pytest.mark.parametrize(
    "source",
    [
        'await c.fetch(_FIND, f"{x}")',
        'await c.fetchval(_QUERIES["find"], "a" + b)',
        '"""SELECT the right one FROM a list."""',
        'def f():\n    """UPDATE x SET of things ."""',
        'log(f"a call was {x}")',
        'url = f"postgresql://{user}@{host}"',
        "session.fetch(url)",
    ],
)
def test_it_finds_nothing_else(source: str) -> None:
    assert not list(findings(source))
