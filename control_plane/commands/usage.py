"""What was used: sums of a month, and every single call."""

from pathlib import Path

import asyncpg
import click

from control_plane import output
from control_plane.billing.feed import COLUMNS, Cursor, read_events
from control_plane.billing.usage import GROUPINGS, NAMED, report_usage
from control_plane.commands.common import (
    command,
    kaixu,
    on_database,
    place_of,
    show,
)
from control_plane.database import DatabasePlace
from control_plane.settings import (
    parse_month,
)


@kaixu.group(invoke_without_command=True)
@click.option("--month", help="As 2026-11 [default: this one].")
@click.option("--by", type=click.Choice(tuple(GROUPINGS)), default="token", show_default=True)
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="The data folder.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def usage(
    context: click.Context, *, month: str | None, by: str, data: Path | None, as_json: bool
) -> None:
    """What was used in a month; `usage events` has every single call."""
    if context.invoked_subcommand is not None:
        context.obj = (data, as_json)
        return
    first_day = None if month is None else parse_month(month, field="month")
    report = on_database(
        place_of(data), lambda connection: report_usage(connection, month=first_day, by=by)
    )
    label = (GROUPINGS[by], "name") if by in NAMED else (GROUPINGS[by],)
    sums = ("calls", "counted", "input_tokens", "cache_read_tokens", "cache_write_tokens")
    columns = (*label, *sums, "output_tokens", "reasoning_tokens")
    table = output.table(report["rows"], columns, empty=f"No calls in {report['month']}.")
    sealed = output.text(report["sealed_through"])
    show(report, as_json, f"{table}\n\nEvery call up to {sealed} is in it.")


@command(usage, "events")
@click.option("--after", metavar="CURSOR", help="Go on after this event.")
@click.option("--format", "layout", type=click.Choice(["ndjson", "csv"]), default="ndjson")
def usage_events(*, place: DatabasePlace, as_json: bool, after: str | None, layout: str) -> None:
    """Print every event, one a line, in the order in which they became visible."""
    del as_json  # ndjson is JSON
    if after is not None:
        Cursor.parse(after)

    async def print_all(connection: asyncpg.Connection) -> None:
        if layout == "csv":
            output.say(output.csv_line(COLUMNS))
        async for event in read_events(connection, after=after):
            is_csv = layout == "csv"
            output.say(output.csv_line(event.values()) if is_csv else output.event_json(event))

    on_database(place, print_all)
