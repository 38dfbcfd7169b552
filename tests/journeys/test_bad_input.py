"""Bad input, from clients and from vendors: a clear answer each time, or a labelled row."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import psutil
import pytest

from tests.journeys.client import (
    FORMATS,
    Answer,
    Call,
    call,
    check_error,
    check_refusal,
    check_stream_error,
    exchange,
    fetch,
    send,
)
from tests.journeys.product import Product, Row, eventually

pytestmark = pytest.mark.journey

MEGABYTE: Final = 1_000_000
CANCEL_SECONDS_MAX: Final = 1.0  # 0.1 is promised; the machine is busy
each_format = pytest.mark.parametrize("format_name", FORMATS)
streaming_or_not = pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])


@pytest.fixture(autouse=True)
def still_well(product: Product) -> Iterator[None]:
    """The same processes live on, and calls pass."""
    before = product.worker_pids()
    yield
    assert product.worker_pids() == before
    answer = asyncio.run(send(product.url, ask(product, "openai", model="fine", stream=True)))
    assert answer.is_whole


def ask(product: Product, format_name: str, **options: Any) -> Call:
    options.setdefault("token", product.token)
    return call(format_name, **options)


def row_of(product: Product, answer: Answer) -> Row:
    return product.event_of(call_id=answer.headers["x-kaixu-call-id"])


async def post(product: Product, body: bytes, **headers: str) -> Answer:
    more = {"authorization": f"Bearer {product.token}", "content-type": "application/json"}
    url = f"{product.url}/v1/chat/completions"
    return await fetch(url, body=body, headers={**more, **headers})


# ------------------------------------------------------------------------------------------ tokens


@each_format
async def test_tokens_that_may_not_call(product: Product, format_name: str) -> None:
    text = product.token
    cases: list[tuple[str, int, str]] = [
        ("junk", 401, "token_missing"),
        ("kxg_junk", 401, "token_invalid"),
        (text[:-1] + ("0" if text[-1] != "0" else "1"), 401, "token_invalid"),
        (product.kaixu("token", "generate")["token"], 401, "token_invalid"),
        (product.new_token("--models", "fine-*")[0], 403, "model_not_allowed"),
        (product.new_token("--scope", "usage:read")[0], 403, "model_not_allowed"),
        (product.new_token("--limit", "0")[0], 429, "monthly_limit"),
    ]
    expired, _ = product.new_token("--expires", "1s")
    revoked, token_id = product.new_token()
    product.kaixu("token", "revoke", token_id)
    await asyncio.sleep(1.2)
    cases += [(expired, 401, "token_expired"), (revoked, 401, "token_revoked")]
    for token, status, reason in cases:
        for _ in range(2):  # also from memory
            request = ask(product, format_name, token=token, model="unknown", stream=True)
            answer = await send(product.url, request)
            if reason == "token_missing":  # what is no token of ours may be called either
                assert answer.reason in {"token_missing", "token_invalid"}
                reason = str(answer.reason)  # noqa: PLW2901
            check_refusal(format_name, answer, status=status, reason=reason)
            assert token not in answer.body.decode()
    assert not [line for line in product.tallied() if line["model"] == "unknown"]


async def test_no_token_and_two_tokens(product: Product) -> None:
    url = f"{product.url}/v1/chat/completions"
    answer = await fetch(url, body=b"{}", headers={"content-type": "application/json"})
    check_refusal("openai", answer, status=401, reason="token_missing")
    other, _ = product.new_token()
    answer = await post(product, b"{}", **{"x-api-key": other})
    assert answer.status == 400
    check_error("openai", answer)
    answer = await post(
        product,
        json.dumps(ask(product, "openai", model="fine", stream=True).body).encode(),
        **{"x-api-key": "sk-some-other-thing"},
    )
    assert answer.is_whole, "what has not our prefix is taken off beside a valid token"


# ------------------------------------------------------------------------------------------ bodies


MESSAGES: Final = b'"messages":[{"role":"user","content":"hi"}]'
BAD_BODIES: Final = {
    "empty": b"",
    "not JSON": b"not json at all",
    "broken off": b'{"model":"gpt-4o","messages":[',
    "not an object": b'["gpt-4o"]',
    "no model": b"{" + MESSAGES + b"}",
    "a model that is no text": b'{"model":7,' + MESSAGES + b"}",
    "two models": b'{"model":"gpt-4o",' + MESSAGES + b',"model":"gpt-5"}',
    "an escaped second model": b'{"model":"gpt-4o",' + MESSAGES + b',"mod\\u0065l":"gpt-5"}',
    "not UTF-8": b'{"model":"gpt-4o\xff",' + MESSAGES + b"}",
    "deeply nested": b'{"model":"gpt-4o","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_bodies_that_are_not_what_they_should_be(product: Product, name: str) -> None:
    reached = len(product.tallied())
    answer = await post(product, BAD_BODIES[name])
    check_refusal("openai", answer, status=400, reason="body_invalid")
    assert len(product.tallied()) == reached


async def test_a_model_list_is_not_slipped_past(product: Product) -> None:
    token, _ = product.new_token("--models", "fine")
    bearer = {"authorization": f"Bearer {token}"}
    escaped = b'{"mod\\u0065l":"forbidden",' + MESSAGES + b"}"
    for body in (escaped, b'{"model":"fine",' + escaped[1:], b'{"model":"forbidden",' + MESSAGES):
        answer = await post(product, body + (b"" if body.endswith(b"}") else b"}"), **bearer)
        assert answer.status in {400, 403}
        check_error("openai", answer)
    assert not [line for line in product.tallied() if line["model"] == "forbidden"]


async def test_bodies_that_are_too_large(product: Product) -> None:
    for framing in ("content-length: 67108865\r\n", "transfer-encoding: chunked\r\n"):
        answer = await raw(
            product,
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{framing}connection: close\r\n"
            f"authorization: Bearer {product.token}\r\ncontent-type: application/json\r\n\r\n",
            more=[b"100000\r\n" + b"x" * 0x100000 + b"\r\n"] * 66 if "chunked" in framing else [],
        )
        check_refusal("openai", answer, status=413, reason="body_too_large")


async def raw(product: Product, head: str, *, more: list[bytes]) -> Answer:
    """Send bytes as they are; an answer before the last of them is taken too."""
    parts = urlsplit(product.url)
    async with asyncio.timeout(60):
        if not more:
            return await exchange(parts.hostname or "", parts.port or 80, head.encode())
        return await exchange(
            parts.hostname or "", parts.port or 80, head.encode() + b"".join(more)
        )


async def test_a_client_that_leaves_within_its_body(product: Product) -> None:
    reached = len(product.tallied())
    parts = urlsplit(product.url)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n"
        f"authorization: Bearer {product.token}\r\ncontent-type: application/json\r\n\r\n"
    )
    for number in range(20):
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(head.encode() + b'{"model":"gpt-4o"'[: number + 1])
        await writer.drain()
        writer.close()
    await asyncio.sleep(0.3)
    assert len(product.tallied()) == reached


# ----------------------------------------------------------------------- paths, methods and vendors


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("POST", "/v1/nothing", 404, "no_route"),
        ("GET", "/nothing/v1/models", 404, "no_route"),
        ("POST", "/nosuchvendor/v1/chat/completions", 404, "no_route"),
        ("POST", "/openai/v1/organization/api_keys", 404, "no_route"),
        ("GET", "/v1/organization/usage/completions", 404, "no_route"),
        ("POST", "/v1/chat/completions/../../v1/messages", 400, "body_invalid"),
        ("GET", "/v1/chat/completions", 405, "no_route"),
        ("DELETE", "/v1/messages", 405, "no_route"),
        ("PUT", "/v1/chat/completions", 405, "no_route"),
    ],
)
async def test_paths_and_methods_that_are_not_there(
    product: Product, method: str, path: str, status: int, reason: str
) -> None:
    body = b'{"model":"gpt-4o",' + MESSAGES + b"}"
    answer = await fetch(
        product.url + path,
        method=method,
        body=b"" if method in {"GET", "DELETE"} else body,
        headers={
            "authorization": f"Bearer {product.token}",
            "content-type": "application/json",
        },
    )
    assert (answer.status, answer.reason) == (status, reason)
    assert "error" in answer.json()


async def test_a_websocket_is_told_to_use_http(product: Product) -> None:
    headers = {
        "authorization": f"Bearer {product.token}",
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "sec-websocket-version": "13",
    }
    answer = await fetch(f"{product.url}/v1/responses", method="GET", headers=headers, seconds=10)
    assert answer.status == 426


async def test_a_body_of_another_type(product: Product) -> None:
    form = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\ngpt-4o\r\n--x--\r\n'
    answer = await post(product, form, **{"content-type": "multipart/form-data; boundary=x"})
    check_refusal("openai", answer, status=415, reason="body_invalid")


async def test_head_answers_whoever_asks(product: Product) -> None:
    answer = await fetch(product.url + "/", method="HEAD")
    assert 200 <= answer.status < 500
    assert answer.body == b""


# ----------------------------------------------------------------------------------------- vendors


@each_format
@streaming_or_not
@pytest.mark.parametrize(
    "model", ["sim-reset", "sim-close", "sim-garbage", "sim-headers-10000", "sim-nohead"]
)
async def test_a_vendor_that_gives_no_answer(
    product: Product, format_name: str, model: str, *, stream: bool
) -> None:
    answer = await send(product.url, ask(product, format_name, model=model, stream=stream))
    check_refusal(format_name, answer, status=502, reason="vendor_unreachable")
    call_id = answer.headers["x-kaixu-call-id"]
    (first, *more) = await asyncio.to_thread(rows_of_attempts, product, call_id)
    for row in (first, *more):
        assert row["status"] in {"vendor_error", "vendor_broke"}
        assert row["reason"]
        assert row["output_tokens"] is None
        assert row["usage_source"] == "none"
    # Where the connection had served before, it may have died of age: there is one more attempt.
    assert [row["retry_of"] for row in more] in ([], [first["id"]])


def rows_of_attempts(product: Product, call_id: str) -> list[Row]:
    """Return a call's rows in the order of its attempts."""

    def look() -> list[Row]:
        return [row for row in product.events() if row["call_id"] == call_id]

    rows = eventually(look, seconds=20, what="the call's rows")
    return sorted(rows, key=lambda row: int(row["attempt"]))


