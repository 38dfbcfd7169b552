"""From nothing to a metered stream: start, call, see it counted, stop, start again."""

import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.journeys.client import FORMATS, call, send
from tests.journeys.product import KAIXU, POLL_SECONDS, Product, Row, clean_environment

pytestmark = pytest.mark.journey

TOKENS = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens")


def by_model(product: Product) -> dict[str, Row]:
    usage = product.kaixu("usage", "--by", "model")
    assert usage["by"] == "model"
    assert re.fullmatch(r"\d{4}-\d\d", usage["month"])
    assert usage["sealed_through"] is not None
    return {row["model"]: row for row in usage["rows"]}


async def test_a_call_is_metered_and_still_there_after_a_restart(
    start: Callable[..., Product],
) -> None:
    product = start()
    facts = product.facts
    assert {
        "gateway_url", "ops_url", "admin_url", "data_dir", "database_url", "supervisor_pid",
        "simulator_tally", "token", "owner_email", "owner_password",
    } <= set(facts)  # fmt: skip
    assert re.fullmatch(r"kxg_[0-9A-Za-z]{38}", product.token)
    assert Path(facts["data_dir"]) == product.data_dir
    token = product.token

    for format_name in FORMATS:
        for stream in (True, False):
            model = f"first-{format_name}"
            request = call(format_name, token=token, model=model, stream=stream, words=7)
            answer = await send(product.url, request)
            assert answer.is_whole, answer
            row = product.event_of(call_id=answer.headers["x-kaixu-call-id"])
            assert (row["input_tokens"], row["output_tokens"]) == (5, 7)
            assert (row["status"], row["usage_source"], row["http_status"]) == (
                ("complete", "vendor", 200)
            )
            assert (row["model_requested"], row["stream"]) == (model, stream)
            assert (row["client_format"], row["counted"]) == (format_name, True)
            assert row["vendor_request_id"] in {line["id"] for line in product.tallied()}
            assert row["bytes_down"] == len(answer.body)

    before = by_model(product)
    for format_name in FORMATS:
        row = before[f"first-{format_name}"]
        assert (row["calls"], row["counted"]) == (2, 2)
        assert [row[name] or 0 for name in TOKENS] == [10, 0, 0, 14]
    assert product.stop() == 0

    again = start()
    assert again.facts["token"] is None
    assert again.facts["owner_password"] is None
    assert by_model(again) == before
    request = call("openai", token=token, model="first-openai", stream=True)
    answer = await send(again.url, request)
    assert answer.is_whole
    again.event_of(call_id=answer.headers["x-kaixu-call-id"])
    assert by_model(again)["first-openai"]["calls"] == 3
    assert again.stop() == 0
    assert "Traceback" not in again.log.read_text()


async def test_a_closed_call_is_visible_within_a_second(product: Product) -> None:
    late = []
    for number in range(3):
        request = call("openai", token=product.token, model=f"visible-{number}", stream=True)
        answer = await send(product.url, request)
        time.sleep(max(0.0, answer.ended_at + 1.0 - time.time()))  # noqa: ASYNC251 - it is what is promised
        seen = [row["call_id"] for row in product.events()]
        late.append(answer.headers["x-kaixu-call-id"] not in seen)
    assert late == [False] * 3


@pytest.fixture
def talking(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """The product as a person starts it."""
    ports = ("--port", "0", "--ops-port", "0", "--admin-port", "0", "--workers", "1")
    with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as errors:
        process = subprocess.Popen(
            [str(KAIXU), "up", "--data", str(folder / "data"), *ports],
            stdout=out,
            stderr=errors,
            text=True,
            env=clean_environment(folder, {}),
            cwd=folder,
            start_new_session=True,
        )
    yield process
    Product(
        process=process, facts={}, data_dir=folder / "data", log=folder / "err.txt", environment={}
    ).destroy()


def test_the_printed_curl_line_streams_an_answer(
    talking: "subprocess.Popen[str]", folder: Path
) -> None:
    deadline = time.monotonic() + 90
    while "curl" not in (said := (folder / "out.txt").read_text()) or not said.endswith("\n"):
        assert time.monotonic() < deadline, (folder / "err.txt").read_text()[-2000:]
        assert talking.poll() is None
        time.sleep(POLL_SECONDS)
    assert "kxg_" in said
    assert "simulator" in said + (folder / "err.txt").read_text()
    printed = said[said.index("curl") :]
    command = re.match(r"(?:[^\n\\]|\\\n|\\.)*", printed)
    assert command is not None
    words = shlex.split(command[0].replace("\\\n", " "))
    if not Path("/usr/bin/curl").exists():
        pytest.skip("curl is not installed")
    answer = subprocess.run(words, capture_output=True, timeout=30, check=True)
    assert answer.stdout.count(b"data: ") > 5
    assert answer.stdout.rstrip().endswith((b"data: [DONE]", b'data: {"type":"message_stop"}'))
    talking.send_signal(signal.SIGINT)
    assert talking.wait(timeout=60) == 0
