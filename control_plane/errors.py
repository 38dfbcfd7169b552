"""Why a command or a request is refused: each kind of error, with its exit code and HTTP status.

Raised anywhere in the control plane, shown only in `cli.py` and `web/problems.py`. Messages are
safe to show: they never quote a secret. Causes are chained.
"""


class ControlError(Exception):
    """What was asked for can't be done.

    `code` names the error for scripts, `field` the option, setting or field at fault (None: no
    single one), `exit_code` is a command's, `status` an HTTP answer's.
    """

    exit_code = 1
    status = 500
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

    status = 409
    code = "refused"


class NotFound(ControlError):
    """What the command is about does not exist, or is nothing that the asker may know of."""

    status = 404
    code = "not_found"


class CursorGone(ControlError):
    """The database no longer has the exact row that a cursor names."""

    status = 410
    code = "cursor_gone"


class BadArgument(ControlError):
    """An argument or a setting has no meaning."""

    exit_code = 2
    status = 400
    code = "bad_argument"


class DatabaseUnreachable(ControlError):
    """The database does not answer, or does not let us in."""

    exit_code = 3
    status = 503
    code = "database_unreachable"


class Unauthenticated(ControlError):
    """Nobody knows who asks, or what was to prove it does not."""

    status = 401
    code = "unauthenticated"


class Forbidden(ControlError):
    """The asker may not."""

    status = 403
    code = "forbidden"


class PreconditionFailed(ControlError):
    """The thing is not any more as the asker last saw it."""

    status = 412
    code = "precondition_failed"


class TooLarge(ControlError):
    """The body is larger than anything that is asked for here."""

    status = 413
    code = "too_large"


class UnsupportedMedia(ControlError):
    """The body is in a form that nobody reads here."""

    status = 415
    code = "unsupported_media"


class TooManyRequests(ControlError):
    """It was asked for too often; `retry_after` seconds later it may be asked again."""

    status = 429
    code = "too_many_requests"

    def __init__(self, message: str, *, retry_after: float, field: str | None = None) -> None:
        """`retry_after`: seconds."""
        super().__init__(message, field=field)
        self.retry_after = retry_after


class Overloaded(ControlError):
    """There is more to do than can be done; `retry_after` seconds later there may be less."""

    status = 503
    code = "overloaded"
    retry_after = 1.0
