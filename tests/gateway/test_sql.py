"""Query files: what is unpacked, and what stops the start."""

import sys
from pathlib import Path

import pytest

from gateway.sql import QueryFileError, load_queries, parse_queries

TWO_QUERIES = """\
-- Tokens, as the gateway reads them.

-- name: find_caller
-- The live token with this digest.
SELECT token_id
-- expiry is checked by the caller
FROM tokens WHERE digest = $1;

-- name: mark_used
-- Say that a token was used.
UPDATE tokens SET used_at = now()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "package_with_sql"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "token_store.sql").write_text(TWO_QUERIES, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, folder.name, raising=False)
    return folder.name


def test_a_file_beside_its_module_is_unpacked_by_name(package: str) -> None:
    queries = load_queries(package, "token_store.sql")
    assert dict(queries) == {
        "find_caller": (
            "SELECT token_id\n-- expiry is checked by the caller\nFROM tokens WHERE digest = $1;"
        ),
        "mark_used": "UPDATE tokens SET used_at = now()",
    }


def test_an_unknown_name_is_refused_with_the_name_of_the_file(package: str) -> None:
    queries = load_queries(package, "token_store.sql")
    with pytest.raises(KeyError, match=r"token_store\.sql has no query named 'find_caler'"):
        queries["find_caler"]


def test_a_missing_file_stops_the_import(package: str) -> None:
    with pytest.raises(FileNotFoundError):
        load_queries(package, "absent.sql")


def test_a_file_without_queries_has_none() -> None:
    assert parse_queries("-- nothing yet\n", filename="x.sql") == {}


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        pytest.param(
            "-- name: a\n-- One.\nSELECT 1\n-- name: a\n-- Two.\nSELECT 2\n",
            "two queries are named 'a'",
            id="a duplicate name",
        ),
        pytest.param("-- name: a\n-- One.\n\n", "'a' has no query", id="no text"),
        pytest.param("-- name: a\n-- One.\n-- two\n", "'a' has no query", id="only comments"),
        pytest.param("-- name: a\n-- One.", "'a' has no query", id="cut after the purpose"),
        pytest.param("-- name: a", "does not begin with a line of purpose", id="only a name"),
        pytest.param(
            "-- name: a\nSELECT 1\n", "does not begin with a line of purpose", id="no purpose"
        ),
        pytest.param("-- name:\n-- One.\nSELECT 1\n", "'' is not a name", id="no name"),
        pytest.param("-- name: A b\n-- One.\nSELECT 1\n", "'A b' is not a name", id="two words"),
        pytest.param("SELECT 1\n-- name: a\n", "SQL before the first", id="text before any name"),
    ],
)
def test_a_malformed_file_stops_the_import(source: str, problem: str) -> None:
    with pytest.raises(QueryFileError, match=problem):
        parse_queries(source, filename="x.sql")
