"""Group D: gateway tokens that are wrong, stale, or used for more than they allow."""

import asyncio
import json
import time
from base64 import urlsafe_b64encode
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from control_plane.errors import BadArgument
from control_plane.tenancy.tokens import NewToken, check_new_token
from gateway.auth.token import digest, generate
from tests.conftest import Database, Seed
from tests.corpus.attacks import (
    BODY,
    HOST,
    JSON,
    LENGTH,
    TITLES,
    Case,
    answers_well,
    ask_all,
    post,
)
from tests.corpus.conftest import Outcomes
from tests.corpus.real_tokens import know_tokens
from tests.gateway.proxy.rig import TOKEN, Rig
from tests.gateway.test_app import running

DEAD_SECONDS_MAX: Final = 1.0


def with_token(text: bytes, *lines: bytes) -> bytes:
    return post(LENGTH, *lines).replace(TOKEN.encode(), text)


def without_token(*lines: bytes, query: bytes = b"", body: bytes = BODY) -> bytes:
    framed = b"Content-Length: %d\r\n\r\n" % len(body) + body
    line = b"POST /v1/chat/completions" + query + b" HTTP/1.1\r\n"
    return line + HOST + JSON + b"".join(lines) + framed


async def wrong_checksum(rig: Rig) -> str:
    tokens = know_tokens(rig)
    wrong = [tokens.token[:-1] + bytes([one]) for one in b"0123456789AZaz"]
    wrong = [one for one in wrong if one != tokens.token]
    wrong += [tokens.token[:20] + b"!" + tokens.token[21:], tokens.token[:4] + bytes(38)]
    found = set(await ask_all(rig, [with_token(one) for one in wrong[:-1]]))
    assert found == {(401, "token_invalid")}
    return f"401, {tokens.lookups} lookups"


async def disguised(rig: Rig) -> str:
    tokens = know_tokens(rig)
    text = tokens.token
    body = json.dumps({"model": "m", "messages": [], "token": text.decode()}).encode()
    requests = [
        with_token(digest(text).hex().encode()),
        with_token(text.upper()),
        with_token(text + b"="),
        with_token(text + b"0"),
        with_token(text.replace(b"_", b"%5F")),
        with_token(b'"' + text + b'"'),
        without_token(query=b"?token=" + text),
        without_token(query=b"?key=" + text.replace(b"_", b"%5f")),
        without_token(b"Cookie: key=" + text + b"\r\n"),
        without_token(b"Proxy-Authorization: Bearer " + text + b"\r\n"),
        without_token(b"Authorization: Basic " + text + b"\r\n"),
        without_token(b"Authorization: " + text + b"\r\n"),
        without_token(body=body),
    ]
    found = await ask_all(rig, requests)
    assert {status for status, _ in found} == {401}
    assert rig.vendor.heads == []
    return f"401, {tokens.lookups} lookups"


async def ways_around_a_list(rig: Rig) -> str:
    know = know_tokens(rig, models=("gpt-4o",))
    rig.vendor.script = answers_well
    rig.aliases = {"fast": ("openai", "gpt-5")}

    def asks(body: str) -> bytes:
        raw = body.encode()
        length = b"Content-Length: %d\r\n" % len(raw)
        return post(length, body=raw).replace(TOKEN.encode(), know.token)

    rest = '"messages":[]}'
    hidden = [
        '{"model":"gpt-4o","model":"gpt-5",' + rest,
        '{"model":"gpt-5","model":"gpt-4o",' + rest,
        '{"model":"gpt-4o","m\\u006fdel":"gpt-5",' + rest,
        '{"m\\u006fdel":"gpt-5",' + rest,
        '{"model":" gpt-4o",' + rest,
        '{"model":"gpt-4o ",' + rest,
        '{"model":"gpt-4o\\u0000",' + rest,
        '{"model":["gpt-4o"],' + rest,
    ]
    refused = await ask_all(rig, [asks(one) for one in hidden])
    assert {status for status, _ in refused} == {400}, refused
    not_listed = ["GPT-4O", "gpt-5", "fast", "openai/gpt-4o", "gpt-4o-mini"]
    others = [asks(f'{{"model":"{one}",{rest}') for one in not_listed]
    others += [asks('{"model":"gpt-4o","models":["gpt-5"],' + rest)]
    assert {status for status, _ in await ask_all(rig, others)} == {403}
    path = b"POST /v1beta/models/gpt-4o:generateContent HTTP/1.1"
    mismatch = b'{"model":"models/gpt-5","contents":[]}'
    length = b"Content-Length: %d\r\n" % len(mismatch)
    raw = post(length, line=path, body=mismatch).replace(TOKEN.encode(), know.token)
    assert await ask_all(rig, [raw]) == [(400, "body_invalid")]
    assert rig.vendor.heads == []
    assert await ask_all(rig, [asks('{"model":"gpt-4o",' + rest)]) == [(200, None)]
    return "hidden 400, others 403"


