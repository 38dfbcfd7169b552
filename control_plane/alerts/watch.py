"""The watch: now and then one node looks for what there is to be told of, and tells it.

Whoever has the lock of the database has the watch; a node that dies loses the lock with its
session. An alert is noted once, in the transaction that finds it; it is sent until somebody takes
it or it has been tried often enough. A node that dies between the sending and the note sends again:
receivers know an alert by its id.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

import asyncpg
import msgspec

from control_plane.alerts.subscriptions import secret_place
from control_plane.alerts.texts import subject_of, text_of
from control_plane.alerts.webhook import WebhookFailed, WebhookSender, signature
from control_plane.errors import ControlError
from control_plane.mail import Mail
from control_plane.secrets import ControlKeys, SealBroken
from control_plane.services import Services
from gateway.log import told
from gateway.sql import load_queries

WATCH_SECONDS: Final = 30.0  # between two rounds
BATCH_MAX: Final = 100  # deliveries taken at once
OF_AN_ORG_MAX: Final = 10  # of these: its URLs may be slow, and others wait
AT_ONCE_MAX: Final = 16  # of these, on their way at one time
BATCHES_MAX: Final = 10  # in one round; more wait for the next
TRIES_MAX: Final = 6  # 5 minutes between the first two, doubling: over in 3 hours
RAISE_MILLISECONDS_MAX: Final = 20_000
LOCK_KEY: Final = 0x6B61_6978_7516

_QUERIES: Final = load_queries(__package__, "watch.sql")
_LEAD = _QUERIES["lead"]
_GIVE_UP = _QUERIES["give_up"]
_ALLOW_TIME = _QUERIES["allow_time"]
_RAISE = _QUERIES["raise"]
_TAKE = _QUERIES["take"]
_END = _QUERIES["end"]


class Mailer(Protocol):
    """Has mails sent in the background."""

    def send(self, mail: Mail) -> None:
        """Have a mail sent."""


class AlertBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a URL is sent; `id` is the same however often it comes."""

    id: str
    kind: str
    level: int
    org_id: str
    subject_kind: str
    subject: str
    period: str
    detail: dict[str, Any]
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What came of a round: was it ours, and how many alerts were new, sent, or not."""

    led: bool
    raised: int = 0
    sent: int = 0
    failed: int = 0


class AlertWatch:
    """One node's part in the watch."""

    def __init__(self, services: Services, *, mailer: Mailer, sender: WebhookSender) -> None:
        """`mailer` sends mails, `sender` to URLs."""
        self._database = services.database
        self._keys: ControlKeys = services.control_keys
        self._log = services.log
        self._now = services.now
        self._mailer = mailer
        self._sender = sender

    async def run(self, *, pause_seconds: float = WATCH_SECONDS) -> None:
        """Keep the watch until cancelled; a round that fails is over, the next one begins."""
        while True:
            try:
                await self.round()
            except (ControlError, asyncpg.PostgresError, OSError) as error:
                self._log.warning("alerts not looked for", error=told(error))
            except Exception as error:  # noqa: BLE001 - the watch outlives a defect of ours
                self._log.error("alerts not looked for", error=error)
            await asyncio.sleep(pause_seconds)

    async def round(self) -> Round:
        """Look once, and send what is due, if no other node is at it."""
        async with self._database.connection() as connection:
            if not await connection.fetchval(_LEAD, LOCK_KEY):
                return Round(led=False)
            try:
                return await self._lead(connection)
            finally:
                await connection.execute(_GIVE_UP, LOCK_KEY)

    async def _lead(self, connection: asyncpg.Connection) -> Round:
        async with connection.transaction():
            await connection.execute(_ALLOW_TIME, str(RAISE_MILLISECONDS_MAX))
            raised = await connection.fetchval(_RAISE)
        sent = failed = 0
        for _ in range(BATCHES_MAX):
            taken = await connection.fetch(_TAKE, BATCH_MAX, OF_AN_ORG_MAX)
            slots = asyncio.Semaphore(AT_ONCE_MAX)
            problems = await asyncio.gather(*(self._deliver(dict(row), slots) for row in taken))
            for row, problem in zip(taken, problems, strict=True):
                is_over = problem is None or row["tries"] >= TRIES_MAX
                if is_over:
                    state = "sent" if problem is None else "failed"
                    await connection.execute(
                        _END, row["alert_id"], row["subscription_id"], state, problem or ""
                    )
                sent += problem is None
                failed += problem is not None
            if not taken:
                break
        return Round(led=True, raised=raised, sent=sent, failed=failed)

    async def _deliver(self, row: Mapping[str, Any], slots: asyncio.Semaphore) -> str | None:
        """Send an alert to one subscriber; return why it did not arrive, None: it did."""
        async with slots:
            alert = {**row, "detail": msgspec.json.decode(row["detail"])}
            if row["channel"] == "email":
                if row["email"] is None:
                    return "The member has no verified address any more."
                subject = subject_of(row["kind"], row["level"])
                self._mailer.send(Mail(to=row["email"], subject=subject, text=text_of(alert)))
                return None
            body = msgspec.json.encode(
                AlertBody(
                    id=row["alert_id"],
                    **{name: alert[name] for name in AlertBody.__struct_fields__ if name != "id"},
                )
            )
            try:
                place = secret_place(row["org_id"], row["subscription_id"])
                secret = self._keys.open(row["secret_sealed"], place).decode()
                signed = signature(secret, body, at=int(self._now()))
                await self._sender.send(row["url"], body, alert_id=row["alert_id"], signed=signed)
            except SealBroken:
                return "Its secret can't be opened: subscribe it again."
            except WebhookFailed as error:
                return str(error)
            return None


@contextlib.asynccontextmanager
async def watching(services: Services) -> AsyncIterator[None]:
    """Keep this node's part of the watch for as long as the context lasts."""
    sender = WebhookSender(allow_private=services.settings.private_webhooks)
    watch = AlertWatch(services, mailer=services.outbox, sender=sender)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(watch.run())
        try:
            yield
        finally:
            running.cancel()
