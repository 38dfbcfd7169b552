"""Failed lookups by address: a sliding window, bounded, whole customers of IPv6."""

import pytest

from gateway.auth.failed_lookups import FailedLookups


class Time:
    def __init__(self) -> None:
        self.now = 600.0


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def failed_lookups(time: Time) -> FailedLookups:
    return FailedLookups(
        failures_max=10, window_seconds=60.0, addresses_max=3, now=lambda: time.now
    )


def fail(failed_lookups: FailedLookups, address: str, times: int) -> None:
    for _ in range(times):
        failed_lookups.add(address)


def test_an_address_may_fail_so_often_and_another_is_not_blamed(
    failed_lookups: FailedLookups,
) -> None:
    fail(failed_lookups, "192.0.2.1", 9)
    assert failed_lookups.wait_seconds("192.0.2.1") == 0
    failed_lookups.add("192.0.2.1")
    assert failed_lookups.wait_seconds("192.0.2.1") > 0
    assert failed_lookups.wait_seconds("192.0.2.2") == 0


def test_the_window_slides(failed_lookups: FailedLookups, time: Time) -> None:
    time.now = 659.0
    fail(failed_lookups, "192.0.2.1", 20)
    time.now = 661.0
    wait = failed_lookups.wait_seconds("192.0.2.1")
    assert wait > 25  # more than half of it must slide out
    time.now += wait
    assert failed_lookups.wait_seconds("192.0.2.1") == 0
    fail(failed_lookups, "192.0.2.1", 5)
    assert failed_lookups.wait_seconds("192.0.2.1") > 0
    time.now += 121.0
    assert failed_lookups.wait_seconds("192.0.2.1") == 0


def test_an_ipv6_customer_is_one_address(failed_lookups: FailedLookups) -> None:
    for number in range(10):
        failed_lookups.add(f"2001:db8:1:2::{number:x}")
    assert failed_lookups.wait_seconds("2001:db8:1:2:ffff::1") > 0
    assert failed_lookups.wait_seconds("2001:db8:1:3::1") == 0


def test_an_ipv4_address_is_the_same_in_ipv6_clothes(failed_lookups: FailedLookups) -> None:
    fail(failed_lookups, "::ffff:192.0.2.1", 10)
    assert failed_lookups.wait_seconds("192.0.2.1") > 0
    assert failed_lookups.wait_seconds("::ffff:192.0.2.2") == 0


def test_what_is_no_address_is_counted_as_it_is(failed_lookups: FailedLookups) -> None:
    fail(failed_lookups, "", 10)
    assert failed_lookups.wait_seconds("") > 0


def test_only_so_many_addresses_are_remembered(failed_lookups: FailedLookups) -> None:
    fail(failed_lookups, "192.0.2.1", 10)
    for number in range(2, 6):
        failed_lookups.add(f"192.0.2.{number}")
    assert failed_lookups.wait_seconds("192.0.2.1") == 0
    assert len(failed_lookups._counts) == 3
