"""Limits on how much a token, a user, a workspace or the org may call: setting and listing.

Calls a UTC month hold for each of them; windows and caps on open calls for tokens and orgs. A
change holds in every worker at once: its feed hears of it.
"""

import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

import asyncpg

from control_plane.audit_log import COMMAND, Origin, record
from control_plane.errors import BadArgument, Forbidden, NotFound
from control_plane.identity.actor import Actor
from control_plane.settings import parse_duration
from control_plane.tenancy.receipts import change_of, wait_for_receipt
from gateway.sql import load_queries

KINDS: Final = ("token", "user", "workspace", "org")
PERMIT_KINDS: Final = ("token", "org")  # which may have a window, and a cap on open calls
LIMIT_MAX: Final = 2**53 - 1  # exact in every JSON reader
PERMITS_MAX: Final = 2**31 - 1
WINDOW_SECONDS_MAX: Final = 86_400
NONE: Final = "none"  # what takes a limit away
# What people call each limit.
FIELDS: Final = {"calls_a_month": "limit", "rate": "rate", "concurrency": "concurrency"}

_NUMBER: Final = re.compile(r"[0-9]{1,16}")
_QUERIES: Final = load_queries(__package__, "limits.sql")
_CHANGING = _QUERIES["changing_transaction"]


class LimitSetter(Enum):
    """Who sets a limit."""

    COMMAND = auto()  # whoever runs the installation: orgs don't raise it from then on
    OPERATOR = auto()  # the same person, as one of an org
    ORG = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """So many calls may begin within any so many seconds."""

    calls: int
    window_seconds: int

    def __str__(self) -> str:
        return f"{self.calls}/{self.window_seconds}s"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitChange:
    """A limit's new value; `value` None takes it away."""

    name: str  # calls_a_month, rate or concurrency
    value: int | Rate | None


def parse_rate(text: str, *, field: str) -> Rate:
    """Return the rate that is written as `60/1m`. Raises BadArgument."""
    number, slash, duration = text.partition("/")
    if not slash or not _NUMBER.fullmatch(number):
        raise BadArgument(
            f"'{text}' is not a rate: write calls and a window, as in 60/1m.", field=field
        )
    calls, seconds = int(number), parse_duration(duration, field=field).total_seconds()
    if not 1 <= calls <= PERMITS_MAX:
        raise BadArgument(f"A rate is of 1 to {PERMITS_MAX} calls.", field=field)
    if not 1 <= seconds <= WINDOW_SECONDS_MAX:
        raise BadArgument(f"A window lasts 1s to {WINDOW_SECONDS_MAX}s.", field=field)
    return Rate(calls=calls, window_seconds=int(seconds))


def parse_concurrency(text: str, *, field: str) -> int:
    """Return how many calls may be open. Raises BadArgument."""
    return _parse_whole(text, least=1, most=PERMITS_MAX, field=field)


def parse_changes(
    *, calls_a_month: str | None, rate: str | None, concurrency: str | None
) -> list[LimitChange]:
    """Return the changes in what was typed; None: not typed. Raises BadArgument."""
    changes: list[LimitChange] = []
    if calls_a_month is not None:
        month = (
            None
            if calls_a_month == NONE
            else _parse_whole(calls_a_month, least=0, most=LIMIT_MAX, field="limit")
        )
        changes.append(LimitChange(name="calls_a_month", value=month))
    if rate is not None:
        window = None if rate == NONE else parse_rate(rate, field="rate")
        changes.append(LimitChange(name="rate", value=window))
    if concurrency is not None:
        cap = None if concurrency == NONE else parse_concurrency(concurrency, field="concurrency")
        changes.append(LimitChange(name="concurrency", value=cap))
    if not changes:
        raise BadArgument("Say what to set: --limit, --rate or --concurrency.", field="limit")
    return changes


def parse_subject(text: str) -> tuple[str, str | None]:
    """Return the kind and id in `token:ID`, or in `org`, the one that there is.

    Raises BadArgument.
    """
    kind, _, subject_id = text.partition(":")
    if kind not in KINDS or (not subject_id and kind != "org"):
        raise BadArgument(
            f"'{text}' can't have a limit: write token:ID, user:ID, workspace:ID or org.",
            field="subject",
        )
    if not subject_id:
        return kind, None
    try:
        return kind, str(uuid.UUID(subject_id))
    except ValueError:
        raise BadArgument(f"'{subject_id}' is not an id.", field="subject") from None


async def set_limits(
    connection: asyncpg.Connection,
    subject: str,
    changes: Sequence[LimitChange],
    *,
    is_embedded: bool,
) -> dict[str, Any]:
    """Change limits of a subject, all or none of them; return what holds for it now.

    `receipt` says which workers hold it; None where nothing was changed. Raises BadArgument,
    NotFound.
    """
    began = time.monotonic()
    named, _ = parse_subject(subject)
    if named not in PERMIT_KINDS and any(change.name != "calls_a_month" for change in changes):
        raise BadArgument(
            "A window or a cap on open calls is on a token or on the org.", field="subject"
        )
    async with connection.transaction():
        kind, subject_id, org_id = await find_subject(connection, subject)
        before = await find_limits(connection, kind, subject_id)
        await write_limits(
            connection, kind, subject_id, org_id, changes, setter=LimitSetter.COMMAND
        )
        after = await find_limits(connection, kind, subject_id)
        if after != before:
            await record_limits(
                connection, COMMAND, kind, subject_id, org_id, before=before, after=after
            )
        xact = await connection.fetchval(_CHANGING)
    receipt = None
    if xact is not None:
        change = await change_of(connection, xact)
        receipt = await wait_for_receipt(connection, change, is_embedded=is_embedded, began=began)
    return {"kind": kind, "subject_id": subject_id, **after, "receipt": receipt}


