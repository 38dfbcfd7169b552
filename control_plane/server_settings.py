"""What the control plane's server is told: read once from the environment, then plain values."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from control_plane.errors import BadArgument
from control_plane.identity.session_keys import SETTING as JWT_SETTING
from control_plane.identity.session_keys import SessionKeys, parse_session_keys
from control_plane.mail import FROM_SETTING, URL_SETTING, MailSettings, parse_mail_settings
from control_plane.secrets import SETTING as CONTROL_KEY_SETTING
from control_plane.secrets import ControlKeys, parse_control_keys
from control_plane.settings import read_secret
from control_plane.web.client_address import Network

PORT_MAX: Final = 65_535
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
ENVIRONMENTS: Final = ("production", "development")
_ORIGIN: Final = re.compile(r"https?://(?:[0-9a-z.-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")
# Two labels at least after any wildcard: a pattern for all hosts is none.
_VENDOR_ORIGIN: Final = re.compile(r"https://(?:[0-9a-z*-]+\.)*[0-9a-z-]+\.[0-9a-z-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The settings.

    `public_url` is the origin that people reach it by, and that links in mails begin with.
    `allowed_origins` are those whose pages may call the API. `database_is_embedded`: it is this
    machine's own, so that it knows every worker there is. `mail` None: mails are told in the log.
    `gateway_url` is where vendors are tested through. `vendor_hosts` are the only ones that vendors
    may have (None: any); orgs may name `org_vendor_origins` for vendors of their own, beside those
    of known vendors. `private_webhooks`: alerts may go to private addresses, and by http.
    """

    database_url: str = field(repr=False)
    session_keys: SessionKeys
    control_keys: ControlKeys
    host: str = "127.0.0.1"
    port: int = 8081
    public_url: str = "http://127.0.0.1:8081"
    allowed_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    mail: MailSettings | None = None
    signup_is_open: bool = True
    is_production: bool = False
    database_is_embedded: bool = False
    gateway_url: str = "http://127.0.0.1:8080"
    vendor_hosts: frozenset[str] | None = None
    org_vendor_origins: tuple[str, ...] = ()
    private_webhooks: bool = False


def load_server_settings(environment: Mapping[str, str]) -> ServerSettings:
    """Return the settings of an environment. Raises BadArgument for the first that is wrong."""
    url = read_secret(environment, "KAIXU_CONTROL_DATABASE_URL")
    if url is None:
        raise BadArgument(
            "The control plane's own login to the database is missing.",
            field="KAIXU_CONTROL_DATABASE_URL",
        )
    secret = read_secret(environment, JWT_SETTING)
    if secret is None:
        raise BadArgument(
            "The secret that sessions are signed with is missing: `openssl rand -base64 48` makes "
            "one.",
            field=JWT_SETTING,
        )
    control_key = read_secret(environment, CONTROL_KEY_SETTING)
    if control_key is None:
        raise BadArgument(
            "The key that the control plane's secrets are sealed with is missing: "
            "`openssl rand -base64 32` makes one.",
            field=CONTROL_KEY_SETTING,
        )
    control_keys = parse_control_keys(control_key)
    if set(secret.split()) & set(control_key.split()):
        raise BadArgument(
            f"It is the same as {CONTROL_KEY_SETTING}: each secret is one of its own.",
            field=JWT_SETTING,
        )
    smtp_url = read_secret(environment, URL_SETTING)
    is_production = _is_production(environment.get("KAIXU_ENV") or "")
    host = environment.get("KAIXU_ADMIN_HOST") or "127.0.0.1"
    if is_production:
        _check_production(environment, host=host, sends_mail=smtp_url is not None)
    port = _port(environment.get("KAIXU_ADMIN_PORT") or "8081")
    return ServerSettings(
        database_url=url,
        session_keys=parse_session_keys(secret),
        control_keys=control_keys,
        host=host,
        port=port,
        public_url=_origin(
            environment.get("KAIXU_PUBLIC_URL") or f"http://127.0.0.1:{port}", "KAIXU_PUBLIC_URL"
        ),
        allowed_origins=tuple(
            _origin(origin, "KAIXU_ADMIN_ORIGINS")
            for origin in _words(environment.get("KAIXU_ADMIN_ORIGINS"))
        ),
        trusted_proxies=tuple(
            _network(text) for text in _words(environment.get("KAIXU_TRUSTED_PROXIES"))
        ),
        mail=(
            None
            if smtp_url is None
            else parse_mail_settings(smtp_url, environment.get(FROM_SETTING))
        ),
        signup_is_open=_signup_is_open(environment.get("KAIXU_SIGNUP") or "open"),
        is_production=is_production,
        database_is_embedded=environment.get("KAIXU_DATABASE_EMBEDDED") == "1",
        gateway_url=_origin(
            environment.get("KAIXU_GATEWAY_URL") or "http://127.0.0.1:8080", "KAIXU_GATEWAY_URL"
        ),
        vendor_hosts=frozenset(_words(environment.get("KAIXU_VENDOR_HOSTS", "").lower())) or None,
        org_vendor_origins=tuple(
            _vendor_origin(text) for text in _words(environment.get("KAIXU_ORG_VENDOR_ORIGINS"))
        ),
        private_webhooks=environment.get("KAIXU_PRIVATE_WEBHOOKS") == "1",
    )


