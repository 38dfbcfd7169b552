import secrets

import pytest

from control_plane.errors import BadArgument
from control_plane.secrets import make_control_key
from control_plane.server_settings import load_server_settings

GIVEN = {
    "KAIXU_CONTROL_DATABASE_URL": "postgresql://control@db.example.com/kaixu",
    "JWT_SECRET": secrets.token_urlsafe(48),
    "KAIXU_CONTROL_KEY": make_control_key(),
}


def test_what_is_not_said_has_a_default() -> None:
    settings = load_server_settings(GIVEN)
    assert (settings.host, settings.port) == ("127.0.0.1", 8081)
    assert settings.public_url == "http://127.0.0.1:8081"
    assert settings.signup_is_open
    assert settings.mail is None


def test_no_secret_is_in_a_repr() -> None:
    mail = {"KAIXU_SMTP_URL": "smtps://u:canary@mail.example.com", "KAIXU_MAIL_FROM": "a@b"}
    shown = repr(load_server_settings({**GIVEN, **mail}))
    assert not [secret for secret in (*GIVEN.values(), "canary") if secret in shown]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("KAIXU_CONTROL_DATABASE_URL", ""),
        ("JWT_SECRET", ""),
        ("JWT_SECRET", "short"),
        ("KAIXU_CONTROL_KEY", ""),
        ("KAIXU_CONTROL_KEY", "short"),
        ("KAIXU_SIGNUP", "maybe"),
        ("KAIXU_SMTP_URL", "mail.example.com"),
        ("KAIXU_PUBLIC_URL", "https://admin.example.com/path"),
        ("KAIXU_TRUSTED_PROXIES", "0.0.0.0/0"),
        ("KAIXU_ADMIN_PORT", "99999"),
    ],
)
def test_what_has_no_meaning_stops_the_start_and_names_the_setting(
    setting: str, value: str
) -> None:
    with pytest.raises(BadArgument) as refused:
        load_server_settings({**GIVEN, setting: value})
    assert refused.value.field == setting


def test_a_server_for_mail_needs_to_know_whom_mails_are_from() -> None:
    with pytest.raises(BadArgument) as refused:
        load_server_settings({**GIVEN, "KAIXU_SMTP_URL": "smtp://localhost"})
    assert refused.value.field == "KAIXU_MAIL_FROM"


def test_in_production_mails_lead_to_an_origin_that_was_named() -> None:
    mail = {
        "KAIXU_SMTP_URL": "smtp://localhost",
        "KAIXU_MAIL_FROM": "a@b",
        "KAIXU_ENV": "production",
    }
    with pytest.raises(BadArgument) as refused:
        load_server_settings({**GIVEN, **mail})
    assert refused.value.field == "KAIXU_PUBLIC_URL"
    named = {**GIVEN, **mail, "KAIXU_PUBLIC_URL": "https://admin.example.com"}
    assert load_server_settings(named).public_url == "https://admin.example.com"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("KAIXU_ADMIN_HOST", "0.0.0.0"),
        ("KAIXU_PUBLIC_URL", "http://admin.example.com"),
        ("KAIXU_ENV", "Production"),
    ],
)
def test_in_production_nothing_travels_in_plain_text(setting: str, value: str) -> None:
    with pytest.raises(BadArgument) as refused:
        load_server_settings({**GIVEN, "KAIXU_ENV": "production", setting: value})
    assert refused.value.field == setting


def test_in_production_a_proxy_that_ends_tls_may_reach_it() -> None:
    behind = {"KAIXU_ADMIN_HOST": "0.0.0.0", "KAIXU_TRUSTED_PROXIES": "10.0.0.7"}
    assert load_server_settings({**GIVEN, "KAIXU_ENV": "production", **behind}).is_production
