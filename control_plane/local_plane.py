"""The control plane of `kaixu up`: its secrets, its login, its process.

It gets what it needs and nothing of the gateway's; the gateway gets nothing of it.
"""

import secrets
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from control_plane.errors import BadArgument, Refused
from control_plane.files import write_private
from control_plane.identity.session_keys import SETTING as JWT_SETTING
from control_plane.processes import reduced
from control_plane.secrets import SETTING as KEY_SETTING
from control_plane.secrets import ControlKeys, make_control_key, parse_control_keys
from control_plane.settings import read_secret

JWT_SECRET_BYTES: Final = 48
COMMAND: Final = (sys.executable, "-P", "-m", "control_plane")

# Settings of the control plane's own that pass through.
SETTINGS: Final = (
    "KAIXU_ADMIN_HOST",
    "KAIXU_ADMIN_ORIGINS",
    "KAIXU_ENV",
    "KAIXU_MAIL_FROM",
    "KAIXU_ORG_VENDOR_ORIGINS",
    "KAIXU_PRIVATE_WEBHOOKS",
    "KAIXU_PUBLIC_URL",
    "KAIXU_SIGNUP",
    "KAIXU_TRUSTED_PROXIES",
    "KAIXU_VENDOR_HOSTS",
)
FILES: Final[Mapping[str, str]] = {JWT_SETTING: "jwt.secret", KEY_SETTING: "control.key"}
SECRETS: Final = (JWT_SETTING, KEY_SETTING, "KAIXU_SMTP_URL", "KAIXU_CONTROL_DATABASE_URL")


def with_files(names: Iterable[str]) -> set[str]:
    """Return the variables of secrets, and those that name files with them."""
    return {variable for name in names for variable in (name, f"{name}_FILE")}


def keep_secrets(data_dir: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return how the control plane finds its secrets: the operator's, or the data folder's.

    Those of the data folder are made on first use. Raises BadArgument, OSError.
    """
    found = {
        name: environment[name]
        for name in with_files(("KAIXU_SMTP_URL", JWT_SETTING, KEY_SETTING))
        if environment.get(name)
    }
    for setting, file in FILES.items():
        if read_secret(environment, setting) is None:
            path = data_dir / file
            if not path.exists():
                is_key = setting == KEY_SETTING
                made = make_control_key() if is_key else secrets.token_urlsafe(JWT_SECRET_BYTES)
                write_private(path, made + "\n")
            found[f"{setting}_FILE"] = str(path)
    return found


def find_control_keys(data_dir: Path, environment: Mapping[str, str]) -> ControlKeys:
    """Return the control plane's keys, which are there already. Raises Refused, BadArgument."""
    path = data_dir / FILES[KEY_SETTING]
    if read_secret(environment, KEY_SETTING) is not None:
        return control_keys(environment)
    if not has_control_key(data_dir, environment):
        raise Refused(
            "The control plane's key is not here: name it in KAIXU_CONTROL_KEY_FILE.",
            field=KEY_SETTING,
        )
    return control_keys({f"{KEY_SETTING}_FILE": str(path)})


def has_control_key(data_dir: Path, environment: Mapping[str, str]) -> bool:
    """Return whether the control plane's key is here. Raises BadArgument."""
    is_named = read_secret(environment, KEY_SETTING) is not None
    return is_named or (data_dir / FILES[KEY_SETTING]).exists()


def control_keys(found: Mapping[str, str]) -> ControlKeys:
    """Return the keys that `keep_secrets` found. Raises Refused, BadArgument."""
    text = read_secret(found, KEY_SETTING)
    assert text is not None, "one was made"
    try:
        return parse_control_keys(text)
    except BadArgument as error:
        path = found.get(f"{KEY_SETTING}_FILE")
        if path is None:
            raise
        raise Refused(f"{path} holds no control key: put it back from your backup.") from error


def control_environment(
    environment: Mapping[str, str],
    found: Mapping[str, str],
    *,
    database_url: str,
    port: int,
    gateway_url: str,
    is_embedded: bool,
) -> dict[str, str]:
    """Return the environment of the control plane's process, and nothing beyond what it needs."""
    return {
        **reduced(environment),
        **{name: environment[name] for name in SETTINGS if environment.get(name)},
        **found,
        "KAIXU_CONTROL_DATABASE_URL": database_url,
        "KAIXU_ADMIN_PORT": str(port),
        "KAIXU_GATEWAY_URL": environment.get("KAIXU_GATEWAY_URL") or gateway_url,
        "KAIXU_DATABASE_EMBEDDED": "1" if is_embedded else "0",
    }
