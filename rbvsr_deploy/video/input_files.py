"""Identifies the files of an input by their content, and notices when they change during a run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.pyav import reason

__all__ = ["InputFiles", "sampled"]

_END = 2**20  # bytes at either end of a file
_BLOCK, _BLOCKS = 2**12, 64  # in between, evenly spaced


class _State(NamedTuple):
    """Describes the state of a file when it was opened."""

    identity: tuple[int, ...]
    """Differs if the file was replaced or has grown, or usually if it was written to."""
    changed: int
    """Differs if anything was done to the file, including harmless things."""


class InputFiles:
    """Identifies the files that an input is read from, in order.

    An output is resumed only as far as the same files went into it, and it is published only if no
    file was changed or replaced since it was opened.

    Args:
        path: the input, for messages.
        files: the files: one per frame in an image folder, or the only one.
        whole: whether files are read as a whole, with :meth:`read`. Others are compared in part.
    """

    def __init__(self, path: Path, files: Sequence[Path], *, whole: bool) -> None:
        self._path = path
        self._files = files
        self._whole = whole
        self._opened: dict[int, _State] = {}
        self._contents: dict[int, bytes] = {}

    def opened(self, number: int = 0) -> None:
        """Remember the state of a file that is about to be read.

        Raises:
            MediaError: the file cannot be read, or has changed since it was first opened.
        """
        state = self._state(number)
        if self._opened.setdefault(number, state).identity != state.identity:
            raise self._was_changed(number)
        if not self._whole and number not in self._contents:
            self._contents[number] = self._content(number)[1]

    def read(self, number: int) -> bytes:
        """Read a whole file.

        Raises:
            MediaError: the file cannot be read, or has changed since it was first read.
        """
        self.opened(number)
        content, digest = self._content(number)
        if self._contents.setdefault(number, digest) != digest:
            raise self._was_changed(number)
        return content

    def digest(self, count: int, *, are_all: bool) -> str | None:
        """Return a checksum of the names and contents of the first files.

        Args:
            count: number of files.
            are_all: whether there are no others, which then is part of the checksum.

        Returns:
            ``None`` if there are fewer, or others.

        Raises:
            MediaError: a file cannot be read.
        """
        if not 0 <= count <= len(self._files) or (are_all and count < len(self._files)):
            return None
        digest = hashlib.sha256(b"all" if are_all else b"some")
        for number in range(count):
            if number not in self._contents:
                self.read(number)
            digest.update(os.fsencode(self._files[number].name) + b"\0" + self._contents[number])
        return digest.hexdigest()

    def check(self) -> None:
        """Check that no file was changed, replaced or removed since it was opened.

        Raises:
            MediaError: names the first file that was.
        """
        for number, before in self._opened.items():
            try:
                now = self._state(number)
                # Linking or renaming a file, or changing its mode, leaves its content alone.
                same = now.identity == before.identity and (
                    now.changed == before.changed
                    or self._content(number)[1] == self._contents.get(number)
                )
            except MediaError:
                same = False
            if not same:
                raise self._was_changed(number)

    def _state(self, number: int) -> _State:
        file = self._files[number]
        try:
            status = file.stat()
        except OSError as error:
            raise MediaError(f"cannot read {file}: {reason(error)}") from error
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return _State(identity, status.st_ctime_ns)

    def _content(self, number: int) -> tuple[bytes, bytes]:
        """Return the content of a file, or samples of it, and its checksum."""
        file = self._files[number]
        try:
            content = file.read_bytes() if self._whole else sampled(file)
        except OSError as error:
            raise MediaError(f"cannot read {file}: {reason(error)}") from error
        return content, hashlib.sha256(content).digest()

    def _was_changed(self, number: int) -> MediaError:
        return MediaError(
            f"{self._files[number]} was changed, replaced or removed while {self._path} was being "
            "upscaled, so nothing is published: run the same command again"
        )


def sampled(file: Path) -> bytes:
    """Return samples of a file's content: both ends, and small blocks in between. Reading all of a
    long film would take minutes.

    Raises:
        OSError: the file cannot be read.
    """
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        content = opened.read(_END)
        if (between := size - 2 * _END) > 0:
            for number in range(_BLOCKS):
                opened.seek(_END + number * between // _BLOCKS)
                content += opened.read(min(_BLOCK, between))
        opened.seek(max(0, size - _END))
        return content + opened.read(_END)
