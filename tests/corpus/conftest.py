from collections.abc import AsyncIterator, Iterator

import pytest

from tests.control_plane.conftest import (  # noqa: F401 - fixtures
    control_keys,
    control_url,
    node,
    people,
    server_settings,
    session_keys,
)
from tests.corpus.attacks import ELSEWHERE, TITLES
from tests.gateway.proxy.rig import Rig, open_rig

Outcomes = dict[int, str]


@pytest.fixture(scope="session")
def outcomes() -> Iterator[Outcomes]:
    """What came of each number; printed as one table when all are through."""
    found: Outcomes = {}
    yield found
    print()
    for number, title in TITLES.items():
        outcome = found.get(number)
        if outcome is None and number in ELSEWHERE:
            outcome = f"elsewhere: {ELSEWHERE[number]}"
        if outcome is not None:
            print(f"{number:>4}  {title:<66}  {outcome}")


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with open_rig() as made:
        yield made
