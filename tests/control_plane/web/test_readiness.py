"""/readyz says whether the control plane can do its work, and what is missing."""

import time
from dataclasses import replace

import asyncpg
import pytest

from control_plane.server_settings import ServerSettings
from control_plane.web import readiness
from control_plane.web.readiness import Readiness
from tests.control_plane.conftest import Node, started


async def test_it_is_ready_on_a_database_that_is_up_to_date(node: Node) -> None:
    answer = await node.call("GET", "/readyz")
    assert (answer.status, answer.json) == (200, {"ready": True, "not_ready": []})


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("DELETE FROM schema_migrations WHERE number = (SELECT max(number) FROM schema_migrations)",
         "schema"),
        ("REVOKE SELECT ON schema_migrations FROM kaixu_control", "schema"),
        ("DROP TABLE schema_migrations", "schema"),
    ],
)  # fmt: skip
async def test_an_old_schema_is_told(
    node: Node, owner: asyncpg.Connection, statement: str, reason: str
) -> None:
    await owner.execute(statement)
    answer = await node.call("GET", "/readyz")
    assert (answer.status, answer.json["ready"]) == (503, False)
    (told,) = answer.json["not_ready"]
    assert told.startswith(reason)
    assert "kaixu migrate" in told


async def test_a_newer_schema_will_do(node: Node, owner: asyncpg.Connection) -> None:
    await owner.execute("INSERT INTO schema_migrations VALUES (9999, '9999_later.sql', '')")
    assert (await node.call("GET", "/readyz")).status == 200


async def test_a_clock_that_is_not_the_databases_is_told(node: Node) -> None:
    ahead = 0.0
    off = replace(node.services, now=lambda: time.time() + ahead)
    for ahead, ready in ((-60.0, False), (-5.0, True), (5.0, True), (60.0, False)):  # noqa: B007
        told = await Readiness(off).told()
        assert told.ready is ready
        assert [reason.partition(":")[0] for reason in told.not_ready] == ["clock"] * (not ready)


async def test_it_becomes_ready_and_the_database_is_not_asked_for_everybody(
    server_settings: ServerSettings, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(server_settings) as node:
        await owner.execute("REVOKE SELECT ON schema_migrations FROM kaixu_control")
        assert (await node.call("GET", "/readyz")).status == 503
        await owner.execute("GRANT SELECT ON schema_migrations TO kaixu_control")
        monkeypatch.setattr(readiness, "LOOK_SECONDS", 3600.0)
        assert (await node.call("GET", "/readyz")).status == 503
        monkeypatch.setattr(readiness, "LOOK_SECONDS", 0.0)
        assert (await node.call("GET", "/readyz")).status == 200