async def test_a_vendor_that_hangs(start: Callable[..., Product]) -> None:
    product = start(workers=1, environment={"KAIXU_FIRST_BYTE": "1s"})
    for format_name in FORMATS:
        request = ask(product, format_name, model="sim-hang", stream=True)
        answer = await send(product.url, request, seconds=15)
        check_refusal(format_name, answer, status=504, reason="vendor_timeout")
        assert row_of(product, answer)["usage_source"] == "none"


async def test_a_vendor_that_nobody_is(product: Product) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for format_name in FORMATS:
            name = f"away-{format_name}"
            base_url = url + ("/v1" if format_name == "openai" else "")
            product.add_vendor(name, kind=format_name, base_url=base_url, key="k")
            request = ask(product, format_name, model="m", stream=True, prefix=f"/{name}")
            answer = await send(product.url, request)
            check_refusal(format_name, answer, status=502, reason="vendor_unreachable")
            product.kaixu("vendor", "remove", name)
            answer = await send(product.url, request)
            check_refusal(format_name, answer, status=404, reason="no_route")


@each_format
@streaming_or_not
async def test_a_vendor_that_refuses_our_key(
    product: Product, format_name: str, *, stream: bool
) -> None:
    answer = await send(product.url, ask(product, format_name, model="sim-badkey", stream=stream))
    check_refusal(format_name, answer, status=502, reason="vendor_key")
    assert answer.headers["x-should-retry"] == "false"
    assert b"Incorrect" not in answer.body
    assert row_of(product, answer)["status"] == "vendor_error"


