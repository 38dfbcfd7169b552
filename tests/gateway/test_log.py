import logging
import os
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from gateway.log import LINE_BYTES_MAX, Log, StandardLogging, file_writer, route_standard_logging


@pytest.fixture
def lines() -> list[bytes]:
    return []


@pytest.fixture
def log(lines: list[bytes]) -> Log:
    def write(line: bytes) -> bool:
        lines.append(line)
        return True

    return Log(write, now=lambda: 1_700_000_000.5)


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root, ours = logging.getLogger(), logging.getLogger("gateway")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield root
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_a_line_is_one_json_object(log: Log, lines: list[bytes]) -> None:
    log.bind(worker=1).info("started", pid=7, text="a\nb")
    assert lines[0].count(b"\n") == 1
    assert orjson.loads(lines[0]) == {
        "time": "2023-11-14T22:13:20.500Z",
        "level": "info",
        "event": "started",
        "worker": 1,
        "pid": 7,
        "text": "a\nb",
    }


@pytest.mark.parametrize(
    "secret",
    [
        "kxg_0123456789abcdefghijABCDEFGHIJ012345",
        "kxc_0123456789abcdefghijABCDEFGHIJ012345",
        "kxvault1_abcDEF-_123",
        "sk-proj-abcdefgh1234",
        "AIzaSyA1234567890abcdefgh",
        "Bearer 0123456789abcdef",
    ],
)
def test_what_looks_like_a_secret_is_blotted_out(log: Log, lines: list[bytes], secret: str) -> None:
    log.warning("x", text=f"before {secret} after", more={"deep": [secret]})
    log.error("y", error=ValueError(f"refused {secret}"))
    assert secret.encode() not in b"".join(lines)
    assert orjson.loads(lines[0])["text"].startswith("before [secret]")


def test_a_url_keeps_its_host_and_loses_its_password(log: Log, lines: list[bytes]) -> None:
    log.info("x", url="postgresql://me:pass:word@db:5432/kaixu")
    assert orjson.loads(lines[0])["url"] == "postgresql://[secret]@db:5432/kaixu"


def test_an_exception_is_told_with_its_causes_and_place(log: Log, lines: list[bytes]) -> None:
    def fail() -> None:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk") as caught:
        fail()
    error = RuntimeError("journal")
    error.__cause__ = caught.value
    log.error("died", error=ExceptionGroup("loops", [error]))
    told = orjson.loads(lines[0])["error"]
    assert told["kind"] == ["ExceptionGroup", "RuntimeError", "OSError"]
    assert told["message"] == ["loops (1 sub-exception)", "journal", "disk"]
    assert told["at"][-1].endswith(" fail")


def test_a_line_has_a_bound(log: Log, lines: list[bytes]) -> None:
    log.info("long", text="x" * 100_000)
    assert len(orjson.loads(lines[0])["text"]) == 500
    log.info("many", **{f"fact_{i}": "x" * 500 for i in range(100)})
    assert len(lines[1]) <= LINE_BYTES_MAX
    assert orjson.loads(lines[1])["cut"] is True


def test_facts_that_json_can_t_hold_are_told_as_text(log: Log, lines: list[bytes]) -> None:
    log.info("odd", path=Path("/x"), surrogate="\ud800", error=ValueError("v"))
    told = orjson.loads(lines[0])
    assert "/x" in told["path"]
    assert "d800" in told["surrogate"]


def test_a_reader_that_does_not_keep_up_loses_lines_and_is_told_how_many() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    log = Log(file_writer(writing), now=lambda: 0.0)
    for _ in range(300):
        log.info("full", text="x" * 400)
    while True:
        try:
            os.read(reading, 1 << 20)
        except BlockingIOError:
            break
    log.info("again")
    told = orjson.loads(os.read(reading, 1 << 20))
    assert told["event"] == "again"
    assert told["lines_lost"] > 100
    os.close(reading)
    log.info("nobody reads")
    os.close(writing)


def test_what_libraries_log_comes_as_lines(
    log: Log, lines: list[bytes], root_logger: logging.Logger
) -> None:
    route_standard_logging(log)
    assert [type(handler) for handler in root_logger.handlers] == [StandardLogging]
    logging.getLogger("asyncpg").info("chatty")
    logging.getLogger("asyncpg").warning("gone: %s", "kxg_0123456789abcdefghijABCDEFGHIJ012345")
    logging.getLogger("gateway.metering").info("shipped", extra={"rows": 3})
    logging.getLogger("asyncio").error("task died", exc_info=ValueError("v"))
    library, ours, asyncio_line = map(orjson.loads, lines)
    assert (library["event"], library["message"]) == ("library", "gone: [secret]")
    assert (ours["event"], ours["rows"], ours["level"]) == ("shipped", 3, "info")
    assert asyncio_line["error"]["kind"] == ["ValueError"]
