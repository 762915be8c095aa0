"""Packs a folder into a zip file while it is being sent."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

__all__ = ["zipped"]

_BLOCK = 2**20


class _Pending(io.RawIOBase):
    """Holds what was written until it is taken."""

    def __init__(self) -> None:
        self._data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        self._data += view
        return view.nbytes

    def take(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data


def zipped(folder: Path) -> Iterator[bytes]:
    """Yield a zip file of the files directly in a folder, uncompressed, a block at a time.

    Raises:
        OSError: a file cannot be read.
    """
    pending = _Pending()
    with ZipFile(pending, "w", ZIP_STORED) as archive:
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            entry = ZipInfo.from_file(path, f"{folder.name}/{path.name}")
            with path.open("rb") as file, archive.open(entry, "w") as member:
                while block := file.read(_BLOCK):
                    member.write(block)
                    yield pending.take()
            yield pending.take()
    yield pending.take()
