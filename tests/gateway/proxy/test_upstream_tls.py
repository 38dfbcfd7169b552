"""Vendors over TLS, on both loops: answers longer than the buffer that all connections share."""

import asyncio
import contextlib
import datetime as dt
import hashlib
import random
import ssl
from collections.abc import Callable

import pytest
import uvloop

from benchmarks.certificate import Certificate, make_certificate
from gateway.errors import VendorUnreachable
from gateway.limits import READ_BUFFER_BYTES
from gateway.proxy.routing import Origin
from gateway.proxy.upstream import UpstreamPool, make_dial
from gateway.proxy.whole_answer import WholeAnswer
from tests.gateway.proxy.rig import DEADLINE_SECONDS

AT_ONCE = 5
QUESTION = b"GET / HTTP/1.1\r\nhost: vendor\r\n\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), now=dt.datetime.now(dt.UTC))


def body(number: int) -> bytes:
    return random.Random(number).randbytes(20 * READ_BUFFER_BYTES + number)


async def vendor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the n-th question of each connection with the n-th body."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        for number in range(AT_ONCE):
            await reader.readuntil(b"\r\n\r\n")
            answer = body(number)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)
            await writer.drain()
        await reader.read()
    writer.close()


async def resolve(_: Origin) -> list[str]:
    return ["127.0.0.1"]


async def talk(certificate: Certificate, trusted: ssl.SSLContext) -> list[list[str]]:
    """Ask on several connections at once, again and again; return the digests of the answers."""
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(certificate.chain, certificate.key)
    server = await asyncio.start_server(vendor, "127.0.0.1", 0, ssl=shown)
    loop = asyncio.get_running_loop()
    pool = UpstreamPool(make_dial(resolve, lambda *_: None, trusted), now=loop.time)
    port = server.sockets[0].getsockname()[1]
    origin = Origin(scheme="https", host="localhost", port=port, allow_private=True)
    try:
        digests = []
        for _ in range(AT_ONCE):
            answers = []
            for _ in range(AT_ONCE):
                connection = pool.take_idle(origin) or await pool.connect(origin)
                answers.append(WholeAnswer(loop, bytes_max=100 * READ_BUFFER_BYTES))
                connection.send(answers[-1], QUESTION, b"")
            async with asyncio.timeout(DEADLINE_SECONDS):
                told = [await answer.done for answer in answers]
            digests.append([hashlib.sha256(got).hexdigest() for _, got in told])
        return digests
    finally:
        pool.close()
        server.close()


@pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_answers_over_tls_are_whole_whoever_else_reads(
    certificate: Certificate, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    trusted = ssl.create_default_context(cafile=str(certificate.authority))
    with asyncio.Runner(loop_factory=new_loop) as runner:
        digests = runner.run(talk(certificate, trusted))
    wanted = [hashlib.sha256(body(number)).hexdigest() for number in range(AT_ONCE)]
    assert digests == [[one] * AT_ONCE for one in wanted]


def test_a_vendor_whose_certificate_nobody_trusts_is_not_asked(certificate: Certificate) -> None:
    with (
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        pytest.raises(VendorUnreachable),
    ):
        runner.run(talk(certificate, ssl.create_default_context()))
