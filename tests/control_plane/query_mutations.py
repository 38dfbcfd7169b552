"""Every query of the control plane, with each of its conditions taken out in turn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlglot
from sqlglot import exp

from gateway.sql import parse_queries

CONTROL_PLANE: Final = Path(__file__).resolve().parents[2] / "control_plane"
# Statements that sqlglot has no grammar for, and that have no condition.
NOT_PARSED: Final = frozenset({"local.sql keep_role", "vendors.sql lock"})


@dataclass(frozen=True, kw_only=True)
class Query:
    """A query of a .sql file."""

    name: str
    text: str
    tree: exp.Expr

    @property
    def tables(self) -> set[str]:
        return {table.name for table in self.tree.find_all(exp.Table)}

    @property
    def writes(self) -> bool:
        return any(True for _ in self.tree.find_all(exp.Insert, exp.Update, exp.Delete))


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A query without one of its conditions."""

    query: Query
    dropped: str
    text: str


def all_queries() -> list[Query]:
    """Return every query there is."""
    found = []
    for file in sorted(CONTROL_PLANE.rglob("*.sql")):
        if "schema" in file.parts:
            continue
        for name, text in parse_queries(file.read_text(), filename=file.name).items():
            full_name = f"{file.name} {name}"
            if full_name in NOT_PARSED:
                continue
            tree = sqlglot.parse_one(text, dialect="postgres")
            assert not isinstance(tree, exp.Command), f"{full_name} is not understood"
            found.append(Query(name=full_name, text=text, tree=tree))
    return found


def mutations_of(query: Query, types: Sequence[str]) -> Iterator[Mutation]:
    """Yield the query without each condition of a WHERE or an ON, and without each of them whole.

    `types` are those of the parameters: a condition that goes leaves its parameters where they are,
    so that the others keep their numbers.
    """
    places = sum(1 for _ in _conditions(query.tree))
    for number in range(places):
        tree = query.tree.copy()
        condition = list(_conditions(tree))[number]
        dropped = condition.sql(dialect="postgres")
        condition.replace(_always(condition, types))
        yield Mutation(query=query, dropped=dropped, text=tree.sql(dialect="postgres"))


def _conditions(tree: exp.Expr) -> Iterator[exp.Expr]:
    # The WHERE of an ON CONFLICT's index says which index it is, and nothing about rows.
    wholes = [
        where.this for where in tree.find_all(exp.Where) if where.arg_key != "index_predicate"
    ]
    wholes += [join.args["on"] for join in tree.find_all(exp.Join) if join.args.get("on")]
    for whole in wholes:
        yield whole
        if isinstance(whole, exp.And):
            yield from whole.flatten()


def _always(condition: exp.Expr, types: Sequence[str]) -> exp.Expr:
    numbers = sorted({int(one.name) for one in condition.find_all(exp.Parameter)})
    kept = "".join(f" OR CAST(${number} AS {types[number - 1]}) IS NULL" for number in numbers)
    return sqlglot.parse_one(f"(TRUE{kept})", dialect="postgres")


def parameter_places(query: Query) -> dict[int, str]:
    """Return, by number, which `table.column`'s value a parameter is, where one can tell.

    A parameter that is compared with a column, or inserted into it, is its value.
    """
    tables = {table.alias_or_name: table.name for table in query.tree.find_all(exp.Table)}
    only = next(iter(tables.values())) if len(set(tables.values())) == 1 else ""
    places: dict[int, str] = {}

    def note(column: Any, value: Any) -> None:
        if isinstance(column, exp.Column) and value is not None:
            table = tables.get(column.table, only) if column.table else only
            for parameter in value.find_all(exp.Parameter):
                places.setdefault(int(parameter.name), f"{table}.{column.name}")

    for pair in query.tree.find_all(exp.EQ):
        note(pair.left, pair.right)
        note(pair.right, pair.left)
    for insert in query.tree.find_all(exp.Insert):
        schema, values = insert.this, insert.expression
        if isinstance(schema, exp.Schema) and isinstance(values, exp.Values):
            table = schema.this.name
            for row in values.expressions:
                for column, value in zip(schema.expressions, row.expressions, strict=True):
                    for parameter in value.find_all(exp.Parameter):
                        places.setdefault(int(parameter.name), f"{table}.{column.name}")
    return places
