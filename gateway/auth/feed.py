"""What changed, as it changes: the feed that keeps a worker fresh, or stops it.

One connection, one loop. It waits for a notification or until a heartbeat is due, reads the change
log from where it was, has the changes applied, and confirms them. A heartbeat is followed by a read
before it renews the lease: whoever commits a change after that read finds a live worker to wait
for, and what was committed before is applied.

A worker knows its place by ordinal and id. If the database no longer has exactly that change, it is
not the database it was (a restore, a failover): everything remembered is looked up again.

Vendors take a while to load, and no heartbeat waits for that. Each load has a number: a change to
vendors holds once the load holds that was asked for when it was heard of, or a later one. So does
all that was committed before a worker began: it may have loaded its vendors earlier.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

import asyncpg

from gateway.auth.feed_connection import FeedConnection, FeedLost, Page, Worker
from gateway.auth.lease import Lease
from gateway.auth.recent_changes import VENDORS, Change, RecentChanges
from gateway.clock import DatabaseClock
from gateway.errors import GatewayError

HEARTBEAT_SECONDS: Final = 1.0
HEARTBEATS_A_LEASE_MIN: Final = 4
QUERY_SECONDS_MAX: Final = 3.0
BACKOFF_SECONDS_MIN: Final = 0.05
BACKOFF_SECONDS_MAX: Final = 1.0
UNCONFIRMED_MAX: Final = 10_000  # whoever waits for an older one has given up
WATCH_SECONDS: Final = 0.25  # timers stand still in a suspended machine, the lease does not


class WorkerEnded(Exception):
    """Others hold this worker for dead and do not wait for it; it has to stop."""


class Feed:
    """One worker's feed. `ready` is set once calls may be admitted for the first time."""

    def __init__(
        self,
        *,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        worker_id: str,
        machine: str,
        pid: int,
        lease_seconds: float,
        offline_grace_seconds: float,
        clock: DatabaseClock,
        on_changes: Callable[[Sequence[Change]], Mapping[int, int]],
        on_reset: Callable[[], Awaitable[None]],
        on_recall: Callable[[str, str], None],
        reload_vendors: Callable[[], int] = lambda: 0,
        vendors_loaded: Callable[[], int] = lambda: 0,
        on_stale_streams: Callable[[], None],
        unshipped_since: Callable[[], float | None],
        ledger_place: Callable[[], tuple[int, str] | None] = lambda: None,
        on_ledger_lost: Callable[[], None] = lambda: None,
        on_lag: Callable[[float], None] = lambda _seconds: None,
        on_heartbeat: Callable[[float], None] = lambda _seconds: None,
        on_lost: Callable[[str], None] = lambda _problem: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """What is handed in, and what of it must not wait.

        - `connect`: gives a direct connection (no pooler), of its own, as a role that may write.
        - `on_changes(changes)`: applies them, and returns ordinal → streams cut for it, where any.
        - `on_reset()`: forgets everything, in its first step; then looks up what is in use. A
          GatewayError means that it could not, and it is called again.
        - `reload_vendors()`: asks for vendors to be loaded again, and returns the load's number,
          none lower than the one before. Called for changes to vendors, and at a start and a reset.
        - `vendors_loaded()`: the number up to which loads hold; `look_again` is called when it
          changes.
        - `on_recall(kind, subject_id)`: blocks of this subject are wanted back.
        - `on_stale_streams()`: the database has been away for so long that open streams must end;
          once an outage.
        - `unshipped_since()`: Unix second at which the oldest call without a row was admitted.
        - `ledger_place()`: ordinal and id of a row that the ledger has had. `on_ledger_lost()`: the
          database that answers has it no more, though it may know the worker's last change.
        - `on_lag`: seconds from a change's commit until it was applied, at most. `on_heartbeat`:
          seconds that one took. `on_lost`: the connection was given up, and why.
        - `jitter`: gives a number from 0 to 1.
        """
        self._connect = connect
        self._worker = Worker(
            id=worker_id,
            machine=machine,
            pid=pid,
            lease_seconds=lease_seconds,
            offline_grace_seconds=offline_grace_seconds,
        )
        self._clock = clock
        self._on_changes = on_changes
        self._on_reset = on_reset
        self._on_recall = on_recall
        self._reload_vendors = reload_vendors
        self._vendors_loaded = vendors_loaded
        self._on_stale_streams = on_stale_streams
        self._unshipped_since = unshipped_since
        self._ledger_place = ledger_place
        self._on_ledger_lost = on_ledger_lost
        self._on_lag = on_lag
        self._on_heartbeat = on_heartbeat
        self._on_lost = on_lost
        self._jitter = jitter

        self._heartbeat_seconds = min(HEARTBEAT_SECONDS, lease_seconds / HEARTBEATS_A_LEASE_MIN)
        self._query_seconds = min(QUERY_SECONDS_MAX, lease_seconds / HEARTBEATS_A_LEASE_MIN)
        self._lease = Lease(
            seconds=lease_seconds,
            offline_grace_seconds=offline_grace_seconds,
            boottime=clock.boottime,
        )
        self._recent = RecentChanges()
        self._unconfirmed: dict[int, int] = {}  # ordinal → streams cut
        self._loads: dict[int, int] = {}  # of these, about vendors: ordinal → the load it needs
        self._first_load = 0  # the load that all before `_unconfirmed` needs
        self._told = 0  # by the last heartbeat, to be applied
        self._place: tuple[int, str] | None = None  # ordinal and id of the last change applied
        self._owes_reset = False
        self._wake = asyncio.Event()
        self._heartbeat_due = 0.0
        self._failures = 0
        self.ready = asyncio.Event()

    @property
    def applied(self) -> int:
        """Every change up to this ordinal was applied; one to vendors may still be loading."""
        return 0 if self._place is None else self._place[0]

    def lease_holds(self) -> bool:
        """Return whether calls may be admitted; cheap enough to ask for each of them."""
        return self._lease.holds()

    def streams_may_run(self) -> bool:
        """Return whether open streams may go on."""
        return self._lease.streams_may_run()

    def touched_since(self, head: int, subjects: Iterable[tuple[str, str | None]]) -> bool | None:
        """Return whether a change in (head, applied] was about one of these subjects.

        None: the memory does not reach back to `head`.
        """
        return self._recent.touched_since(head, subjects)

    async def run(self) -> None:
        """Follow the database until cancelled.

        Raises, in a group, WorkerEnded and what the callbacks raise: the process has to stop then.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._watch_streams())

    async def end(self) -> None:
        """Tell that this worker has stopped, for a clean stop after `run`. Raises FeedLost."""
        self._lease.give_up()
        async with self._open() as connection:
            await connection.end_worker(self._worker, unshipped_since=self._unshipped_since())

    async def _follow(self) -> None:
        while True:
            try:
                async with self._open() as connection:
                    self._heartbeat_due = 0.0
                    await self._serve(connection)
            except FeedLost as error:
                self._on_lost(str(error))
            await asyncio.sleep(self._backoff())

    async def _serve(self, connection: FeedConnection) -> None:
        while True:
            sent = await self._heartbeat_if_due(connection)
            self._wake.clear()  # before the read: who notifies after it is heard again
            await self._catch_up(connection)
            if sent is not None:
                self._lease.renew(sent)
                self._failures = 0
                self.ready.set()
            await self._confirm(connection)
            await self._wait()
            connection.check()

    async def _heartbeat_if_due(self, connection: FeedConnection) -> float | None:
        """Return the boot-time second at which a heartbeat was sent, if it was time for one."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._heartbeat_due:
            return None
        self._heartbeat_due = loop.time() + self._heartbeat_seconds
        sent = self._clock.boottime()
        self._told = self._holding
        heartbeat = await connection.heartbeat(
            self._worker,
            applied=self._told,
            unshipped_since=self._unshipped_since(),
            ledger_place=self._ledger_place(),
        )
        received = self._clock.boottime()
        if heartbeat.is_ended:
            raise WorkerEnded
        self._clock.observe(sent=sent, received=received, database_time=heartbeat.database_time)
        self._on_heartbeat(received - sent)
        if not heartbeat.ledger_follows:
            self._on_ledger_lost()
        if self._place is None:
            self._start_at(heartbeat.head, heartbeat.head_id)
            self._first_load = self._reload_vendors()
        return sent

    async def _catch_up(self, connection: FeedConnection) -> None:
        """Apply what is new."""
        while True:
            assert self._place is not None
            ordinal, change_id = self._place
            page = await connection.read_changes(after=ordinal, after_id=change_id)
            if self._owes_reset or not page.follows:
                await self._reset(page)
                continue
            self._apply(page)
            if page.is_last:
                return

    def _apply(self, page: Page) -> None:
        """Apply changes, and move on past them, in one step of the loop."""
        if not page.changes or page.last_id is None or page.oldest_at is None:
            return
        cuts = self._on_changes(page.changes)
        self._recent.add(page.changes)
        self._place = page.changes[-1].ordinal, page.last_id
        for change in page.changes:
            self._unconfirmed[change.ordinal] = cuts.get(change.ordinal, 0)
        about_vendors = [change.ordinal for change in page.changes if change.kind == VENDORS]
        if about_vendors:
            self._loads.update(dict.fromkeys(about_vendors, self._reload_vendors()))
        while len(self._unconfirmed) > UNCONFIRMED_MAX:
            oldest = next(iter(self._unconfirmed))
            del self._unconfirmed[oldest]
            self._first_load = self._loads.pop(oldest, self._first_load)
        self._on_lag(max(0.0, self._clock.latest() - page.oldest_at))

    async def _reset(self, page: Page) -> None:
        """Start over at the head of a database that is not the one it was."""
        self._owes_reset = True
        self._loads.clear()
        self._unconfirmed.clear()  # their ordinals belong to other changes now
        self._start_at(page.head, page.head_id)
        try:
            await self._on_reset()
        except GatewayError as error:
            raise FeedLost("tokens in use could not be looked up again") from error
        self._first_load = self._reload_vendors()  # once nothing reads the other database any more
        self._owes_reset = False
        self._heartbeat_due = 0.0  # what was told is of the other database

    def _start_at(self, ordinal: int, change_id: str) -> None:
        self._place = ordinal, change_id
        self._recent.start_at(ordinal)

    async def _confirm(self, connection: FeedConnection) -> None:
        """Tell what holds here; what is not told for a lost connection is told on the next."""
        loaded = self._vendors_loaded()
        told = {
            ordinal: cut
            for ordinal, cut in self._unconfirmed.items()
            if self._loads.get(ordinal, loaded) <= loaded
        }
        if told:
            await connection.confirm(self._worker, told)
            for ordinal in told:
                del self._unconfirmed[ordinal]
                self._loads.pop(ordinal, None)
        if self._told == 0 and self._holding > 0:
            self._heartbeat_due = 0.0  # whoever waits for a change from before the start reads it

    def look_again(self) -> None:
        """Confirm what `vendors_loaded` says of by now."""
        self._wake.set()

    @property
    def _holding(self) -> int:
        """The ordinal up to which every change holds, for the heartbeat; 0: nothing is known to."""
        loaded = self._vendors_loaded()
        if self._place is None or self._owes_reset or self._first_load > loaded:
            return 0
        loading = (ordinal for ordinal, load in self._loads.items() if load > loaded)
        return min(loading, default=self._place[0] + 1) - 1

    async def _wait(self) -> None:
        """Wait for a notification, the end of the connection, or the next heartbeat's time."""
        try:
            async with asyncio.timeout_at(self._heartbeat_due):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _watch_streams(self) -> None:
        """See to it that streams end in time, whether the database answers or hangs."""
        while True:
            if self._lease.streams_just_ended():
                self._on_stale_streams()
            left = self._lease.streams_seconds_left()
            await asyncio.sleep(min(left, WATCH_SECONDS) or WATCH_SECONDS)

    def _open(self) -> FeedConnection:
        return FeedConnection(
            self._connect,
            query_seconds=self._query_seconds,
            on_event=self._wake.set,
            on_recall=self._on_recall,
        )

    def _backoff(self) -> float:
        """Return for how long to wait before the next connection: doubled each time, jittered."""
        seconds = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(self._failures, 10))
        self._failures += 1
        return seconds * (0.5 + self._jitter() / 2)
