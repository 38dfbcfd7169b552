from collections.abc import AsyncIterator

import pytest

from tests.gateway.proxy.rig import Rig, open_rig


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with open_rig() as made:
        yield made
