"""Makes a Linux process behave like one on Windows, as far as Python programs can notice.

Run ``install()`` before anything else is imported. It removes what only POSIX systems have, and
makes calls fail that fail on Windows: opening a folder, waiting for a pipe, ``fsync`` of a file
open for reading, and deleting, renaming or replacing an open file. portalocker locks as it does
on Windows. ``os.name`` and ``sys.platform`` stay as they are for the sake of other packages.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import signal
import stat
import sys
import types
from collections.abc import Callable
from typing import Any

MODULES = ("fcntl", "grp", "pwd", "resource", "syslog", "termios")
SIGNALS = ("SIGALRM", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2")
SIGNAL_CALLS = ("alarm", "pthread_kill", "pthread_sigmask", "setitimer", "sigwait")
SELECT = ("PIPE_BUF", "epoll", "poll")
OS = (
    *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "O_TMPFILE"),
    *("chown", "fchdir", "fchmod", "fchown", "fdatasync", "getegid", "geteuid", "getgid"),
    *("getloadavg", "getpgid", "getuid", "killpg", "lchown", "lockf", "mkfifo", "mknod", "nice"),
    *("posix_fadvise", "posix_fallocate", "pread", "preadv", "pwrite", "pwritev", "readv"),
    *("sched_getaffinity", "sched_setaffinity", "sendfile", "setsid", "setuid"),
    *("sync", "sysconf", "writev"),
)
FOLDER_CALLS = (
    *("access", "chmod", "link", "lstat", "mkdir", "open", "readlink", "remove", "rename"),
    *("replace", "rmdir", "stat", "symlink", "unlink", "utime"),
)


def install() -> None:
    """Change this process; there is no way back."""
    import asyncio  # noqa: F401  this Python's own reads os.sysconf, from 3.12 on
    import fcntl

    _import_for_windows("portalocker", msvcrt=_msvcrt(fcntl))
    get_flags = fcntl.fcntl
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for owner, names in ((os, OS), (signal, SIGNALS + SIGNAL_CALLS), (select, SELECT)):
        for name in names:
            if hasattr(owner, name):
                delattr(owner, name)
    for supported in ("supports_dir_fd", "supports_fd", "supports_follow_symlinks"):
        setattr(os, supported, set())
    for name in FOLDER_CALLS:
        setattr(os, name, _without_folders(getattr(os, name)))
    for name in ("remove", "rename", "replace", "rmdir", "unlink"):
        setattr(os, name, _refusing_open_files(getattr(os, name)))
    os.open = _opening_no_folder(os.open)
    os.scandir = _taking_paths(os.scandir)
    os.fsync = _for_writers(  # type: ignore[assignment]  # Python's takes file objects too
        os.fsync, lambda handle: get_flags(handle, 3) & os.O_ACCMODE
    )
    select.select = _sockets_only(select.select)

    import shutil
    import tempfile

    # They were found out when the module was imported.
    shutil._use_fd_functions = shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]
    tempfile.TemporaryFile = tempfile.NamedTemporaryFile  # type: ignore[assignment]


def _msvcrt(fcntl: types.ModuleType) -> types.ModuleType:
    """Return the part of the module that locks; a lock belongs to an open file, as on Windows."""
    msvcrt = types.ModuleType("msvcrt")
    modes = {"LK_UNLCK": fcntl.LOCK_UN, "LK_LOCK": fcntl.LOCK_EX}
    modes["LK_NBLCK"] = fcntl.LOCK_EX | fcntl.LOCK_NB

    def locking(handle: int, mode: int, length: int) -> None:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            fcntl.flock(handle, mode)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    msvcrt.locking = locking  # type: ignore[attr-defined]
    for name, mode in modes.items():
        setattr(msvcrt, name, mode)
    return msvcrt


def _import_for_windows(package: str, *, msvcrt: types.ModuleType) -> None:
    """Import a package that chooses its implementation by the system's name."""
    import importlib

    importlib.import_module(package)  # and what it takes from the standard library
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        if not name.endswith(".__about__"):  # looks for files, with paths of the real system
            del sys.modules[name]
    name, os.name = os.name, "nt"
    sys.modules["msvcrt"] = msvcrt
    try:
        importlib.import_module(package)
    finally:
        os.name = name
        del sys.modules["msvcrt"]  # subprocess takes it for a sign of Windows


def _without_folders(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def without_folders(*arguments: Any, **options: Any) -> Any:
        for name in ("dir_fd", "src_dir_fd", "dst_dir_fd"):
            if options.get(name) is not None:
                raise NotImplementedError(f"{name} unavailable on this platform")
        return call(*arguments, **options)

    return without_folders


def _refusing_open_files(call: Callable[..., Any]) -> Callable[..., Any]:
    name = call.__name__

    @functools.wraps(call)
    def refusing(*paths: Any, **options: Any) -> Any:
        for path in paths:
            if _is_open(path):
                raise PermissionError(errno.EACCES, "used by another process", str(path))
        if name in ("rename", "replace") and os.path.isdir(paths[1]):
            raise PermissionError(errno.EACCES, "Access is denied", str(paths[1]))
        if name == "rename" and os.path.lexists(paths[1]):
            raise FileExistsError(errno.EEXIST, "already exists", str(paths[1]))
        return call(*paths, **options)

    return refusing


def _is_open(path: Any) -> bool:
    """Return whether this process has a file open, or one inside a folder."""
    real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    if real.startswith("/dev/shm/"):
        return False  # multiprocessing shares memory differently on Windows
    for handle in os.listdir("/proc/self/fd"):
        try:
            opened = os.readlink(f"/proc/self/fd/{handle}")
        except OSError:
            continue  # the descriptor of the listing itself
        if opened == real or opened.startswith(f"{real}{os.sep}"):
            return True
    return False


def _opening_no_folder(call: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(call)
    def opening(path: Any, *arguments: Any, **options: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return call(path, *arguments, **options)

    return opening


def _taking_paths(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def taking_paths(path: Any = ".") -> Any:
        if isinstance(path, int):
            raise TypeError("scandir: path should be string, bytes, os.PathLike or None, not int")
        return call(path)

    return taking_paths


def _for_writers(call: Callable[[int], None], mode: Callable[[int], int]) -> Callable[[int], None]:
    @functools.wraps(call)
    def for_writers(handle: int) -> None:
        if mode(handle) == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        call(handle)

    return for_writers


def _sockets_only(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def sockets_only(*lists: Any) -> Any:
        for handle in (handle for handles in lists[:3] for handle in handles):
            number = handle if isinstance(handle, int) else handle.fileno()
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                raise OSError(10038, "An operation was attempted on something that is not a socket")
        return call(*lists)

    return sockets_only
