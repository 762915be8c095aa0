"""Files that are either there in full or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from pathlib import Path

__all__ = ["check_writable", "sha256", "write_atomically"]


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
        OSError: the folder is missing or cannot be written to, or ``path`` is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with tempfile.TemporaryFile(dir=path.parent):
        pass


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
        if not private:  # mkstemp makes files private; give this one what open() would have given
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
