"""Why a command is refused: every kind of error that an operator reads, with its exit code.

Raised anywhere in the control plane, shown only in `cli.py`. Messages are safe to show: they never
quote a secret. Causes are chained.
"""


class ControlError(Exception):
    """A command can't be carried out.

    `code` names the error for scripts, `field` the option or setting at fault (None: no single
    one), `exit_code` is the process's.
    """

    exit_code = 1
    code = "failed"

    def __init__(self, message: str, *, field: str | None = None, code: str | None = None) -> None:
        """`code` replaces the class's where scripts want to tell cases apart."""
        super().__init__(message)
        self.message = message
        self.field = field
        if code is not None:
            self.code = code


class Refused(ControlError):
    """The state of things forbids it."""

    code = "refused"


class NotFound(ControlError):
    """What the command is about does not exist."""

    code = "not_found"


class CursorGone(ControlError):
    """The database no longer has the exact row that a cursor names."""

    code = "cursor_gone"


class BadArgument(ControlError):
    """An argument or a setting has no meaning."""

    exit_code = 2
    code = "bad_argument"


class DatabaseUnreachable(ControlError):
    """The database does not answer, or does not let us in."""

    exit_code = 3
    code = "database_unreachable"
