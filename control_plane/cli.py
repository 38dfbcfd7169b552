"""The `kaixu` command: what an operator types, and what a script reads.

Each command parses its arguments, calls one function of the control plane and prints what it
returns: for people, or with --json as JSON. They are in `commands/`. An error is one line on
stderr, its kind the exit code: 1 refused, not found or failed, 2 a bad argument or setting, 3 the
database can't be reached.
"""

import os
import sys
from typing import Final, NoReturn

import asyncpg
import click

from control_plane import output
from control_plane.commands import administration, running, tokens, usage, vendors
from control_plane.commands.common import kaixu
from control_plane.errors import BadArgument, ControlError

EXIT_INTERRUPTED: Final = 130  # as shells say it

# Modules of commands that are imported have theirs in `kaixu`.
COMMANDS: Final = (administration, running, tokens, usage, vendors)


def main() -> NoReturn:
    """Run the command line, and exit."""
    as_json = "--json" in sys.argv[1:]
    try:
        code = kaixu.main(standalone_mode=False)
    except ControlError as error:
        code = _fail(error, as_json=as_json)
    except click.ClickException as error:
        code = _fail(_usage_error(error), as_json=as_json)
    except asyncpg.PostgresError as error:
        code = _fail(ControlError(f"The database says: {error}", code="database"), as_json=as_json)
    except (click.Abort, KeyboardInterrupt):
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our output has read enough
        _drop_output()
        code = 1
    except OSError as error:  # a full disk, a file that is not ours
        if error.filename is None:
            _drop_output()
        message = f"{error.filename or 'Input or output'}: {error.strerror or error}."
        code = _fail(ControlError(message, code="system"), as_json=as_json)
    sys.exit(code if isinstance(code, int) else 0)


def _drop_output() -> None:
    """Let what is still to be written go nowhere: it can't be."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: ControlError, *, as_json: bool) -> int:
    output.note(output.error_json(error) if as_json else f"kaixu: {error.message}")
    return error.exit_code


def _usage_error(error: click.ClickException) -> BadArgument:
    parameter = getattr(error, "param", None)
    field = None if parameter is None else str(parameter.name).replace("_", "-")
    return BadArgument(error.format_message(), field=field)
