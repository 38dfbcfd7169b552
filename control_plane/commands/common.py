"""What all commands share: where the database is, how work is done on it, how it is told."""

import asyncio
import functools
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import click

from control_plane import output
from control_plane.database import DatabasePlace, open_database
from control_plane.errors import BadArgument
from control_plane.files import make_private
from control_plane.settings import (
    SECRET_BYTES_MAX,
    decode_secret,
    default_data_dir,
    parse_list,
    read_secret,
    read_secret_file,
)

Result = TypeVar("Result")


def command(group: click.Group, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command that gets --data and --json, as `place` and `as_json`."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*, data: Path | None, **arguments: Any) -> None:  # noqa: ANN401 - click's values
            function(place=place_of(data), **arguments)

        help_data = (
            "The data folder [default: ~/.local/share/kaixu]; KAIXU_DATABASE_URL goes before."
        )
        run_with_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(run)
        path = click.Path(path_type=Path, file_okay=False)
        with_both = click.option("--data", type=path, help=help_data)(run_with_json)
        group.command(name)(with_both)
        return function

    return register


@click.group()
@click.version_option(package_name="kaixu-gateway")
def kaixu() -> None:
    """KAIxU: a gateway between your team's IDEs and the LLM vendors."""


def place_of(data: Path | None) -> DatabasePlace:
    """Return where the database is: by --data, of a command or its group, or the environment."""
    if data is None:
        outer = click.get_current_context().find_object(tuple)
        data = outer[0] if outer is not None else None
    folder = default_data_dir(os.environ) if data is None else data
    return DatabasePlace(
        data_dir=folder.expanduser().absolute(), url=read_secret(os.environ, "KAIXU_DATABASE_URL")
    )


def make_data_dir(place: DatabasePlace) -> None:
    """Make the data folder, for its owner alone. Raises BadArgument."""
    try:
        make_private(place.data_dir)
    except OSError as error:
        message = f"{place.data_dir} can't be used: {error.strerror}."
        raise BadArgument(message, field="data") from error


def on_database(
    place: DatabasePlace,
    work: Callable[[asyncpg.Connection], Awaitable[Result]],
    *,
    migrated: bool = True,
) -> Result:
    """Do one command's work on the database."""

    async def run() -> Result:
        async with open_database(place, migrated=migrated) as connection:
            return await work(connection)

    return asyncio.run(run())


def show(document: object, as_json: bool, text: str) -> None:  # noqa: FBT001 - it reads well
    """Print a document as JSON, or what people read."""
    output.say(output.json_text(document) if as_json else text)


def allowed_hosts() -> frozenset[str] | None:
    """Return the hosts that vendors may have; None: any."""
    hosts = os.environ.get("KAIXU_VENDOR_HOSTS", "").lower()
    return frozenset(parse_list(hosts, field="KAIXU_VENDOR_HOSTS") or ()) if hosts else None


def read_file(path: Path, *, field: str) -> bytes:
    """Return the content of a file that an option names. Raises BadArgument."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadArgument(f"{path} can't be read: {error.strerror}.", field=field) from error


def read_key(path: str) -> str:
    """Return the key in a file, or from stdin (-). Raises BadArgument."""
    if path == "-":
        content = sys.stdin.buffer.read(SECRET_BYTES_MAX + 1)
        return decode_secret(content, field="key-file")
    return read_secret_file(Path(path), field="key-file")
