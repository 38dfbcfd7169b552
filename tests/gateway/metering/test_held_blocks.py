import time
from collections.abc import Callable

from gateway.clock import DatabaseClock
from gateway.metering.held_blocks import WANT_MAX, WANT_MIN, Block, HeldBlocks, Subject

TOKEN: Subject = ("token", "t")
ORG: Subject = ("org", "o")
BEGINS, ENDS = 1000.0, 2000.0


class Time:
    """A clock whose database time is known to half a second either way."""

    def __init__(self, at: float = 1500.0) -> None:
        self.loop = 0.0
        self.boot = 1.0
        self.clock = DatabaseClock(lambda: self.boot)
        self.set(at)

    def set(self, database_time: float) -> None:
        self.clock.observe(
            sent=self.boot - 0.5, received=self.boot + 0.5, database_time=database_time
        )


def held_blocks(at: Time, on_low: Callable[[Subject], None] = lambda subject: None) -> HeldBlocks:
    return HeldBlocks(clock=at.clock, now=lambda: at.loop, on_low=on_low)


def block(name: str, amount: int, subject: Subject = TOKEN) -> Block:
    return Block(name, subject, amount=amount, begins=BEGINS, ends=ENDS)


def used(held: HeldBlocks) -> dict[str, int]:
    return {name: returned.used for name, returned in held.returned.items()}


def test_a_block_gives_what_it_has_and_comes_back_used_up() -> None:
    held = held_blocks(Time())
    held.add(block("a", 2))
    assert [held.take((TOKEN,)) for _ in range(3)] == [("a",), ("a",), None]
    assert used(held) == {"a": 2}


def test_a_call_takes_from_all_of_its_allowances_or_from_none() -> None:
    held = held_blocks(Time())
    held.add(block("t", 10))
    assert held.take((ORG, TOKEN)) is None
    held.add(block("o", 1, ORG))
    assert held.take((ORG, TOKEN)) == ("o", "t")
    assert held.take((ORG, TOKEN)) is None
    held.release(TOKEN)
    assert used(held) == {"o": 1, "t": 1}


def test_a_caller_without_limits_takes_nothing() -> None:
    assert held_blocks(Time()).take(()) == ()


def test_before_the_first_heartbeat_nothing_is_taken() -> None:
    held = HeldBlocks(clock=DatabaseClock(), now=time.monotonic, on_low=lambda subject: None)
    assert held.take((TOKEN,)) is None


def test_a_block_that_runs_low_is_told_of_once_and_its_spare_takes_over() -> None:
    low: list[Subject] = []
    held = held_blocks(Time(), low.append)
    held.add(block("a", 8))
    for _ in range(6):
        held.take((TOKEN,))
    assert low == [TOKEN]
    held.add(block("b", 8))
    assert [held.take((TOKEN,)) for _ in range(3)] == [("a",), ("a",), ("b",)]
    assert low == [TOKEN]


def test_a_third_block_goes_back_unused() -> None:
    held = held_blocks(Time())
    for name in "abc":
        held.add(block(name, 4))
    assert used(held) == {"c": 0}


def test_blocks_that_are_used_up_fast_grow_and_idle_ones_shrink_and_go_back() -> None:
    at = Time()
    held = held_blocks(at)
    wants = [held.want(TOKEN)]
    for name in "abcdefgh":
        held.add(block(name, held.want(TOKEN)))
        while held.take((TOKEN,)):
            pass
        wants.append(held.want(TOKEN))
    assert wants == [WANT_MIN, 16, 32, 64, 128, 256, WANT_MAX, WANT_MAX, WANT_MAX]
    held.add(block("slow", 4))
    at.loop = 100.0
    held.sweep(held.subjects())
    assert "slow" not in held.returned
    held.sweep(held.subjects())
    assert used(held)["slow"] == 0
    assert held.want(TOKEN) == WANT_MAX // 2
    for _ in range(10):
        held.sweep(held.subjects())
    assert held.subjects() == []


def test_a_block_in_use_survives_the_sweep() -> None:
    held = held_blocks(Time())
    held.add(block("a", 8))
    for _ in range(4):
        held.take((TOKEN,))
        held.sweep(held.subjects())
    assert not held.returned


def test_units_of_a_call_that_went_nowhere_are_put_back_even_from_a_used_up_block() -> None:
    held = held_blocks(Time())
    held.add(block("t", 3))
    held.add(block("o", 1, ORG))
    ids = held.take((ORG, TOKEN))
    assert ids == ("o", "t")
    held.put_back((ORG, TOKEN), ids)
    held.release(TOKEN)
    assert used(held) == {"o": 0, "t": 0}


def test_a_month_is_used_while_it_is_surely_now() -> None:
    at = Time(BEGINS + 0.1)  # surely at least BEGINS - 0.4
    held = held_blocks(at)
    held.add(block("early", 4))
    assert used(held) == {"early": 0}
    at.set(BEGINS + 0.6)
    held.add(block("a", 4))
    assert held.take((TOKEN,)) == ("a",)
    at.set(ENDS - 0.6)
    assert held.take((TOKEN,)) == ("a",)
    at.set(ENDS - 0.4)
    assert held.take((TOKEN,)) is None
    assert held.lacks(TOKEN)


def test_the_new_month_s_block_sends_the_old_one_back() -> None:
    at = Time(ENDS - 100)
    held = held_blocks(at)
    held.add(block("old", 4))
    held.add(block("old spare", 4))
    held.take((TOKEN,))
    at.set(ENDS + 100)
    held.add(Block("new", TOKEN, amount=4, begins=ENDS, ends=ENDS + 1000))
    assert used(held) == {"old": 1, "old spare": 0}
    assert held.take((TOKEN,)) == ("new",)


def test_the_sweep_returns_the_old_month() -> None:
    at = Time()
    held = held_blocks(at)
    held.add(block("old", 4))
    at.set(ENDS + 1)
    held.sweep(held.subjects())
    assert used(held) == {"old": 0}


def test_after_closing_everything_goes_back() -> None:
    held = held_blocks(Time())
    held.add(block("a", 4))
    held.take((TOKEN,))
    held.close()
    held.add(block("late", 4))
    assert used(held) == {"a": 1, "late": 0}
    assert held.take((TOKEN,)) is None


def test_units_that_nobody_counts_leave_no_id() -> None:
    held = held_blocks(Time())
    held.add(block("", 1))
    held.add(block("o", 4, ORG))
    assert held.take((ORG, TOKEN)) == ("o",)
    assert held.take((TOKEN,)) is None
    assert not held.returned


def test_a_unit_is_taken_in_about_a_microsecond() -> None:
    held = HeldBlocks(clock=DatabaseClock(), now=time.monotonic, on_low=lambda subject: None)
    held._clock.observe(
        sent=held._clock.boottime(), received=held._clock.boottime(), database_time=1500.0
    )
    calls, best = 2000, 1.0
    limits = (TOKEN,)
    for _ in range(20):
        held.add(block("a", 10 * calls))
        started = time.perf_counter()
        for _ in range(calls):
            held.take(limits)
        best = min(best, (time.perf_counter() - started) / calls)
    print(f"take: {best * 1e9:.0f} ns")
    assert best < 5e-6  # an order of magnitude of room for a busy machine
