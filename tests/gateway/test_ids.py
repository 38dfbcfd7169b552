import itertools
import uuid

from gateway.ids import IdMaker


def test_an_id_is_a_uuid_of_version_7_that_tells_its_millisecond() -> None:
    for random in (b"\0", b"\xff", b"\x5a"):
        ids = IdMaker(lambda: 1_790_000_000.5, random.__mul__)
        made = uuid.UUID(ids.new())
        assert (made.version, made.variant) == (7, uuid.RFC_4122)
        assert made.int >> 80 == 1_790_000_000_500


def test_ids_of_one_millisecond_differ_and_those_of_a_later_one_sort_behind() -> None:
    clock = itertools.chain([1.0] * 1000, itertools.repeat(1.5))
    ids = IdMaker(lambda: next(clock))
    first, later = [ids.new() for _ in range(1000)], [ids.new() for _ in range(1000)]
    assert len({*first, *later}) == 2000
    assert max(first) < min(later)


def test_all_randomness_of_an_id_comes_from_the_source() -> None:
    ids = IdMaker(lambda: 0.0, lambda n: bytes(range(10)) * (n // 10))
    assert ids.new() == "00000000-0000-7000-9020-304050607080"