@each_format
async def test_answers_of_a_vendor_pass_whatever_they_are(
    product: Product, format_name: str
) -> None:
    for model, status in (
        ("sim-redirect", 307),
        ("sim-status-400", 400),
        ("sim-status-404", 404),
        ("sim-status-429", 429),
        ("sim-status-500", 500),
        ("sim-status-529", 529),
    ):
        answer = await send(product.url, ask(product, format_name, model=model, stream=True))
        assert (answer.status, answer.reason, answer.broke) == (status, None, "")
        if status in {429, 529}:
            assert answer.headers["retry-after"] == "1"
        row = row_of(product, answer)
        assert (row["http_status"], row["output_tokens"]) == (status, None)
        assert [line for line in product.tallied() if line["id"] == row["vendor_request_id"]]
    assert not [line for line in product.tallied() if "elsewhere" in line["path"]]


@each_format
async def test_a_key_that_a_vendor_echoes_is_masked(product: Product, format_name: str) -> None:
    answer = await send(product.url, ask(product, format_name, model="sim-echokey", stream=True))
    assert answer.status == 400
    message = check_error_of_vendor(answer)
    assert message.startswith("Your request with key ")
    assert message.endswith(" is not valid.")
    shown = message.removeprefix("Your request with key ").removesuffix(" is not valid.")
    assert shown
    assert set(shown) <= set("*xX•.-"), f"the key is not masked: {len(shown)} characters"


