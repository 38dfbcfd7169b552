"""JWT_SECRET is changed without ending a session, and an old one that goes ends its sessions."""

import asyncio
import secrets
from dataclasses import replace

from control_plane.identity.session_keys import parse_session_keys
from control_plane.server_settings import ServerSettings
from tests.control_plane.conftest import Node, started
from tests.control_plane.identity.accounts import Account, registered, sign_in

CALLERS = 4


async def token_of(node: Node, account: Account) -> str:
    answer = await sign_in(node, account.email, account.password)
    assert answer.status == 201
    return str(answer.json["access_token"])


async def status_of(node: Node, token: str) -> int:
    headers = {"authorization": f"Bearer {token}"}
    return (await node.call("GET", "/api/v1/me", headers=headers)).status


async def test_while_one_secret_takes_over_no_request_fails_and_then_the_old_one_is_over(
    server_settings: ServerSettings,
) -> None:
    old, new = secrets.token_urlsafe(48), secrets.token_urlsafe(48)

    def with_keys(text: str) -> ServerSettings:
        return replace(server_settings, session_keys=parse_session_keys(text))

    failed: list[int] = []
    async with (
        started(with_keys(old)) as before,
        started(with_keys(f"{old} {new}")) as hearing,
        started(with_keys(f"{new} {old}")) as signing,
    ):
        account = await registered(before)
        old_token = await token_of(before, account)
        behind_balancer = [before, hearing]
        over = asyncio.Event()

        async def call_on() -> None:
            while not over.is_set():
                for node in tuple(behind_balancer):
                    status = await status_of(node, old_token)
                    if status != 200:
                        failed.append(status)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLERS):
                tasks.create_task(call_on())
            # First all nodes learn of the new secret, then they sign with it.
            behind_balancer.remove(before)
            behind_balancer.append(signing)
            new_token = await token_of(signing, account)
            assert await status_of(hearing, new_token) == 200
            assert await status_of(before, new_token) == 401
            over.set()
        assert failed == []
    async with started(with_keys(new)) as after:
        assert await status_of(after, new_token) == 200
        assert await status_of(after, old_token) == 401
