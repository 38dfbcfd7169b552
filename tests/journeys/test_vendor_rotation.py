"""A vendor's key is changed under load: no call fails, and all go on with the new one."""

import asyncio
from typing import Final

import pytest

from tests.journeys.client import call, send
from tests.journeys.product import VISIBLE_SECONDS_MAX, Product

pytestmark = pytest.mark.journey

CALLERS: Final = 6
ROTATIONS: Final = 4
LOOKS: Final = 12


async def test_vendors_keys_rotate_under_load_without_a_failed_call(product: Product) -> None:
    vendors = {one["name"]: one for one in product.kaixu("vendor", "list")}
    name = "rotated"
    product.add_vendor(
        name, kind="openai", base_url=vendors["openai"]["base_url"], key="key-0",
        options=("--models", f"{name}-*"),
    )  # fmt: skip
    over = asyncio.Event()
    statuses: list[int] = []

    request = call("openai", token=product.token, model=f"{name}-1", stream=True, prefix=f"/{name}")

    async def call_on() -> None:
        while not over.is_set():
            answer = await send(product.url, request)
            statuses.append(answer.status if answer.is_whole else 0)

    try:
        for _ in range(LOOKS):  # on connections that spread over the workers
            async with asyncio.timeout(VISIBLE_SECONDS_MAX):
                while (await send(product.url, request)).status != 200:
                    pass
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLERS):
                tasks.create_task(call_on())
            versions = []
            for number in range(ROTATIONS):
                rotated = await product.kaixu_aside(
                    "vendor", "rotate", name, "--key-file", "-", stdin=f"key-{number + 1}"
                )
                versions.append(rotated["key_version"])
            over.set()
    finally:
        product.run("vendor", "remove", name)
    assert versions == [2, 3, 4, 5]
    assert len(statuses) > CALLERS
    assert set(statuses) == {200}
