"""What the operator sets: read once from the environment, checked whole, then plain values.

Every problem is found in one go and told with its fix, so that nobody mends settings one start at a
time. A secret may come from a file: `KAIXU_VAULT_KEY_FILE` in place of `KAIXU_VAULT_KEY`. An empty
setting counts as not set. A message never quotes what may be a secret.
"""

import os
import re
import shlex
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from gateway.client_address import Network
from gateway.limits import (
    CONNECTIONS_PER_WORKER_MAX,
    FIRST_BYTE_SECONDS_MAX,
    IDLE_SECONDS_MAX,
    STREAM_TOTAL_SECONDS_MAX,
)

PORT_MAX: Final = 65_535
WORKERS_MAX: Final = 256
LEASE_SECONDS: Final = 15.0
LEASE_SECONDS_MIN: Final = 2.0  # two heartbeats
LEASE_SECONDS_MAX: Final = 60.0  # for so long a worker that is cut off admits what was revoked
OFFLINE_STREAM_GRACE_SECONDS: Final = 300.0
DRAIN_SECONDS: Final = 120.0
DRAIN_SECONDS_MAX: Final = 3600.0
JOURNAL_KEEP_BYTES: Final = 1024**3  # a worker; what was shipped, kept for a failover
RATE_CALLS_MAX: Final = 2**31 - 1
RATE_SECONDS_MAX: Final = 86_400.0
SECRET_FILE_BYTES_MAX: Final = 64 * 1024
ENVIRONMENTS: Final = ("production", "development")
VAULT_KEYS_MAX: Final = 2  # the current one, and the previous one while keys rotate

Value = TypeVar("Value")

