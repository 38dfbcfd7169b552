"""Files and folders that only their owner may read, and the few exceptions to that."""

import contextlib
import errno
import os
import stat
import struct
from pathlib import Path
from typing import Final

_ACL: Final = "system.posix_acl_access"
_ACL_VERSION: Final = 2
_ACL_USER_OBJ, _ACL_USER, _ACL_GROUP_OBJ, _ACL_MASK, _ACL_OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_ACL_NO_ID: Final = 0xFFFF_FFFF


def make_private(folder: Path) -> None:
    """Make a folder, or close one that others can look into; ways through it stay."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & ~stat.S_IXGRP & 0o077:
        folder.chmod(0o700)


def write_private(path: Path, text: str, *, like: Path | None = None) -> None:
    """Write a file that only its owner may read; whole and on disk, or not at all.

    `like`: a file whose owner, mode and access list it gets instead. Raises OSError, then the file
    is as it was.
    """
    made = path.with_name(path.name + ".new")
    made.unlink(missing_ok=True)
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if like is not None:
                _make_alike(file.fileno(), like)
            os.fsync(file.fileno())
        made.replace(path)
    except OSError:
        made.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _make_alike(descriptor: int, like: Path) -> None:
    """Let the same users as another file's read an open one. Raises OSError."""
    wanted, present = like.stat(), os.fstat(descriptor)
    if (wanted.st_uid, wanted.st_gid) != (present.st_uid, present.st_gid):
        os.fchown(descriptor, wanted.st_uid, wanted.st_gid)
    try:
        access = os.getxattr(like, _ACL)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP):
            raise
        os.fchmod(descriptor, stat.S_IMODE(wanted.st_mode))
    else:
        os.setxattr(descriptor, _ACL, access)  # which has the mode; alone, that would mean more


def sync_folder(folder: Path) -> None:
    """Bring to disk which files a folder has."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def let_through(folder: Path, uid: int) -> None:
    """Let a user through a folder, without letting it list what is there.

    By an access list, which names this user alone; by the mode, for all, where the file system has
    none or somebody else's list is there already.
    """
    status = folder.stat()
    if status.st_mode & stat.S_IXOTH or status.st_uid == uid:
        return
    traverse = stat.S_IXOTH
    owner, group, other = (status.st_mode >> shift & 0o7 for shift in (6, 3, 0))
    entry = struct.pack("<HHI", _ACL_USER, traverse, uid)
    wanted = (
        struct.pack("<I", _ACL_VERSION)
        + struct.pack("<HHI", _ACL_USER_OBJ, owner, _ACL_NO_ID)
        + entry
        + struct.pack("<HHI", _ACL_GROUP_OBJ, group & ~traverse, _ACL_NO_ID)
        + struct.pack("<HHI", _ACL_MASK, group | traverse, _ACL_NO_ID)
        + struct.pack("<HHI", _ACL_OTHER, other, _ACL_NO_ID)
    )
    with contextlib.suppress(OSError):
        try:
            present = os.getxattr(folder, _ACL)
        except OSError:
            present = b""
        if not present or (entry in present and len(present) == len(wanted)):
            os.setxattr(folder, _ACL, wanted)  # again too: a chmod closes the way
            return
    folder.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)


def let_read(installation: Path, *, probes: tuple[Path, ...]) -> None:
    """Let everyone read an installation, where one of the probes says that not everyone may."""
    everyone = stat.S_IROTH | stat.S_IXOTH
    if all(path.stat().st_mode & everyone == everyone for path in probes):
        return
    for path in (installation, *installation.rglob("*")):
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode | (mode & (stat.S_IRUSR | stat.S_IXUSR)) >> 6)
