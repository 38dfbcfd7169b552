"""Group C: getting in as somebody else, finding out who there is, keeping the owner out."""

import asyncio
import math
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from email import message_from_bytes
from ipaddress import ip_network
from typing import Any, Final

import asyncpg
import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from control_plane.identity.passwords import PasswordHasher, PasswordRules
from control_plane.mail import by_smtp, parse_mail_settings
from control_plane.server_settings import ServerSettings
from tests.control_plane.conftest import Answer, Node, started
from tests.control_plane.identity.accounts import (
    PASSWORD,
    Account,
    is_open,
    last_link,
    new_email,
    registered,
    sign_in,
    sign_up,
)
from tests.control_plane.identity.test_second_factor import code_of, protected
from tests.corpus.attacks import TITLES
from tests.corpus.conftest import Outcomes

APART_SECONDS_MAX: Final = 0.005
SAMPLES: Final = 40
SAMPLES_SLOW: Final = 400


@dataclass(kw_only=True)
class Trial:
    """Two nodes behind a trusted proxy, so that a test may come from any address."""

    node: Node
    second: Node
    owner: asyncpg.Connection

    async def sign_in(
        self, email: str, password: str = PASSWORD, *, at: str, totp: str | None = None
    ) -> Answer:
        """Sign in from an address, at either node."""
        node = random.choice((self.node, self.second))
        return await sign_in(node, email, password, totp=totp, headers={"x-forwarded-for": at})


@dataclass(frozen=True, kw_only=True)
class Case:
    """One number: how it is tried, and what has to come of it."""

    number: int
    expected: str
    attempt: Callable[[Trial], Awaitable[str]]

    def __str__(self) -> str:
        return f"{self.number}: {TITLES[self.number]}"


def any_address() -> str:
    return ".".join(str(random.randint(1, 223)) for _ in range(4))


def told(answer: Answer) -> tuple[int, bytes, dict[str, str]]:
    """Return all that an answer tells, but for what differs with every one."""
    content = answer.json
    content.pop("request_id", None)
    headers = {
        name: value
        for name, value in answer.headers.items()
        if name not in {"date", "x-request-id"}
    }
    return answer.status, str(content).encode(), headers


async def who_there_is(trial: Trial) -> str:
    """Equal in all that is said; how long it takes is measured by tests of its own."""
    known = await registered(trial.node)
    by_other_means = await registered(trial.node)
    await trial.owner.execute(
        "UPDATE accounts SET password_hash = NULL WHERE email = $1", by_other_means.email
    )
    waiting = new_email()
    await sign_up(trial.node, email=waiting)
    emails = (known.email, by_other_means.email, waiting, new_email())
    tellings: Mapping[str, Callable[[str], Mapping[str, Any]]] = {
        "/api/v1/sessions": lambda email: {"email": email, "password": "not this one"},
        "/api/v1/signup": lambda email: {"email": email, "password": PASSWORD, "org_name": "a"},
        "/api/v1/password/reset-request": lambda email: {"email": email},
        "/api/v1/email/resend": lambda email: {"email": email},
    }
    found = []
    for path, body in tellings.items():
        answers = [
            await trial.node.call(
                "POST", path, json=body(email), headers={"x-forwarded-for": any_address()}
            )
            for email in emails
        ]
        assert all(told(answer) == told(answers[0]) for answer in answers), path
        found.append(str(answers[0].status))
    return f"alike: {'/'.join(found)}"


