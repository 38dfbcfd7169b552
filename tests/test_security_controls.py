"""Every test that docs/security-controls.md names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"\| (?P<number>[^|]+) \| (?P<control>[^|]+) \| `(?P<test>[^`]+)` \|")


# Controls of which every one has to be there.
HELD = frozenset({8, 9, 10, 12, 13, 14, 15, 16, 17, 18, 20, 25, 27, 29})


def rows() -> list[re.Match[str]]:
    lines = (ROOT / "docs" / "security-controls.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| ") and not line.startswith("| # ")]
    found = [ROW.fullmatch(line) for line in table]
    assert all(found), [line for line, one in zip(table, found, strict=True) if one is None]
    return [one for one in found if one is not None]


def test_every_row_names_a_test_that_exists() -> None:
    named = [row["test"] for row in rows()]
    assert len(named) > 20
    for test in named:
        path, _, name = test.partition("::")
        content = (ROOT / path).read_text()
        assert re.search(rf"^(?:async )?def {re.escape(name)}\(", content, re.MULTILINE), test


def test_no_row_is_there_twice() -> None:
    told = [(row["number"], row["test"]) for row in rows()]
    assert len(told) == len(set(told))


def test_no_control_is_missing() -> None:
    assert {int(row["number"]) for row in rows() if row["number"].isdigit()} >= HELD