def _is_production(text: str) -> bool:
    if text and text not in ENVIRONMENTS:
        raise BadArgument(f"Give one of {', '.join(ENVIRONMENTS)}, or none.", field="KAIXU_ENV")
    return text == "production"


def _check_production(environment: Mapping[str, str], *, host: str, sends_mail: bool) -> None:
    """Raise BadArgument for what would have passwords and sessions travel in plain text."""
    public_url = environment.get("KAIXU_PUBLIC_URL")
    if sends_mail and not public_url:
        raise BadArgument(
            "Say by which origin people reach it: links in mails begin with that.",
            field="KAIXU_PUBLIC_URL",
        )
    if public_url and not public_url.startswith("https://"):
        raise BadArgument("In production people reach it by https://.", field="KAIXU_PUBLIC_URL")
    if host not in LOOPBACK and not _words(environment.get("KAIXU_TRUSTED_PROXIES")):
        raise BadArgument(
            "It speaks plain HTTP: in production it listens on loopback, or behind a proxy that "
            "ends TLS and that KAIXU_TRUSTED_PROXIES names.",
            field="KAIXU_ADMIN_HOST",
        )


def _signup_is_open(text: str) -> bool:
    if text not in {"open", "closed"}:
        raise BadArgument("It is open or closed.", field="KAIXU_SIGNUP")
    return text == "open"


def _words(text: str | None) -> list[str]:
    return [word for word in re.split(r"[\s,]+", text or "") if word]


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > PORT_MAX:
        raise BadArgument(f"A port is a number from 0 to {PORT_MAX}.", field="KAIXU_ADMIN_PORT")
    return int(text)


def _origin(text: str, setting: str) -> str:
    if not _ORIGIN.fullmatch(text):
        raise BadArgument(
            "An origin is a scheme, a host and perhaps a port, as in https://admin.example.com.",
            field=setting,
        )
    return text


def _vendor_origin(text: str) -> str:
    if not _VENDOR_ORIGIN.fullmatch(text):
        raise BadArgument(
            "An origin of vendors is https:// and a host, with * for what differs within a label, "
            "as in https://*.openai.azure.com.",
            field="KAIXU_ORG_VENDOR_ORIGINS",
        )
    return text


def _network(text: str) -> Network:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise BadArgument(
            "A proxy is an address or a network, as in 10.0.0.0/8.", field="KAIXU_TRUSTED_PROXIES"
        ) from None
    if network.prefixlen == 0:
        raise BadArgument(
            "Trusting every address trusts every client: name the proxies.",
            field="KAIXU_TRUSTED_PROXIES",
        )
    return network
