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
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rbvsr_deploy.errors import MediaError, first_line
from rbvsr_deploy.training.data.footage import DamagedSourceError, Footage, Frame, Planes, Region

__all__ = ["FrameCache"]

_PART = ".part"
"""Suffix of files that are still being written."""
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
        MediaError: the folder cannot be created.
    """

    def __init__(self, folder: Path, *, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.used = self.wanted = self.offered = self.admitted = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for part in folder.glob(f"*{_PART}"):
                if time.time() - part.stat().st_mtime > _ABANDONED:
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise MediaError(
                f"cannot create the cache folder '{folder}' ({first_line(error)}): choose another "
                "folder"
            ) from None

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
            return self._file.stat().st_size == self.count * self.frame_bytes
        except FileNotFoundError:
            return False

    def _fill(self) -> bool:
        """Decode all frames into the cache file; return false, leaving no file, if that fails."""
        part = self._file.with_name(uuid.uuid4().hex + _PART)  # several workers may fill it at once
        try:
            with part.open("xb") as file:
                for planes in self._footage.decode(0, self.count):
                    file.write(planes.data)
            os.replace(part, self._file)
        except (OSError, DamagedSourceError) as error:
            if self._is_filled():  # by another worker: Windows replaces no file that is in use
                return True
            logger.warning("'%s' is not cached: %s", self.name, error)
            return False
        finally:
            part.unlink(missing_ok=True)
        return True
