"""A journal's folder: its names, its lock, and what it asks of the file system.

    <root>/<worker id>/lock           held by the worker for life, then by who finishes its journal
    <root>/<worker id>/00000001.seg   a segment; they are written, and go, in the order of numbers
    <root>/<worker id>/1.spare        a preallocated file that becomes the next segment
    <root>/<worker id>/….kept         a segment of which every row was shipped
    <root>/<worker id>/distrusted     a write to the disk failed: no count in here is exact

Folders that begin with a dot are half made or half removed, and nobody's.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

LOCK_NAME: Final = "lock"
DISTRUSTED_NAME: Final = "distrusted"
SEGMENT_SUFFIX: Final = ".seg"
SPARE_SUFFIX: Final = ".spare"
KEPT_SUFFIX: Final = ".kept"

NO_ROOM_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def read_boot_id() -> str:
    """Return what names this boot of the machine: another one may have lost unsynced lines."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


class Files:
    """What a journal asks of the file system; tests hand in one that fails. Raises OSError."""

    def create(self, path: Path, size: int) -> int:
        """Create a file of `size` zero bytes that the disk has room for; return its descriptor."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        return fd

    def free_bytes(self, folder: Path) -> int:
        """Return how much room the disk of a folder has."""
        status = os.statvfs(folder)
        return status.f_bavail * status.f_frsize

    # Hands bytes to the kernel: (descriptor, bytes, offset); returns how many it took.
    write: Callable[[int, bytes, int], int] = staticmethod(os.pwrite)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Return up to `size` bytes."""
        return os.pread(fd, size, offset)

    def sync(self, fd: int) -> None:
        """Wait until what was written is on the disk."""
        os.fdatasync(fd)

    def sync_folder(self, path: Path) -> None:
        """Wait until the folder's names are on the disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def take_lock(path: Path, *, create: bool = False) -> int | None:
    """Return a descriptor that holds the lock at `path`, or None where there is none to be had.

    The lock ends with the process, or when the descriptor is closed. Raises OSError.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it before may have moved the folder away; then this locks nothing.
        if path.stat().st_ino == os.fstat(fd).st_ino:
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(fd)
        raise
    os.close(fd)
    return None


def files_with(folder: Path, suffix: str) -> list[Path]:
    """Return the folder's files of one kind, sorted by name. Raises OSError."""
    return sorted(path for path in folder.iterdir() if path.suffix == suffix)


def remove(path: Path) -> None:
    """Remove a file, if it can be: it is missed by nobody."""
    with contextlib.suppress(OSError):
        path.unlink()


def remove_folder(folder: Path) -> None:
    """Remove a folder of files, as far as it can be."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            remove(path)
        folder.rmdir()
