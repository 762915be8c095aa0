"""Decoded frames on disk, so that clips can begin anywhere.

A frame in the middle of a video costs all frames since the last key frame, often 250. Decoded once
and kept, it costs the pages of the crop. Whether footage is kept changes no clip, only the time it
takes.
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
"""Ending of files that are being filled."""
_ABANDONED = 3600.0
"""Seconds without a write after which nobody fills such a file any more."""

logger = logging.getLogger(__name__)


class FrameCache:
    """A folder of decoded footage, of limited size.

    Footage is admitted in the order it is offered, as long as all that was admitted fits. It is
    decoded by the first clip that is cut from it, in whichever worker that is.

    Args:
        folder: made if it is missing.
        limit: bytes that all admitted footage may take.

    Raises:
        MediaError: the folder cannot be made.
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
                f"'{folder}' cannot hold the cache ({first_line(error)}): name another folder"
            ) from None

    def admit(self, footage: Footage) -> Footage:
        """The footage itself, or one that is read from the cache."""
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

    def tell(self) -> None:
        """Log what the cache takes when it is full."""
        logger.log(
            logging.INFO if self.admitted == self.offered else logging.WARNING,
            "%d of %d pieces of footage are decoded once and kept in '%s', %.1f GiB; for all of "
            "them data.cache_gib has to be %.1f",
            self.admitted,
            self.offered,
            self.folder,
            self.used / 2**30,
            self.wanted / 2**30,
        )


class _CachedFootage(Footage):
    """Frames from the cache; from the footage where it cannot be decoded as a whole, or the disk
    is full.
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
        """Decode everything; nothing is left behind if that fails."""
        part = self._file.with_name(uuid.uuid4().hex + _PART)  # several may fill it at once
        try:
            with part.open("xb") as file:
                for planes in self._footage.decode(0, self.count):
                    file.write(planes.data)
            os.replace(part, self._file)
        except (OSError, DamagedSourceError) as error:
            if self._is_filled():  # by another worker: Windows replaces no file that is in use
                return True
            logger.warning("'%s' is not kept in the cache: %s", self.name, error)
            return False
        finally:
            part.unlink(missing_ok=True)
        return True
