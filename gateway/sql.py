"""SQL stays in `.sql` files beside the modules that run it; this unpacks one into its queries.

A file is a list of queries, each as its name, one line of purpose, and its text:

    -- name: find_caller
    -- The live token with this digest, and whom it belongs to.
    SELECT token_id, org_id FROM tokens WHERE digest = $1
"""

import re
from collections import UserDict
from collections.abc import Mapping
from importlib import resources
from typing import Final, NoReturn

import asyncpg

# What asyncpg raises where nothing answered as it should: the database is away or late, or the
# connection died, sometimes in the middle of what asyncpg was doing with it.
CONNECTION_FAULTS: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
# And where the database answered, but not with what was asked for.
DATABASE_FAULTS: Final = (*CONNECTION_FAULTS, asyncpg.PostgresError)

_NAME: Final = re.compile(r"^-- name: *(.*?) *$", re.MULTILINE)
_IDENTIFIER: Final = re.compile(r"[a-z][a-z0-9_]*")


class QueryFileError(Exception):
    """A `.sql` file is not a list of named queries."""


class _Queries(UserDict[str, str]):
    """Queries by name; asking for one that the file does not have names the file."""

    def __init__(self, filename: str, queries: Mapping[str, str]) -> None:
        super().__init__(queries)
        self._filename = filename

    def __missing__(self, name: str) -> NoReturn:
        raise KeyError(f"{self._filename} has no query named {name!r}")


def load_queries(package: str, filename: str) -> Mapping[str, str]:
    """Return the queries of `package`'s file by name; a name that is not there is a KeyError.

    Raises QueryFileError for a duplicate or malformed name, a missing purpose or an empty query.
    Modules call it as they are imported, so that a mistake stops the start and not a call.
    """
    source = resources.files(package).joinpath(filename).read_text(encoding="utf-8")
    return _Queries(filename, parse_queries(source, filename=filename))


def parse_queries(source: str, *, filename: str) -> dict[str, str]:
    """Return the queries in `source` by name, without their names and purposes."""
    preamble, *parts = _NAME.split(source)
    if any(line and not line.startswith("--") for line in map(str.strip, preamble.splitlines())):
        raise QueryFileError(f"{filename}: SQL before the first `-- name:`")
    queries: dict[str, str] = {}
    for name, block in zip(parts[::2], parts[1::2], strict=True):
        purpose, _, text = block.removeprefix("\n").partition("\n")
        if not _IDENTIFIER.fullmatch(name):
            raise QueryFileError(f"{filename}: {name!r} is not a name for a query")
        if name in queries:
            raise QueryFileError(f"{filename}: two queries are named {name!r}")
        if not purpose.startswith("-- "):
            raise QueryFileError(f"{filename}: {name!r} does not begin with a line of purpose")
        if all(not line or line.startswith("--") for line in map(str.strip, text.splitlines())):
            raise QueryFileError(f"{filename}: {name!r} has no query")
        queries[name] = text.strip()
    return queries
