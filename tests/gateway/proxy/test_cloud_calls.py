"""Calls of clouds: signed and with tokens, their framing passed on, cut and recorded."""

import asyncio
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer

from gateway.errors import TokenRevoked
from gateway.log import Log
from gateway.proxy.routing import RoutingTable, Target
from gateway.proxy.vendor_credentials import TokenKeeper
from gateway.vendors.vertex import ServiceAccount
from tests.gateway.metering.aws_messages import event, exception
from tests.gateway.proxy.rig import DEADLINE_SECONDS, TOKEN, Rig, StayOpen
from tests.gateway.proxy.test_calls import answers, chunk, plain
from tests.gateway.vendors.cloud_keys import AWS, is_signed, service_account

CONVERSE = {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}
NOVA = "/model/amazon.nova-micro-v1%3A0"
USAGE = {"usage": {"inputTokens": 3, "outputTokens": 4, "totalTokens": 7}}
START = event("messageStart", {"role": "assistant"})
STREAM = START + event("messageStop", {"stopReason": "end_turn"}) + event("metadata", USAGE)
AWS_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\n"
    b"x-amzn-RequestId: req-9\r\nTransfer-Encoding: chunked\r\n\r\n"
)
GEMINI = "/v1/projects/p-1/locations/global/publishers/google/models/gemini-2.5-flash"
GENERATED = {
    "candidates": [{"finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7},
}
NOW = 1_790_000_000.0


def cloud(rig: Rig, kind: str, key: bytes, **changes: Any) -> Target:
    target = rig.target(kind)
    assert target.kind.open_signer is not None
    signer = target.kind.open_signer(key, target.base)
    credential = target.kind.credential_header(key)
    return replace(target, signer=signer, credential=credential, key=key, **changes)


def aws(rig: Rig, **members: Any) -> Target:
    return cloud(rig, "bedrock", json.dumps({**AWS, **members}).encode())


async def test_a_request_is_signed_as_it_arrives(rig: Rig) -> None:
    rig.targets = [aws(rig)]
    rig.vendor.script = answers(plain(200, {"output": {}, "stopReason": "end_turn", **USAGE}))
    answer = await rig.ask(
        f"{NOVA}/converse",
        CONVERSE,
        headers=["X-Amz-Date: 20000101T000000Z", "X-Amz-Security-Token: of-the-client"],
    )
    assert answer.status == 200
    (head,) = rig.vendor.heads
    assert head.startswith(f"POST {NOVA}/converse HTTP/1.1\r\n".encode())
    assert is_signed(head, rig.vendor.bodies[0])
    assert not is_signed(head, rig.vendor.bodies[0] + b" ")
    assert b"of-the-client" not in head
    assert TOKEN.encode() not in head
    row = await rig.lines.row()
    assert (row["input_tokens"], row["output_tokens"], row["vendor"]) == (3, 4, "bedrock")
    assert (row["endpoint"], row["model_requested"]) == (
        "bedrock.converse",
        "amazon.nova-micro-v1:0",
    )


async def test_each_attempt_is_signed_anew(rig: Rig) -> None:
    times: Iterator[float] = iter([NOW, NOW + 1, NOW + 2])
    rig.calls._wall_clock = lambda: next(times)
    rig.targets = [aws(rig)]
    rig.vendor.script = answers(plain(200, USAGE))
    await rig.ask(f"{NOVA}/converse", CONVERSE)

    async def dies_when_reused(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        if len(rig.vendor.heads) == 2:
            writer.transport.abort()
        else:
            writer.write(plain(200, USAGE))

    rig.vendor.script = dies_when_reused
    assert (await rig.ask(f"{NOVA}/converse", CONVERSE)).status == 200
    dates = [re.findall(rb"x-amz-date: (\w+)", head) for head in rig.vendor.heads]
    assert len(rig.vendor.heads) == 3
    assert len({date for (date,) in dates}) == 3
    assert all(map(is_signed, rig.vendor.heads, rig.vendor.bodies))


async def test_a_stream_of_messages_passes_and_is_metered(rig: Rig) -> None:
    async def streams(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(AWS_HEAD)
        for at in range(0, len(STREAM), 7):
            writer.write(chunk(STREAM[at : at + 7]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    rig.targets = [aws(rig)]
    rig.vendor.script = streams
    answer = await rig.ask(f"{NOVA}/converse-stream", CONVERSE)
    assert answer.clean
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(STREAM).digest()
    assert b"\r\naccept-encoding: identity\r\n" in rig.vendor.heads[0]
    row = await rig.lines.row()
    assert (row["status"], row["input_tokens"], row["output_tokens"]) == ("complete", 3, 4)
    assert (row["stream"], row["vendor_request_id"]) == (True, "req-9")
    assert rig.lines.noted[0]["status"] == "complete"


@pytest.mark.parametrize(
    ("stream", "status"),
    [
        (START + exception("throttlingException"), "vendor_error"),
        (START, "vendor_broke"),
        (STREAM[:-9], "vendor_broke"),
    ],
)
async def test_a_stream_that_did_not_end_well_is_recorded_so(
    rig: Rig, stream: bytes, status: str
) -> None:
    rig.targets = [aws(rig)]
    rig.vendor.script = answers(AWS_HEAD + chunk(stream) + b"0\r\n\r\n")
    assert (await rig.ask(f"{NOVA}/converse-stream", CONVERSE)).body == stream
    assert (await rig.lines.row())["status"] == status


async def test_a_revoked_stream_ends_with_an_exception_in_its_own_framing(rig: Rig) -> None:
    async def hangs(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(AWS_HEAD + chunk(START))
        await writer.drain()
        raise StayOpen

    rig.targets = [aws(rig)]
    rig.vendor.script = hangs
    async with rig.client() as client:
        client.send(rig.request(f"{NOVA}/converse-stream", CONVERSE))
        await client.until(START)
        rig.live.cut_all(TokenRevoked)
        rest = await client.until(b"0\r\n\r\n")
    row = await rig.lines.row()
    assert (row["status"], row["reason"]) == ("revoked", "token_revoked")
    buffer = EventStreamBuffer()
    buffer.add_data(re.sub(rb"\A\r\n[0-9a-f]+\r\n", b"", rest).removesuffix(b"\r\n0\r\n\r\n"))
    (last,) = buffer
    assert last.headers[":exception-type"] == "validationException"


async def test_within_a_message_a_revoked_stream_is_aborted(rig: Rig) -> None:
    async def hangs(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(AWS_HEAD + chunk(START + START[:20]))
        await writer.drain()
        raise StayOpen

    rig.targets = [aws(rig)]
    rig.vendor.script = hangs
    async with rig.client() as client:
        client.send(rig.request(f"{NOVA}/converse-stream", CONVERSE))
        await client.until(START + START[:20])
        rig.live.cut_all(TokenRevoked)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.until(b"0\r\n\r\n")
    assert (await rig.lines.row())["status"] == "revoked"


async def test_a_refused_signature_is_about_our_key(rig: Rig) -> None:
    rig.targets = [aws(rig)]
    rig.vendor.script = answers(
        plain(403, {"message": "no"}, "x-amzn-ErrorType: InvalidSignatureException:http://x")
    )
    answer = await rig.ask(f"{NOVA}/invoke", CONVERSE)
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (502, "vendor_key")
    assert json.loads(answer.body)["__type"] == "InternalServerException"


async def test_what_is_not_about_the_key_passes_with_its_secrets_masked(rig: Rig) -> None:
    rig.targets = [aws(rig, session_token="session-canary-1")]
    rig.vendor.script = answers(
        plain(
            403,
            {"message": f"{AWS['secret_access_key']} session-canary-1 AKIAEXAMPLE"},
            "x-amzn-ErrorType: AccessDeniedException",
        )
    )
    answer = await rig.ask(f"{NOVA}/invoke", CONVERSE)
    assert answer.status == 403
    assert b"canary" not in answer.body
    assert b"AKIA" not in answer.body


async def test_a_model_list_holds_for_models_in_paths(rig: Rig) -> None:
    rig.targets = [aws(rig)]
    rig.authenticated.caller = replace(rig.caller, models=("amazon.nova-lite*",))
    for path in (f"{NOVA}/converse", f"{NOVA}/count-tokens"):
        answer = await rig.ask(path, CONVERSE)
        assert (answer.status, answer.headers["x-kaixu-reason"]) == (403, "model_not_allowed")
        assert json.loads(answer.body)["__type"] == "AccessDeniedException"


# ------------------------------------------------------------------------------------------- Azure


async def test_a_deployment_is_called_with_azures_key_and_version(rig: Rig) -> None:
    rig.targets = [rig.target("openai"), replace(rig.target("azure"), is_default=False)]
    rig.vendor.script = answers(plain(200, {"choices": []}))
    path = "/v1/deployments/gpt-4o/chat/completions?api-version=2024-10-21"
    body = {"model": "gpt-4o", "messages": []}
    assert (await rig.ask(path, body)).status == 200
    head = rig.vendor.heads[0]
    there = b"POST /openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21 HTTP"
    assert head.startswith(there)
    assert b"\r\napi-key: vendor-key" in head
    assert (await rig.lines.row())["vendor"] == "azure"
    other = await rig.ask(path, {**body, "model": "gpt-5"})
    assert (other.status, other.headers["x-kaixu-reason"]) == (400, "body_invalid")


async def test_an_alias_stands_for_a_deployment_in_path_and_body(rig: Rig) -> None:
    rig.targets = [rig.target("azure")]
    rig.aliases = {"best": ("azure", "gpt-5-eu")}
    rig.vendor.script = answers(plain(200, {"choices": []}))
    await rig.ask("/deployments/best/chat/completions", {"model": "best", "messages": []})
    assert b" /openai/deployments/gpt-5-eu/chat/completions " in rig.vendor.heads[0]
    assert json.loads(rig.vendor.bodies[0])["model"] == "gpt-5-eu"


async def test_no_other_vendor_is_called_by_a_clouds_paths(rig: Rig) -> None:
    rig.targets = [rig.target("openai"), rig.target("gemini"), rig.target("anthropic")]
    for path in (
        "/openai/deployments/m/chat/completions",
        f"{NOVA}/converse",
        f"{GEMINI}:generateContent",
        "/gemini" + f"{GEMINI}:generateContent",
        "/openai/openai/v1/responses",
    ):
        model = "m" if "openai" in path else None
        answer = await rig.ask(path, {**CONVERSE, **({"model": model} if model else {})})
        assert (answer.status, answer.headers["x-kaixu-reason"]) == (404, "no_route")


# ------------------------------------------------------------------------------------------ Vertex


class Google:
    """Gives tokens, and answers those that call with the newest."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.given = 0
        self.refuses = False
        self.asked = asyncio.Event()
        rig.vendor.script = self.script

    async def script(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"POST /token "):
            assert b"grant_type=" in body
            if self.refuses:
                writer.write(plain(400, {"error": "invalid_grant"}))
            else:
                self.given += 1
                writer.write(
                    plain(200, {"access_token": f"ya29.secret-{self.given}", "expires_in": 3600})
                )
            self.asked.set()
        elif b"\r\nauthorization: Bearer ya29.secret-" in head:
            writer.write(plain(200, GENERATED))
        else:
            writer.write(plain(401, {"error": {"status": "UNAUTHENTICATED"}}))

    async def next_exchange(self) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.asked.wait()
        self.asked.clear()


@pytest.fixture
async def keeper(rig: Rig) -> Any:
    now = [NOW]
    logged: list[bytes] = []

    def write(line: bytes) -> bool:
        logged.append(line)
        return True

    log = Log(write, now=lambda: NOW)
    one = TokenKeeper(rig.pool, now=lambda: now[0], log=log, look_seconds=0.01)
    rig.calls._credential_ready = one.ready
    rig.calls._wall_clock = lambda: now[0]
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(one.run())
        yield one, now
        running.cancel()
    assert b"secret" not in b"".join(logged)


def vertex(rig: Rig, name: str = "vertex") -> Target:
    key = service_account(f"http://127.0.0.1:{rig.vendor.port}/token")
    return cloud(rig, "vertex", key, name=name)


async def test_a_vendor_of_no_table_has_a_token_too_where_it_is_tested(
    rig: Rig, keeper: Any
) -> None:
    google, (one, _) = Google(rig), keeper
    rig.targets = [vertex(rig)]
    one.adopt(RoutingTable(()))  # it is disabled
    assert (await rig.ask(f"{GEMINI}:generateContent", {"contents": []})).status == 200
    assert google.given == 1
    await rig.lines.row()


async def test_a_call_waits_for_the_first_token_and_carries_it(rig: Rig, keeper: Any) -> None:
    google, (one, _) = Google(rig), keeper
    rig.targets = [vertex(rig), vertex(rig, "second")]
    calls = [rig.ask(f"{path}{GEMINI}:generateContent", {"contents": []})
             for path in ("", "/vertex", "/second")]  # fmt: skip
    waiting = asyncio.gather(*calls)
    one.adopt(RoutingTable(rig.targets))
    assert [answer.status for answer in await waiting] == [200, 200, 200]
    assert google.given == 1  # one for all who share the account
    row = await rig.lines.row()
    assert (row["endpoint"], row["client_format"]) == ("vertex.generateContent", "gemini")
    assert (row["input_tokens"], row["output_tokens"]) == (3, 4)


async def test_a_token_is_replaced_before_its_end_and_goes_on_to_new_tables(
    rig: Rig, keeper: Any
) -> None:
    google, (one, now) = Google(rig), keeper
    rig.targets = [vertex(rig)]
    one.adopt(RoutingTable(rig.targets))
    await google.next_exchange()
    assert (await rig.ask(f"{GEMINI}:generateContent", {})).status == 200
    rig.targets = [vertex(rig)]
    one.adopt(RoutingTable(rig.targets))
    assert (await rig.ask(f"{GEMINI}:generateContent", {})).status == 200
    assert google.given == 1
    now[0] += 3001
    await google.next_exchange()
    assert google.given == 2


async def test_a_failing_refresh_keeps_the_old_token_until_its_end(rig: Rig, keeper: Any) -> None:
    google, (one, now) = Google(rig), keeper
    rig.targets = [vertex(rig)]
    one.adopt(RoutingTable(rig.targets))
    await google.next_exchange()
    await one.ready(rig.targets[0])
    google.refuses = True
    now[0] += 3001
    await google.next_exchange()
    assert (await rig.ask(f"{GEMINI}:generateContent", {})).status == 200
    now[0] += 600
    await google.next_exchange()
    answer = await rig.ask(f"{GEMINI}:generateContent", {})
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (502, "vendor_key")
    assert rig.units.left == 1_000_000 - 1  # no unit, no row for what never went out
    assert len(rig.lines.rows) == 1
    (account,) = one._accounts.values()
    await account.settled.wait()
    google.refuses = False
    now[0] += 60
    await google.next_exchange()
    await one.ready(rig.targets[0])
    assert (await rig.ask(f"{GEMINI}:generateContent", {})).status == 200


@pytest.mark.parametrize("place", [0, 1])
async def test_a_token_that_google_refuses_is_replaced_for_all_who_share_it(
    rig: Rig, keeper: Any, place: int
) -> None:
    google, (one, _) = Google(rig), keeper
    rig.targets = [vertex(rig), vertex(rig, "second")]
    one.adopt(RoutingTable(rig.targets))
    await google.next_exchange()
    for target in rig.targets:
        await one.ready(target)
    signer = rig.targets[place].signer
    assert isinstance(signer, ServiceAccount)
    assert signer.held.token is not None
    signer.held.replace(replace(signer.held.token, text=b"revoked-at-google"))
    path = f"/{rig.targets[place].name}{GEMINI}:generateContent"
    answer = await rig.ask(path, {})
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (502, "vendor_key")
    await google.next_exchange()
    await one._accounts[signer.identity].settled.wait()
    for target in rig.targets:
        assert (await rig.ask(f"/{target.name}{GEMINI}:generateContent", {})).status == 200
    assert google.given == 2


async def test_a_call_that_waits_while_a_new_table_comes_gets_the_token(
    rig: Rig, keeper: Any
) -> None:
    google, (one, now) = Google(rig), keeper
    rig.targets = [vertex(rig)]
    one.adopt(RoutingTable(rig.targets))
    async with asyncio.TaskGroup() as calls:
        call = calls.create_task(one.ready(rig.targets[0]))
        await asyncio.sleep(0)
        assert not call.done()
        one.adopt(RoutingTable([vertex(rig)]))
    assert google.given == 1
    signer = rig.targets[0].signer
    assert isinstance(signer, ServiceAccount)
    assert signer.has_token(now[0])


async def test_a_token_that_was_replaced_while_a_call_was_under_way_is_masked(
    rig: Rig, keeper: Any
) -> None:
    google, (one, now) = Google(rig), keeper
    rig.targets = [vertex(rig)]
    one.adopt(RoutingTable(rig.targets))
    await one.ready(rig.targets[0])
    signer = rig.targets[0].signer
    assert isinstance(signer, ServiceAccount)

    async def repeats(head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"POST /token "):
            await google.script(head, body, writer)
            return
        one.adopt(RoutingTable([vertex(rig)]))
        google.asked.clear()
        now[0] += 3001
        await google.next_exchange()
        await one._accounts[signer.identity].settled.wait()
        told = re.findall(rb"authorization: (.*)\r\n", head)[0].decode()
        writer.write(plain(400, {"error": {"message": f"not with {told}"}}))

    rig.vendor.script = repeats
    answer = await rig.ask(f"{GEMINI}:generateContent", {})
    assert (answer.status, google.given) == (400, 2)
    assert b"not with Bearer " in answer.body
    assert b"secret" not in answer.body


async def test_another_project_is_not_called(rig: Rig, keeper: Any) -> None:
    rig.targets = [vertex(rig)]
    path = GEMINI.replace("p-1", "p-2")
    answer = await rig.ask(f"{path}:generateContent", {})
    assert (answer.status, answer.headers["x-kaixu-reason"]) == (404, "no_route")
    assert rig.vendor.heads == []


async def test_claude_on_vertex_counts_tokens_of_the_model_in_the_body(
    rig: Rig, keeper: Any
) -> None:
    google, (one, _) = Google(rig), keeper
    rig.targets = [vertex(rig)]
    one.adopt(RoutingTable(rig.targets))
    await google.next_exchange()
    rig.authenticated.caller = replace(rig.caller, models=("claude-haiku*",))
    path = "/projects/p-1/locations/global/publishers/anthropic/models/count-tokens:rawPredict"
    refused = await rig.ask(path, {"model": "claude-opus-5", "messages": []})
    assert (refused.status, json.loads(refused.body)["error"]["type"]) == (403, "permission_error")
    assert (await rig.ask(path, {"model": "claude-haiku-5", "messages": []})).status == 200
    assert b"POST /v1/projects/p-1/" in rig.vendor.heads[-1]
