"""Arrays by number: the first in memory, those beyond a budget in a temporary file.

Scenes may be longer than memory: cleaned frames and kept backward states wait here for their turn.
What is written to the file stays in the system's cache as long as memory is free, so that spilling
costs a disk only when it has to.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.errors import RbvsrError

__all__ = ["Spool"]


class Spool(Closing):
    """A context manager; leaving it frees memory and disk.

    Args:
        folder: where the temporary file is made, which has no name and vanishes with the process;
            if ``None``, what ``TMPDIR`` says, or the system's folder for large temporary files.
        in_memory: how many arrays are held in memory.
    """

    def __init__(self, *, folder: Path | None, in_memory: int) -> None:
        self._folder = folder or _disk()
        self._in_memory = in_memory
        self._held: dict[int, NDArray[Any]] = {}
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        self._file: IO[bytes] | None = None
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self._held) + len(self._slots)

    def __contains__(self, number: int) -> bool:
        return number in self._held or number in self._slots

    def put(self, number: int, array: NDArray[Any]) -> None:
        """Keep a copy of an array under a number, in place of what was there.

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
        if number in self._slots or (
            number not in self._held and len(self._held) >= self._in_memory
        ):
            self._write(number, array)
        else:
            self._held[number] = array.copy()

    def get(self, number: int) -> NDArray[Any]:
        """The array of a number; not to be written to.

        Raises:
            KeyError: there is none.
            RbvsrError: the temporary file cannot be read.
        """
        if number in self._held:
            return self._held[number]
        slot = self._slots[number]
        array = np.empty(self._shape, self._dtype)
        view = memoryview(array.data).cast("B")
        file = self._opened()
        try:
            done = 0
            while done < len(view):
                got = os.preadv(file.fileno(), [view[done:]], slot * array.nbytes + done)
                if not got:
                    raise OSError(0, "the temporary file ends too early")
                done += got
        except OSError as error:
            raise self._failure("read", error) from error
        return array

    def drop(self, number: int) -> None:
        """Forget an array; does nothing where there is none."""
        self._held.pop(number, None)
        slot = self._slots.pop(number, None)
        if slot is not None:
            self._free.append(slot)

    def clear(self) -> None:
        """Forget all arrays and give their memory and disk back."""
        self._held.clear()
        self._slots.clear()
        self._free.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        self.clear()

    def _write(self, number: int, array: NDArray[Any]) -> None:
        slot = self._slots.get(number)
        if slot is None:
            slot = self._free.pop() if self._free else len(self._slots)
        view = memoryview(np.ascontiguousarray(array).data).cast("B")
        try:
            file = self._opened()
            done = 0
            while done < len(view):
                done += os.pwritev(file.fileno(), [view[done:]], slot * array.nbytes + done)
        except OSError as error:
            if number not in self._slots:
                self._free.append(slot)
            raise self._failure("written", error) from error
        self._slots[number] = slot

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        return self._file

    def _failure(self, done: str, error: OSError) -> RbvsrError:
        return RbvsrError(
            f"what does not fit into memory cannot be {done} in {self._folder} "
            f"({error.strerror}): free some space there, allow more --memory, or make scenes "
            "shorter with --max-scene"
        )


def _disk() -> Path:
    """``/tmp`` is memory on many systems, ``/var/tmp`` a disk."""
    if "TMPDIR" in os.environ or not os.access("/var/tmp", os.W_OK):
        return Path(tempfile.gettempdir())
    return Path("/var/tmp")
