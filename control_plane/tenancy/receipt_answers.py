"""Receipts as the API answers with them: the change is committed, then its workers are waited for.

No transaction is open meanwhile.
"""

import time
import uuid
from datetime import UTC, datetime
from typing import Final

import msgspec

from control_plane.tenancy.receipts import Change, Receipt, change_of, wait_for_receipt
from control_plane.web.request import ApiRequest
from gateway.sql import load_queries

_QUERIES: Final = load_queries(__package__, "receipts.sql")
_EARLIER_END: Final = _QUERIES["earlier_end"]


class ChangeReceipt(Receipt, frozen=True, kw_only=True):
    """The receipt of a change of `id`: a member, a workspace, an org."""

    id: str


async def receipt_of(
    request: ApiRequest, subject_id: uuid.UUID, xact: str, *, began: float
) -> ChangeReceipt:
    """Return the receipt of a committed transaction that logged a change.

    `xact` is its `pg_current_xact_id()` as text, `began` when it was asked for, by
    `time.monotonic`.
    """
    change = await change_of(request.services.database, xact)
    return await _receipt(request, subject_id, change, began=began)


async def receipt_again(
    request: ApiRequest, subject_id: uuid.UUID, *, kind: str, ended_at: datetime, began: float
) -> ChangeReceipt:
    """Return the receipt for what was ended before, by now: it cuts nothing a second time."""
    async with request.services.database.connection() as connection:
        row = await connection.fetchrow(_EARLIER_END, kind, subject_id)
    change = Change(
        ordinal=None if row is None else row["ordinal"],
        committed_at=ended_at if row is None else row["at"],
    )
    receipt = await _receipt(request, subject_id, change, began=began)
    workers = [msgspec.structs.replace(worker, streams_cut=0) for worker in receipt.workers]
    return msgspec.structs.replace(receipt, streams_cut=0, workers=workers)


def receipt_of_nothing(
    request: ApiRequest, subject_id: uuid.UUID, *, began: float
) -> ChangeReceipt:
    """Return the receipt of a change that no worker had to hear of."""
    return ChangeReceipt(
        id=str(subject_id),
        ordinal=None,
        committed_at=datetime.fromtimestamp(request.services.now(), UTC),
        complete=True,
        took_ms=round((time.monotonic() - began) * 1000, 1),
        streams_cut=0,
        workers=[],
    )


async def _receipt(
    request: ApiRequest, subject_id: uuid.UUID, change: Change, *, began: float
) -> ChangeReceipt:
    told = await wait_for_receipt(
        request.services.database,
        change,
        is_embedded=request.services.settings.database_is_embedded,
        began=began,
    )
    return msgspec.convert({"id": str(subject_id), **told}, ChangeReceipt)
