"""Files that are either there in full or not at all, and files that are opened as what they are.

What only POSIX systems have (links that are not followed, owners, modes) is used here and nowhere
else; on Windows, the same functions do what can be done there.
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
    "open_folder",
    "open_no_follow",
    "sha256",
    "try_lock",
    "usual_mode",
    "write_atomically",
]

logger = logging.getLogger(__name__)

_FOLDER_FLAGS = ("O_DIRECTORY", "O_NOFOLLOW")
_JUNCTION = 0xA0000003  # IO_REPARSE_TAG_MOUNT_POINT


def sha256(path: Path) -> str:
    """Of a file's content; of a folder's files, names and contents, in order of their names.

    Raises:
        OSError: something cannot be read.
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
    """Find out before long work whether a file can be written at ``path``; nothing is left there.

    Raises:
        OSError: the folder is missing or cannot be written to, or ``path`` is a folder or special.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if is_special(path):
        raise OSError(
            errno.EINVAL, "it is a device, a pipe or a link that leads nowhere", str(path)
        )
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def is_special(path: Path) -> bool:
    """Whether something is there that is neither a file nor a folder, nor a link to one: a device,
    a FIFO, a socket, or a link that leads nowhere.

    Raises:
        OSError: it cannot be found out.
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
    """Whether two paths lead to the same file or folder, which need not exist: through links or
    under another name of the file.
    """
    try:
        return os.path.samefile(path, other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)


def write_atomically(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write ``data`` to ``path`` through a temporary file beside it, flushed to disk and then
    renamed into place.

    Args:
        path: an existing file is replaced.
        data: its content.
        private: whether nobody but this user may read it.

    Raises:
        OSError: the folder cannot be written to or the disk is full; nothing is left behind and an
            existing file stays.
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
    """The mode that ``open`` gives to a new file of this process."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def open_no_follow(
    path: str | Path, flags: int, *, mode: int = 0o600, dir_fd: int | None = None
) -> int:
    """Open a regular file and return its descriptor; a link is not followed, and nobody is waited
    for at the other end of a FIFO.

    Args:
        path: of the file.
        flags: as ``os.open`` takes them.
        mode: of a file that is made; the umask is taken off.
        dir_fd: descriptor of the folder that a relative path starts from, where there are such.

    Raises:
        OSError: it is a link or no regular file, or cannot be opened.
    """
    if not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):
        raise OSError(errno.EINVAL, "a link is not followed", str(path))
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
    """Open a folder and return its descriptor, which stays with it whatever happens to its name.

    Returns:
        ``None`` where the system has no descriptors of folders.

    Raises:
        NotADirectoryError: it is a link or something else.
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
        if error.errno == errno.ELOOP:  # what some systems call a link here
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
        False if the file is locked through another descriptor, in this process or another. True
        also where the file system or the system has no locks.
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
    """Whether a file or folder belongs to this user and nobody else can write to it, as far as
    owner and mode say so; Windows has neither.
    """
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