_DURATION: Final = re.compile(r"0|([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SIZE: Final = re.compile(r"([0-9]+) ?(B|KiB|MiB|GiB)?")
_UNIT_BYTES: Final = {None: 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_HOST: Final = re.compile(r"[0-9A-Za-z_.:-]{1,253}")
_NAMED_HOST: Final = re.compile(r"(?:[0-9a-z_.-]{1,253}|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_MACHINE: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,99}")
_ORIGIN: Final = re.compile(r"https?://[0-9a-z.-]+(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One setting that can't be used: which, why, and what to do about it."""

    setting: str
    problem: str
    fix: str


class SettingsInvalid(Exception):
    """Some settings can't be used; `problems` are all of them."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(f"{one.setting}: {one.problem}" for one in problems))
        self.problems = problems


class _Unusable(ValueError):
    """A value can't be used; the texts never quote a secret."""

    def __init__(self, problem: str, *, fix: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One machine's gateway."""

    host: str
    port: int  # 0: any free one
    ops_host: str
    ops_port: int  # 0: any free one
    workers: int
    is_production: bool
    machine: str  # under this name its workers are known
    gateway_database_url: str = field(repr=False)  # holds a password
    feed_database_url: str = field(repr=False)  # reaches the database itself, not a pooler
    journal_dir: Path
    journal_keep_bytes: int  # a worker
    lease_seconds: float
    offline_stream_grace_seconds: float  # from the lease's end
    drain_timeout_seconds: float
    stream_total_seconds: float
    first_byte_seconds: float
    idle_seconds: float
    connections_per_worker: int
    connections_per_address: int | None  # None: the default, of which loopback is exempt
    rate_per_address: tuple[int, int] | None  # calls, and within how many seconds
    calls_per_org: int | None  # open at once on one worker; None: as many as it likes
    hosts: frozenset[str] | None  # `host` or `host:port` that clients call it by; None: any
    trusted_proxies: tuple[Network, ...]  # whose X-Forwarded-For is believed, by tokens' lists
    cors_origins: tuple[str, ...]
    vendor_hosts: frozenset[str] | None  # `host` or `host:port`; None: any
    vault_keys: tuple[str, ...] = field(repr=False)  # the current one first
    vault_key_file: Path | None  # where they came from, if from a file
    vault_key_command: tuple[str, ...]  # which tells them; empty: none does

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Return the settings in `environ`. Raises SettingsInvalid with all problems."""
        env = _Environment(environ)
        database_url = env.secret("KAIXU_GATEWAY_DATABASE_URL", _database_url, default="")
        if not database_url and not env.is_faulty("KAIXU_GATEWAY_DATABASE_URL"):
            env.report(
                "KAIXU_GATEWAY_DATABASE_URL",
                "It is not set.",
                fix="Set it to the URL of the gateway's own database role: "
                "postgresql://user:password@host/database.",
            )
        journal_dir = env.value("KAIXU_JOURNAL_DIR", _path, default=None)
        if journal_dir is None:
            env.report(
                "KAIXU_JOURNAL_DIR",
                "It is not set.",
                fix="Set it to a folder on a local disk that outlives restarts.",
            )
        read = cls(
            host=env.value("KAIXU_HOST", _host, default="127.0.0.1"),
            port=env.value("KAIXU_PORT", _port, default=8080),
            ops_host=env.value("KAIXU_OPS_HOST", _host, default="127.0.0.1"),
            ops_port=env.value("KAIXU_OPS_PORT", _port, default=9090),
            workers=env.value(
                "KAIXU_WORKERS", _whole(1, WORKERS_MAX), default=min(os.cpu_count() or 1, 256)
            ),
            is_production=env.value("KAIXU_ENV", _environment, default="") == "production",
            machine=env.value("KAIXU_MACHINE", _machine, default=_own_name()),
            gateway_database_url=database_url,
            feed_database_url=env.secret(
                "KAIXU_FEED_DATABASE_URL", _database_url, default=database_url
            ),
            journal_dir=journal_dir or Path(),
            journal_keep_bytes=env.value(
                "KAIXU_JOURNAL_KEEP_BYTES", _size(0, JOURNAL_KEEP_BYTES), default=JOURNAL_KEEP_BYTES
            ),
            lease_seconds=env.value(
                "KAIXU_LEASE",
                _duration(LEASE_SECONDS_MIN, LEASE_SECONDS_MAX),
                default=LEASE_SECONDS,
            ),
            offline_stream_grace_seconds=env.value(
                "KAIXU_OFFLINE_STREAM_GRACE",
                _duration(0, STREAM_TOTAL_SECONDS_MAX),
                default=OFFLINE_STREAM_GRACE_SECONDS,
            ),
            drain_timeout_seconds=env.value(
                "KAIXU_DRAIN_TIMEOUT", _duration(0, DRAIN_SECONDS_MAX), default=DRAIN_SECONDS
            ),
            stream_total_seconds=env.value(
                "KAIXU_STREAM_TOTAL",
                _duration(1, STREAM_TOTAL_SECONDS_MAX),
                default=STREAM_TOTAL_SECONDS_MAX,
            ),
            first_byte_seconds=env.value(
                "KAIXU_FIRST_BYTE",
                _duration(0.1, FIRST_BYTE_SECONDS_MAX),
                default=FIRST_BYTE_SECONDS_MAX,
            ),
            idle_seconds=env.value(
                "KAIXU_IDLE", _duration(0.1, IDLE_SECONDS_MAX), default=IDLE_SECONDS_MAX
            ),
            connections_per_worker=env.value(
                "KAIXU_CONNECTIONS_PER_WORKER",
                _whole(1, CONNECTIONS_PER_WORKER_MAX),
                default=CONNECTIONS_PER_WORKER_MAX,
            ),
            connections_per_address=env.value(
                "KAIXU_CONNECTIONS_PER_ADDRESS",
                _whole(1, CONNECTIONS_PER_WORKER_MAX),
                default=None,
            ),
            rate_per_address=env.value("KAIXU_RATE_PER_ADDRESS", _rate, default=None),
            calls_per_org=env.value(
                "KAIXU_CALLS_PER_ORG", _whole(1, CONNECTIONS_PER_WORKER_MAX), default=None
            ),
            hosts=env.value("KAIXU_HOSTS", _hosts, default=None),
            trusted_proxies=env.value("KAIXU_TRUSTED_PROXIES", _networks, default=()),
            cors_origins=env.value("KAIXU_CORS_ORIGINS", _list_of(_origin), default=()),
            vendor_hosts=env.value("KAIXU_VENDOR_HOSTS", _hosts, default=None),
            **_vault(env),
        )
        if env.problems:
            raise SettingsInvalid(tuple(env.problems))
        return read


@dataclass(frozen=True, slots=True, kw_only=True)
class ResealSettings:
    """What it takes to seal vendor keys anew."""

    database_url: str = field(repr=False)  # the owner's
    vault_keys: tuple[str, ...] = field(repr=False)
    vault_key_file: Path | None
    vault_key_command: tuple[str, ...]

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "ResealSettings":
        """Return the settings in `environ`. Raises SettingsInvalid with all problems."""
        env = _Environment(environ)
        read = cls(
            database_url=env.secret("KAIXU_DATABASE_URL", _database_url, default=""),
            **_vault(env),
        )
        if not read.database_url and not env.is_faulty("KAIXU_DATABASE_URL"):
            env.report(
                "KAIXU_DATABASE_URL", "It is not set.", fix="Set it to the owner's database URL."
            )
        if not read.vault_keys and not read.vault_key_command:
            env.report("KAIXU_VAULT_KEY", "It is not set.", fix="Set it as the gateways have it.")
        if env.problems:
            raise SettingsInvalid(tuple(env.problems))
        return read


class _Environment:
    """Reads settings one by one and gathers what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[Problem] = []

    def report(self, setting: str, problem: str, *, fix: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(setting=setting, problem=problem, fix=fix))

    def is_faulty(self, setting: str) -> bool:
        """Return whether a problem of this setting, or of its file, was noted."""
        return any(one.setting in (setting, f"{setting}_FILE") for one in self.problems)

    def value(self, setting: str, parse: Callable[[str], Value], *, default: Value) -> Value:
        """Return the parsed setting, or `default` where it is not set or can't be used."""
        text = self._environ.get(setting, "").strip()
        return self._parsed(setting, text, parse, default=default) if text else default

    def secret(self, setting: str, parse: Callable[[str], Value], *, default: Value) -> Value:
        """Do as `value` does; the text may come from the file that `…_FILE` names."""
        name = f"{setting}_FILE"
        path = self._environ.get(name, "").strip()
        if not path:
            return self.value(setting, parse, default=default)
        if self._environ.get(setting, "").strip():
            self.report(
                setting, f"Both {setting} and {name} are set.", fix="Set only one of the two."
            )
            return default
        try:
            with Path(path).open(encoding="utf-8") as file:
                text = file.read(SECRET_FILE_BYTES_MAX).strip()
        except (OSError, ValueError) as error:
            self.report(
                name,
                f"{path} can't be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}.",
                fix="Name a text file that the gateway's operating-system user may read.",
            )
            return default
        if not text:
            self.report(name, f"{path} is empty.", fix="Put the secret into it.")
            return default
        return self._parsed(name, text, parse, default=default)

    def _parsed(
        self, setting: str, text: str, parse: Callable[[str], Value], *, default: Value
    ) -> Value:
        try:
            return parse(text)
        except _Unusable as error:
            self.report(setting, error.problem, fix=error.fix)
            return default


def _own_name() -> str:
    name = re.sub(r"[^0-9A-Za-z_.-]", "-", socket.gethostname())[:100]
    return name if _MACHINE.fullmatch(name) else "machine"


def _host(text: str) -> str:
    host = text.removeprefix("[").removesuffix("]")
    if not _HOST.fullmatch(host):
        raise _Unusable(
            "It is not an address to listen on.", fix="Give an IP address or a name: 127.0.0.1."
        )
    return host


def _port(text: str) -> int:
    return _whole(0, PORT_MAX)(text)


def _machine(text: str) -> str:
    if not _MACHINE.fullmatch(text):
        raise _Unusable(
            "It is not a name for a machine.",
            fix="Use up to 100 letters, digits, '.', '-' and '_'; begin with a letter or digit.",
        )
    return text


def _environment(text: str) -> str:
    if text not in ENVIRONMENTS:
        raise _Unusable(
            "There is no such environment.", fix=f"Give one of {', '.join(ENVIRONMENTS)}, or none."
        )
    return text


def _path(text: str) -> Path | None:
    return Path(text).absolute()


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise _Unusable(
                f"It is not a whole number of {least} to {most}.",
                fix=f"Give a number of {least} to {most}.",
            )
        return int(text)

    return parse


def _duration(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        match = _DURATION.fullmatch(text)
        if match is None:
            raise _Unusable(
                "It is not a duration.", fix="Give a number with its unit: 500ms, 15s, 5m, 24h."
            )
        seconds = float(match[1] or 0) * _UNIT_SECONDS[match[2] or "s"]
        if not least <= seconds <= most:
            raise _Unusable(
                f"It is not between {least:g}s and {most:g}s.",
                fix=f"Give a duration of {least:g}s to {most:g}s.",
            )
        return seconds

    return parse


def _rate(text: str) -> tuple[int, int]:
    number, slash, window = text.partition("/")
    if not slash:
        raise _Unusable("It is not a rate.", fix="Give calls and a window: 600/1m.")
    return _whole(1, RATE_CALLS_MAX)(number), int(_duration(1, RATE_SECONDS_MAX)(window))


def _size(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        match = _SIZE.fullmatch(text)
        size = int(match[1]) * _UNIT_BYTES[match[2]] if match else -1
        if not least <= size <= most:
            raise _Unusable(
                f"It is not a size of {least} to {most} bytes.",
                fix="Give bytes, or a number with KiB, MiB or GiB: 512MiB.",
            )
        return size

    return parse


def _database_url(text: str) -> str:
    try:
        scheme = urlsplit(text).scheme
    except ValueError:
        scheme = ""
    if scheme not in ("postgresql", "postgres"):
        raise _Unusable(
            "It is not the URL of a PostgreSQL database.",
            fix="Give it as postgresql://user:password@host/database.",
        )
    return text


def _origin(text: str) -> str:
    origin = text.lower().removesuffix("/")
    if not _ORIGIN.fullmatch(origin):
        raise _Unusable(
            "There is something in it that is not an origin.",
            fix="Give scheme and host of each, separated by commas: https://app.example.com.",
        )
    return origin


def _list_of(parse: Callable[[str], str]) -> Callable[[str], tuple[str, ...]]:
    return lambda text: tuple(parse(one.strip()) for one in text.split(",") if one.strip())


def _hosts(text: str) -> frozenset[str] | None:
    hosts = frozenset(one.strip().lower() for one in text.split(",") if one.strip())
    if not hosts or not all(_NAMED_HOST.fullmatch(host) for host in hosts):
        raise _Unusable(
            "There is something in it that is not a host.",
            fix="Give hosts, with a port where it matters, separated by commas: api.openai.com.",
        )
    return hosts


def _networks(text: str) -> tuple[Network, ...]:
    try:
        networks = tuple(ip_network(one) for one in text.replace(",", " ").split())
    except ValueError:
        networks = ()
    if not networks or not all(network.prefixlen for network in networks):
        raise _Unusable(
            "It is no list of networks, or trusts every client.",
            fix="Name the proxies, separated by commas: 10.0.0.0/8, 192.0.2.7.",
        )
    return networks


def _vault(env: "_Environment") -> dict[str, Any]:
    """Return the settings of the vault's private keys, by name."""
    none: tuple[str, ...] = ()
    keys = env.secret("KAIXU_VAULT_KEY", _vault_keys, default=none)
    path = env.value("KAIXU_VAULT_KEY_FILE", _path, default=None)
    command = env.value("KAIXU_VAULT_KEY_COMMAND", _command, default=none)
    if command and (keys or path):
        env.report(
            "KAIXU_VAULT_KEY_COMMAND",
            "The vault key is set in another way too.",
            fix="Set one of KAIXU_VAULT_KEY, KAIXU_VAULT_KEY_FILE, KAIXU_VAULT_KEY_COMMAND.",
        )
    return {"vault_keys": keys, "vault_key_file": path, "vault_key_command": command}


def _command(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise _Unusable(
            "It is not a command line.", fix="Quote it as for a shell; it is run without one."
        ) from error


def _vault_keys(text: str) -> tuple[str, ...]:
    keys = tuple(text.split())
    if len(keys) > VAULT_KEYS_MAX:
        raise _Unusable(
            f"It holds more than {VAULT_KEYS_MAX} keys.",
            fix="Give the current private key and, while keys rotate, the previous one below it.",
        )
    return keys
