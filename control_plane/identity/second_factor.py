"""The second factor of an account: its seed, sealed; its codes, each taken once; recovery codes."""

import uuid
from datetime import timedelta
from typing import Final

import asyncpg

from control_plane.errors import Unauthenticated
from control_plane.identity.totp import find_step, recovery_digest
from control_plane.secrets import ControlKeys, Place, SealBroken
from control_plane.services import Services
from control_plane.throttle import Taking, give_back, take
from gateway.sql import load_queries

# Wrong codes. Only who has the password gets here, so that nobody else can use them up.
CODE_FAILURES: Final = (5, timedelta(minutes=15))
METHODS: Final = ("otp", "mfa")  # RFC 8176
RESEAL_BATCH: Final = 500

_QUERIES: Final = load_queries(__package__, "second_factor.sql")
_SEED = _QUERIES["seed"]
_TAKE_STEP = _QUERIES["take_step"]
_TAKE_RECOVERY_CODE = _QUERIES["take_recovery_code"]
_SEALED = _QUERIES["sealed"]
_RESEAL = _QUERIES["reseal"]


def seed_place(account_id: uuid.UUID) -> Place:
    """Return where an account's seed is sealed to."""
    return Place(table="accounts", column="totp_sealed", row_id=str(account_id))


def code_failures(account_id: uuid.UUID) -> Taking:
    """Return what a wrong code of an account counts in."""
    limit, length = CODE_FAILURES
    return Taking(key=f"code:account:{account_id}", limit=limit, length=length)


def wrong_code() -> Unauthenticated:
    """Return the refusal of a code that is wrong, too old or was taken before."""
    return Unauthenticated(
        "This code is wrong, or was used before: wait for the next one.",
        field="totp",
        code="bad_code",
    )


async def prove_second_factor(
    services: Services, *, account_id: uuid.UUID, code: str
) -> tuple[str, ...]:
    """Take a code of an account, or one of its recovery codes; return by what it was proven.

    Whichever of many parallel requests comes first has it. Raises Unauthenticated,
    TooManyRequests.
    """
    failures = [code_failures(account_id)]
    async with services.database.connection() as connection:
        await take(connection, failures)
    async with services.database.transaction(account_id=account_id) as connection:
        is_taken = await _take(connection, services, account_id, code)
    if not is_taken:
        raise wrong_code()
    async with services.database.connection() as connection:
        await give_back(connection, failures)
    return METHODS


async def _take(
    connection: asyncpg.Connection, services: Services, account_id: uuid.UUID, code: str
) -> bool:
    if digest := recovery_digest(code):
        return bool(await connection.fetchval(_TAKE_RECOVERY_CODE, account_id, digest))
    row = await connection.fetchrow(_SEED, account_id)
    if row is None or row["totp_enabled_at"] is None:
        return False
    seed = services.control_keys.open(row["totp_sealed"], seed_place(account_id))
    step = find_step(seed, code, unix_seconds=row["now"])
    return step is not None and bool(await connection.fetchval(_TAKE_STEP, account_id, step))


async def reseal_all(connection: asyncpg.Connection, keys: ControlKeys) -> tuple[int, int]:
    """Seal every seed under the current key that is sealed under another.

    Return how many were, and how many do not open with any key that is here. What changes meanwhile
    is left as it is: it is sealed under the current key by then.
    """
    resealed = lost = 0
    after = uuid.UUID(int=0)
    while rows := await connection.fetch(_SEALED, after, RESEAL_BATCH):
        for row in rows:
            after, sealed = row["id"], row["totp_sealed"]
            place = seed_place(after)
            try:
                if keys.is_current(sealed):
                    continue
                new = keys.seal(keys.open(sealed, place), place)
            except SealBroken:
                lost += 1
                continue
            resealed += bool(await connection.fetchval(_RESEAL, after, sealed, new))
    return resealed, lost
