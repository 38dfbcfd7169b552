import json
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gateway.ids import IdMaker
from gateway.metering.journal import Journal
from gateway.metering.journal_files import files_with, read_boot_id
from gateway.metering.journal_recovery import Findings, Orphan, orphans

ids = IdMaker(lambda: 1_790_000_000.0)


def open_row(call_id: str) -> bytes:
    return json.dumps({"id": call_id, "token_id": "t", "counted": True}).encode()


def close_row(call_id: str) -> bytes:
    return json.dumps({"id": call_id, "token_id": "t", "status": "complete"}).encode()


def a_history(root: Path, seed: int, *, boot_id: str = "boot") -> Path:
    """Make the journal of a worker that was killed; return its folder."""
    seeded = random.Random(seed)
    journal = Journal.create(root, worker_id=ids.new(), boot_id=boot_id)
    blocks = [ids.new() for _ in range(3)]
    opened: list[str] = []
    journal.block_asked(blocks)
    for _ in range(12):
        match seeded.random():
            case chance if chance < 0.5 or not opened:
                call_id = ids.new()
                taken = tuple(seeded.sample(blocks, min(len(blocks), seeded.randrange(3))))
                journal.open_call(call_id, open_row(call_id), admitted=1.0, block_ids=taken)
                opened.append(call_id)
            case chance if chance < 0.9:
                call_id = opened.pop(seeded.randrange(len(opened)))
                journal.close_call(call_id, close_row(call_id))
            case chance if chance < 0.95:
                journal._write_used()
            case _ if len(blocks) > 1:
                journal.block_settled([blocks.pop()])
            case _:
                pass
    journal.close()
    return journal.folder


def recover(root: Path, *, boot_id: str = "boot") -> tuple[list[bytes], Findings]:
    [orphan] = orphans(root, boot_id=boot_id)
    found = orphan.read()
    rows = [row for batch in orphan.batches(rows_max=3, bytes_max=10**6) for row in batch]
    orphan.release()
    return rows, found


def expected(lines: list[bytes]) -> tuple[list[bytes], set[str], dict[str, int]]:
    """The same by the plainest reading of whole lines: rows, calls left open, units used."""
    rows: list[bytes] = []
    opened: set[str] = set()
    used: dict[str, int] = {}
    for line in lines:
        kind, payload = line[:1], line[11:]
        told = json.loads(payload)
        if kind == b"c":
            rows.append(payload)
            opened.discard(told["id"])
        elif kind == b"o":
            opened.add(told["row"]["id"])
            for block_id in told["blocks"]:
                used[block_id] += 1
        elif kind == b"b":
            used.update(dict.fromkeys(told, 0))
        elif kind == b"u":
            used.update(told)
        elif kind == b"s":
            for block_id in told:
                del used[block_id]
    return rows, opened, used


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tail", ["cut", "zeros"])
def test_a_journal_cut_at_any_byte_tells_what_its_whole_lines_tell(
    tmp_path: Path, seed: int, tail: str
) -> None:
    folder = a_history(tmp_path, seed)
    [segment] = files_with(folder, ".seg")
    data = segment.read_bytes().rstrip(b"\0")
    for cut in range(len(data) + 1):
        segment.write_bytes(data[:cut] + (b"\0" * 64 if tail == "zeros" else b""))
        rows, found = recover(tmp_path)
        wanted_rows, wanted_open, wanted_used = expected(data[:cut].split(b"\n")[:-1])
        assert rows == wanted_rows
        assert {json.loads(row)["id"] for row in found.interrupted} == wanted_open
        assert found.used == wanted_used
        assert found.damaged == 0


def test_a_call_that_was_open_becomes_an_interrupted_row(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, worker_id=ids.new(), boot_id="boot")
    call_id = ids.new()
    journal.open_call(call_id, open_row(call_id), admitted=1.0, block_ids=())
    journal.close()
    [row] = recover(tmp_path)[1].interrupted
    assert json.loads(row) == {
        "id": call_id,
        "token_id": "t",
        "counted": True,
        "ended_at": None,
        "status": "interrupted",
        "reason": None,
        "usage_source": "none",
        "flags": ["dispatch_unknown"],
    }