async def guessing(trial: Trial) -> str:
    account = await registered(trial.node)
    home = "198.51.100.7"
    assert (await trial.sign_in(account.email, at=home)).status == 201

    one = [(await trial.sign_in(account.email, f"guess {at}", at="203.0.113.9")).status
           for at in range(15)]  # fmt: skip
    assert (one.count(401), one.count(429)) == (10, 5), "one account, from one address"
    many = [(await trial.sign_in(account.email, f"guess {at}", at=any_address())).status
            for at in range(120)]  # fmt: skip
    assert many.count(401) == 90, "one account, from many addresses: what is left of a hundred"
    assert (await trial.sign_in(account.email, at=any_address())).status == 429
    assert (await trial.sign_in(account.email, at=home)).status == 201, "its owner gets in"

    others = [(await trial.sign_in(new_email(), at="192.0.2.77")).status for _ in range(40)]
    assert others.count(401) <= 30, "one password, many accounts"
    assert others[-1] == 429
    return "429; its owner gets in"


async def of_every_length(trial: Trial) -> str:
    at, email = any_address(), new_email()
    for length in (73, 200, 1_024):
        email = new_email()
        password = "é" * 30 + "x" * (length - 60)
        await registered(trial.node, email=email, password=password)
        assert (await trial.sign_in(email, password, at=at)).status == 201
        other = password[:-1] + "y"
        assert (await trial.sign_in(email, other, at=at)).status == 401
        await trial.owner.execute("DELETE FROM throttle")
    found = set()
    for password in ("x" * 1_025, "x" * 4_096, "é" * 513, "x" * 60_000):
        found.add((await trial.sign_in(email, password, at=at)).status)
        found.add((await sign_up(trial.node, password=password)).status)
        await trial.owner.execute("DELETE FROM throttle")
    return f"distinct to 1,024 bytes, then {'/'.join(map(str, found))}"


async def codes(trial: Trial) -> str:
    account, _ = await protected(trial.node, trial.owner)
    right = await code_of(trial.owner, account)
    first = await trial.sign_in(account.email, at=any_address(), totp=right)
    assert first.status == 201
    wide = right.translate({ord(str(digit)): 0xFF10 + digit for digit in range(10)})
    odd = [right, wide, await code_of(trial.owner, account, steps=-3), f" {right}"]
    refused = [await trial.sign_in(account.email, at=any_address(), totp=one) for one in odd]
    assert {one.status for one in refused} == {401}
    tried = 0
    while (await trial.sign_in(account.email, at=any_address(), totp="000000")).status == 401:
        tried += 1
        assert tried < 10
    return f"401, after {len(odd) + tried} wrong ones 429"


async def left_open(trial: Trial) -> str:
    account, _ = await protected(trial.node, trial.owner)
    await trial.owner.execute("UPDATE sessions SET authenticated_at = now() - interval '11 min'")
    found = set()
    for method, path in (
        ("POST", "/api/v1/me/totp"),
        ("DELETE", "/api/v1/me/totp"),
        ("POST", "/api/v1/me/recovery-codes"),
        ("POST", "/api/v1/me/totp/confirm"),
        ("PUT", "/api/v1/me/password"),
        ("POST", "/api/v1/me/email"),
    ):
        body = {
            "/api/v1/me/totp/confirm": {"code": "000000"},
            "/api/v1/me/password": {"current_password": PASSWORD, "new_password": "lonely one"},
            "/api/v1/me/email": {"email": new_email()},
        }.get(path)
        answer = await trial.node.call(method, path, by=account.person, json=body)
        found.add((answer.status, answer.json["code"]))
    assert found == {(403, "reauthentication_required")}
    return "403"


