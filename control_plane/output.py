"""What commands print: JSON for scripts, aligned text for people, a line for each usage event."""

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from control_plane.errors import ControlError

NOTHING: Final = "-"  # a person reads it as: none, or not known

# What spreadsheets take for a formula, in a text that a client chose.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


def json_text(document: object) -> str:
    """Return a document as one line of JSON; times are RFC 3339 in UTC."""
    return orjson.dumps(document, option=orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC).decode()


def error_json(error: ControlError) -> str:
    """Return an error as a script reads it."""
    content = {"code": error.code, "message": error.message, "field": error.field}
    return json_text({"error": content})


def event_json(event: Mapping[str, Any]) -> str:
    """Return a usage event as a line of JSON, with the vendor's own JSON in it as it was."""
    usage = event["vendor_usage"]
    return json_text({**event, "vendor_usage": None if usage is None else orjson.Fragment(usage)})


def csv_line(values: Iterable[object]) -> str:
    """Return a line of CSV; null is empty, a text that looks like a formula gets a quote before."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow([_csv_value(value) for value in values])
    return buffer.getvalue()


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, empty: str) -> str:
    """Return rows as aligned text below their columns' names; `empty` where there are none."""
    if not rows:
        return empty
    cells = [[name.upper().replace("_", " ") for name in columns]]
    cells += [[text(row[name]) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [
        all(isinstance(row[name], (int, float, type(None))) for row in rows) for name in columns
    ]
    lines = (
        "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )
    return "\n".join(lines)


def text(value: object) -> str:
    """Return a value as a person reads it."""
    if value is None or value in ([], ""):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return "".join(c if c.isprintable() else "\ufffd" for c in str(value))


def say(line: str) -> None:
    """Print a line on stdout, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def note(line: str) -> None:
    """Print a line on stderr: stdout belongs to the result."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _csv_value(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return orjson.dumps(value, option=orjson.OPT_UTC_Z).decode().strip('"')
    if isinstance(value, (list, tuple)):
        return ";".join(map(str, value))
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value