async def record_limits(
    connection: asyncpg.Connection,
    origin: Origin,
    kind: str,
    subject_id: str,
    org_id: str,
    *,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
) -> None:
    """Tell the audit log that limits have changed."""
    await record(
        connection,
        origin,
        "limit.update",
        org_id=org_id,
        target_kind=kind,
        target_id=subject_id,
        before=before,
        after=after,
    )


async def find_subject(connection: asyncpg.Connection, subject: str) -> tuple[str, str, str]:
    """Return kind, id and org of what is written as `token:ID`. Raises BadArgument, NotFound."""
    kind, subject_id = parse_subject(subject)
    if subject_id is None:
        subject_id = await connection.fetchval(_QUERIES["default_org"])
    org_id = await connection.fetchval(_QUERIES["org_of"], kind, subject_id)
    if org_id is None or subject_id is None:
        raise NotFound(f"There is no such {kind}.", field="subject")
    return kind, subject_id, org_id


async def hold_limits(connection: asyncpg.Connection, kind: str, subject_id: str) -> None:
    """Keep others from changing a subject's limits until the caller's transaction ends."""
    await connection.execute(_QUERIES["hold"], kind, subject_id)


async def find_limits(connection: asyncpg.Connection, kind: str, subject_id: str) -> dict[str, Any]:
    """Return what limits a subject has; None where there is none."""
    row = await connection.fetchrow(_QUERIES["find"], kind, subject_id)
    assert row is not None, "the query has one row"
    return shown_limits(dict(row))


async def write_limits(
    connection: asyncpg.Connection,
    kind: str,
    subject_id: str,
    org_id: str,
    changes: Sequence[LimitChange],
    *,
    setter: LimitSetter,
) -> None:
    """Change limits of a subject that is there, in the caller's transaction.

    Raises BadArgument for one that its kind does not have, Forbidden for one that a command has set
    and an org would raise.
    """
    if setter is LimitSetter.ORG:
        await _check_not_raised(connection, kind, subject_id, changes)
    for change in changes:
        if kind not in PERMIT_KINDS and change.name != "calls_a_month" and change.value is not None:
            raise BadArgument(
                "A window or a cap on open calls is on a token or on the org.",
                field=FIELDS[change.name],
            )
        await _change(connection, kind, subject_id, org_id, change, setter=setter)


def setter_of(actor: Actor) -> LimitSetter:
    """Return as what an account sets limits by the API."""
    return LimitSetter.OPERATOR if actor.is_operator else LimitSetter.ORG


def shown_limits(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of limits as people read it: a window in one text."""
    named = dict(row)
    calls, seconds = named.pop("rate_calls"), named.pop("rate_window_seconds")
    named["rate"] = None if calls is None else str(Rate(calls=calls, window_seconds=seconds))
    return named


async def list_limits(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    """Return every subject that has a limit, and its limits."""
    return [shown_limits(dict(row)) for row in await connection.fetch(_QUERIES["list"])]


async def _check_not_raised(
    connection: asyncpg.Connection, kind: str, subject_id: str, changes: Sequence[LimitChange]
) -> None:
    """Raise Forbidden where a limit that a command has set would be more, or another one."""
    row = await connection.fetchrow(_QUERIES["find_of_operator"], kind, subject_id)
    assert row is not None, "the query has one row"
    calls, seconds = row["rate_calls"], row["rate_window_seconds"]
    held: dict[str, int | Rate | None] = {
        "calls_a_month": row["calls_a_month"],
        "rate": None if calls is None else Rate(calls=calls, window_seconds=seconds),
        "concurrency": row["concurrency"],
    }
    for change in changes:
        most = held[change.name]
        if most is not None and not _is_within(change.value, most):
            raise Forbidden(
                f"Whoever runs this installation has set this to {most}: it can be lowered here.",
                field=FIELDS[change.name],
            )


def _is_within(value: int | Rate | None, most: int | Rate) -> bool:
    """Return whether a limit lets no more through; of windows only those of one length compare."""
    if isinstance(value, Rate) and isinstance(most, Rate):
        return value.window_seconds == most.window_seconds and value.calls <= most.calls
    return isinstance(value, int) and isinstance(most, int) and value <= most


async def _change(
    connection: asyncpg.Connection,
    kind: str,
    subject_id: str,
    org_id: str,
    change: LimitChange,
    *,
    setter: LimitSetter,
) -> None:
    if change.value is None:
        await connection.execute(_QUERIES[f"remove_{change.name}"], kind, subject_id)
        return
    values = (
        (change.value.calls, change.value.window_seconds)
        if isinstance(change.value, Rate)
        else (change.value,)
    )
    await connection.execute(
        _QUERIES[f"set_{change.name}"],
        kind,
        subject_id,
        org_id,
        setter is LimitSetter.COMMAND,
        *values,
    )


def _parse_whole(text: str, *, least: int, most: int, field: str) -> int:
    if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
        raise BadArgument(f"'{text}' is not a whole number of {least} to {most}.", field=field)
    return int(text)