async def links(trial: Trial) -> str:
    account, _ = await protected(trial.node, trial.owner)
    path = "/api/v1/password/reset-request"

    async def link(**headers: str) -> str:
        body = {"email": account.email}
        await trial.owner.execute("DELETE FROM throttle")
        await trial.node.call("POST", path, json=body, headers=headers)
        await trial.node.services.outbox.drained()
        url = trial.node.mails[-1].link
        assert url is not None
        assert url.startswith(f"{trial.node.services.settings.public_url}/reset-password#token=")
        return url.partition("=")[2]

    async def use(token: str) -> int:
        body = {"token": token, "password": "another lonely one"}
        return (await trial.second.call("POST", "/api/v1/password/reset", json=body)).status

    token = await link(
        **{"host": "evil.example", "x-forwarded-host": "evil.example", "forwarded": "host=evil"}
    )
    assert [await use(token), await use(token)] == [204, 400]
    assert not await is_open(trial.node, account)
    without = await trial.sign_in(account.email, "another lonely one", at=any_address())
    assert without.json["code"] == "totp_required"
    token = await link()
    await trial.owner.execute("UPDATE mailed_links SET expires_at = now() WHERE used_at IS NULL")
    assert await use(token) == 400
    token = await link()
    await trial.owner.execute("UPDATE accounts SET email_key = 'other@example.com'")
    assert await use(token) == 400
    return "once, 30 min, to the configured origin; codes still asked for"


async def one_recovery_code(trial: Trial) -> str:
    account, recovery = await protected(trial.node, trial.owner)
    answers = await asyncio.gather(
        *(trial.sign_in(account.email, at=any_address(), totp=recovery[0]) for _ in range(5))
    )
    return f"{[answer.status for answer in answers].count(201)} of 5"


async def common(trial: Trial) -> str:
    found = set()
    for password in ("password", "Password1", "12345678", "qwerty123", "iloveyou", "football"):
        await trial.owner.execute("DELETE FROM throttle")
        answer = await sign_up(trial.node, password=password)
        found.add((answer.status, answer.json["field"]))
    assert found == {(400, "password")}
    assert len(PasswordRules()) >= 3_000
    return "400"


