"""Caches decoded frames on disk, so that clips can start at any frame of a video.

Decoding a frame in the middle of a video means decoding every frame since the last key frame, often
250. Reading it from the cache touches only the pages that the crop covers. The cache never changes
a clip, only the time it takes to read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rbvsr_deploy.errors import MediaError, first_line
from rbvsr_deploy.files import is_private
from rbvsr_deploy.training.data.footage import DamagedSourceError, Footage, Frame, Planes, Region

__all__ = ["FrameCache"]

_UNFINISHED = re.compile(r"[0-9a-f]{32}\.frames\.part")
"""Names of files that are still being written."""
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_ABANDONED = 3600.0
"""Seconds without a write after which such a file counts as abandoned."""

logger = logging.getLogger(__name__)


class FrameCache:
    """Keeps decoded footage in a folder, up to a size limit.

    Footage is admitted in the order it is offered, as long as all admitted footage fits the limit.
    The first worker that cuts a clip from it decodes it.

    Args:
        folder: created if missing.
        limit: maximum size of all admitted footage, in bytes.

    Raises:
        MediaError: the folder cannot be created, or others can write to it: they could replace
            footage, or truncate a file that is mapped into memory.
    """

    def __init__(self, folder: Path, *, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.used = self.wanted = self.offered = self.admitted = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            private = is_private(folder.stat())
            for part in folder.iterdir() if private else ():
                if _UNFINISHED.fullmatch(part.name) and _is_abandoned(part):
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise MediaError(
                f"cannot create the cache folder '{folder}' ({first_line(error)}): choose another "
                "folder"
            ) from None
        if not private:
            raise MediaError(
                f"the cache folder '{folder}' belongs to another user, or others can write to it: "
                "choose another folder, or restrict its mode to 0755"
            )

    def admit(self, footage: Footage) -> Footage:
        """Return the footage, read through the cache if it still fits the limit."""
        size = footage.count * footage.frame_bytes
        self.offered += 1
        self.wanted += size
        if self.used + size > self.limit:
            return footage
        self.used += size
        self.admitted += 1
        identity = [
            os.path.abspath(footage.name),
            footage.stamp,
            footage.count,
            footage.frame_bytes,
        ]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        return _CachedFootage(footage, self.folder / f"{digest[:24]}.frames")

    def log_usage(self) -> None:
        """Log how much of the footage will be cached, and how much space that takes."""
        logger.log(
            logging.INFO if self.admitted == self.offered else logging.WARNING,
            "%d of %d pieces of footage will be cached in '%s' (%.1f GiB); caching all of them "
            "needs a data.cache_gib of %.1f",
            self.admitted,
            self.offered,
            self.folder,
            self.used / 2**30,
            self.wanted / 2**30,
        )


def _is_abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED
    except FileNotFoundError:  # by another worker
        return False


class _CachedFootage(Footage):
    """Reads frames from the cache, or from the footage itself if it cannot be decoded as a whole or
    the disk is full.
    """

    def __init__(self, footage: Footage, file: Path) -> None:
        self.name, self.stamp, self.count = footage.name, footage.stamp, footage.count
        self.height, self.width = footage.height, footage.width
        self.frame_bytes = footage.frame_bytes
        self._footage, self._file, self._failed = footage, file, False

    def decode(self, start: int, count: int) -> Iterator[Planes]:
        if not self._failed and not self._is_filled():
            self._failed = not self._fill()
        if self._failed:
            yield from self._footage.decode(start, count)
            return
        shape = (self.count, self.frame_bytes)
        yield from np.memmap(self._file, np.uint8, "r", shape=shape)[start : start + count]

    def cut(self, planes: Planes, region: Region) -> Frame:
        return self._footage.cut(planes, region)

    def _is_filled(self) -> bool:
        try:
            found = self._file.lstat()
        except FileNotFoundError:
            return False
        return (
            stat.S_ISREG(found.st_mode)
            and is_private(found)
            and found.st_size == self.count * self.frame_bytes
        )

    def _fill(self) -> bool:
        """Decode all frames into the cache file; return false, leaving no file, if that fails."""
        # Several workers may fill it at once.
        part = self._file.with_name(f"{uuid.uuid4().hex}.frames.part")
        try:
            with os.fdopen(os.open(part, _NEW_FILE, 0o600), "wb") as file:
                for planes in self._footage.decode(0, self.count):
                    file.write(planes.data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self._file)
        except (OSError, DamagedSourceError) as error:
            if self._is_filled():  # by another worker: Windows does not replace a file in use
                return True
            logger.warning("'%s' is not cached: %s", self.name, error)
            return False
        finally:
            part.unlink(missing_ok=True)
        return True
