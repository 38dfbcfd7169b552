"""What a data folder keeps of this machine: its name, and the logins of its two planes."""

import base64
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import asyncpg

from control_plane.errors import BadArgument, Refused
from control_plane.files import make_private, write_private
from gateway.sql import load_queries

PASSWORD_BYTES: Final = 24
GATEWAY: Final = "kaixu_gateway"  # the planes' roles
CONTROL: Final = "kaixu_control"
HOST_CHARS_MAX: Final = 30  # a role's name has at most 63
SUFFIX_BYTES: Final = 3  # tells data folders on one machine apart
SCRAM_ITERATIONS: Final = 4096  # PostgreSQL's own; the password is 192 random bits
SALT_BYTES: Final = 16

_QUERIES: Final = load_queries(__package__, "local.sql")
_CHOOSE_ROLE = _QUERIES["choose_role"]
_KEEP_ROLE = _QUERIES["keep_role"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine as the database knows it: one data folder."""

    name: str
    password: str = field(repr=False)
    control_password: str = field(repr=False)

    @property
    def gateway(self) -> "Login":
        """The login of its gateway."""
        return self._login(GATEWAY, self.password)

    @property
    def control(self) -> "Login":
        """The login of its control plane."""
        return self._login(CONTROL, self.control_password)

    def _login(self, plane: str, password: str) -> "Login":
        role = f"{plane}_{re.sub(r'[^a-z0-9]', '_', self.name.lower())}"
        return Login(plane=plane, role=role, password=password)


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A role that logs in, and the plane's role that it is a member of."""

    plane: str
    role: str
    password: str = field(repr=False)


def load_machine(data_dir: Path) -> Machine:
    """Return the folder's machine, made on first use. Raises Refused for a damaged file."""
    path = data_dir / "machine.json"
    if not path.exists():
        host = re.sub(r"[^0-9A-Za-z-]", "-", socket.gethostname().partition(".")[0])
        name = f"{host[:HOST_CHARS_MAX].strip('-') or 'machine'}-{secrets.token_hex(SUFFIX_BYTES)}"
        content = {"name": name, "password": secrets.token_hex(PASSWORD_BYTES)}
        write_private(path, json.dumps(content))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "control_password" not in content:  # new, or of a release without a control plane
            content["control_password"] = secrets.token_hex(PASSWORD_BYTES)
            write_private(path, json.dumps(content))
        return Machine(
            name=content["name"],
            password=content["password"],
            control_password=content["control_password"],
        )
    except (ValueError, KeyError, TypeError):
        raise Refused(f"{path} is damaged: remove it, and the machine gets a new name.") from None


@contextlib.contextmanager
def held(data_dir: Path) -> Iterator[None]:
    """Hold the data folder. Raises Refused where another `up` does."""
    try:
        make_private(data_dir)
        lock = os.open(data_dir / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise BadArgument(f"{data_dir} can't be used: {error.strerror}.", field="data") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise Refused(
                f"`kaixu up` runs on {data_dir} already (process {holder}).",
                field="data",
                code="already_running",
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


async def keep_role(connection: asyncpg.Connection, login: Login) -> None:
    """Make the login role of a machine's plane; the server never sees its password."""
    async with connection.transaction():
        verifier = scram_verifier(login.password, salt=secrets.token_bytes(SALT_BYTES))
        await connection.execute(_CHOOSE_ROLE, login.role, verifier, login.plane)
        await connection.execute(_KEEP_ROLE)


def scram_verifier(password: str, *, salt: bytes) -> str:
    """Return what PostgreSQL stores of an ASCII password (RFC 5803)."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, SCRAM_ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    salt_text, stored, server = (
        base64.b64encode(part).decode() for part in (salt, stored_key, server_key)
    )
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{salt_text}${stored}:{server}"


def with_login(url: str, *, user: str, password: str) -> str:
    """Return a database's URL with another login."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    query = [pair for pair in parse_qsl(parts.query) if pair[0] not in {"user", "password"}]
    path = parts.path if len(parts.path) > 1 else f"/{parts.username or ''}"
    login = f"{quote(user)}:{quote(password)}"
    return urlunsplit((parts.scheme, f"{login}@{host}", path, urlencode(query), ""))
