"""Passwords: which may be chosen, and how they are hashed: slowly, by few threads, after a queue.

What is hashed (bcrypt) is the HMAC of the password under a pepper that the database does not have:
of any length up to the limit, with any bytes in it, each is another one. An account that does not
exist takes as long as one that does.
"""

import asyncio
import base64
import contextlib
import hmac
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import resources
from typing import Final, TypeVar

import bcrypt

from control_plane.errors import BadArgument, TooManyRequests
from control_plane.secrets import ControlKeys

BCRYPT_COST: Final = 12  # 0.2 s of one core
PASSWORD_CHARS_MIN: Final = 8
PASSWORD_BYTES_MAX: Final = 1024
THREADS: Final = 2
QUEUE_MAX: Final = 32  # that wait for a thread: 4 s with two cores
RETRY_AFTER_SECONDS: Final = 4.0
NICENESS: Final = 5  # of the threads: whoever answers requests goes first

_HASH: Final = re.compile(r"\$2b\$(?P<cost>[0-9]{2})\$[./0-9A-Za-z]{53}")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordHash:
    """A hash as the database keeps it, and the id of the control key whose pepper is in it."""

    text: str = field(repr=False)
    key_id: str


class PasswordHasher:
    """Hashes and checks passwords, a bounded number at a time."""

    def __init__(self, keys: ControlKeys, *, cost: int = BCRYPT_COST) -> None:
        """`keys` have the peppers; `cost` is the logarithm of how often bcrypt goes round."""
        self._keys = keys
        self._cost = cost
        # For accounts that do not exist: hashing under any salt takes what checking takes.
        self._salt = bcrypt.gensalt(cost)
        assert self._salt.startswith(f"$2b${cost:02}$".encode()), "bcrypt has another format"
        self._executor = ThreadPoolExecutor(
            THREADS, thread_name_prefix="passwords", initializer=_yield_to_others
        )
        self._held = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Take no more; what is at work ends."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """How many are at work or wait."""
        return self._held

    async def hash(self, password: str) -> PasswordHash:
        """Return the hash of a new password. Raises TooManyRequests."""
        key_id = self._keys.current
        peppered = self._peppered(password, key_id)
        text = await self._run(lambda: bcrypt.hashpw(peppered, bcrypt.gensalt(self._cost)))
        return PasswordHash(text=text.decode(), key_id=key_id)

    async def check(self, password: str, stored: PasswordHash | None) -> bool:
        """Return whether it is the password; never for None, which takes as long.

        Raises TooManyRequests.
        """
        is_known = (
            stored is not None
            and _HASH.fullmatch(stored.text) is not None
            and stored.key_id in self._keys.keys
        )
        if not is_known:
            peppered = self._peppered(password, self._keys.current)
            await self._run(lambda: bcrypt.hashpw(peppered, self._salt))
            return False
        assert stored is not None
        text = stored.text.encode()
        peppered = self._peppered(password, stored.key_id)
        return await self._run(lambda: bcrypt.checkpw(peppered, text))

    def is_outdated(self, stored: PasswordHash) -> bool:
        """Return whether today's hash of the password would be another kind of hash."""
        match = _HASH.fullmatch(stored.text)
        is_current = match is not None and int(match["cost"]) == self._cost
        return not is_current or stored.key_id != self._keys.current

    def _peppered(self, password: str, key_id: str) -> bytes:
        pepper = self._keys.pepper(key_id)
        assert pepper is not None, "who asks has looked"
        digest = hmac.digest(pepper, password.encode("utf-8", "surrogatepass"), "sha384")
        return base64.b64encode(digest)  # 64 bytes, none of them NUL: bcrypt reads 72 at most

    async def _run(self, work: Callable[[], Result]) -> Result:
        """Have a thread do it. Raises TooManyRequests where too many wait already."""
        with self._lock:
            if self._held >= THREADS + QUEUE_MAX:
                raise TooManyRequests(
                    "Too many people sign in at this moment.", retry_after=RETRY_AFTER_SECONDS
                )
            self._held += 1
        future = self._executor.submit(work)
        future.add_done_callback(self._let_go)
        return await asyncio.wrap_future(future)  # who leaves while it waits leaves the queue

    def _let_go(self, _: Future[Result]) -> None:
        with self._lock:
            self._held -= 1


async def hash_once(password: str, keys: ControlKeys) -> PasswordHash:
    """Return the hash of a password, for a command that needs one only."""
    with contextlib.closing(PasswordHasher(keys)) as hasher:
        return await hasher.hash(password)


class PasswordRules:
    """Says which passwords may be chosen."""

    def __init__(self) -> None:
        """Read the list of those that everybody tries first."""
        text = resources.files(__package__).joinpath("common_passwords.txt").read_text("ascii")
        self._common = frozenset(text.splitlines())

    def __len__(self) -> int:
        """How many passwords are too common."""
        return len(self._common)

    def check(self, password: str, *, email: str, field: str = "password") -> None:
        """Raise BadArgument for what may not be chosen."""
        check_length(password, field=field)
        if len(password) < PASSWORD_CHARS_MIN:
            raise BadArgument(
                f"A password has at least {PASSWORD_CHARS_MIN} characters.", field=field
            )
        folded = password.casefold()
        if folded in self._common or len(set(folded)) == 1:
            raise BadArgument(
                "This is one of the passwords that everybody tries first: choose another.",
                field=field,
                code="password_common",
            )
        if folded in {email.casefold(), email.casefold().partition("@")[0]}:
            raise BadArgument("Your address is no password: choose another.", field=field)


def check_length(password: str, *, field: str = "password") -> None:
    """Raise BadArgument for what is too long to be anybody's password."""
    if len(password.encode("utf-8", "surrogatepass")) > PASSWORD_BYTES_MAX:
        raise BadArgument(f"A password has at most {PASSWORD_BYTES_MAX} bytes.", field=field)


def _yield_to_others() -> None:
    """Lower the calling thread's priority: in Linux each has its own."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
