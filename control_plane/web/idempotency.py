"""`Idempotency-Key`: a request that comes twice is carried out once, and answered alike for a day.

A key belongs to an account and a route. While the first request is at work, the second is refused;
a key that comes with another body is a mistake. What nobody may be told twice is null in the copy.
"""

import hashlib
import uuid
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from control_plane.errors import BadArgument, ControlError, Refused
from control_plane.web.database import ControlDatabase
from gateway.sql import load_queries

KEY_CHARS_MAX: Final = 255
ROUTE_CHARS: Final = 100  # for people to read; an index takes no longer ones

_STATUS_FAULT_MIN: Final = 500

_QUERIES: Final = load_queries(__package__, "idempotency.sql")
_RESERVE = _QUERIES["reserve"]
_FIND = _QUERIES["find"]
_KEEP = _QUERIES["keep"]
_GIVE_UP = _QUERIES["give_up"]

Answer = tuple[int, bytes]  # status and body


class Unprocessable(ControlError):
    """The key was used for something else."""

    status = 422
    code = "idempotency_key_reused"


def check_key(key: str) -> None:
    """Raise BadArgument for what can't be a key."""
    if not 0 < len(key) <= KEY_CHARS_MAX or not key.isascii() or not key.isprintable():
        raise BadArgument(
            f"A key has 1 to {KEY_CHARS_MAX} printable ASCII characters.", field="Idempotency-Key"
        )


async def once(
    database: ControlDatabase,
    *,
    account_id: uuid.UUID,
    route: str,
    key: str,
    digest: bytes,
    work: Callable[[], Awaitable[Answer]],
    tells_once: frozenset[str],
    may_have_happened: Callable[[], bool] = lambda: False,
) -> tuple[Answer, bool]:
    """Carry out `work`, or return what it answered before; the second value says which.

    `route` names what is asked, however long that is; `digest` stands for all else that makes a
    request another one: it is kept, so that it must not tell what can be guessed. What is refused
    was not done, and may be asked for again; so may what failed, unless `may_have_happened`: then
    nobody can tell, and the key is good for no other try. Raises Refused (409) while the first is
    at work, Unprocessable for another request under this key.
    """
    route = f"{route[:ROUTE_CHARS]} {hashlib.sha256(route.encode()).hexdigest()}"
    async with database.transaction(account_id=account_id) as connection:
        is_first = await connection.fetchval(_RESERVE, account_id, route, key, digest)
        row = None if is_first else await connection.fetchrow(_FIND, account_id, route, key)
    if row is not None:
        if row["request_digest"] != digest:
            raise Unprocessable(
                "This key was used for another request: make a new one.", field="Idempotency-Key"
            )
        if row["status"] is None:
            raise Refused(
                "The first request with this key is not done yet, or broke off: its outcome is "
                "unknown. Look, and use a new key.",
                field="Idempotency-Key",
                code="idempotency_in_progress",
            )
        return (row["status"], row["answer"]), True
    try:
        status, body = await work()
    except BaseException as error:
        is_refusal = isinstance(error, ControlError) and error.status < _STATUS_FAULT_MIN
        if is_refusal or not may_have_happened():
            async with database.transaction(account_id=account_id) as connection:
                await connection.execute(_GIVE_UP, account_id, route, key)
        raise
    async with database.transaction(account_id=account_id) as connection:
        kept = _without(body, tells_once)
        await connection.execute(_KEEP, account_id, route, key, status, kept)
    return (status, body), False


def _without(body: bytes, names: frozenset[str]) -> bytes:
    """Return an answer in which these fields are null."""
    if not names or not body:
        return body
    told = msgspec.json.decode(body)
    return msgspec.json.encode({k: None if k in names else v for k, v in told.items()})
