import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from benchmarks.certificate import make_certificate
from control_plane.errors import BadArgument, Overloaded
from control_plane.mail import (
    WAITING_MAX,
    Deliver,
    Mail,
    MailSettings,
    Outbox,
    by_log,
    by_smtp,
    message_of,
    parse_mail_settings,
)
from gateway.log import Log

SENDER = "kAIxU <gateway@example.com>"
MAIL = Mail(
    to="ada@example.com",
    subject="Confirm",
    text="Use https://gateway.example.com/verify-email#token=abc\n",
    link="https://gateway.example.com/verify-email#token=abc",
)


class Inbox:
    """A mail server's inside: keeps what it is sent, after refusing so often."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.refusals = 0
        self.refusal = "451 Come again"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.refusals:
            self.refusals -= 1
            return self.refusal
        self.envelopes.append(envelope)
        return "250 OK"

    def messages(self) -> list[Message]:
        return [message_from_bytes(one.original_content or b"") for one in self.envelopes]


@pytest.fixture
def lines() -> list[bytes]:
    return []


@pytest.fixture
def log(lines: list[bytes]) -> Log:
    def write(line: bytes) -> bool:
        lines.append(line)
        return True

    return Log(write, now=time.time)


@pytest.fixture
async def inbox() -> AsyncIterator[tuple[Inbox, MailSettings]]:
    made = Inbox()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(made), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield made, parse_mail_settings(f"smtp://127.0.0.1:{port}", SENDER)


@contextlib.asynccontextmanager
async def working(deliver: Deliver, log: Log) -> AsyncIterator[Outbox]:
    outbox = Outbox(deliver, log=log, pause_seconds=0.001)
    async with asyncio.TaskGroup() as tasks:
        work = tasks.create_task(outbox.work())
        yield outbox
        work.cancel()


async def test_a_mail_arrives_as_it_was_written(
    inbox: tuple[Inbox, MailSettings], log: Log
) -> None:
    server, settings = inbox
    async with working(by_smtp(settings), log) as outbox:
        outbox.send(MAIL)
        await outbox.drained()
    (envelope,) = server.envelopes
    assert envelope.rcpt_tos == ["ada@example.com"]
    (message,) = server.messages()
    assert message["From"] == SENDER
    assert message["Subject"] == "Confirm"
    assert message["Auto-Submitted"] == "auto-generated"
    assert MAIL.text.strip() in str(message.get_payload())


async def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(
    inbox: tuple[Inbox, MailSettings], log: Log, lines: list[bytes]
) -> None:
    server, settings = inbox
    async with working(by_smtp(settings), log) as outbox:
        server.refusals = 2
        outbox.send(MAIL)
        await outbox.drained()
        assert len(server.envelopes) == 1
        server.refusals, server.refusal = 1, "550 No such mailbox"
        outbox.send(MAIL)
        await outbox.drained()
        assert len(server.envelopes) == 1
    assert [json.loads(line)["last_try"] for line in lines] == [False, False, True]
    assert not [line for line in lines if b"token=" in line or b"ada@" in line]


async def test_a_server_that_is_away_is_told_in_the_log(log: Log, lines: list[bytes]) -> None:
    settings = parse_mail_settings("smtp://127.0.0.1:1", SENDER)
    async with working(by_smtp(settings), log) as outbox:
        outbox.send(MAIL)
        await outbox.drained()
    assert json.loads(lines[-1])["error"] == "ConnectionRefusedError"


async def test_no_mail_leaves_this_machine_without_tls(log: Log, lines: list[bytes]) -> None:
    server = Inbox()
    loop = asyncio.get_running_loop()
    async with await loop.create_server(lambda: SMTP(server), "127.0.0.2", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        settings = parse_mail_settings(f"smtp://127.0.0.2:{port}", SENDER)
        async with working(by_smtp(settings), log) as outbox:
            outbox.send(MAIL)
            await outbox.drained()
    assert server.envelopes == []
    assert json.loads(lines[-1])["error"] == "SMTPNotSupportedError"


async def test_a_server_has_to_show_a_certificate_that_is_trusted(
    log: Log, lines: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_certificate(tmp_path, now=datetime.now(UTC))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made.chain, made.key)
    server = Inbox()
    loop = asyncio.get_running_loop()
    async with await loop.create_server(
        lambda: SMTP(server), "127.0.0.1", 0, ssl=context
    ) as listening:
        port = listening.sockets[0].getsockname()[1]
        settings = parse_mail_settings(f"smtps://127.0.0.1:{port}", SENDER)
        async with working(by_smtp(settings), log) as outbox:
            outbox.send(MAIL)
            await outbox.drained()
            assert server.envelopes == []
            assert json.loads(lines[-1])["error"] == "SSLCertVerificationError"
            monkeypatch.setenv("SSL_CERT_FILE", str(made.authority))
            outbox.send(MAIL)
            await outbox.drained()
    assert len(server.envelopes) == 1


async def test_a_job_that_fails_fails_alone(log: Log, lines: list[bytes]) -> None:
    sent = []

    async def deliver(mail: Mail) -> None:
        sent.append(mail)

    async def fails() -> Mail:
        raise RuntimeError("a defect")

    async with working(deliver, log) as outbox:
        outbox.post(fails)
        outbox.send(MAIL)
        await outbox.drained()
    assert sent == [MAIL]
    assert json.loads(lines[0])["event"] == "mail not written"


async def test_what_waits_is_bounded(log: Log, lines: list[bytes]) -> None:
    async def deliver(mail: Mail) -> None:
        raise AssertionError("nobody works")

    async def job() -> None:
        return None

    outbox = Outbox(deliver, log=log)
    for _ in range(WAITING_MAX):
        outbox.post(job)
    with pytest.raises(Overloaded):
        outbox.post(job)
    outbox.send(MAIL)
    assert json.loads(lines[0])["event"] == "mail not sent: too many wait"


async def test_without_a_server_the_operator_reads_the_link(log: Log, lines: list[bytes]) -> None:
    await by_log(log, is_production=False)(MAIL)
    assert json.loads(lines[0])["link"] == MAIL.link

    await by_log(log, is_production=True)(MAIL)
    assert b"token=" not in lines[1], "in production a log lets nobody in"


@pytest.mark.parametrize("field", ["to", "subject"])
def test_nothing_gets_into_the_head_of_a_mail(field: str) -> None:
    fields: dict[str, Any] = {"to": "a@b", "subject": "s", "text": "t"}
    fields[field] = "a@b\r\nBcc: c@d"
    with pytest.raises(ValueError, match=r"newline|linefeed|Header"):
        message_of(Mail(**fields), SENDER)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.example.com", ("mail.example.com", 587, False, None, None)),
        ("smtp://mail.example.com:25", ("mail.example.com", 25, False, None, None)),
        ("smtps://u%40x:p%2Fw@mail.example.com", ("mail.example.com", 465, True, "u@x", "p/w")),
        ("smtp://[::1]:2525", ("::1", 2525, False, None, None)),
    ],
)
def test_a_servers_url_says_how_to_reach_it(url: str, expected: tuple[object, ...]) -> None:
    made = parse_mail_settings(url, SENDER)
    assert (made.host, made.port, made.is_tls, made.user, made.password) == expected
    assert "p/w" not in repr(made)


@pytest.mark.parametrize(
    ("url", "sender"),
    [
        ("http://mail.example.com", SENDER),
        ("smtp://", SENDER),
        ("smtp://mail:99999", SENDER),
        ("smtp://mail?tls=no", SENDER),
        ("smtp://mail", None),
        ("smtp://mail", "nobody"),
        ("smtp://mail", "a@b\r\nBcc: c@d"),
    ],
)
def test_a_setting_that_says_nothing_is_refused(url: str, sender: str | None) -> None:
    with pytest.raises(BadArgument):
        parse_mail_settings(url, sender)
