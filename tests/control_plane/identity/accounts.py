"""People who sign up and in as anyone does: by the API, with passwords, links and codes."""

import secrets
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

from tests.control_plane.conftest import Answer, Node, Person

PASSWORD: Final = "a long and lonely password"


@dataclass(kw_only=True)
class Account:
    """Somebody with an account, and how to be them."""

    email: str
    password: str = field(default=PASSWORD, repr=False)
    token: str = field(default="", repr=False)
    session_id: uuid.UUID = field(default_factory=uuid.uuid4)
    account_id: uuid.UUID = field(default_factory=uuid.uuid4)
    seed: str = field(default="", repr=False)

    @property
    def person(self) -> Person:
        """Who calls, by the last session."""
        return Person(
            account_id=self.account_id,
            email=self.email,
            session_id=self.session_id,
            token=self.token,
        )

    def goes_on(self, session: dict[str, Any]) -> None:
        """Use another session."""
        self.token = session["access_token"]
        self.session_id = uuid.UUID(session["session_id"])


def new_email() -> str:
    return f"{secrets.token_hex(8)}@example.com"


async def sign_up(node: Node, **fields: Any) -> Answer:
    body = {"email": new_email(), "password": PASSWORD, "org_name": "acme", **fields}
    return await node.call("POST", "/api/v1/signup", json=body)


def token_of(url: str | None) -> str:
    """Return what a link has behind `#token=`."""
    assert url is not None
    return url.partition("#token=")[2]


async def last_link(node: Node) -> str:
    """Return the token in the last mail, once all are written."""
    await node.services.outbox.drained()
    return token_of(node.mails[-1].link)


async def verify(node: Node, token: str, password: str = PASSWORD) -> Answer:
    body = {"token": token, "password": password}
    return await node.call("POST", "/api/v1/email/verify", json=body)


async def registered(node: Node, **fields: Any) -> Account:
    """Return somebody who has signed up, confirmed the address and signed in."""
    email = fields.pop("email", None) or new_email()
    password = fields.pop("password", PASSWORD)
    answer = await sign_up(node, email=email, password=password, **fields)
    assert answer.status == 202, answer.content
    answer = await verify(node, await last_link(node), password)
    assert answer.status == 201, answer.content
    account = Account(email=email, password=password)
    account.goes_on(answer.json)
    me = await node.call("GET", "/api/v1/me", by=account.person)
    account.account_id = uuid.UUID(me.json["id"])
    return account


async def sign_in(
    node: Node,
    email: str,
    password: str = PASSWORD,
    *,
    totp: str | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    body = {"email": email, "password": password}
    if totp is not None:
        body["totp"] = totp
    return await node.call("POST", "/api/v1/sessions", json=body, headers=headers)


async def is_open(node: Node, account: Account, token: str | None = None) -> bool:
    """Whether a session, the last one or another, is open to a node."""
    headers = {"authorization": f"Bearer {token or account.token}"}
    return (await node.call("GET", "/api/v1/me", headers=headers)).status == 200
