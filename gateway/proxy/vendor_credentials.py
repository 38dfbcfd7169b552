"""What a vendor's credential takes beyond a header that never changes: signing, and fresh tokens.

A signature is made for each attempt. A token is asked for in the background: when a table brings
an account, then well before the token's end, one request at a time for all that share the account.
A refresh that fails leaves the old token in use until its end, and is tried again, ever more
seldom. Calls wait for a first token, briefly; where one can't be had, they are refused at once.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from gateway.errors import GatewayError, VendorKeyRefused
from gateway.log import Log
from gateway.proxy.errand import as_a_task
from gateway.proxy.routing import Origin, RoutingTable, Target
from gateway.proxy.upstream import UpstreamPool
from gateway.proxy.whole_answer import WholeAnswer
from gateway.vendors.credential import Outgoing
from gateway.vendors.vertex import ServiceAccount, TokenRefused

TOKEN_BYTES_MAX: Final = 64 * 1024  # of an answer with a token; they have 1 to 2 KiB
TOKEN_SECONDS_MAX: Final = 15.0  # for a token to come
FIRST_TOKEN_SECONDS_MAX: Final = 20.0  # that a call waits for one: an exchange, and some
LOOK_SECONDS: Final = 5.0  # whether a token is due is looked at so often
RETRY_SECONDS_MIN: Final = 1.0
RETRY_SECONDS_MAX: Final = 60.0


def credential_lines(
    target: Target, *, method: bytes, path: str, query: str, headers: bytes, body: bytes, now: float
) -> bytes:
    """Return the lines that a credential adds to a request's head, none for a static key.

    `headers` are all other lines, each with its end; `now` in Unix seconds. Raises
    VendorKeyRefused where there is no valid credential now.
    """
    if target.signer is None:
        return b""
    pairs = [line.partition(": ") for line in headers.decode("latin-1").split("\r\n") if line]
    request = Outgoing(
        method=method.decode("ascii"),
        path=path,
        query=query,
        headers=[(name, value) for name, _, value in pairs],
        body=body,
    )
    lines = target.signer.lines(request, now=now)
    if lines is None:
        raise VendorKeyRefused
    return lines


@dataclass(slots=True, eq=False)
class _Account:
    """One service account, as the present table has it, and how its refresh stands.

    All that call with it share its token: those of this table, and those of tables before, which
    calls that are under way still have.
    """

    one: ServiceAccount
    allow_private: bool
    failures: int = 0
    next_try: float = float("-inf")  # not before, in Unix seconds
    busy: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # no exchange is to be waited for


class TokenKeeper:
    """Keeps the tokens of one worker's service accounts fresh."""

    def __init__(
        self,
        pool: UpstreamPool,
        *,
        now: Callable[[], float],
        log: Log,
        look_seconds: float = LOOK_SECONDS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`pool` is the one that calls use, and guards where it connects to; `now`: Unix time."""
        self._pool = pool
        self._now = now
        self._log = log
        self._look_seconds = look_seconds
        self._jitter = jitter
        self._accounts: dict[bytes, _Account] = {}
        self._stale = asyncio.Event()

    def adopt(self, table: RoutingTable) -> None:
        """Serve the accounts of a new table; tokens that are there already go on to it."""
        before, self._accounts = self._accounts, {}
        for target in table.targets:
            signer = target.signer
            if not isinstance(signer, ServiceAccount):
                continue
            account = self._accounts.get(signer.identity) or before.get(signer.identity)
            if account is None:
                account = _Account(one=signer, allow_private=target.is_private)
            signer.held = account.one.held
            if signer.identity not in self._accounts:
                account.one, account.allow_private = signer, target.is_private
                self._accounts[signer.identity] = account
        self._stale.set()

    async def ready(self, target: Target) -> None:
        """Return when a target's token is there. Raises VendorKeyRefused."""
        signer = target.signer
        if not isinstance(signer, ServiceAccount) or signer.has_token(self._now()):
            return
        account = self._accounts.get(signer.identity)
        if account is None:  # a disabled vendor's, which is tested; until the next table
            account = _Account(one=signer, allow_private=target.is_private)
            self._accounts[signer.identity] = account
            self._stale.set()
        await as_a_task()
        try:
            async with asyncio.timeout(FIRST_TOKEN_SECONDS_MAX):
                await account.settled.wait()
        except TimeoutError:
            raise VendorKeyRefused from None
        if not signer.has_token(self._now()):
            raise VendorKeyRefused

    async def run(self) -> None:
        """Ask for tokens whenever they are due, for ever."""
        async with asyncio.TaskGroup() as exchanges:
            while True:
                self._stale.clear()
                for account in self._accounts.values():
                    now = self._now()
                    if not account.busy and now >= account.next_try and account.one.is_due(now):
                        account.busy = True
                        account.settled.clear()
                        exchanges.create_task(self._refresh(account))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._look_seconds):
                        await self._stale.wait()

    async def _refresh(self, account: _Account) -> None:
        """Ask for a token once."""
        signer = account.one
        try:
            async with asyncio.timeout(TOKEN_SECONDS_MAX):
                status, body = await self._exchange(account)
            token = signer.read(status, body, self._now())
        except (GatewayError, TokenRefused, TimeoutError) as error:
            account.failures += 1
            wait = min(RETRY_SECONDS_MIN * 2 ** min(account.failures, 10), RETRY_SECONDS_MAX)
            account.next_try = self._now() + wait * (0.5 + self._jitter() / 2)
            problem = f"{type(error).__name__}: {error}"
            self._log.warning("no vendor token", account=repr(signer), problem=problem)
        else:
            account.failures = 0
            signer.held.replace(token)
        finally:
            account.busy = False
            account.settled.set()

    async def _exchange(self, account: _Account) -> tuple[int, bytes]:
        """Return the status and body of the answer. Raises GatewayError."""
        signer = account.one
        base = signer.token_uri
        origin = Origin(
            scheme=base.scheme, host=base.host, port=base.port, allow_private=account.allow_private
        )
        form = signer.request(self._now())
        head = (
            f"POST {base.path or '/'} HTTP/1.1\r\nhost: {base.authority}\r\n"
            "content-type: application/x-www-form-urlencoded\r\naccept: application/json\r\n"
            f"content-length: {len(form)}\r\n\r\n"
        )
        connection = await self._pool.connect(origin)
        answer = WholeAnswer(asyncio.get_running_loop(), bytes_max=TOKEN_BYTES_MAX)
        connection.send(answer, head.encode("ascii"), form)
        try:
            return await answer.done
        finally:
            connection.give_up(answer)