async def other_planes_credential(rig: Rig) -> str:
    tokens = know_tokens(rig)
    claims = {"sub": "user", "iat": int(time.time()), "exp": int(time.time()) + 600}
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    session = b".".join(urlsafe_b64encode(one).rstrip(b"=") for one in (*parts, bytes(32)))
    others = [session, *(generate(kind).encode() for kind in "rsi")]
    found = await ask_all(rig, [with_token(one) for one in others])
    assert {status for status, _ in found} == {401}
    assert tokens.lookups == 3, "what has a token's form is looked up, a session's is not"
    assert await ask_all(rig, [without_token(b"Cookie: session=" + session + b"\r\n")]) == [
        (401, "token_missing")
    ]
    return "401"


async def odd_limits(rig: Rig) -> str:
    for limit in (-1, 2**63, 10**30):
        with pytest.raises(BadArgument, match="limit"):
            check_new_token(NewToken(text=generate(), life=timedelta(days=1), limit=limit))
    check_new_token(NewToken(text=generate(), life=timedelta(days=1), limit=0))
    return "refused; 0 is a limit of none"


CASES: Final = [
    Case(number=42, expected="401, 0 lookups", attempt=wrong_checksum),
    Case(number=43, expected="401, 0 lookups", attempt=disguised),
    Case(number=46, expected="refused; 0 is a limit of none", attempt=odd_limits),
    Case(number=48, expected="hidden 400, others 403", attempt=ways_around_a_list),
    Case(number=49, expected="401", attempt=other_planes_credential),
]
ALONE: Final = {44}  # with a test of its own, on a real database


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_group_d(case: Case, rig: Rig, outcomes: Outcomes) -> None:
    outcomes[case.number] = outcome = await case.attempt(rig)
    assert outcome == case.expected


@pytest.mark.parametrize(
    "gone",
    [
        "UPDATE users SET disabled_at = now()",
        "UPDATE workspaces SET archived_at = now()",
        "UPDATE orgs SET suspended_at = now()",
        "DELETE FROM tokens",
    ],
)
async def test_44_a_token_whose_user_workspace_or_org_is_gone(  # noqa: PLR0917 - fixtures
    database: Database,
    owner: asyncpg.Connection,
    seed: Seed,
    tmp_path: Path,
    outcomes: Outcomes,
    gone: str,
) -> None:
    assert 44 in TITLES
    token, _ = await seed.token()
    async with running(database.gateway_url, tmp_path / "journal") as run:
        await run.ready()
        assert await run.call(token) == (404, "no_route")  # let in; there is no vendor
        await owner.execute(gone)
        began = time.monotonic()
        async with asyncio.timeout(10):
            while (found := await run.call(token))[0] != 401:  # noqa: ASYNC110 - it is asked
                await asyncio.sleep(0.01)
        assert time.monotonic() - began < DEAD_SECONDS_MAX
    assert found[1] in {"token_revoked", "token_invalid"}
    outcomes[44] = "401 within 1 s"


def test_a_caller_without_a_list_may_use_any_model(rig: Rig) -> None:
    assert replace(rig.caller, models=None).may_use("anything")
