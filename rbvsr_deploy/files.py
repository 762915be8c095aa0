"""Writes files atomically, opens them without following links, and keeps them private.

Only this module uses features of POSIX systems such as owners, modes and ``O_NOFOLLOW``. On
Windows, the same functions do as much as the system allows.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import stat
import tempfile
from pathlib import Path

__all__ = [
    "can_open_folders",
    "check_writable",
    "is_junction",
    "is_private",
    "is_same_place",
    "is_special",
    "make_private_folder",
    "open_folder",
    "open_no_follow",
    "read_private",
    "sha256",
    "total_size",
    "try_lock",
    "usual_mode",
    "write_atomically",
]

logger = logging.getLogger(__name__)

_FOLDER_FLAGS = ("O_DIRECTORY", "O_NOFOLLOW")
_JUNCTION = 0xA0000003  # IO_REPARSE_TAG_MOUNT_POINT


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of a folder's files by name.

    Raises:
        OSError: a file or folder cannot be read.
    """
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(os.fsencode(file.name))
        if file.is_file():
            with file.open("rb") as opened:
                while block := opened.read(2**20):
                    digest.update(block)
    return digest.hexdigest()


def check_writable(path: Path) -> None:
    """Check before long work that a file can be written to ``path``; nothing remains there.

    Raises:
        OSError: the folder is missing or cannot be written to, or ``path`` is a folder or special.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if is_special(path):
        raise OSError(errno.EINVAL, "it is a device, a pipe or a broken link", str(path))
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def total_size(path: Path) -> int:
    """Return the bytes of a file, or of the files in a folder.

    Raises:
        OSError: it does not exist, or cannot be read.
    """
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def is_special(path: Path) -> bool:
    """Return whether a path exists that is neither a file, a folder nor a link to one: a device, a
    FIFO, a socket or a broken link.

    Raises:
        OSError: the path cannot be examined.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return os.path.islink(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return True
        raise
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_same_place(path: Path, other: Path) -> bool:
    """Return whether two paths lead to the same file or folder, even through links or hard links;
    it need not exist.
    """
    try:
        return os.path.samefile(path, other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)


def write_atomically(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write ``data`` to ``path`` through a temporary file in the same folder, flushed to disk
    and then renamed.

    Args:
        path: the file to write; an existing file is replaced.
        data: its content.
        private: let only this user read it.

    Raises:
        OSError: the folder cannot be written to or the disk is full; no temporary file remains and
            an existing file is kept.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not private:
            os.chmod(name, usual_mode())  # mkstemp makes files private
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def usual_mode() -> int:
    """Return the mode that ``open`` gives to a new file of this process."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def open_no_follow(
    path: str | Path, flags: int, *, mode: int = 0o600, dir_fd: int | None = None
) -> int:
    """Open a regular file and return its descriptor, without following a link or blocking on a
    FIFO.

    Args:
        path: path of the file.
        flags: flags of ``os.open``.
        mode: mode of a new file, before the umask.
        dir_fd: descriptor of the folder that a relative path starts from, if the system has them.

    Raises:
        OSError: it is a link or not a regular file, or cannot be opened.
    """
    if not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):
        raise OSError(errno.EINVAL, "it is a link, which is not followed", str(path))
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
        flags |= getattr(os, name, 0)
    handle = os.open(path, flags, mode, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is a device, a pipe or a folder, not a file", str(path))
    return handle


def can_open_folders() -> bool:
    """Return whether the system has descriptors of folders, which Windows does not."""
    return all(hasattr(os, name) for name in _FOLDER_FLAGS) and bool(os.supports_dir_fd)


def open_folder(path: str | Path, *, dir_fd: int | None = None) -> int | None:
    """Open a folder and return its descriptor, which stays valid if the folder is renamed.

    Returns:
        ``None`` where the system has no descriptors of folders.

    Raises:
        NotADirectoryError: it is a link or not a folder.
        OSError: it cannot be opened.
    """
    flags = os.O_RDONLY
    if can_open_folders():
        for name in _FOLDER_FLAGS:
            flags |= getattr(os, name)
    else:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or is_junction(status):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return None
    try:
        return os.open(path, flags, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:  # some systems report a link this way
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
        raise


def is_junction(status: os.stat_result) -> bool:
    """Return whether the result of ``lstat`` is that of a junction, a link to a folder that Windows
    reports as a folder.
    """
    return getattr(status, "st_reparse_tag", 0) == _JUNCTION


def try_lock(handle: int) -> bool:
    """Lock an open file until its descriptor is closed or the process ends, even if it is killed.

    Args:
        handle: descriptor of a file that is open for writing.

    Returns:
        False if the file is locked through another descriptor, in this process or another. True if
        it was locked, or if the system or the file system has no locks.
    """
    try:
        import portalocker
    except ImportError as error:
        if error.name == "portalocker":
            raise
        logger.debug("the system has no file locks: %s", error)
        return True
    try:
        portalocker.lock(
            handle, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING
        )
    except portalocker.AlreadyLocked:
        return False
    except portalocker.LockException as error:
        logger.debug("the file system has no locks: %s", error)
    return True


def is_private(status: os.stat_result) -> bool:
    """Return whether a file or folder belongs to this user and nobody else can write to it,
    according to owner and mode. On Windows, which has neither, return True.
    """
    if not hasattr(os, "geteuid"):
        return True
    return _is_own(status) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def read_private(path: Path) -> bytes:
    """Read a file that nobody but this user can have written, such as a key; links are not
    followed.

    Raises:
        PermissionError: the file or its folder belongs to another user, or others can write to it.
        OSError: it is missing, not a regular file, or cannot be read.
    """
    folder = os.stat(path.parent)
    if not is_private(folder):
        raise _not_private(path.parent)
    with open(open_no_follow(path, os.O_RDONLY), "rb") as file:
        if not is_private(os.fstat(file.fileno())):
            raise _not_private(path)
        return file.read()


def make_private_folder(path: Path) -> None:
    """Create a folder and its missing parents for this user only. If the folder exists and others
    can write to it, make it private.

    Raises:
        PermissionError: it belongs to another user.
        OSError: it cannot be created.
    """
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    status = os.stat(path)
    if is_private(status):
        return
    if not _is_own(status):
        raise _not_private(path)
    path.chmod(0o700)


def _is_own(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def _not_private(path: Path) -> PermissionError:
    return PermissionError(errno.EPERM, "other users can write to it", str(path))
