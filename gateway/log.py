"""Log lines: one JSON object each, written at once, without secrets, prompts or waiting.

A line is an event's name and its facts; headers and bodies are never among them. What still looks
like a secret is blotted out of the finished line, whatever field it came in. A reader that does not
keep up makes lines go missing, never the gateway wait; the next line that goes out counts them.
"""

import logging
import os
import re
import select
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import orjson

LINE_BYTES_MAX: Final = 4096  # PIPE_BUF: written whole or not at all, by however many processes
TEXT_CHARS_MAX: Final = 500  # of one fact
FRAMES_MAX: Final = 8  # of a traceback, the innermost
CAUSES_MAX: Final = 4  # of an exception's chain

# Gateway tokens and vault keys, common vendor keys, bearer values, passwords in URLs.
_SECRET: Final = re.compile(
    rb"kx[a-z]{1,2}_[0-9A-Za-z]{6,}|kxvault1_[0-9A-Za-z_-]+|\bsk-[0-9A-Za-z_-]{8,}"
    rb"|\bAIza[0-9A-Za-z_-]{16,}|(?i:\b(?:bearer|basic) )[0-9A-Za-z._~+/=-]{8,}"
    rb"|(?<=://)[^/@\s\"]{0,500}:[^/@\s\"]{0,500}(?=@)"
)
OWN_LOGGER: Final = "gateway"

_RECORD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_BLOT: Final = b"[secret]"


class Log:
    """Writes lines; `bind` makes one that puts further facts on each."""

    def __init__(
        self,
        write: Callable[[bytes], bool],
        *,
        now: Callable[[], float],
        facts: dict[str, object] | None = None,
    ) -> None:
        """`write` returns whether it could; `now` gives Unix seconds."""
        self._write = write
        self._now = now
        self._facts = facts or {}
        self._lost = 0

    def bind(self, **facts: object) -> "Log":
        """Return a log whose lines carry these facts too."""
        return Log(self._write, now=self._now, facts={**self._facts, **facts})

    def info(self, event: str, **facts: object) -> None:
        """Something happened that an operator may want to know."""
        self.line("info", event, facts)

    def warning(self, event: str, **facts: object) -> None:
        """Something is wrong that the gateway deals with by itself."""
        self.line("warning", event, facts)

    def error(self, event: str, *, error: BaseException | None = None, **facts: object) -> None:
        """Something is wrong that needs someone; `error` is told with its causes."""
        self.line("error", event, facts if error is None else {**facts, "error": told(error)})

    def line(self, level: str, event: str, facts: dict[str, Any]) -> None:
        """Write a line of any level."""
        time = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds")
        head: dict[str, object] = {"time": time.replace("+00:00", "Z"), "level": level}
        head["event"] = event
        if self._lost:
            head["lines_lost"] = self._lost
        line = encode_line({**head, **self._facts, **facts})
        if len(line) > LINE_BYTES_MAX:
            line = encode_line({**head, **self._facts, "cut": True})
        self._lost = 0 if self._write(line) else self._lost + 1


class StandardLogging(logging.Handler):
    """Brings what modules and libraries log by Python's `logging` into our lines.

    A module of ours logs an event and its facts, as `extra`; a library logs a sentence.
    """

    def __init__(self, log: Log) -> None:
        """`log` gets the lines."""
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as a line."""
        facts: dict[str, Any] = {
            name: value for name, value in vars(record).items() if name not in _RECORD_FIELDS
        }
        facts["logger"] = record.name
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        if record.exc_info and record.exc_info[1] is not None:
            facts["error"] = told(record.exc_info[1])
        is_ours = record.name.partition(".")[0] == OWN_LOGGER
        if not is_ours:
            facts["message"] = message
        event = message if is_ours else "library"
        self._log.line(record.levelname.lower(), event, facts)


def route_standard_logging(log: Log) -> None:
    """Let `log` have all that is logged by Python's `logging`, and nobody else."""
    logging.getLogger(OWN_LOGGER).setLevel(logging.INFO)
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(StandardLogging(log))
    root.setLevel(logging.WARNING)


def file_writer(descriptor: int) -> Callable[[bytes], bool]:
    """Return a `write` for a file descriptor that never waits and never raises."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)

    def write(line: bytes) -> bool:
        try:
            # A pipe that is ready takes PIPE_BUF bytes; a file always does.
            if not any(events & select.POLLOUT for _, events in poll.poll(0)):
                return False
            return os.write(descriptor, line) == len(line)
        except OSError:
            return False

    return write


def told(error: BaseException) -> dict[str, object]:
    """Return what a line says of an exception: kinds, messages, places; no values of variables."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and len(chain) < CAUSES_MAX:
        chain.append(one)
        if isinstance(one, BaseExceptionGroup):  # the first failure; the others follow from it
            one = one.exceptions[0]
        else:
            one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    root = chain[-1]
    frames = traceback.extract_tb(root.__traceback__)[-FRAMES_MAX:]
    return {
        "kind": [type(one).__name__ for one in chain],
        "message": [str(one)[:TEXT_CHARS_MAX] for one in chain],
        "at": [f"{frame.filename[-60:]}:{frame.lineno} {frame.name}" for frame in frames],
    }


def encode_line(facts: dict[str, object]) -> bytes:
    """Return a line; facts that JSON can't hold are told as text, secrets are blotted out."""
    short = {
        name: value[:TEXT_CHARS_MAX] if isinstance(value, str) else value
        for name, value in facts.items()
    }
    try:
        line = orjson.dumps(short, default=str)
    except (TypeError, ValueError):
        line = orjson.dumps({name: ascii(value)[:TEXT_CHARS_MAX] for name, value in short.items()})
    return _SECRET.sub(_BLOT, line) + b"\n"
