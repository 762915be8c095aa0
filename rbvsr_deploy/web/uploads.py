"""Receives uploads: makes names safe, enforces limits, and writes to disk as the bytes arrive."""

from __future__ import annotations

import asyncio
import os
import re
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from rbvsr_deploy.errors import RbvsrError
from rbvsr_deploy.units import show_bytes

__all__ = ["Limits", "UploadError", "receive", "safe_name"]

_LONGEST = 120
"""Most bytes of a name. Outputs and job folders append to it, and systems allow 255 bytes."""
_BLOCK = 2**20
_LONGEST_SUFFIX = 12
_NOT_IN_NAMES = re.compile(r'[<>:"|?*%]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


class UploadError(RbvsrError):
    """An upload is refused or incomplete."""


@dataclass(frozen=True)
class Limits:
    """Limits what the page accepts; sizes in bytes."""

    upload: int = 20 * 1024**3
    """Most bytes of one job's input."""
    files: int = 100_000
    """Most images of a folder."""
    spare: int = 1024**3
    """Bytes of the disk that uploads leave free."""

    def check(self, *, size: int, files: int, free: int) -> None:
        """Refuse an upload before it begins.

        Args:
            size: bytes of the upload.
            files: number of its files.
            free: bytes that are free on the disk.

        Raises:
            UploadError: it is empty, or too large for the limits or the disk.
        """
        if files < 1 or size < 1:
            raise UploadError("there is nothing to upload: choose a video, an image or images")
        if files > self.files:
            raise UploadError(f"the folder has {files} images, and at most {self.files} are taken")
        if size > self.upload:
            raise UploadError(
                f"the upload has {show_bytes(size)}, and at most {show_bytes(self.upload)} are "
                "taken: cut it up, or use rbvsr-run"
            )
        if size > free - self.spare:
            raise UploadError(
                f"the upload has {show_bytes(size)}, and the disk has only {show_bytes(free)} "
                "free: delete old jobs, or make room"
            )


def safe_name(name: str) -> str:
    """Return a file name made of the last part of a name or path, safe on every system.

    The result is never empty, hidden, a path or a reserved name, and keeps the suffix.
    """
    last = re.split(r"[/\\\0]", unicodedata.normalize("NFC", name).rstrip("/\\"))[-1]
    # Undecodable bytes and unprintable characters, which also reverse or hide parts of a name.
    kept = "".join(c if c.isprintable() else "_" for c in last)
    kept = _NOT_IN_NAMES.sub("_", kept).strip(". ") or "input"
    if _RESERVED.match(kept) or kept.startswith("-"):
        kept = f"_{kept}"
    stem, suffix = os.path.splitext(kept)
    if len(suffix) > _LONGEST_SUFFIX:
        stem, suffix = kept, ""
    while len(f"{stem}{suffix}".encode()) > _LONGEST:
        stem = stem[:-1]
    return f"{stem.rstrip('. ')}{suffix}"


async def receive(chunks: AsyncIterator[bytes], path: Path, *, at_most: int) -> int:
    """Write an upload to a new file as it arrives; nothing remains of an incomplete one.

    Args:
        chunks: the content.
        path: path of the file, which must not exist.
        at_most: number of bytes allowed.

    Returns:
        The number of bytes.

    Raises:
        UploadError: there are more bytes, the disk is full, or two files have the same name.
    """
    size = 0
    try:
        with open(path, "xb") as file:
            try:
                async for block in _blocks(chunks):
                    size += len(block)
                    if size > at_most:
                        raise UploadError(
                            f"{path.name} has more bytes than announced: upload it again"
                        )
                    # Other requests are answered while the disk is busy.
                    await asyncio.to_thread(file.write, block)
            except BaseException:
                path.unlink()
                raise
    except FileExistsError:
        raise UploadError(f"two files would be named {path.name}: rename one of them") from None
    except OSError as error:
        raise UploadError(f"{path.name} cannot be stored: {error.strerror}") from error
    return size


async def _blocks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the same bytes in fewer, larger parts."""
    block = bytearray()
    async for chunk in chunks:
        block += chunk
        if len(block) >= _BLOCK:
            yield bytes(block)
            block.clear()
    yield bytes(block)
