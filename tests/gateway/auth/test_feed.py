"""The feed against a real PostgreSQL: what commits is applied, whatever happens in between."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from gateway.auth.feed import Feed, WorkerEnded
from gateway.auth.feed_connection import mark_ended
from gateway.auth.recent_changes import Change
from gateway.clock import DatabaseClock, boottime
from gateway.errors import DatabaseAway

WAIT_SECONDS = 10.0


class Watched:
    """Something that tests wait for: `notify` whenever it may have come true."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not holds():
                self._changed.clear()
                await self._changed.wait()


class Worker(Watched):
    """A feed with what it is handed, all of it written down."""

    def __init__(
        self, connect: Callable[[], Awaitable[asyncpg.Connection]], **settings: Any
    ) -> None:
        super().__init__()
        self.id = str(uuid.uuid4())
        self.changes: list[Change] = []
        self.cuts: dict[str | None, int] = {}
        self.resets = 0
        self.reset_errors: list[Exception] = []
        self.recalls: list[tuple[str, str]] = []
        self.stale = 0
        self.lost: list[str] = []
        self.lags: list[float] = []
        self.heartbeats = 0
        self.unshipped: float | None = None
        self.ledger_place: tuple[int, str] | None = None
        self.ledgers_lost = 0
        self.offset = 0.0  # added to the boot-time clock
        handed_in: dict[str, Any] = {
            "connect": connect,
            "worker_id": self.id,
            "machine": "here",
            "pid": 4711,
            "lease_seconds": 15.0,
            "offline_grace_seconds": 300.0,
            "clock": DatabaseClock(lambda: boottime() + self.offset),
            "on_changes": self._on_changes,
            "on_reset": self._on_reset,
            "on_recall": self._on_recall,
            "on_stale_streams": self._on_stale_streams,
            "unshipped_since": lambda: self.unshipped,
            "ledger_place": lambda: self.ledger_place,
            "on_ledger_lost": self._on_ledger_lost,
            "on_lag": self.lags.append,
            "on_heartbeat": self._on_heartbeat,
            "on_lost": self._on_lost,
            "jitter": lambda: 0.0,
        }
        self.feed = Feed(**(handed_in | settings))

    def _on_changes(self, changes: Sequence[Change]) -> Mapping[int, int]:
        self.changes += changes
        self.notify()
        return {
            change.ordinal: self.cuts[change.subject_id]
            for change in changes
            if change.subject_id in self.cuts
        }

    async def _on_reset(self) -> None:
        self.resets += 1
        self.notify()
        if self.reset_errors:
            raise self.reset_errors.pop()

    def _on_ledger_lost(self) -> None:
        self.ledgers_lost += 1
        self.ledger_place = None
        self.notify()

    def _on_recall(self, kind: str, subject_id: str) -> None:
        self.recalls.append((kind, subject_id))
        self.notify()

    def _on_stale_streams(self) -> None:
        self.stale += 1
        self.notify()

    def _on_heartbeat(self, _seconds: float) -> None:
        self.heartbeats += 1
        self.notify()

    def _on_lost(self, problem: str) -> None:
        self.lost.append(problem)
        self.notify()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Worker"]:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.feed.run())
            async with asyncio.timeout(WAIT_SECONDS):
                await self.feed.ready.wait()
            yield self
            task.cancel()

    async def runs_on_after(self, act: Awaitable[object]) -> None:
        """Raise what ends the feed after this was done."""
        async with self.running():
            await act
            await asyncio.sleep(WAIT_SECONDS)

    async def applies(self, *subject_ids: str) -> None:
        """Wait until changes of these subjects were applied."""
        await self.until(lambda: {*subject_ids} <= {change.subject_id for change in self.changes})


