"""Group I: attempts to lead the gateway, and the key that it holds, to somewhere else."""

import asyncio
import ssl
from typing import Final

import pytest

from gateway.connect_guard import AddressNotAllowed, BaseUrlInvalid, ConnectGuard, check_base_url
from gateway.errors import VendorUnreachable
from gateway.proxy.routing import Origin
from gateway.proxy.upstream import UpstreamPool, make_dial
from tests.corpus.attacks import BODY, CHAT, Case, answers_well, ask_all, post
from tests.corpus.conftest import Outcomes
from tests.gateway.proxy.rig import KEY, TOKEN, Rig

# Never, whatever the operator says of the vendor; and only where it is marked as private.
NEVER: Final = [
    "http://169.254.169.254", "https://169.254.169.254", "https://0.0.0.0", "https://2130706433",
    "https://0x7f.1", "https://0177.0.0.1", "https://127.1", "https://\u2460\u2461\u2466.0.0.1",
    "https://127\u30020\u30020\u30021", "https://[::ffff:127.0.0.1]", "https://[64:ff9b::a9fe:a9fe]",
    "https://[2002:7f00:1::]", "https://168.63.129.16", "https://224.0.0.1", "https://u@127.0.0.1",
    "https://u:p@api.example.com", "https://api.example.com@127.0.0.1", "https://[fe80::1%25eth0]",
    "file:///etc/passwd", "gopher://127.0.0.1/", "ftp://a.example", "https://a.example%2f.b",
    "https://api.example.com/%2e%2e", "https://api.example.com/../x", "https://a.example?x=y",
    "https://a.example#x", "https://a.example\\@b", "https://a b", "//a.example", "a.example",
    "https://a.example:0", "https://a.example:99999", "https://[fd00:ec2::254]", "https://100.100.100.200",
]  # fmt: skip
UNLESS_PRIVATE: Final = [
    "https://127.0.0.1", "https://10.0.0.1", "https://192.168.1.1", "https://[::1]", "https://[fd00::1]",
    "https://localhost", "https://metadata.google.internal", "https://printer.local", "https://intranet",
    "https://api.example.com:8443", "http://api.example.com", "https://100.64.0.1",
]  # fmt: skip


def origin(host: str, port: int = 443, *, scheme: str = "https") -> Origin:
    return Origin(scheme=scheme, host=host, port=port, allow_private=False)


async def inside(rig: Rig) -> str:
    for url in NEVER:
        for allow_private in (False, True):
            with pytest.raises(BaseUrlInvalid):
                check_base_url(url, allow_private=allow_private)
    for url in UNLESS_PRIVATE:
        with pytest.raises(BaseUrlInvalid):
            check_base_url(url, allow_private=False)
    listed = frozenset({"api.example.com"})
    with pytest.raises(BaseUrlInvalid):
        check_base_url("https://other.example.com", allow_private=False, allowed_hosts=listed)
    check_base_url("https://api.example.com", allow_private=False, allowed_hosts=listed)
    return "refused when it is configured"


async def rebound(rig: Rig) -> str:
    """A name that is public when it is asked for, and this machine when it is dialled."""
    guard = ConnectGuard(allow_private=False)
    served: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def resolve(target: Origin) -> list[str]:
        async def public(host: str, port: int) -> list[str]:
            return ["1.1.1.1"]

        assert await guard.allowed_addresses(target.host, target.port, public) == ["1.1.1.1"]
        return ["127.0.0.1"]  # what a later look at the name would give

    dial = make_dial(
        resolve, lambda _, address: guard.check_peer(address), ssl.create_default_context()
    )
    pool = UpstreamPool(dial, now=asyncio.get_running_loop().time)
    async with server:
        with pytest.raises(VendorUnreachable) as refused:
            await pool.connect(origin("api.example.com", port, scheme="http"))
        assert isinstance(refused.value.__cause__, AddressNotAllowed)
        server.close()
    assert b"".join(served) == b""
    return "connected to, refused by its peer address, nothing sent"


async def redirects(rig: Rig) -> str:
    other = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    for status in (301, 302, 303, 307, 308):
        for location in (f"http://127.0.0.1:{port}/", "http://169.254.169.254/", "//evil/"):

            async def script(
                head: bytes,
                body: bytes,
                writer: asyncio.StreamWriter,
                answer: str = f"HTTP/1.1 {status} X\r\nLocation: {location}\r\n"
                "Content-Length: 0\r\n\r\n",
            ) -> None:
                writer.write(answer.encode())

            rig.vendor.script = script
            found = await ask_all(rig, [post(b"Content-Length: %d\r\n" % len(BODY))])
            assert found == [(status, None)]
    assert rig.vendor.connections == 1
    assert len(rig.vendor.heads) == 15
    async with other:
        other.close()
    return "passed on, not followed"


async def told_by_the_client(rig: Rig) -> str:
    rig.vendor.script = answers_well
    body = (
        b'{"model":"gpt-4o","messages":[],"api_base":"http://127.0.0.1:1/",'
        b'"base_url":"http://127.0.0.1:1/","api_key":"x","organization":"y"}'
    )
    lines = (
        b"X-Forwarded-Host: evil\r\nX-Original-Host: evil\r\nX-Original-URL: /evil\r\n"
        b"X-Rewrite-URL: /evil\r\nForwarded: host=evil\r\nOpenAI-Organization: evil\r\n"
        b"X-HTTP-Method-Override: DELETE\r\nProxy-Authorization: Bearer evil\r\n"
    )
    request = post(lines, b"Content-Length: %d\r\n" % len(body), body=body)
    assert await ask_all(rig, [request]) == [(200, None)]
    [head] = rig.vendor.heads
    assert b"evil" not in head
    assert TOKEN.encode() not in head
    assert head.count(KEY) == 1
    assert head.startswith(f"POST {CHAT} ".encode())
    assert rig.vendor.bodies == [body]
    return "headers dropped; fields of the body go up and lead nowhere"


async def proxies(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.setenv(name, "http://127.0.0.1:1/")
    rig.vendor.script = answers_well
    found = await ask_all(rig, [post(b"Content-Length: %d\r\n" % len(BODY))])
    assert found == [(200, None)]
    return "the gateway calls vendors alone, and no proxy of the environment"


CASES: Final = [
    Case(number=85, expected="refused when it is configured", attempt=inside),
    Case(
        number=86,
        expected="connected to, refused by its peer address, nothing sent",
        attempt=rebound,
    ),
    Case(number=87, expected="passed on, not followed", attempt=redirects),
    Case(
        number=88,
        expected="headers dropped; fields of the body go up and lead nowhere",
        attempt=told_by_the_client,
    ),
]
ALONE: Final = {89}


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_group_i(case: Case, rig: Rig, outcomes: Outcomes) -> None:
    outcomes[case.number] = outcome = await case.attempt(rig)
    assert outcome == case.expected


async def test_89_other_urls_and_proxies_in_the_environment(
    rig: Rig, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes[89] = await proxies(rig, monkeypatch)