def check_error_of_vendor(answer: Answer) -> str:
    assert answer.reason is None
    return str(answer.json()["error"]["message"])


@each_format
@streaming_or_not
async def test_a_vendor_that_breaks_off(
    product: Product, format_name: str, *, stream: bool
) -> None:
    answer = await send(product.url, ask(product, format_name, model="sim-cut", stream=stream))
    assert answer.status == 200
    if stream:
        check_stream_error(format_name, answer)
    else:
        assert answer.broke
    row = row_of(product, answer)
    assert row["status"] == "vendor_broke"
    assert row["usage_source"] in {"partial", "none"}


@each_format
async def test_a_vendor_that_ends_early(product: Product, format_name: str) -> None:
    answer = await send(product.url, ask(product, format_name, model="sim-early", stream=True))
    assert answer.status == 200
    assert not answer.is_whole
    row = row_of(product, answer)
    assert row["usage_source"] in {"partial", "none"}


@each_format
@streaming_or_not
@pytest.mark.parametrize("model", ["sim-nonsense", "sim-error"])
async def test_a_vendor_that_talks_nonsense_or_of_its_own_errors(
    product: Product, format_name: str, model: str, *, stream: bool
) -> None:
    answer = await send(product.url, ask(product, format_name, model=model, stream=stream))
    assert answer.status == (500 if model == "sim-error" and not stream else 200)
    assert answer.broke == ""
    row = row_of(product, answer)
    assert row["usage_source"] in {"partial", "none"}
    assert row["http_status"] == answer.status


@each_format
async def test_a_line_that_never_ends_fills_no_memory(product: Product, format_name: str) -> None:
    request = ask(product, format_name, model="sim-noend", stream=True, session_id=format_name)
    before = sum(psutil.Process(pid).memory_info().rss for pid in product.worker_pids())
    parts = urlsplit(product.url)
    body = json.dumps(request.body).encode()
    lines = {"host": "x", "content-type": "application/json", "content-length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **request.headers}.items())
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(f"POST {request.path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        got = 0
        while got < 24 * MEGABYTE:
            piece = await reader.read(2**18)
            assert piece, "the gateway ended it"
            got += len(piece)
        after = sum(psutil.Process(pid).memory_info().rss for pid in product.worker_pids())
        writer.transport.abort()
    assert after - before < 12 * MEGABYTE
    row = await asyncio.to_thread(product.event_of, session_id=format_name)
    assert row["status"] == "client_closed"
    assert row["usage_source"] in {"partial", "none"}


@each_format
@pytest.mark.parametrize("model", ["sim-hang", "sim-slow-9999x100"])
async def test_a_client_that_leaves_takes_the_vendor_call_with_it(
    product: Product, format_name: str, model: str
) -> None:
    session_id = f"leaves/{format_name}/{model}"
    request = ask(product, format_name, model=model, stream=True, session_id=session_id)
    sending = asyncio.ensure_future(send(product.url, request))

    def tallied() -> Row | None:
        lines = product.tallied()
        return next((line for line in lines if line["session_id"] == session_id), None)

    line = await asyncio.to_thread(lambda: eventually(tallied, seconds=10, what="a call"))
    await asyncio.sleep(0.2)
    left_at = time.time()
    sending.cancel()
    await asyncio.wait([sending], timeout=5)

    def gone() -> Row | None:
        lines = product.tally()
        return next((one for one in lines if one["id"] == line["id"] and "left" in one), None)

    what = "the vendor sees the call end"
    left = await asyncio.to_thread(lambda: eventually(gone, seconds=10, what=what))
    assert left["at"] - left_at < CANCEL_SECONDS_MAX
    row = product.event_of(session_id=session_id)
    assert row["status"] == "client_closed"
