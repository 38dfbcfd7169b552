import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.fuzz.taken import Taken, WatchedConnection, differences
from tests.gateway.proxy.rig import open_rig

A, B = "0a" * 16, "0b" * 16
LINES = {A: b"a's line", B: b"b's line"}


def request(*headers: str, target: str = "/none") -> bytes:
    lines = [f"GET {target} HTTP/1.1", "Host: gateway", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def named(front_id: str, *headers: str, target: str = "/none") -> bytes:
    return request(*headers, f"x-front-id: {front_id}", target=target)


@asynccontextmanager
async def watched() -> AsyncIterator[tuple[int, Taken]]:
    taken = Taken()
    async with open_rig() as rig:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: WatchedConnection(rig.lane, taken), "127.0.0.1", 0
        )
        async with server:
            yield server.sockets[0].getsockname()[1], taken


async def taken_of(*pieces: bytes, last: bytes = b"") -> Taken:
    """Return what a gateway takes of pieces, each answered before the next; `last` needs not be."""
    async with watched() as (port, taken):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in pieces:
            writer.write(piece)
            await reader.readuntil(b"\r\n\r\n")
        writer.write(last)
        writer.write_eof()
        await reader.read()
        writer.close()
        await writer.wait_closed()
    return taken


async def test_each_request_is_taken_by_its_id() -> None:
    taken = await taken_of(named(A) + named(B))
    assert taken.times == {A: 1, B: 1}
    assert differences(lines=LINES, passed_on={A, B}, taken=taken) == []


async def test_a_refused_head_is_taken_by_its_id() -> None:
    taken = await taken_of(named(A, "Content-Length: +3"))
    assert (taken.times, taken.unnamed) == ({A: 1}, [])


async def test_a_head_that_is_refused_before_its_id_came_is_named_by_it() -> None:
    head, name, rest = named(A, "Content-Length: +3").partition(b"x-front-id")
    taken = await taken_of(head, last=name + rest)
    assert (taken.times, taken.unnamed) == ({A: 1}, [])


async def test_a_request_within_another_is_no_request_of_the_proxys() -> None:
    taken = await taken_of(named(A) + request(target="/hidden"))
    (told,) = differences(lines=LINES, passed_on={A}, taken=taken)
    assert "no request of the proxy's" in told
    assert "/hidden" in told


async def test_a_refused_head_within_a_request_is_no_request_of_the_proxys() -> None:
    taken = await taken_of(named(A), request("Content-Length: +3"))
    (told,) = differences(lines=LINES, passed_on={A}, taken=taken)
    assert "no request of the proxy's" in told


@pytest.mark.parametrize(
    ("times", "arrived", "passed_on", "told"),
    [
        ({A: 1}, {A}, {A}, []),
        ({A: 2}, {A}, {A}, ["taken 2 times: a's line"]),
        ({A: 1}, {A}, set(), ["taken 1 times, but not passed on: a's line"]),
        ({}, set(), {A}, ["never came, was not taken: a's line"]),
        ({}, {A}, {A}, ["came, was not taken: a's line"]),
        ({}, {A}, set(), ["came, was not taken, but not passed on: a's line"]),
        ({A: 1}, {A}, {B}, ["taken 1 times, but not passed on: a's line",
                            "never came, was not taken: b's line"]),
        ({"c": 1}, {"c"}, set(), ["taken 1 times, but not passed on: not told of c"]),
    ],
)  # fmt: skip
def test_each_difference_is_told(
    times: dict[str, int], arrived: set[str], passed_on: set[str], told: list[str]
) -> None:
    taken = Taken()
    taken.times.update(times)
    taken.arrived = arrived
    assert sorted(differences(lines=LINES, passed_on=passed_on, taken=taken)) == sorted(told)
