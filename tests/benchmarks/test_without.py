"""What stands in for a part of the product: it is where the part was, and does nothing else."""

import asyncio
from pathlib import Path

import orjson
import pytest

from benchmarks.marks import closed_calls
from benchmarks.without import NOTHING, STAND_INS, SeamMissing, Tally, check_seams, counted
from gateway.metering.journal import Journal

CALL = "01936b2e-0000-7000-8000-000000000001"
ROW = orjson.dumps({"id": CALL, "time": "2026-11-25T00:00:00.000000Z"})


@pytest.mark.parametrize("feature", STAND_INS)
def test_all_parts_are_where_they_are_looked_for(feature: str) -> None:
    check_seams(feature)
    assert STAND_INS[feature] or feature == NOTHING


def test_a_part_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("gateway.proxy.relay.open_meter")
    with pytest.raises(SeamMissing, match=r"gateway\.proxy\.relay has no open_meter"):
        check_seams("metering")


async def closed_journal(kind: type[Journal], root: Path) -> list[bytes]:
    """Close a call; return the rows that there are to ship, first and after they were."""
    journal = kind.create(root, worker_id="a-worker", boot_id="a-boot")
    journal.open_call(CALL, ROW, admitted=1.0, block_ids=())
    journal.close_call(CALL, ROW)
    batch = journal.read_unshipped(rows_max=10, bytes_max=10_000)
    assert journal.closed.is_set()
    journal.shipped(batch)
    assert not journal.read_unshipped(rows_max=10, bytes_max=10_000).rows
    journal.close()
    return list(batch.rows)


def test_without_a_journal_rows_reach_the_ledger_and_no_disk(tmp_path: Path) -> None:
    tally = Tally()
    (make,) = STAND_INS["journal"].values()
    kind = make(tally)
    assert isinstance(kind, type)
    assert issubclass(kind, Journal)
    for name, journal, lines in (("real", Journal, {CALL}), ("memory", kind, set[str]())):
        root = tmp_path / name
        assert asyncio.run(closed_journal(journal, root)) == [ROW]
        assert closed_calls(root) == {"a-worker": lines}
    assert tally.count == 1


def test_what_stands_in_is_counted_once_over_all_workers(tmp_path: Path) -> None:
    (tmp_path / "17.stood-in").write_text("3")
    (tmp_path / "18.stood-in").write_text("4")
    assert counted(tmp_path) == 7
    assert counted(tmp_path) == 0
