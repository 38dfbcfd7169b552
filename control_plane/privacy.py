"""What is kept about people: told to them, forgotten when they ask, and none of it for ever.

Who is forgotten leaves a member without a name behind: what they used stays in the ledger, which
never had more of them than ids. Audit entries stay as well, without addresses and without what they
said about the person; their chain still verifies.
"""

import time
from typing import Annotated, Any, Final

import msgspec

from control_plane.errors import Refused
from control_plane.tenancy.receipts import change_of, wait_for_receipt
from control_plane.throttle import RateClass
from control_plane.web.request import ApiRequest
from control_plane.web.route import Access, Reply, Route
from gateway.sql import load_queries

EXPORTED_ENTRIES_MAX: Final = 10_000  # of the audit log, the newest ones
MILLISECONDS_MAX: Final = "20000"  # for reading through the audit log

_QUERIES: Final = load_queries(__package__, "privacy.sql")

Days = Annotated[int, msgspec.Meta(ge=1, le=3650)]
AuditDays = Annotated[int, msgspec.Meta(ge=90, le=3650)]


class Retention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many days what is kept; null: for ever.

    Sessions and mailed links count from their end. What throttles requests goes as it loses its
    meaning, answers under an idempotency key after a day.
    """

    refusals_days: Days
    sessions_days: Days
    mailed_links_days: Days
    audit_days: AuditDays | None


class ErasedAccount(msgspec.Struct, frozen=True, kw_only=True):
    """An account that is no more; `receipt` says where its tokens have ended, null: it had none."""

    erased: bool
    receipt: dict[str, Any] | None


async def export_me(request: ApiRequest) -> Reply:
    """Return all that is kept about the account that asks."""
    async with request.transaction() as connection:
        await connection.execute(_QUERIES["take_time"], MILLISECONDS_MAX)
        document: str = await connection.fetchval(_QUERIES["export"], EXPORTED_ENTRIES_MAX)
    headers = {"content-disposition": 'attachment; filename="kaixu-account.json"'}
    return Reply(body=document.encode(), headers=headers)


async def erase_me(request: ApiRequest) -> ErasedAccount:
    """Forget the account that asks. Raises Refused for the only owner of an org."""
    began = time.monotonic()
    services = request.services
    async with request.transaction() as connection:
        await connection.execute(_QUERIES["take_time"], MILLISECONDS_MAX)
        owned = await connection.fetchval(_QUERIES["erase"])
        if owned is not None:
            raise Refused(
                f"You are the only owner of '{owned}': make someone else its owner, or delete it.",
                code="last_owner",
            )
        xact = await connection.fetchval(_QUERIES["changing_transaction"])
    receipt = None
    if xact is not None:
        receipt = await wait_for_receipt(
            services.database,
            await change_of(services.database, xact),
            is_embedded=services.settings.database_is_embedded,
            began=began,
        )
    return ErasedAccount(erased=True, receipt=receipt)


async def read_retention(request: ApiRequest) -> Retention:
    """Return how long what is kept."""
    async with request.transaction() as connection:
        row = await connection.fetchrow(_QUERIES["retention"])
    assert row is not None, "the schema inserts it"
    return Retention(**dict(row))


async def put_retention(request: ApiRequest) -> Retention:
    """Say how long what is kept."""
    wanted = request.body_as(Retention)
    async with request.transaction() as connection:
        row = await connection.fetchrow(_QUERIES["lock_retention"])
        assert row is not None, "the schema inserts it"
        before = Retention(**dict(row))
        request.check_match(before)
        values = msgspec.structs.asdict(wanted)
        await connection.execute(_QUERIES["set_retention"], *values.values())
        if wanted != before:
            await request.audit(
                connection, "retention.set", target_kind="retention", target_id="installation",
                before=msgspec.structs.asdict(before), after=values,
            )  # fmt: skip
    return wanted


ROUTES: Final = (
    Route(
        method="GET", path="/api/v1/me/export", summary="All that is kept about you",
        access=Access.SIGNED_IN, rate_class=RateClass.HEAVY, handler=export_me,
    ),
    Route(
        method="DELETE", path="/api/v1/me", summary="Have yourself forgotten",
        access=Access.SIGNED_IN, rate_class=RateClass.WRITE, handler=erase_me,
        answer=ErasedAccount, errors=(403, 409), needs_fresh=True,
    ),
    Route(
        method="GET", path="/api/v1/operator/retention", summary="How long what is kept",
        access=Access.OPERATOR, rate_class=RateClass.READ, handler=read_retention,
        answer=Retention,
    ),
    Route(
        method="PUT", path="/api/v1/operator/retention", summary="Say how long what is kept",
        access=Access.OPERATOR, rate_class=RateClass.WRITE, handler=put_retention, body=Retention,
        answer=Retention, errors=(412,),
    ),
)  # fmt: skip
