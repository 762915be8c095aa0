"""Stores arrays by number in a temporary file.

A scene may not fit into memory: its cleaned frames and kept backward states wait here until they
are needed. The file stays in the system's page cache as long as memory is free, so it reaches the
disk only when it has to.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.errors import RbvsrError

__all__ = ["Spool"]

_BLOCK = 2**20  # bytes read at once where the system cannot read into a buffer


class Spool(Closing):
    """Holds arrays of one shape and dtype; closing it frees the disk space.

    Args:
        folder: folder of the temporary file, which has no name and disappears with the process; if
            ``None``, ``TMPDIR`` or the system's folder for large temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or _disk()
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        self._file: IO[bytes] | None = None
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, number: int) -> bool:
        return number in self._slots

    def put(self, number: int, array: NDArray[Any]) -> None:
        """Store an array under a number, replacing an earlier one.

        Raises:
            ValueError: the array has another shape or dtype than those before.
            RbvsrError: the temporary file cannot be written.
        """
        if not self:
            self._shape, self._dtype = array.shape, array.dtype
        elif (array.shape, array.dtype) != (self._shape, self._dtype):
            raise ValueError(
                f"expected {self._dtype} {self._shape}, got {array.dtype} {array.shape}"
            )
        slot = self._slots.get(number)
        if slot is None:
            slot = self._free.pop() if self._free else len(self._slots)
        view = memoryview(np.ascontiguousarray(array).data).cast("B")
        try:
            file = self._opened()
            done = 0
            while done < len(view):
                done += _write_at(file.fileno(), view[done:], slot * array.nbytes + done)
        except OSError as error:
            if number not in self._slots:
                self._free.append(slot)
            raise self._failure("written", error) from error
        self._slots[number] = slot

    def get(self, number: int) -> NDArray[Any]:
        """Return the array of a number.

        Raises:
            KeyError: there is no such array.
            RbvsrError: the temporary file cannot be read.
        """
        slot = self._slots[number]
        array = np.empty(self._shape, self._dtype)
        view = memoryview(array.data).cast("B")
        file = self._opened()
        try:
            done = 0
            while done < len(view):
                got = _read_at(file.fileno(), view[done:], slot * array.nbytes + done)
                if not got:
                    raise OSError(0, "the temporary file ends too early")
                done += got
        except OSError as error:
            raise self._failure("read", error) from error
        return array

    def drop(self, number: int) -> None:
        """Forget an array; does nothing if there is none."""
        slot = self._slots.pop(number, None)
        if slot is not None:
            self._free.append(slot)

    def clear(self) -> None:
        """Forget all arrays and free their disk space."""
        self._slots.clear()
        self._free.clear()
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):  # its name is usually deleted already
                self._file.close()
            self._file = None

    def close(self) -> None:
        self.clear()

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self._file = _temporary_file(self._folder)
        return self._file

    def _failure(self, done: str, error: OSError) -> RbvsrError:
        return RbvsrError(
            f"frames that do not fit into memory cannot be {done} in {self._folder} "
            f"({error.strerror}): free some space there, allow more memory, or shorten the longest "
            "scene",
            parameters=("memory", "max_scene"),
        )


def _temporary_file(folder: Path) -> IO[bytes]:
    """Make a temporary file that is deleted with the process, or where that is not possible, when
    it is closed.
    """
    file = tempfile.NamedTemporaryFile(dir=folder)  # noqa: SIM115
    with contextlib.suppress(OSError):  # Windows and some file systems do not delete open files
        os.unlink(file.name)
    return file


def _read_at(handle: int, view: memoryview, position: int) -> int:
    """Fill the start of a buffer from a position in a file; return the number of bytes read."""
    if hasattr(os, "preadv"):
        return int(os.preadv(handle, [view], position))
    os.lseek(handle, position, os.SEEK_SET)
    data = os.read(handle, min(len(view), _BLOCK))
    view[: len(data)] = data
    return len(data)


def _write_at(handle: int, view: memoryview, position: int) -> int:
    """Write a buffer at a position in a file; return the number of bytes written."""
    if hasattr(os, "pwritev"):
        return int(os.pwritev(handle, [view], position))
    os.lseek(handle, position, os.SEEK_SET)
    return os.write(handle, view)


def _disk() -> Path:
    """Return a folder on a disk: on many systems ``/tmp`` is in memory, ``/var/tmp`` is not."""
    if "TMPDIR" in os.environ or not os.access("/var/tmp", os.W_OK):
        return Path(tempfile.gettempdir())
    return Path("/var/tmp")
