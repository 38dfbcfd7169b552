import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network

import asyncpg
import pytest

from control_plane.errors import TooManyRequests
from control_plane.server_settings import ServerSettings
from control_plane.throttle import Taking, address_key, give_back, take
from tests.control_plane.conftest import Node, People, started
from tests.control_plane.identity.accounts import sign_up

PROXIES = (ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8"))


async def statuses(nodes: Sequence[Node], addresses: Sequence[str]) -> Counter[int]:
    """Sign up once from each address at once, the nodes in turn; return the statuses' counts."""

    async def one(at: int, address: str) -> int:
        headers = {"x-forwarded-for": address}
        body = {
            "email": f"somebody-{at}@example.com",
            "password": "a long and lonely password",
            "org_name": "acme",
        }
        node = nodes[at % len(nodes)]
        return (await node.call("POST", "/api/v1/signup", json=body, headers=headers)).status

    return Counter(await asyncio.gather(*(one(at, each) for at, each in enumerate(addresses))))


@pytest.mark.parametrize(
    "addresses",
    [
        ["198.51.100.7"] * 50,
        [f"2001:db8:1:2:{at:x}::{at:x}" for at in range(1, 51)],
        ["198.51.100.7", "::ffff:198.51.100.7", "::ffff:c633:6407"] * 16,
        [f"{at}.1.1.1, 198.51.100.7" for at in range(50)],
        ["198.51.100.7, 10.1.2.3"] * 25 + ["198.51.100.7, 10.1.2.3, 127.0.0.9"] * 25,
    ],
    ids=["one address", "one /64", "mapped into IPv6", "spoofed before it", "behind proxies"],
)
async def test_of_fifty_at_once_on_two_nodes_exactly_five_sign_up(
    server_settings: ServerSettings, addresses: list[str]
) -> None:
    settings = replace(server_settings, trusted_proxies=PROXIES)
    async with started(settings) as first, started(settings) as second:
        found = await statuses([first, second], addresses)
    assert found == {202: 5, 429: len(addresses) - 5}


async def test_networks_of_others_count_for_themselves(server_settings: ServerSettings) -> None:
    settings = replace(server_settings, trusted_proxies=PROXIES)
    addresses = [f"2001:db8:1:{at:x}::1" for at in range(12)]
    async with started(settings) as node:
        assert await statuses([node], addresses) == {202: 12}


async def test_nobody_but_a_trusted_proxy_says_whose_a_request_is(node: Node) -> None:
    addresses = [f"198.51.100.{at}" for at in range(12)]
    assert await statuses([node], addresses) == {202: 5, 429: 7}
    other = await sign_up(node)
    assert other.status == 429
    assert 0 < int(other.headers["retry-after"]) <= 3600


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:ffff:ffff:ffff", "2001:db8::/64"),
        ("2001:db8:0:1::", "2001:db8:0:1::/64"),
        ("", ""),
        ("x" * 100, "x" * 64),
    ],
)
def test_what_counts_as_one_address(address: str, key: str) -> None:
    assert address_key(address) == key


async def test_what_is_given_back_can_be_taken_again(owner: asyncpg.Connection) -> None:
    asked = [Taking(key=key, limit=2, length=timedelta(hours=1)) for key in ("b", "a")]
    for _ in range(5):
        await take(owner, asked)
        await give_back(owner, asked)
    await take(owner, asked)
    await take(owner, asked)
    with pytest.raises(TooManyRequests) as refused:
        await take(owner, asked)
    assert 3590 < refused.value.retry_after <= 3600
    await give_back(owner, [*asked, Taking(key="never", limit=1, length=timedelta(hours=1))])
    await take(owner, asked)


async def test_the_token_of_a_session_that_is_over_uses_up_nothing_of_its_owner_s(
    node: Node, people: People
) -> None:
    owner = await people.person()
    stolen = await people.session(owner.account_id, owner.email)
    ended = await node.call("DELETE", f"/api/v1/sessions/{stolen.session_id}", by=owner)
    assert ended.status == 204, ended.content
    tries = [await node.call("GET", "/api/v1/me/export", by=stolen) for _ in range(11)]
    assert [answer.status for answer in tries] == [401] * 10 + [429], "by the address"
    assert (await node.call("GET", "/api/v1/me/export", by=owner)).status == 200