def test_a_call_whose_end_was_noted_is_whole(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, worker_id=ids.new(), boot_id="boot")
    noted, closed = ids.new(), ids.new()
    for call_id in (noted, closed):
        journal.open_call(call_id, open_row(call_id), admitted=1.0, block_ids=("block",))
        journal.note_end(call_id, close_row(call_id))
    journal.close_call(closed, close_row(closed))
    journal.note_end(closed, b'{"too":"late"}')
    journal.close()
    rows, found = recover(tmp_path)
    assert rows == [close_row(closed)]
    assert found.interrupted == [close_row(noted)]
    assert found.used == {"block": 2}


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_byte_costs_its_own_line_and_the_trust(tmp_path: Path, seed: int) -> None:
    folder = a_history(tmp_path, seed)
    [segment] = files_with(folder, ".seg")
    data = segment.read_bytes().rstrip(b"\0")
    lines = data.split(b"\n")[:-1]
    seeded = random.Random(seed)
    for at in seeded.sample(range(len(data)), 300):
        flipped = data[at] ^ (1 << seeded.randrange(8))
        hurt = data[:at] + bytes([flipped]) + data[at + 1 :]
        number = data.count(b"\n", 0, at)
        segment.write_bytes(hurt + b"\0" * 64)
        rows, found = recover(tmp_path)
        wanted = [
            payload[11:] for i, payload in enumerate(lines) if payload[:1] == b"c" and i != number
        ]
        assert rows == wanted
        # Only the very end of the last line may look like a line that was being written.
        if number < len(lines) - 1:
            assert found.damaged
            assert set(found.used.values()) <= {None}


def test_a_hole_of_zeros_hides_no_line_behind_it(tmp_path: Path) -> None:
    folder = a_history(tmp_path, 1)
    [segment] = files_with(folder, ".seg")
    data = segment.read_bytes().rstrip(b"\0")
    lines = data.split(b"\n")[:-1]
    middle = len(b"\n".join(lines[:3]))
    for start, end in ((middle + 1, middle + 90), (0, 200), (middle, middle + 1)):
        holed = data[:start] + b"\0" * (end - start) + data[end:]
        segment.write_bytes(holed)
        rows, found = recover(tmp_path)
        first, last = data.count(b"\n", 0, start), data.count(b"\n", 0, end - 1)
        wanted = [
            line[11:]
            for number, line in enumerate(lines)
            if line[:1] == b"c" and not first <= number <= last
        ]
        assert rows == wanted
        assert found.damaged
        assert set(found.used.values()) == {None}


def test_another_boot_a_missing_segment_or_anothers_file_burns_the_blocks(tmp_path: Path) -> None:
    folder = a_history(tmp_path, 2)
    assert None not in recover(tmp_path)[1].used.values()
    assert set(recover(tmp_path, boot_id="next")[1].used.values()) == {None}
    [segment] = files_with(folder, ".seg")
    segment.with_name("00000003.seg").write_bytes(segment.read_bytes())
    assert set(recover(tmp_path)[1].used.values()) == {None}
    segment.with_name("00000003.seg").unlink()
    other = tmp_path / ids.new()
    folder.rename(other)
    assert set(recover(tmp_path)[1].used.values()) == {None}


def test_a_living_journal_is_nobodys(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, worker_id=ids.new(), boot_id="boot")
    assert list(orphans(tmp_path, boot_id="boot")) == []
    journal.close()
    [orphan] = orphans(tmp_path, boot_id="boot")
    assert list(orphans(tmp_path, boot_id="boot")) == []
    assert orphan.worker_id == journal.folder.name
    orphan.discard()
    assert list(orphans(tmp_path, boot_id="boot")) == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / ".new-x").mkdir()
    (tmp_path / ids.new()).mkdir()
    assert list(orphans(tmp_path, boot_id="boot")) == []
    assert list(orphans(tmp_path / "absent", boot_id="boot")) == []
    assert len(list(tmp_path.iterdir())) == 3


def test_a_discarding_that_broke_off_is_finished(tmp_path: Path) -> None:
    folder = a_history(tmp_path, 3)
    folder.rename(tmp_path / f".gone-{folder.name}")
    assert list(orphans(tmp_path, boot_id="boot")) == []
    assert list(tmp_path.iterdir()) == []


