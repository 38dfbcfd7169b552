"""Arguments and environment variables, from text to values, each checked once."""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

from control_plane.errors import BadArgument

TOKEN_LIFE_DEFAULT: Final = timedelta(days=30)
TOKEN_LIFE_MAX: Final = timedelta(days=90)
SECRET_BYTES_MAX: Final = 16 * 1024  # a service account's key has 3 KiB

_DURATION: Final = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_MONTH: Final = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """Return where a user's gateway keeps its data."""
    home = environment.get("XDG_DATA_HOME") or ""
    if Path(home).is_absolute():
        return Path(home) / "kaixu"
    return Path("~/.local/share/kaixu").expanduser()


def parse_duration(text: str, *, field: str) -> timedelta:
    """Return the duration in a text such as `30d`. Raises BadArgument."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise BadArgument(
            f"'{text}' is not a duration: write a number and s, m, h or d, as in 30d.", field=field
        )
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        raise BadArgument(f"'{text}' is too long.", field=field) from None


def told_duration(duration: timedelta) -> str:
    """Return a duration as one writes it, in the largest unit that it is a whole number of."""
    seconds = max(1, int(duration.total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def parse_token_life(text: str, *, field: str) -> timedelta:
    """Return how long a token may live. Raises BadArgument beyond TOKEN_LIFE_MAX."""
    life = parse_duration(text, field=field)
    if life > TOKEN_LIFE_MAX:
        raise BadArgument(f"A token lives at most {TOKEN_LIFE_MAX.days} days.", field=field)
    return life


def parse_month(text: str | None, *, field: str) -> date:
    """Return the first day of a month such as `2026-11`; None: this month. Raises BadArgument."""
    if text is None:
        return datetime.now(UTC).date().replace(day=1)
    match = _MONTH.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise BadArgument(f"'{text}' is not a month: write it as 2026-11.", field=field)
    return date(int(match[1]), int(match[2]), 1)


def parse_list(text: str | None, *, field: str) -> list[str] | None:
    """Return the words between commas; None for None. Raises BadArgument for an empty one."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise BadArgument("There is nothing between two commas, or nothing at all.", field=field)
    return words


def read_secret(environment: Mapping[str, str], name: str) -> str | None:
    """Return the secret in the variable, or in the file that `…_FILE` names; None: neither is set.

    Raises BadArgument where the file can't be read, or both are set.
    """
    value, path = environment.get(name), environment.get(f"{name}_FILE")
    if value and path:
        raise BadArgument(f"{name} and {name}_FILE are both set: keep one.", field=name)
    if path:
        return read_secret_file(Path(path), field=f"{name}_FILE")
    return value.strip() or None if value else None


def read_secret_file(path: Path, *, field: str) -> str:
    """Return a file's text without white space around it. Raises BadArgument."""
    try:
        with path.open("rb") as file:
            return decode_secret(file.read(SECRET_BYTES_MAX + 1), field=field)
    except OSError as error:
        raise BadArgument(f"{path} can't be read: {error.strerror}.", field=field) from error


def decode_secret(content: bytes, *, field: str) -> str:
    """Return a secret without white space around it. Raises BadArgument, never quoting it."""
    if len(content) > SECRET_BYTES_MAX:
        raise BadArgument(f"A secret has at most {SECRET_BYTES_MAX} bytes.", field=field)
    try:
        text = content.decode("ascii").strip()
    except UnicodeDecodeError:
        raise BadArgument("A secret has ASCII characters only.", field=field) from None
    if not text:
        raise BadArgument("There is nothing in it.", field=field)
    return text
