"""The connect guard: which addresses and base URLs are allowed, as tables."""

from collections.abc import Sequence

import pytest

from gateway.connect_guard import (
    ADDRESSES_MAX,
    AddressNotAllowed,
    BaseUrlInvalid,
    ConnectGuard,
    check_base_url,
)

PUBLIC = [
    "1.1.1.1",
    "104.18.7.192",
    "160.79.104.10",
    "2606:4700::6812:7c0",
    "2a00:1450:4001:80b::200a",
    "2001:4860:4860::8888",
]
PRIVATE = [
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "::1",
    "fc00::1",
    "fd12:3456::1",
]
NEVER = [
    pytest.param("0.0.0.0", id="unspecified"),
    pytest.param("0.1.2.3", id="this network"),
    pytest.param("::", id="unspecified v6"),
    pytest.param("169.254.169.254", id="metadata"),
    pytest.param("169.254.170.2", id="metadata of containers"),
    pytest.param("fe80::1", id="link-local v6"),
    pytest.param("fe80::1%eth0", id="zone"),
    pytest.param("fd00:ec2::254", id="AWS metadata v6"),
    pytest.param("fd20:ce::254", id="Google metadata v6"),
    pytest.param("100.100.100.200", id="Alibaba metadata"),
    pytest.param("192.0.0.192", id="Oracle metadata"),
    pytest.param("168.63.129.16", id="Azure host agent"),
    pytest.param("192.88.99.1", id="6to4 relay"),
    pytest.param("192.0.2.1", id="documentation"),
    pytest.param("198.18.0.1", id="benchmarking"),
    pytest.param("224.0.0.1", id="multicast"),
    pytest.param("240.0.0.1", id="reserved"),
    pytest.param("255.255.255.255", id="broadcast"),
    pytest.param("ff02::1", id="multicast v6"),
    pytest.param("ff0e::1", id="global multicast v6"),
    pytest.param("64:ff9b::a9fe:a9fe", id="NAT64 of metadata"),
    pytest.param("64:ff9b::808:808", id="NAT64 of a public address"),
    pytest.param("64:ff9b:1::1", id="local NAT64"),
    pytest.param("2002:7f00:1::", id="6to4 of loopback"),
    pytest.param("2001:0:4136:e378:8000:63bf:3fff:fdd2", id="Teredo"),
    pytest.param("::ffff:127.0.0.1", id="mapped loopback"),
    pytest.param("::ffff:8.8.8.8", id="mapped public"),
    pytest.param("::127.0.0.1", id="compatible loopback"),
    pytest.param("::8.8.8.8", id="compatible public"),
    pytest.param("2001:db8::1", id="documentation v6"),
    pytest.param("3fff::1", id="new documentation v6"),
    pytest.param("4000::1", id="not assigned v6"),
    pytest.param("fec0::1", id="site-local v6"),
    pytest.param("100::1", id="discard v6"),
    pytest.param("5f00::1", id="segment routing v6"),
    pytest.param("2130706433", id="one number"),
    pytest.param("0x7f.1", id="hexadecimal"),
    pytest.param("0177.0.0.1", id="octal"),
    pytest.param("127.1", id="two parts"),
    pytest.param("\uff11\uff12\uff17.0.0.1", id="fullwidth digits"),
    pytest.param("localhost", id="a name"),
    pytest.param("", id="nothing"),
]


def guard(*, allow_private: bool = False) -> ConnectGuard:
    return ConnectGuard(allow_private=allow_private)


