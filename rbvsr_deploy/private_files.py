"""Files that nobody but this user can have written: what is in them is believed, as a key or as
machine code, so they are read and made with more care than others.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["make_private_folder", "read_private"]


def read_private(path: Path) -> bytes:
    """Read a file that this user owns and nobody else may write to; links are not followed.

    Raises:
        PermissionError: it, or its folder, is somebody else's, or open to others for writing.
        OSError: it is missing, no regular file, or cannot be read.
    """
    _check_owner(path.parent, os.stat(path.parent))
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # not all of them on every system
        flags |= getattr(os, name, 0)
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        _check_owner(path, status)
        return file.read()


def make_private_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, for this user only. One that is there
    already is closed to others.

    Raises:
        PermissionError: it is somebody else's.
        OSError: it cannot be made.
    """
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    status = os.stat(path)
    try:
        _check_owner(path, status)
    except PermissionError:
        if not _is_ours(status):
            raise
        path.chmod(0o700)


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Raises PermissionError where others may have written. Windows keeps its users apart by other
    means.
    """
    if hasattr(os, "geteuid") and not (_is_ours(status) and not status.st_mode & 0o022):
        raise PermissionError(errno.EPERM, "others than this user can write to it", str(path))


def _is_ours(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
