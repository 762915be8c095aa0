"""Works without shared storage: a worker gets the part of the input that its unit needs, and sends
the encoded segments back, both in bounded pieces.

The part is put at its place in a file of the input's size, with holes elsewhere. What a demuxer
reads outside of it is estimated, not known: a unit that fails or gives other frames than it should
is tried again with the whole input.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import msgspec

from rbvsr_deploy.closing import Closing
from rbvsr_deploy.cluster.messages import Part, Piece, UnitTask
from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.pyav import media_errors, open_input
from rbvsr_deploy.video.stream_choice import choose_video

__all__ = ["StagedInput", "StagingFolder", "read_parts", "write_part"]

PIECE = 2**22
"""Most bytes of a message."""
MARGIN = 2**23
"""Bytes around the packets of a unit, and at either end of the file, that are sent too: headers,
indices, and packets that are decoded before the unit's."""
_FRAMES = 64
"""Frames around those of a unit whose packets count as the unit's."""
_NAME = "rbvsr-worker-{}-"
_PART = re.compile(r"part-\d{6,}\.(packets|json)")


class StagedInput:
    """Finds out which parts of a file workers need.

    Args:
        path: a video file.
        allow_playlists: as in ``ReadOptions``.

    Raises:
        MediaError: the file cannot be read.
    """

    def __init__(self, path: Path, *, allow_playlists: bool) -> None:
        self._path = path
        self.size = path.stat().st_size
        places: list[tuple[int, int, int]] = []
        with (
            media_errors(f"cannot read {path}"),
            open_input(path, playlists=allow_playlists) as container,
        ):
            stream = choose_video(container, path=path)
            self._time_base = stream.time_base or Fraction(1)
            key = 0
            for packet in container.demux(stream):
                if packet.pts is None or packet.pos is None:
                    continue
                key = packet.pos if packet.is_keyframe else key
                places.append((packet.pts, key, packet.pos + packet.size))
        places.sort()
        self._stamps = array("q", (stamp for stamp, _, _ in places))
        self._starts = array("q", (start for _, start, _ in places))
        self._ends = array("q", (end for _, _, end in places))

    def ranges(self, first: int, last: int, *, whole: bool) -> list[tuple[int, int]]:
        """Return the offsets that a worker needs: first byte and the one after the last.

        Args:
            first, last: timestamps of the unit's first and last frame, in ticks of the file.
            whole: send everything.
        """
        if whole or not self._stamps:
            return [(0, self.size)]
        begin = max(0, bisect_left(self._stamps, first) - _FRAMES)
        end = min(len(self._stamps), bisect_left(self._stamps, last) + _FRAMES)
        wanted = [
            (0, MARGIN),
            (min(self._starts[begin:end]) - MARGIN, max(self._ends[begin:end]) + MARGIN),
            (max(self._ends) - MARGIN, self.size),
        ]
        joined: list[tuple[int, int]] = []
        for start, stop in sorted((max(0, a), min(self.size, b)) for a, b in wanted):
            if joined and start <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(stop, joined[-1][1])
            else:
                joined.append((start, stop))
        return joined

    def send(
        self, number: int, ranges: list[tuple[int, int]], send: Callable[[Piece], None]
    ) -> None:
        """Send parts of the file.

        Raises:
            OSError: the file cannot be read.
        """
        with self._path.open("rb") as file:
            for start, stop in ranges:
                file.seek(start)
                for offset in range(start, stop, PIECE):
                    data = file.read(min(PIECE, stop - offset))
                    send(Piece(number, self._path.name, self.size, offset, data))


class StagingFolder(Closing):
    """Holds inputs and segments of a worker in a temporary folder.

    Folders of workers that were killed are removed.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._closed = False

    def take(self, piece: Piece) -> None:
        """Write a piece of an input to its place.

        Raises:
            OSError: the disk is full.
        """
        place = self._place(piece.number)
        place.mkdir(exist_ok=True)
        with open(place / Path(piece.name).name, "ab"):
            pass
        with open(place / Path(piece.name).name, "r+b") as file:
            file.truncate(piece.size)
            file.seek(piece.offset)
            file.write(piece.data)

    def localised(self, task: UnitTask) -> UnitTask:
        """Return the task with paths in the folder."""
        place = self._place(task.number)
        (place / "units").mkdir(parents=True, exist_ok=True)
        return msgspec.structs.replace(
            task,
            path=place / task.path.name,
            output=place / f"output{task.output.suffix}",
            folder=place / "units",
        )

    def drop(self, number: int) -> None:
        """Remove everything of a task."""
        if self._folder is not None:
            shutil.rmtree(self._folder / str(number), ignore_errors=True)

    def close(self) -> None:
        self._closed = True
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _place(self, number: int) -> Path:
        if self._closed:  # what is still to be done is no longer needed
            raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
        if self._folder is None:
            _remove_orphans()
            self._folder = Path(tempfile.mkdtemp(prefix=_NAME.format(os.getpid())))
        return self._folder / str(number)


def read_parts(folder: Path, *, number: int) -> Iterator[Part]:
    """Yield the files of a finished unit in pieces.

    Args:
        folder: job folder of the unit.
        number: of the task.
    """
    name = f"{number:09d}-{secrets.randbelow(10**12)}"
    for path in sorted(folder.iterdir()):
        if not _PART.fullmatch(path.name):
            continue
        with path.open("rb") as file:
            while data := file.read(PIECE):
                yield Part(number, name, path.name, data)


def write_part(folder: Path, part: Part) -> None:
    """Append a piece to its file.

    Args:
        folder: folder of the units.

    Raises:
        MediaError: the piece is for another file than a unit's.
        OSError: it cannot be written.
    """
    if not _PART.fullmatch(part.file) or not re.fullmatch(r"[\d-]+", part.folder):
        raise MediaError(f"a worker sent the file {part.folder}/{part.file}, which no unit has")
    place = folder / part.folder
    place.mkdir(exist_ok=True)
    with open(place / part.file, "ab") as file:
        file.write(part.data)
        file.flush()
        os.fsync(file.fileno())


def _remove_orphans() -> None:
    """Remove what workers on this machine left that were killed."""
    if sys.platform != "win32":  # there, asking for a process ends it
        for folder in Path(tempfile.gettempdir()).glob(_NAME.format("*") + "*"):
            found = re.match(_NAME.format(r"(\d+)"), folder.name)
            if found is None:
                continue
            with contextlib.suppress(OSError):
                try:
                    os.kill(int(found[1]), 0)
                except ProcessLookupError:
                    shutil.rmtree(folder)