@pytest.mark.parametrize("address", PUBLIC)
@pytest.mark.parametrize("allow_private", [False, True])
def test_a_public_peer_is_allowed(address: str, *, allow_private: bool) -> None:
    guard(allow_private=allow_private).check_peer(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_peer_is_allowed_for_a_private_vendor_only(address: str) -> None:
    guard(allow_private=True).check_peer(address)
    with pytest.raises(AddressNotAllowed):
        guard().check_peer(address)


@pytest.mark.parametrize("address", NEVER)
@pytest.mark.parametrize("allow_private", [False, True])
def test_some_peers_are_never_allowed(address: str, *, allow_private: bool) -> None:
    with pytest.raises(AddressNotAllowed):
        guard(allow_private=allow_private).check_peer(address)


def test_a_refused_peer_is_a_failed_connection_to_those_who_dial() -> None:
    assert issubclass(AddressNotAllowed, OSError)


class Resolver:
    """Answers with fixed addresses, and remembers whether it was asked."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self.addresses


async def test_only_the_allowed_addresses_of_a_name_are_dialled_in_their_order() -> None:
    resolve = Resolver("10.0.0.1", "1.1.1.1", "169.254.169.254", "2606:4700::1")
    allowed = await guard().allowed_addresses("api.example.com", 443, resolve)
    assert allowed == ["1.1.1.1", "2606:4700::1"]
    assert resolve.asked == [("api.example.com", 443)]


async def test_a_name_that_turns_to_a_private_address_gets_nowhere() -> None:
    with pytest.raises(AddressNotAllowed, match=r"api\.example\.com"):
        await guard().allowed_addresses("api.example.com", 443, Resolver("127.0.0.1", "10.0.0.1"))


async def test_a_name_without_addresses_gets_nowhere() -> None:
    with pytest.raises(AddressNotAllowed):
        await guard().allowed_addresses("api.example.com", 443, Resolver())


async def test_an_address_is_checked_without_asking_a_resolver() -> None:
    resolve = Resolver("1.1.1.1")
    with pytest.raises(AddressNotAllowed):
        await guard().allowed_addresses("127.0.0.1", 443, resolve)
    assert await guard(allow_private=True).allowed_addresses("::1", 80, resolve) == ["::1"]
    assert resolve.asked == []


async def test_a_name_with_very_many_addresses_is_cut_short() -> None:
    resolve = Resolver(*[f"1.1.1.{last}" for last in range(100)])
    allowed = await guard().allowed_addresses("api.example.com", 443, resolve)
    assert len(allowed) == ADDRESSES_MAX


async def test_a_list_of_hosts_keeps_every_other_host_out() -> None:
    hosts = frozenset({"api.openai.com", "inside.example.com:8443"})
    listed = ConnectGuard(allow_private=True, allowed_hosts=hosts)
    resolve = Resolver("1.1.1.1")
    assert await listed.allowed_addresses("api.openai.com", 443, resolve)
    assert await listed.allowed_addresses("inside.example.com", 8443, resolve)
    for host, port in [("api.example.com", 443), ("inside.example.com", 443), ("127.0.0.1", 80)]:
        with pytest.raises(AddressNotAllowed, match="not among the hosts"):
            await listed.allowed_addresses(host, port, resolve)


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com:443", "/v1"),
        ("https://api.anthropic.com", "https://api.anthropic.com:443", ""),
        ("https://api.anthropic.com/", "https://api.anthropic.com:443", ""),
        ("HTTPS://API.OpenAI.com:443/v1/", "https://api.openai.com:443", "/v1"),
        (
            "https://my_res.openai.azure.com/openai",
            "https://my_res.openai.azure.com:443",
            "/openai",
        ),
        ("https://xn--bcher-kva.example/a/b", "https://xn--bcher-kva.example:443", "/a/b"),
        ("https://1.1.1.1/v1", "https://1.1.1.1:443", "/v1"),
        ("https://[2606:4700:0::1]/v1", "https://[2606:4700::1]:443", "/v1"),
        ("https://x.example/v1/projects/a:b@c", "https://x.example:443", "/v1/projects/a:b@c"),
    ],
)
def test_a_public_base_url_is_read_into_its_parts(url: str, origin: str, path: str) -> None:
    base = check_base_url(url, allow_private=False)
    assert (base.origin, base.path) == (origin, path)
    assert check_base_url(str(base), allow_private=False) == base


@pytest.mark.parametrize(
    ("url", "origin", "authority"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://localhost:11434/v1", "http://localhost:11434", "localhost:11434"),
        ("http://vllm.internal", "http://vllm.internal:80", "vllm.internal"),
        ("https://[fd12::1]:8443", "https://[fd12::1]:8443", "[fd12::1]:8443"),
        ("https://10.1.2.3", "https://10.1.2.3:443", "10.1.2.3"),
        ("https://models.example.com:8443", "https://models.example.com:8443", None),
    ],
)
def test_a_private_vendor_may_have_what_a_public_one_may_not(
    url: str, origin: str, authority: str | None
) -> None:
    base = check_base_url(url, allow_private=True)
    assert base.origin == origin
    assert authority is None or base.authority == authority
    with pytest.raises(BaseUrlInvalid, match="private"):
        check_base_url(url, allow_private=False)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "not an absolute URL"),
        ("api.openai.com", "not an absolute URL"),
        ("//api.openai.com", "not an absolute URL"),
        ("https:/api.openai.com", "not an absolute URL"),
        ("file:///etc/passwd", "by file"),
        ("gopher://api.example.com", "by gopher"),
        ("ws://api.example.com", "by ws"),
        ("https://user@api.example.com", "user name"),
        ("https://user:pass@api.example.com", "user name"),
        ("https://api.example.com@127.0.0.1", "user name"),
        ("https://api.example.com?x=1", "query"),
        ("https://api.example.com?", "query"),
        ("https://api.example.com/v1#a", "fragment"),
        ("https://api.example.com#", "fragment"),
        ("https://", "not a host name"),
        ("https:///v1", "not a host name"),
        ("https://api.example.com.", "not a host name"),
        ("https://api..example.com", "not a host name"),
        ("https://-api.example.com", "not a host name"),
        ("https://api.example.com%2f", "not a host name"),
        ("https://a,b.example.com", "not a host name"),
        ("https://" + "a" * 64 + ".example.com", "not a host name"),
        ("https://" + "a." * 127 + "com", "not a host name"),
        ("https://2130706433", "plain form"),
        ("https://0x7f.1", "plain form"),
        ("https://0x7f000001", "plain form"),
        ("https://0177.0.0.1", "plain form"),
        ("https://127.1", "plain form"),
        ("https://1.1.1.1.", "not a host name"),
        ("https://a.example.0x10", "plain form"),
        ("https://[::1%25eth0]", "plain form"),
        ("https://[fe80::1%eth0]", "plain form"),
        ("https://[127.0.0.1]", "plain form"),
        ("https://[]", "plain form"),
        ("https://::1/", "can't be read"),
        ("https://[::1]x", "can't be read"),
        ("https://\uff11\uff12\uff17.0.0.1", "beyond ASCII"),
        ("https://127\u30020.0.1", "beyond ASCII"),
        ("https://\u2460\u2461\u2466.0.0.1", "beyond ASCII"),
        ("https://b\u00fccher.example", "beyond ASCII"),
        ("https://api.example.com\\@127.0.0.1", "backslash"),
        (" https://api.example.com", "space"),
        ("https://api.example.com\n", "space"),
        ("https://api.example.com\t/v1", "space"),
        ("https://api.example.com\x00", "space"),
        ("https://api.example.com:", "port"),
        ("https://api.example.com:0", "port"),
        ("https://api.example.com:0443", "port"),
        ("https://api.example.com:65536", "port"),
        ("https://api.example.com:99999999", "port"),
        ("https://api.example.com:443:443", "can't be read"),
        ("https://api.example.com:+443", "port"),
        ("https://169.254.169.254/latest", "never connects"),
        ("https://[64:ff9b::a9fe:a9fe]", "never connects"),
        ("https://[2002:7f00:1::]", "never connects"),
        ("https://[::ffff:127.0.0.1]", "never connects"),
        ("https://168.63.129.16", "never connects"),
        ("https://0.0.0.0", "never connects"),
        ("https://224.0.0.1", "never connects"),
        ("https://api.example.com/../v1", "path"),
        ("https://api.example.com/./v1", "path"),
        ("https://api.example.com//v1", "path"),
        ("https://api.example.com/v1//", "path"),
        ("https://api.example.com/%2e%2e", "path"),
        ("https://api.example.com/" + "a" * 2048, "too long"),
    ],
)
@pytest.mark.parametrize("allow_private", [False, True])
def test_an_odd_base_url_is_refused_for_every_vendor(
    url: str, problem: str, *, allow_private: bool
) -> None:
    with pytest.raises(BaseUrlInvalid, match=r"^base_url: ") as caught:
        check_base_url(url, allow_private=allow_private)
    assert problem in str(caught.value)
    assert caught.value.field == "base_url"
    assert caught.value.fix in str(caught.value)


def test_a_listed_host_is_the_only_one_that_can_be_configured() -> None:
    hosts = frozenset({"api.openai.com"})
    base = check_base_url("https://api.openai.com", allow_private=False, allowed_hosts=hosts)
    assert base.host == "api.openai.com"
    with pytest.raises(BaseUrlInvalid, match="not among the hosts"):
        check_base_url("https://api.example.com", allow_private=False, allowed_hosts=hosts)
