"""Faults on real processes: the short form of `make faults`."""

import random

import pytest

from tests.faults.__main__ import LONG, told
from tests.faults.skew import no_history
from tests.faults.table import FAULTS
from tests.faults.trial import Trial
from tests.faults.world import World

pytestmark = pytest.mark.journey

SHORT = ("kill-machine", "disk-full", "revocations")
SEED = 4


async def check(*names: str) -> None:
    settings = FAULTS[names[0]].settings
    async with World.running(settings=settings, chance=random.Random(SEED)) as world:
        for name in names:
            fault = FAULTS[name]
            if fault.needs(world):
                continue
            result = await Trial.run(world, fault, SEED)
            print(told(result))
            assert not result.failed, told(result)


async def test_calls_tallies_and_limits_agree_after_faults() -> None:
    await check(*SHORT)


async def test_this_release_and_the_one_before_run_together() -> None:
    if why := no_history():
        pytest.skip(f"left out: {why}")
    await check("version-skew")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAULTS if name not in LONG])
async def test_calls_tallies_and_limits_agree_after_each_fault(name: str) -> None:
    await check(name)