class Proxy:
    """A way to the database that can stop forwarding, in both directions, without a word."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket_folder = parse_qs(parts.query).get("host", [None])[0]
        self._address = (parts.hostname, parts.port or 5432)
        self._parts = parts
        self._forwards = asyncio.Event()
        self._forwards.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hang(self) -> None:
        self._forwards.clear()

    def resume(self) -> None:
        self._forwards.set()

    async def connect(self) -> asyncpg.Connection:
        assert self._server is not None
        return await asyncpg.connect(
            host="127.0.0.1",
            port=self._server.sockets[0].getsockname()[1],
            user=self._parts.username,
            password=self._parts.password,
            database=self._parts.path.removeprefix("/"),
            timeout=1,
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._socket_folder:
                path = f"{self._socket_folder}/.s.PGSQL.{self._address[1]}"
                to_reader, to_writer = await asyncio.open_unix_connection(path)
            else:
                to_reader, to_writer = await asyncio.open_connection(*self._address)
            try:
                await asyncio.gather(self._pump(reader, to_writer), self._pump(to_reader, writer))
            finally:
                to_writer.close()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._forwards.wait()
            writer.write(data)
        raise ConnectionResetError


Connect = Callable[[], Awaitable[asyncpg.Connection]]


@pytest.fixture
def connect(database: Any) -> Connect:
    async def connected() -> asyncpg.Connection:
        return await asyncpg.connect(database.gateway_url)

    return connected


@pytest.fixture
async def worker(connect: Connect) -> AsyncIterator[Worker]:
    async with Worker(connect).running() as running:
        yield running


async def revoke(connection: asyncpg.Connection, token_id: str) -> int:
    """Revoke a token; return the head afterwards, which is its ordinal where nobody else is."""
    await connection.execute("UPDATE tokens SET revoked_at = now() WHERE id = $1", token_id)
    return int(await connection.fetchval("SELECT last FROM change_head"))


async def confirmation(connection: asyncpg.Connection, worker: Worker, ordinal: int) -> int:
    """Wait for a worker's confirmation; return the streams it says it cut."""
    ask = (
        "SELECT streams_cut FROM confirmations, pg_sleep(0.002) "
        "WHERE worker_id = $1 AND ordinal = $2"
    )
    async with asyncio.timeout(WAIT_SECONDS):
        while (cut := await connection.fetchval(ask, worker.id, ordinal)) is None:
            pass
    return int(cut)


async def told(connection: asyncpg.Connection, worker: Worker, ordinal: int) -> None:
    """Wait until a worker's heartbeats tell that everything up to exactly this one holds."""
    ask = "SELECT applied FROM workers, pg_sleep(0.002) WHERE id = $1"
    async with asyncio.timeout(WAIT_SECONDS):
        while await connection.fetchval(ask, worker.id) != ordinal:
            pass


async def backend_pids(connection: asyncpg.Connection) -> list[int]:
    rows = await connection.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE "
        "'%change_head%' AND pid <> pg_backend_pid()"
    )
    return [row["pid"] for row in rows]


async def test_a_change_is_applied_confirmed_and_told_by_its_effect(
    worker: Worker, owner: asyncpg.Connection, seed: Any
) -> None:
    _, token_id = await seed.token()
    worker.cuts[token_id] = 7
    start = worker.feed.applied
    await owner.execute("UPDATE tokens SET models = '{a}'")
    ordinal = await revoke(owner, token_id)
    assert await confirmation(owner, worker, ordinal) == 7
    assert worker.feed.applied == ordinal == start + 2
    assert worker.changes == [
        Change(ordinal=ordinal - 1, kind="token", subject_id=token_id, effect="changed"),
        Change(ordinal=ordinal, kind="token", subject_id=token_id, effect="dead"),
    ]
    assert all(0 <= lag < 5 for lag in worker.lags)


