"""Mail: written in the background, after the answer that says nothing of it was given.

Whoever asks for a mail waits for nothing: neither whether there is an account nor whether the mail
server answers can be told from how long it took. What waits is in memory, bounded; a mail that is
lost with the process is asked for again.
"""

import asyncio
import contextlib
import re
import smtplib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid, parseaddr
from typing import Final
from urllib.parse import unquote, urlsplit

from control_plane.errors import BadArgument, Overloaded
from gateway.log import Log

WAITING_MAX: Final = 1_000  # jobs; beyond it askers are told to come again
WORKERS: Final = 4  # mails at a time: one server that hangs holds up few others
TRIES: Final = 3
PAUSE_SECONDS: Final = 2.0  # before the second try, doubling
SMTP_SECONDS_MAX: Final = 15.0  # each step with the server
SMTP_PORT: Final = 587
SMTPS_PORT: Final = 465
URL_SETTING: Final = "KAIXU_SMTP_URL"
FROM_SETTING: Final = "KAIXU_MAIL_FROM"

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_HEADER_TEXT: Final = re.compile(r"[^\r\n\0]{1,200}")
_PERMANENT_MIN: Final = 500  # SMTP: trying again won't help


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """A mail to one person. `link` is the one in the text, if there is one."""

    to: str
    subject: str
    text: str = field(repr=False)
    link: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MailSettings:
    """How mail goes out. Without TLS only to this machine."""

    host: str
    port: int
    sender: str
    is_tls: bool  # from the first byte; else by STARTTLS
    user: str | None = None
    password: str | None = field(default=None, repr=False)


def parse_mail_settings(url: str, sender: str | None) -> MailSettings:
    """Return the settings in smtp://user:password@host:port, or smtps://. Raises BadArgument."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in {"smtp", "smtps"} or not parts.hostname or port == -1 or parts.query:
        raise BadArgument(
            "Write it as smtps://user:password@host or smtp://host:587.", field=URL_SETTING
        )
    if sender is None or not _HEADER_TEXT.fullmatch(sender) or "@" not in parseaddr(sender)[1]:
        raise BadArgument(
            "Say whom mails are from, as in kAIxU <gateway@example.com>.", field=FROM_SETTING
        )
    is_tls = parts.scheme == "smtps"
    return MailSettings(
        host=parts.hostname,
        port=port or (SMTPS_PORT if is_tls else SMTP_PORT),
        sender=sender,
        is_tls=is_tls,
        user=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
    )


Deliver = Callable[[Mail], Awaitable[None]]
Job = Callable[[], Awaitable[Mail | None]]


class Outbox:
    """What is to be done after the answer: finding out what to write, and sending it."""

    def __init__(self, deliver: Deliver, *, log: Log, pause_seconds: float = PAUSE_SECONDS) -> None:
        """`deliver` sends a mail, or raises OSError."""
        self._deliver = deliver
        self._log = log
        self._pause_seconds = pause_seconds
        self._jobs: asyncio.Queue[Job] = asyncio.Queue(WAITING_MAX)

    def post(self, job: Job) -> None:
        """Have a job done that returns a mail, or None where none is to be sent.

        Raises Overloaded.
        """
        try:
            self._jobs.put_nowait(job)
        except asyncio.QueueFull:
            raise Overloaded("Too many mails wait to be sent.") from None

    def send(self, mail: Mail) -> None:
        """Have a mail sent that tells of what is done already; where too many wait, it is not."""

        async def job() -> Mail:
            return mail

        try:
            self.post(job)
        except Overloaded:
            self._log.warning("mail not sent: too many wait", subject=mail.subject)

    async def drained(self) -> None:
        """Return when nothing waits any more."""
        await self._jobs.join()

    async def work(self) -> None:
        """Do the jobs, until cancelled."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(WORKERS):
                workers.create_task(self._work())

    async def _work(self) -> None:
        while True:
            job = await self._jobs.get()
            try:
                mail = await job()
                if mail is not None:
                    await self._send(mail)
            except Exception as error:  # noqa: BLE001 - a job that fails fails alone
                self._log.error("mail not written", error=error)
            finally:
                self._jobs.task_done()

    async def _send(self, mail: Mail) -> None:
        for number in range(1, TRIES + 1):
            try:
                await self._deliver(mail)
            except (OSError, smtplib.SMTPException) as error:
                is_over = number == TRIES or _is_permanent(error)
                self._log.warning(
                    "mail not sent",
                    subject=mail.subject,
                    last_try=is_over,
                    # What a server says may quote whom we write to.
                    error=type(error).__name__,
                )
                if is_over:
                    return
                await asyncio.sleep(self._pause_seconds * 2 ** (number - 1))
            else:
                return


def _is_permanent(error: Exception) -> bool:
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return all(code >= _PERMANENT_MIN for code, _ in error.recipients.values())
    code = getattr(error, "smtp_code", 0)
    return isinstance(code, int) and code >= _PERMANENT_MIN


def by_smtp(settings: MailSettings) -> Deliver:
    """Return what sends a mail through a server, in a thread of its own."""

    async def deliver(mail: Mail) -> None:
        await asyncio.to_thread(_deliver, settings, mail)

    return deliver


def by_log(log: Log, *, is_production: bool) -> Deliver:
    """Return what tells the operator instead, where no server is set.

    In production a log has no links that let anyone in.
    """

    async def deliver(mail: Mail) -> None:
        if is_production:
            log.warning("mail not sent: no server is set", subject=mail.subject)
        else:
            log.info("mail", to=mail.to, subject=mail.subject, link=mail.link or "")

    return deliver


def message_of(mail: Mail, sender: str) -> EmailMessage:
    """Return a mail as it goes out. Raises ValueError for what no header can hold."""
    message = EmailMessage(policy=SMTP)
    message["From"] = sender
    message["To"] = mail.to
    message["Subject"] = mail.subject
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain=parseaddr(sender)[1].rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday notice comes back
    message.set_content(mail.text)
    return message


def _deliver(settings: MailSettings, mail: Mail) -> None:
    message = message_of(mail, settings.sender)
    context = ssl.create_default_context()
    server: smtplib.SMTP
    if settings.is_tls:
        server = smtplib.SMTP_SSL(
            settings.host, settings.port, timeout=SMTP_SECONDS_MAX, context=context
        )
    else:
        server = smtplib.SMTP(settings.host, settings.port, timeout=SMTP_SECONDS_MAX)
    with server:
        if not settings.is_tls and settings.host not in _LOOPBACK:
            server.starttls(context=context)
        if settings.user is not None:
            server.login(settings.user, settings.password or "")
        server.send_message(message, to_addrs=[mail.to])


@contextlib.asynccontextmanager
async def open_outbox(
    settings: MailSettings | None, *, is_production: bool, log: Log
) -> AsyncIterator[Outbox]:
    """Send mails for as long as the context lasts; what waits then is not sent."""
    deliver = by_log(log, is_production=is_production) if settings is None else by_smtp(settings)
    outbox = Outbox(deliver, log=log)
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(outbox.work())
        try:
            yield outbox
        finally:
            working.cancel()