class Inbox:
    """Keeps what a mail server is sent."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.envelopes.append(envelope)
        return "250 OK"


async def line_ends(trial: Trial) -> str:
    refused = set()
    for end in ("\r\n", "\n", "\r", "\0", "\u2028", "\x85"):
        for field in ("email", "name", "org_name"):
            await trial.owner.execute("DELETE FROM throttle")
            text = f"a@example.com{end}Bcc: b@example.com"
            refused.add((await sign_up(trial.node, **{field: text})).status)
    assert refused == {400}

    inbox = Inbox()
    loop = asyncio.get_running_loop()
    async with await loop.create_server(lambda: SMTP(inbox), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        send = by_smtp(parse_mail_settings(f"smtp://127.0.0.1:{port}", "gateway@example.com"))
        await trial.owner.execute("DELETE FROM throttle")
        await sign_up(
            trial.node, name='"x" <b@example.com>, c@example.com', org_name="a%0d%0aBcc:b"
        )
        await last_link(trial.node)
        mail = trial.node.mails[-1]
        await send(mail)
        with pytest.raises(ValueError, match=r"newline|linefeed|Header"):
            await send(replace(mail, to=f"{mail.to}\r\nBcc: b@example.com"))
    (envelope,) = inbox.envelopes
    message = message_from_bytes(envelope.original_content or b"")
    assert envelope.rcpt_tos == [mail.to]
    assert message.get_all("to") == [mail.to]
    assert message["bcc"] is None
    return "400; one mail to one address"


CASES: Final = [
    Case(number=33, expected="alike: 401/202/202/202", attempt=who_there_is),
    Case(number=34, expected="429; its owner gets in", attempt=guessing),
    Case(number=35, expected="distinct to 1,024 bytes, then 400", attempt=of_every_length),
    Case(number=36, expected="401, after 5 wrong ones 429", attempt=codes),
    Case(number=37, expected="403", attempt=left_open),
    Case(
        number=38,
        expected="once, 30 min, to the configured origin; codes still asked for",
        attempt=links,
    ),
    Case(number=39, expected="1 of 5", attempt=one_recovery_code),
    Case(number=40, expected="400", attempt=common),
    Case(number=41, expected="400; one mail to one address", attempt=line_ends),
]


@pytest.fixture
def proxied(server_settings: ServerSettings) -> ServerSettings:
    """Settings of nodes behind a proxy on this machine, which says who the client is."""
    return replace(server_settings, trusted_proxies=(ip_network("127.0.0.0/8"),))


@asynccontextmanager
async def two_nodes(settings: ServerSettings, owner: asyncpg.Connection) -> AsyncIterator[Trial]:
    async with started(settings) as node, started(settings) as second:
        yield Trial(node=node, second=second, owner=owner)


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_group_c(
    case: Case, proxied: ServerSettings, owner: asyncpg.Connection, outcomes: Outcomes
) -> None:
    async with two_nodes(proxied, owner) as trial:
        outcomes[case.number] = outcome = await case.attempt(trial)
        assert outcome == case.expected
        lines = [*trial.node.lines, *trial.second.lines]
        assert not [line for line in lines if b"request failed" in line]


# ---------------------------------------------------------------- 33: how long the answers take


async def apart(trial: Trial, account: Account, samples: int) -> dict[str, tuple[float, float]]:
    """Return, for each question, how far known and unknown lie apart, and what is noise of that.

    In turn and in random order, so that what slows the machine slows both; the medians' difference,
    and three standard errors of it by the median absolute deviation, in seconds.
    """
    questions: dict[str, Callable[[str], tuple[str, dict[str, str]]]] = {
        "sign in": lambda email: ("/api/v1/sessions", {"email": email, "password": "not this one"}),
        "sign up": lambda email: (
            "/api/v1/signup", {"email": email, "password": PASSWORD, "org_name": "acme"},
        ),
        "reset": lambda email: ("/api/v1/password/reset-request", {"email": email}),
    }  # fmt: skip
    result = {}
    for name, question in questions.items():
        took: dict[bool, list[float]] = {True: [], False: []}
        for at in range(samples):
            if at % 5 == 0:
                await trial.owner.execute("DELETE FROM throttle")
            for is_known in random.sample((True, False), 2):
                path, body = question(account.email if is_known else new_email())
                headers = {"x-forwarded-for": any_address()}
                began = time.perf_counter()
                answer = await trial.node.call("POST", path, json=body, headers=headers)
                took[is_known].append(time.perf_counter() - began)
                assert answer.status in {202, 401}
        known, unknown = took[True], took[False]
        difference = statistics.median(known) - statistics.median(unknown)
        result[name] = (difference, 3 * math.hypot(_error(known), _error(unknown)))
    return result


def _error(values: list[float]) -> float:
    """Return the standard error of a median, whatever a few outliers are."""
    middle = statistics.median(values)
    deviation = 1.4826 * statistics.median(abs(value - middle) for value in values)
    return 1.2533 * deviation / math.sqrt(len(values))


async def test_33_time_tells_nobody_who_has_an_account(
    proxied: ServerSettings, owner: asyncpg.Connection
) -> None:
    await _compare(proxied, owner, samples=SAMPLES)


@pytest.mark.slow
async def test_33_time_tells_nobody_who_asks_hundreds_of_times(
    proxied: ServerSettings, owner: asyncpg.Connection
) -> None:
    await _compare(proxied, owner, samples=SAMPLES_SLOW)


async def _compare(settings: ServerSettings, owner: asyncpg.Connection, *, samples: int) -> None:
    async with two_nodes(settings, owner) as trial:
        account = await registered(trial.node)
        found = await apart(trial, account, samples)
    shown = {name: f"{a * 1000:+.2f} ms, noise {b * 1000:.2f} ms" for name, (a, b) in found.items()}
    print(shown)
    for difference, noise in found.values():
        assert abs(difference) < APART_SECONDS_MAX + noise, shown


async def test_35_what_no_request_can_carry_makes_hashes_apart_too(proxied: ServerSettings) -> None:
    hasher = PasswordHasher(proxied.control_keys, cost=4)
    made = await hasher.hash("nul\0a")
    assert await hasher.check("nul\0a", made)
    assert not await hasher.check("nul\0b", made)
    hasher.close()
