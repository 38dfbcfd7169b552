"""A newcomer's path by the API alone: from signing up to being forgotten."""

import asyncio
import time
from typing import Any, Final

import pyotp
import pytest

from tests.journeys.client import call, check_refusal, check_stream_error, send
from tests.journeys.product import VISIBLE_SECONDS_MAX, Product, eventually
from tests.journeys.test_people import PASSWORD, ask, sign_up

pytestmark = pytest.mark.journey

ADA: Final = "ada.newcomer@example.com"
GRACE: Final = "grace.newcomer@example.com"
LIMIT: Final = 4


def enable_totp(product: Product, session: str) -> tuple[str, pyotp.TOTP]:
    """Enable TOTP; return the session's new token, and what makes codes."""
    status, offered = ask(product, "POST", "/api/v1/me/totp", token=session)
    assert status in (200, 201), offered
    codes = pyotp.TOTP(offered["secret"])
    status, confirmed = ask(
        product, "POST", "/api/v1/me/totp/confirm", {"code": codes.now()}, token=session
    )
    assert status == 200, confirmed
    assert len(set(confirmed["recovery_codes"])) >= 8
    return str(confirmed["session"]["access_token"]), codes


def sealed(product: Product, session: str, *, calls: int) -> dict[str, Any]:
    """Return the events of an org once there are so many."""

    def look() -> dict[str, Any] | None:
        status, told = ask(product, "GET", "/api/v1/usage/events", token=session)
        assert status == 200, told
        return told if len(told["data"]) >= calls else None

    return eventually(look, seconds=VISIBLE_SECONDS_MAX, what=f"{calls} events by API")


async def test_from_signing_up_to_being_forgotten(  # noqa: PLR0915 - a story, told in its order
    product: Product,
) -> None:
    def request(method: str, path: str, body: object = None, *, by: str = "") -> Any:
        """Carry a request out that has to succeed; return what was answered."""
        status, answer = ask(product, method, path, body, token=by)
        assert status in (200, 201), (method, path, status, answer)
        return answer

    # Ada signs up, and from then on nobody gets in with her password alone.
    ada, codes = enable_totp(product, sign_up(product, ADA, "Looms")["access_token"])
    (org,) = request("GET", "/api/v1/me", by=ada)["orgs"]
    status, refused = ask(product, "POST", "/api/v1/sessions", {"email": ADA, "password": PASSWORD})
    assert status == 401, refused
    code = codes.at(time.time() + codes.interval)  # the one of now was used up
    signed_in = request(
        "POST", "/api/v1/sessions", {"email": ADA, "password": PASSWORD, "totp": code}
    )
    ada = signed_in["access_token"]

    # Grace is invited as an editor, and accepts.
    org_path = f"/api/v1/orgs/{org['id']}"
    (workspace,) = request("GET", f"{org_path}/workspaces", by=ada)["data"]
    invited = request(
        "POST",
        f"{org_path}/invitations",
        {
            "email": GRACE,
            "role": "viewer",
            "workspace_id": workspace["id"],
            "workspace_role": "editor",
        },
        by=ada,
    )
    grace = sign_up(product, GRACE, "Compilers")["access_token"]
    invitation = invited["link"].partition("#")[2].removeprefix("token=")
    joined = request("POST", "/api/v1/invitations/accept", {"token": invitation}, by=grace)
    assert joined["org_name"] == "Looms"

    # She makes a token with a limit, and uses it to its last call.
    of_looms = f"?org={org['id']}"
    body = {"name": "ide", "workspace_id": workspace["id"], "limit": LIMIT, "expires": "1d"}
    made = request("POST", f"/api/v1/tokens{of_looms}", body, by=grace)
    token = made["token"]
    first = await send(product.url, call("openai", token=token, model="sim", stream=True))
    assert first.is_whole
    begun = asyncio.Event()
    endless = call("anthropic", token=token, model="sim-slow-2000-50", stream=True)
    async with asyncio.TaskGroup() as tasks:
        open_stream = tasks.create_task(send(product.url, endless, begun=begun))
        async with asyncio.timeout(30):
            await begun.wait()
        for _ in range(LIMIT - 2):
            answer = await send(product.url, call("openai", token=token, model="sim", stream=False))
            assert answer.status == 200
        spent = await send(product.url, call("openai", token=token, model="sim", stream=False))
        check_refusal("openai", spent, status=429, reason="monthly_limit")
        assert (spent.headers["x-kaixu-limit"], spent.headers["x-kaixu-remaining"]) == (
            str(LIMIT), "0",
        )  # fmt: skip

        # Ada revokes it while the stream is open: the answer is the proof.
        path = f"/api/v1/tokens/{made['id']}/revoke"
        receipt = await asyncio.to_thread(request, "POST", path, by=ada)
        assert (receipt["complete"], receipt["streams_cut"]) == (True, 1)
        async with asyncio.timeout(5):
            check_stream_error("anthropic", await open_stream)
    gone = await send(product.url, call("openai", token=token, model="sim", stream=False))
    check_refusal("openai", gone, status=401, reason="token_revoked")

    # Both see what was used: exactly these calls, and what they add up to.
    told = sealed(product, ada, calls=LIMIT)
    events = told["data"]
    assert [event["token_id"] for event in events] == [made["id"]] * LIMIT
    assert sorted(event["status"] for event in events) == ["complete"] * (LIMIT - 1) + ["revoked"]
    assert {event["id"] for event in events} >= {first.headers["x-kaixu-call-id"]}
    assert all(event["counted"] for event in events)
    report = request("GET", "/api/v1/usage?by=token", by=ada)
    (row,) = report["rows"]
    assert (row["token_id"], row["name"], row["calls"]) == (made["id"], "ide", LIMIT)
    assert row["output_tokens"] == sum(event["output_tokens"] or 0 for event in events)
    hers = request("GET", f"/api/v1/usage/events{of_looms}", by=grace)
    assert hers["data"] == events
    later = request("GET", f"/api/v1/usage/events?after={told['next']}", by=ada)
    assert later["data"] == []

    # The audit log says who did what, newest first.
    entries = request("GET", f"{org_path}/audit-log", by=ada)["data"]
    done = [(entry["action"], entry["user_name"]) for entry in entries]
    assert [action for action, _ in done if action.startswith(("token.", "invitation."))] == [
        "token.revoke", "token.create", "invitation.accept", "invitation.create",
    ]  # fmt: skip
    assert token not in str(entries)

    # Grace takes over; Ada is forgotten, and what was used stays.
    member = f"{org_path}/members/{joined['user_id']}"
    request("PATCH", member, {"role": "owner"}, by=ada)
    request("DELETE", "/api/v1/me", by=ada)
    assert ask(product, "GET", "/api/v1/me", token=ada)[0] == 401
    status, _ = ask(
        product, "POST", "/api/v1/sessions", {"email": ADA, "password": PASSWORD, "totp": code}
    )
    assert status == 401
    left = [
        request("GET", f"{org_path}/members", by=grace),
        request("GET", f"{org_path}/audit-log", by=grace),
        request("GET", f"/api/v1/usage/events{of_looms}", by=grace),
    ]
    assert ADA not in str(left)
    assert left[2]["data"] == events
