import base64
import csv
import io
import json
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane import output
from control_plane.billing import feed
from control_plane.billing.feed import COLUMNS, Cursor, read_events
from control_plane.errors import BadArgument, CursorGone
from gateway.ids import IdMaker
from tests.conftest import Seed

IDS = IdMaker(time.time)


async def append(owner: asyncpg.Connection, seed: Seed, count: int, **changes: Any) -> list[str]:
    """Append usage events; return their ids."""
    facts = {
        "time": datetime.now(UTC).isoformat(),
        "month": f"{datetime.now(UTC):%Y-%m}",
        "org_id": await seed.org(),
        "workspace_id": await seed.workspace(),
        "user_id": await seed.user(),
        "token_id": str(uuid.uuid4()),
        "vendor": "openai",
        "endpoint": "chat/completions",
        "client_format": "openai",
        "status": "complete",
        "counted": True,
        "usage_source": "vendor",
        **changes,
    }
    ids = [IDS.new() for _ in range(count)]
    rows = [{"id": one, "call_id": one, **facts} for one in ids]
    await owner.execute("SELECT ledger_append($1)", json.dumps(rows))
    return ids


async def read(owner: asyncpg.Connection, after: str | None = None) -> list[dict[str, Any]]:
    return [event async for event in read_events(owner, after=after)]


async def test_every_event_comes_once_and_a_cursor_goes_on_after_it(
    owner: asyncpg.Connection, seed: Seed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "PAGE_ROWS", 2)
    ids = await append(owner, seed, 5)
    events = await read(owner)
    assert [event["id"] for event in events] == ids
    assert [event["ordinal"] for event in events] == [1, 2, 3, 4, 5]
    assert tuple(events[0]) == COLUMNS
    assert [event["id"] for event in await read(owner, events[1]["cursor"])] == ids[2:]
    assert await read(owner, events[4]["cursor"]) == []
    more = await append(owner, seed, 1)
    assert [event["id"] for event in await read(owner, events[4]["cursor"])] == more


async def test_a_cursor_whose_exact_row_is_gone_is_refused(
    owner: asyncpg.Connection, seed: Seed
) -> None:
    await append(owner, seed, 2)
    cursor = Cursor.parse((await read(owner))[1]["cursor"])
    for other in (
        Cursor(ledger_id=str(uuid.uuid4()), ordinal=cursor.ordinal, row_id=cursor.row_id),
        Cursor(ledger_id=cursor.ledger_id, ordinal=1, row_id=cursor.row_id),
        Cursor(ledger_id=cursor.ledger_id, ordinal=cursor.ordinal, row_id=str(uuid.uuid4())),
    ):
        with pytest.raises(CursorGone, match="without one"):
            await read(owner, str(other))


@pytest.mark.parametrize("text", ["", "x", "é", "MS4x", "A" * 1000, "=" * 8])
def test_what_is_no_cursor_is_a_bad_argument(text: str) -> None:
    with pytest.raises(BadArgument):
        Cursor.parse(text)


@given(ordinal=st.integers(1, 2**63 - 1), ledger=st.uuids(), row=st.uuids())
def test_a_cursor_is_read_back_as_it_was_and_in_no_other_spelling(
    ordinal: int, ledger: uuid.UUID, row: uuid.UUID
) -> None:
    cursor = Cursor(ledger_id=str(ledger), ordinal=ordinal, row_id=str(row))
    assert Cursor.parse(str(cursor)) == cursor
    decoded = base64.urlsafe_b64decode(str(cursor) + "==").decode()
    other = base64.urlsafe_b64encode(decoded.replace(f".{ordinal}.", f".0{ordinal}.").encode())
    with pytest.raises(BadArgument):
        Cursor.parse(other.decode().rstrip("="))


async def test_a_line_has_the_vendors_own_usage_as_it_was(
    owner: asyncpg.Connection, seed: Seed
) -> None:
    usage = {"total": 12345678901234567890, "b": 1, "a": {"x": None}}
    await append(owner, seed, 1, vendor_usage=usage, flags=["deferred", "cut"], seconds=1.5)
    (event,) = await read(owner)
    line = json.loads(output.event_json(event))
    assert line["vendor_usage"] == usage
    assert list(line["vendor_usage"]) == ["total", "b", "a"]
    assert (line["flags"], line["seconds"]) == (["deferred", "cut"], 1.5)
    assert line["time"].endswith("Z")
    assert line["month"] == f"{datetime.now(UTC):%Y-%m}"


async def test_a_formula_in_a_clients_text_is_not_one_in_csv(
    owner: asyncpg.Connection, seed: Seed
) -> None:
    await append(owner, seed, 1, session_id='=cmd|"/c calc"!A1', model_requested="a,b\nc")
    (event,) = await read(owner)
    text = "\n".join([output.csv_line(COLUMNS), output.csv_line(event.values())])
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert row["session_id"] == '\'=cmd|"/c calc"!A1'
    assert row["model_requested"] == "a,b\nc"
    assert (row["counted"], row["input_tokens"], row["cursor"]) == ("true", "", event["cursor"])
