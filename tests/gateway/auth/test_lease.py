"""How long a worker may go on without the database."""

import pytest

from gateway.auth.lease import Lease


class Boottime:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def boottime() -> Boottime:
    return Boottime()


def test_before_the_first_heartbeat_nothing_may_run_and_nothing_has_ended(
    boottime: Boottime,
) -> None:
    lease = Lease(seconds=15, offline_grace_seconds=300, boottime=boottime)
    assert not lease.holds()
    assert not lease.streams_may_run()
    assert not lease.streams_just_ended()
    assert lease.streams_seconds_left() == 0


def test_it_runs_from_when_the_heartbeat_was_sent_and_ends_early_by_the_drift(
    boottime: Boottime,
) -> None:
    lease = Lease(seconds=10, offline_grace_seconds=90, boottime=boottime)
    lease.renew(999.0)
    boottime.now = 999 + 9.99
    assert lease.holds()
    boottime.now = 999 + 9.996
    assert not lease.holds()
    assert lease.streams_may_run()
    boottime.now = 999 + 99.94
    assert lease.streams_may_run()
    assert lease.streams_seconds_left() == pytest.approx(0.01)
    boottime.now = 999 + 99.96
    assert not lease.streams_may_run()


def test_the_end_of_streams_is_told_once_an_outage(boottime: Boottime) -> None:
    lease = Lease(seconds=10, offline_grace_seconds=0, boottime=boottime)
    for _ in range(2):
        lease.renew(boottime.now)
        assert not lease.streams_just_ended()
        boottime.now += 10
        assert lease.streams_just_ended()
        assert not lease.streams_just_ended()


def test_who_gives_up_admits_nothing_while_streams_run_on(boottime: Boottime) -> None:
    lease = Lease(seconds=10, offline_grace_seconds=0, boottime=boottime)
    lease.renew(boottime.now)
    lease.give_up()
    assert not lease.holds()
    assert lease.streams_may_run()
