"""People: the first owner signs in, somebody signs up, and both planes keep what is theirs."""

import json
import re
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.journeys.product import VISIBLE_SECONDS_MAX, Product, eventually

pytestmark = pytest.mark.journey

PASSWORD = "a long and lonely password"


def ask(
    product: Product, method: str, path: str, body: object = None, token: str = ""
) -> tuple[int, Any]:
    """Return the control plane's answer: status and JSON."""
    headers = {"content-type": "application/json"} if body is not None else {}
    if token:
        headers["authorization"] = f"Bearer {token}"
    request = urllib.request.Request(  # noqa: S310 - our own
        f"{product.facts['admin_url']}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers=headers,
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - as above
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def told_link(product: Product, page: str = "verify-email") -> str:
    """Return the secret part of the newest link to a page that the operator's log has."""
    found = re.findall(rf"/{page}#token=([0-9A-Za-z]{{43}})", product.log.read_text())
    return str(found[-1]) if found else ""


def sign_up(product: Product, email: str, org_name: str) -> Any:
    """Sign up and confirm the address; return the session."""
    before = told_link(product)
    body = {"email": email, "password": PASSWORD, "org_name": org_name, "name": email[:3]}
    assert ask(product, "POST", "/api/v1/signup", body)[0] == 202

    def new_link() -> str:
        link = told_link(product)
        return "" if link == before else link

    token = eventually(new_link, seconds=VISIBLE_SECONDS_MAX, what="the link is in the log")
    body = {"token": token, "password": PASSWORD}
    status, session = ask(product, "POST", "/api/v1/email/verify", body)
    assert status == 201, session
    return session


def test_the_first_owner_signs_in_and_somebody_signs_up(product: Product) -> None:
    owner = {"email": product.facts["owner_email"], "password": product.facts["owner_password"]}
    status, session = ask(product, "POST", "/api/v1/sessions", owner)
    assert status == 201
    status, me = ask(product, "GET", "/api/v1/me", token=session["access_token"])
    assert (status, me["is_operator"], me["orgs"][0]["role"]) == (200, True, "owner")

    session = sign_up(product, "ada@example.com", "Engines")
    status, me = ask(product, "GET", "/api/v1/me", token=session["access_token"])
    assert [(org["name"], org["role"]) for org in me["orgs"]] == [("Engines", "owner")]
    assert PASSWORD not in product.log.read_text()
    assert owner["password"] not in product.log.read_text()

    assert (
        ask(product, "DELETE", "/api/v1/sessions/current", token=session["access_token"])[0] == 204
    )
    assert ask(product, "GET", "/api/v1/me", token=session["access_token"])[0] == 401


def test_who_has_lost_the_password_is_given_another(product: Product) -> None:
    told = product.kaixu("account", "reset", product.facts["owner_email"])
    body = {"email": told["email"], "password": told["password"]}
    assert ask(product, "POST", "/api/v1/sessions", body)[0] == 201
    product.facts["owner_password"] = told["password"]