def test_kept_segments_go_from_hand_to_hand(tmp_path: Path) -> None:
    first = a_history(tmp_path, 1)
    rows, found = recover(tmp_path)
    for _ in range(3):
        journal = Journal.create(tmp_path, worker_id=ids.new(), boot_id="boot")
        [orphan] = orphans(tmp_path, boot_id="boot")
        keep = found.interrupted if orphan.worker_id == first.name else ()
        moved = orphan.discard(keep_in=journal.folder, keep_rows=keep)
        assert all(path.name.startswith(first.name) for path in moved)
        journal.keep(moved)
        journal.reship()
        batch = journal.read_unshipped(rows_max=100, bytes_max=10**6)
        assert sorted(batch.rows) == sorted([*rows, *found.interrupted])
        journal.close()


RACER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from gateway.metering.journal_recovery import orphans
    sys.stdin.readline()
    for orphan in orphans(Path(sys.argv[1]), boot_id="boot"):
        orphan.read()
        print(orphan.worker_id, flush=True)
        orphan.discard()
    """
)


def test_of_processes_that_race_for_a_journal_one_gets_it(tmp_path: Path) -> None:
    abandoned = [a_history(tmp_path, seed).name for seed in range(30)]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    got = [line for racer in racers for line in racer.communicate(timeout=60)[0].split()]
    assert sorted(got) == sorted(abandoned)
    assert [racer.returncode for racer in racers] == [0, 0, 0]


VICTIM = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from gateway.metering.journal import Journal
    journal = Journal.create(Path(sys.argv[1]), worker_id=sys.argv[2], boot_id="boot")
    journal.block_asked(["block"])
    number = 0
    while True:
        number += 1
        call_id = f"call-{number}"
        row = b'{"id":"%b"}' % call_id.encode()
        journal.open_call(call_id, row, admitted=1.0, block_ids=("block",))
        print("o", call_id, flush=True)
        journal.close_call(call_id, row)
        print("c", call_id, flush=True)
    """
)


def test_a_killed_process_has_lost_nothing(tmp_path: Path) -> None:
    worker_id = ids.new()
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(tmp_path), worker_id],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as victim:
        assert victim.stdout is not None
        told = [victim.stdout.readline() for _ in range(200)]
        assert list(orphans(tmp_path, boot_id="boot")) == []
        victim.kill()
        told += victim.stdout.read().splitlines(keepends=True)
    whole = [line.split() for line in told if line.endswith("\n")]
    rows, found = recover(tmp_path)
    closed = [json.loads(row)["id"] for row in rows]
    said_closed = [call_id for kind, call_id in whole if kind == "c"]
    assert closed[: len(said_closed)] == said_closed
    said_open = [call_id for kind, call_id in whole if kind == "o"]
    left_open = [json.loads(row)["id"] for row in found.interrupted]
    assert set(said_open) <= {*closed, *left_open}
    assert len(left_open) <= 1
    assert found.used == {"block": len(closed) + len(left_open)}
    assert found.damaged == 0


def test_a_boot_has_a_name() -> None:
    assert len(read_boot_id()) == 36
    assert read_boot_id() == read_boot_id()


def test_an_orphan_that_is_released_can_be_taken_again(tmp_path: Path) -> None:
    a_history(tmp_path, 1)
    for _ in range(2):
        [orphan] = orphans(tmp_path, boot_id="boot")
        assert isinstance(orphan, Orphan)
        orphan.release()


def test_a_kept_segment_takes_no_more_room_than_its_lines(tmp_path: Path) -> None:
    a_history(tmp_path / "a", 3)
    keeper = Journal.create(tmp_path / "b", worker_id=ids.new(), boot_id="boot")
    [orphan] = orphans(tmp_path / "a", boot_id="boot")
    rows = [row for batch in orphan.batches(rows_max=3, bytes_max=10**6) for row in batch]
    moved = orphan.discard(keep_in=keeper.folder)
    told = b"".join(path.read_bytes() for path in moved)
    assert rows
    assert all(row in told for row in rows)
    assert b"\0" not in told
    keeper.close()