async def test_vendors_are_a_change_without_a_subject(
    worker: Worker, owner: asyncpg.Connection
) -> None:
    await owner.execute("INSERT INTO aliases (name, vendor_name, model) VALUES ('a', 'b', 'c')")
    await worker.until(lambda: bool(worker.changes))
    (change,) = worker.changes
    assert (change.kind, change.subject_id, change.effect) == ("vendors", None, "changed")
    assert await confirmation(owner, worker, change.ordinal) == 0


async def test_a_notified_change_takes_milliseconds_and_not_a_heartbeat(
    worker: Worker, owner: asyncpg.Connection, seed: Any
) -> None:
    tokens = [(await seed.token())[1] for _ in range(20)]
    took = []
    for token_id in tokens:
        await revoke(owner, token_id)
        committed = time.perf_counter()
        await worker.applies(token_id)
        took.append(time.perf_counter() - committed)
    assert sorted(took)[len(took) // 2] < 0.1, took


async def test_a_commit_held_back_is_neither_skipped_nor_read_early(
    worker: Worker, owner: asyncpg.Connection, database: Any, seed: Any
) -> None:
    (_, first), (_, second), (_, third) = [await seed.token() for _ in range(3)]
    slow = await asyncpg.connect(database.owner_url)
    waiting = await asyncpg.connect(database.owner_url)
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute("UPDATE tokens SET revoked_at = now() WHERE id = $1", first)
    await revoke(owner, third)
    await worker.applies(third)
    await slow.execute("SET CONSTRAINTS ALL IMMEDIATE")  # its ordinal is taken, its commit is not
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(revoke(waiting, second))
        beaten = worker.heartbeats
        await worker.until(lambda: worker.heartbeats > beaten)
        assert [change.subject_id for change in worker.changes] == [third]
        await transaction.commit()
    await worker.applies(first, second)
    assert [change.subject_id for change in worker.changes] == [third, first, second]
    assert [change.ordinal for change in worker.changes] == sorted(
        change.ordinal for change in worker.changes
    )
    await slow.close()
    await waiting.close()


async def test_a_killed_connection_is_made_again_and_what_was_missed_is_read(
    worker: Worker, owner: asyncpg.Connection, seed: Any
) -> None:
    tokens = [(await seed.token())[1] for _ in range(5)]
    for token_id in tokens:
        for pid in await backend_pids(owner):
            await owner.execute("SELECT pg_terminate_backend($1)", pid)
        ordinal = await revoke(owner, token_id)
        await confirmation(owner, worker, ordinal)
    assert [change.subject_id for change in worker.changes] == tokens
    assert worker.lost
    assert worker.resets == 0
    assert worker.feed.lease_holds()


async def test_more_changes_than_one_read_brings_are_all_applied(
    worker: Worker, owner: asyncpg.Connection, seed: Any
) -> None:
    await seed.token()
    await owner.execute(
        "INSERT INTO tokens SELECT gen_random_uuid(), sha256(n::text::bytea), hint, name, org_id, "
        "workspace_id, user_id, parent_id, scopes, models, created_at, expires_at "
        "FROM tokens, generate_series(1, 2500) AS n"
    )
    await owner.execute("UPDATE tokens SET revoked_at = now()")
    await worker.until(lambda: len(worker.changes) == 2501)
    await confirmation(owner, worker, worker.feed.applied)
    assert await owner.fetchval("SELECT count(*) FROM confirmations") == 2501


async def test_a_database_without_the_last_change_is_another_one(
    worker: Worker, owner: asyncpg.Connection, seed: Any
) -> None:
    tokens = [(await seed.token())[1] for _ in range(3)]
    for token_id in tokens[:2]:
        await revoke(owner, token_id)
    await worker.applies(*tokens[:2])
    await confirmation(owner, worker, worker.feed.applied)
    # A restore from before both, after which as many changes came again, with the same ordinals.
    async with owner.transaction():
        await owner.execute("TRUNCATE change_log")
        await owner.execute("UPDATE change_head SET last = 0, last_id = gen_random_uuid()")
        await owner.execute("UPDATE tokens SET revoked_at = NULL")
    head = await revoke(owner, tokens[2])
    await worker.until(lambda: worker.resets > 0)
    ordinal = await revoke(owner, tokens[0])
    assert ordinal > head
    await confirmation(owner, worker, ordinal)
    assert worker.resets == 1
    assert worker.changes[-1].subject_id == tokens[0]
    assert worker.feed.touched_since(1, [("token", "x")]) is None


async def test_a_shorter_log_with_the_same_beginning_is_another_one_too(
    worker: Worker, owner: asyncpg.Connection, seed: Any
) -> None:
    (_, first), (_, second) = await seed.token(), await seed.token()
    before = await revoke(owner, first)
    await revoke(owner, second)
    await worker.applies(first, second)
    async with owner.transaction():  # a standby that had not heard of the last one took over
        await owner.execute("DELETE FROM change_log WHERE ordinal > $1", before)
        await owner.execute(
            "UPDATE change_head SET last = $1, last_id = (SELECT id FROM change_log "
            "WHERE ordinal = $1)",
            before,
        )
    await worker.until(lambda: worker.resets == 1)
    await worker.until(lambda: worker.feed.applied == before)


async def test_a_log_that_was_pruned_to_nothing_is_the_same_database(
    worker: Worker, owner: asyncpg.Connection, seed: Any
) -> None:
    (_, first), (_, second) = await seed.token(), await seed.token()
    await revoke(owner, first)
    await worker.applies(first)
    await owner.execute("DELETE FROM change_log")
    beaten = worker.heartbeats
    await worker.until(lambda: worker.heartbeats > beaten + 1)
    await revoke(owner, second)
    await worker.applies(second)
    assert worker.resets == 0


async def test_a_reset_that_could_not_look_tokens_up_is_done_again_before_the_lease_goes_on(
    worker: Worker, owner: asyncpg.Connection, seed: Any
) -> None:
    worker.reset_errors.append(DatabaseAway())
    await owner.execute("UPDATE change_head SET last_id = gen_random_uuid()")
    await worker.until(lambda: worker.resets == 2)
    _, token_id = await seed.token()
    await confirmation(owner, worker, await revoke(owner, token_id))
    assert worker.resets == 2
    assert worker.lost == ["tokens in use could not be looked up again"]


async def test_a_worker_that_starts_begins_at_the_head(
    connect: Connect, owner: asyncpg.Connection, seed: Any
) -> None:
    _, token_id = await seed.token()
    head = await revoke(owner, token_id)
    async with Worker(connect).running() as worker:
        assert worker.feed.applied == head
        assert worker.changes == []
        assert worker.feed.touched_since(head, [("token", token_id)]) is False
        assert worker.feed.touched_since(head - 1, [("token", token_id)]) is None
        row = await owner.fetchrow("SELECT * FROM workers WHERE id = $1", worker.id)
        assert row
        assert (row["machine"], row["pid"]) == ("here", 4711)
        assert (row["lease"].total_seconds(), row["ended_at"]) == (15, None)
        assert row["offline_stream_grace"].total_seconds() == 300
        await told(owner, worker, head)


async def test_what_changed_since_a_look_is_known(
    worker: Worker, owner: asyncpg.Connection, seed: Any
) -> None:
    (_, first), (_, second) = await seed.token(), await seed.token()
    before = worker.feed.applied
    middle = await revoke(owner, first)
    await revoke(owner, second)
    await worker.applies(first, second)
    touched = worker.feed.touched_since
    assert touched(before, [("token", first)]) is True
    assert touched(middle, [("token", first)]) is False
    assert touched(middle, [("user", first), ("token", second)]) is True
    assert touched(before, [("token", str(uuid.uuid4()))]) is False


async def test_heartbeats_go_on_without_changes_and_say_how_far_it_is(
    worker: Worker, owner: asyncpg.Connection, seed: Any
) -> None:
    worker.unshipped = 1_750_000_000.5
    _, token_id = await seed.token()
    ordinal = await revoke(owner, token_id)
    await worker.applies(token_id)
    beaten = worker.heartbeats
    await worker.until(lambda: worker.heartbeats > beaten + 1)
    row = await owner.fetchrow(
        "SELECT applied, extract(epoch FROM unshipped_since)::float8 AS unshipped, "
        "clock_timestamp() - heartbeat_at < '5 s' AS is_fresh FROM workers WHERE id = $1",
        worker.id,
    )
    assert row
    assert tuple(row) == (ordinal, 1_750_000_000.5, True)


async def test_a_heartbeat_tells_a_ledger_that_lost_the_row_it_is_known_by(
    worker: Worker, owner: asyncpg.Connection
) -> None:
    row_id = str(uuid.uuid4())
    await owner.execute(
        "INSERT INTO usage_events (id, ordinal, call_id, time, month, org_id, status, counted, "
        "usage_source) VALUES ($1, 7, $1, now(), '2026-11-01', $1, 'unaccounted', true, 'none')",
        row_id,
    )
    worker.ledger_place = (7, row_id)
    beaten = worker.heartbeats
    await worker.until(lambda: worker.heartbeats > beaten + 2)
    assert worker.ledgers_lost == 0
    await owner.execute("UPDATE usage_events SET ordinal = 8 WHERE id = $1", row_id)
    await worker.until(lambda: worker.ledgers_lost == 1)
    assert worker.resets == 0, "the change log has not changed"


async def test_a_recall_is_heard_and_nonsense_is_not(
    worker: Worker, owner: asyncpg.Connection
) -> None:
    subject_id = str(uuid.uuid4())
    for payload in ("", "token", f"planet:{subject_id}", "token:not-an-id", f"org:{subject_id}"):
        await owner.execute("SELECT pg_notify('kaixu_recall', $1)", payload)
    permits = [("rate-address", "2001:db8::/64"), ("open-token", subject_id)]
    for kind, subject in permits:
        await owner.execute("SELECT pg_notify('kaixu_recall', $1)", f"{kind}:{subject}")
    await worker.until(lambda: len(worker.recalls) > len(permits))
    assert worker.recalls == [("org", subject_id), *permits]


async def test_a_database_that_hangs_ends_the_lease_on_time_and_streams_once_the_grace_is_over(
    database: Any, owner: asyncpg.Connection, seed: Any
) -> None:
    async with Proxy(database.gateway_url) as proxy:
        quick = {"lease_seconds": 4.0, "offline_grace_seconds": 60.0}
        async with Worker(proxy.connect, **quick).running() as worker:
            proxy.hang()
            _, token_id = await seed.token()
            await revoke(owner, token_id)
            assert worker.feed.lease_holds()
            worker.offset += 4.0
            assert not worker.feed.lease_holds()
            assert worker.feed.streams_may_run()
            await worker.until(lambda: bool(worker.lost))
            assert worker.stale == 0
            worker.offset += 60.0
            assert not worker.feed.streams_may_run()
            await worker.until(lambda: worker.stale == 1)
            lost = len(worker.lost)
            await worker.until(lambda: len(worker.lost) > lost)
            assert worker.stale == 1
            assert worker.changes == []

            proxy.resume()
            await worker.applies(token_id)
            await worker.until(worker.feed.lease_holds)
            assert worker.resets == 0

            proxy.hang()
            worker.offset += 64.0
            await worker.until(lambda: worker.stale == 2)
    assert "the database did not answer in time" in worker.lost


async def test_a_lease_goes_on_only_after_what_came_during_an_outage_was_applied(
    database: Any, owner: asyncpg.Connection, seed: Any
) -> None:
    async with Proxy(database.gateway_url) as proxy:
        held: list[bool] = []
        worker = Worker(proxy.connect, lease_seconds=4.0)
        on_changes = worker._on_changes

        def note(changes: Sequence[Change]) -> Mapping[int, int]:
            held.append(worker.feed.lease_holds())
            return on_changes(changes)

        worker.feed._on_changes = note
        async with worker.running():
            proxy.hang()
            await worker.until(lambda: bool(worker.lost))
            _, token_id = await seed.token()
            await revoke(owner, token_id)
            worker.offset += 4.0
            proxy.resume()
            await worker.applies(token_id)
            assert held == [False]
            beaten = worker.heartbeats
            await worker.until(lambda: worker.heartbeats > beaten)
            assert worker.feed.lease_holds()


async def test_a_database_that_only_reads_does_not_renew_the_lease(
    connect: Connect, owner: asyncpg.Connection
) -> None:
    async def connect_to_a_standby() -> asyncpg.Connection:
        connection = await connect()
        await connection.execute("SET default_transaction_read_only = on")
        return connection

    worker = Worker(connect_to_a_standby)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(worker.feed.run())
        await worker.until(lambda: len(worker.lost) > 1)
        task.cancel()
    assert not worker.feed.lease_holds()
    assert not worker.feed.ready.is_set()
    assert worker.lost[0] == "the database is away: ReadOnlySQLTransactionError"


async def test_a_worker_that_ends_says_so(connect: Connect, owner: asyncpg.Connection) -> None:
    async with Worker(connect).running() as worker:
        pass
    await worker.feed.end()
    assert not worker.feed.lease_holds()
    assert await owner.fetchval("SELECT ended_at IS NOT NULL FROM workers") is True


async def test_a_worker_that_others_hold_for_dead_stops(
    connect: Connect, gateway_pool: asyncpg.Pool
) -> None:
    worker = Worker(connect)
    with pytest.raises(ExceptionGroup) as caught:
        await worker.runs_on_after(mark_ended(gateway_pool, worker.id, unshipped_since=None))
    assert caught.group_contains(WorkerEnded)


async def test_changes_that_could_not_be_applied_stop_the_worker(
    connect: Connect, owner: asyncpg.Connection, seed: Any
) -> None:
    def fail(_changes: Sequence[Change]) -> Mapping[int, int]:
        raise OSError("a socket")

    worker = Worker(connect, on_changes=fail)
    _, token_id = await seed.token()
    with pytest.raises(ExceptionGroup) as caught:
        await worker.runs_on_after(revoke(owner, token_id))
    assert caught.group_contains(OSError)
    assert await owner.fetchval("SELECT count(*) FROM confirmations") == 0


class Loads:
    """Loads of vendors, done when a test says so."""

    def __init__(self) -> None:
        self.asked = self.done = 0

    def reload(self) -> int:
        self.asked += 1
        return self.asked

    def worker(self, connect: Connect, **settings: Any) -> Worker:
        return Worker(
            connect, reload_vendors=self.reload, vendors_loaded=lambda: self.done, **settings
        )

    def finish(self, number: int, worker: Worker) -> None:
        self.done = number
        worker.feed.look_again()


ADD_ALIAS = "INSERT INTO aliases VALUES (gen_random_uuid()::text, 'v', 'm')"


async def head_of(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval("SELECT last FROM change_head"))


async def test_a_change_to_vendors_is_confirmed_once_it_holds(
    connect: Connect, owner: asyncpg.Connection, seed: Any
) -> None:
    """Its table takes a while to load; other changes are confirmed meanwhile."""
    _, token_id = await seed.token()
    loads = Loads()
    worker = loads.worker(connect)

    async def confirmed() -> set[str]:
        rows = await owner.fetch(
            "SELECT l.kind FROM confirmations AS c JOIN change_log AS l USING (ordinal)"
        )
        return {row["kind"] for row in rows}

    async with worker.running():
        loads.finish(1, worker)
        before = await head_of(owner)
        await owner.execute(ADD_ALIAS)
        revoked = await revoke(owner, token_id)
        await confirmation(owner, worker, revoked)
        await told(owner, worker, before)
        beats = worker.heartbeats
        await worker.until(lambda: worker.heartbeats > beats + 1)
        assert await confirmed() == {"token"}
        await told(owner, worker, before)
        loads.finish(loads.asked, worker)
        await confirmation(owner, worker, before + 1)
        await told(owner, worker, revoked)


async def test_changes_to_vendors_that_keep_coming_put_no_confirmation_off(
    connect: Connect, owner: asyncpg.Connection
) -> None:
    """A load holds what was committed before it began, whatever was asked for since."""
    loads = Loads()
    worker = loads.worker(connect)
    async with worker.running():
        before = await head_of(owner)
        for number in (2, 3):
            await owner.execute(ADD_ALIAS)
            await worker.until(lambda number=number: loads.asked == number)  # type: ignore[misc]
        loads.finish(2, worker)
        await confirmation(owner, worker, before + 1)
        await told(owner, worker, before + 1)
        assert await owner.fetchval("SELECT count(*) FROM confirmations") == 1


async def test_what_was_committed_before_a_start_holds_once_vendors_were_loaded_after_it(
    connect: Connect, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may have been loaded before the change; that they are again is told at once."""
    monkeypatch.setattr("gateway.auth.feed.HEARTBEAT_SECONDS", 10 * WAIT_SECONDS)
    await owner.execute(ADD_ALIAS)
    head = await head_of(owner)
    loads = Loads()
    worker = loads.worker(connect, lease_seconds=100 * WAIT_SECONDS)
    async with worker.running():
        assert loads.asked == 1
        await told(owner, worker, 0)
        loads.finish(1, worker)
        await told(owner, worker, head)
        assert worker.heartbeats == 2


async def test_after_a_reset_nothing_is_told_to_hold_until_vendors_were_loaded_again(
    connect: Connect, owner: asyncpg.Connection
) -> None:
    await owner.execute(ADD_ALIAS)
    head = await head_of(owner)
    loads = Loads()
    worker = loads.worker(connect)
    async with worker.running():
        loads.finish(1, worker)
        await told(owner, worker, head)
        await owner.execute("UPDATE change_head SET last_id = gen_random_uuid()")
        await worker.until(lambda: worker.resets == 1)
        await told(owner, worker, 0)
        assert loads.asked == 2
        loads.finish(2, worker)
        await told(owner, worker, head)


async def test_a_reset_that_is_not_done_is_not_told_to_hold(
    worker: Worker, owner: asyncpg.Connection
) -> None:
    await owner.execute(ADD_ALIAS)
    head = await head_of(owner)
    await told(owner, worker, head)
    worker.reset_errors += [DatabaseAway(), DatabaseAway()]
    seen: list[int] = []
    on_reset = worker.feed._on_reset

    async def look() -> None:
        seen.append(await owner.fetchval("SELECT applied FROM workers WHERE id = $1", worker.id))
        await on_reset()

    worker.feed._on_reset = look
    await owner.execute("UPDATE change_head SET last_id = gen_random_uuid()")
    await worker.until(lambda: worker.resets == 3)
    assert seen == [head, 0, 0]
    await told(owner, worker, head)


async def test_a_change_to_vendors_that_nobody_waits_for_any_more_is_still_not_told_to_hold(
    connect: Connect, owner: asyncpg.Connection, seed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.auth.feed.UNCONFIRMED_MAX", 1)
    _, token_id = await seed.token()
    loads = Loads()
    worker = loads.worker(connect)
    async with worker.running():
        loads.finish(1, worker)
        await owner.execute(ADD_ALIAS)
        await worker.until(lambda: loads.asked == 2)
        revoked = await revoke(owner, token_id)
        await worker.applies(token_id)
        await told(owner, worker, 0)
        loads.finish(2, worker)
        await told(owner, worker, revoked)
