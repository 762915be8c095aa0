"""Stores encoded packets on disk until they are joined, and computes their decoding times."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.files import open_no_follow
from rbvsr_deploy.video.staging.parts import StoredFile

__all__ = [
    "PacketWriter",
    "StoredPacket",
    "decoding_times",
    "end_of_presentation",
    "read_packets",
    "reordered",
]

# Presentation time, duration, number of bytes that follow, whether it is a key frame.
_HEADER = struct.Struct("<qqI?")


@dataclass(frozen=True)
class StoredPacket:
    """Holds a packet as the encoder returned it; times are in ticks of the encoder's time base."""

    pts: int
    duration: int
    is_keyframe: bool
    data: bytes


class PacketWriter:
    """Writes packets to a new file, one by one so that none of them stays in memory.

    Raises:
        OSError: here and in all methods: the file cannot be written, or already exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        handle = open_no_follow(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self._file = os.fdopen(handle, "wb")
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, packet: StoredPacket) -> None:
        """Append a packet, in decoding order."""
        header = _HEADER.pack(packet.pts, packet.duration, len(packet.data), packet.is_keyframe)
        for block in (header, packet.data):
            self._file.write(block)
            self._digest.update(block)
            self._size += len(block)

    def finish(self) -> StoredFile:
        """Flush the file to disk and close it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return StoredFile(self._path.name, self._size, self._digest.hexdigest())

    def close(self) -> None:
        """Close the file, whatever state it is in."""
        # The buffered data may not fit on the disk; the segment is discarded anyway.
        with contextlib.suppress(OSError):
            self._file.close()


def read_packets(path: Path, *, data: bool = True) -> Iterator[StoredPacket]:
    """Yield the packets of a file.

    Args:
        path: a file written by ``PacketWriter``.
        data: whether to read the payload; without it, ``StoredPacket.data`` is empty.

    Raises:
        OSError: the file cannot be read.
        MediaError: the file is truncated.
    """
    with path.open("rb") as file:
        while header := file.read(_HEADER.size):
            if len(header) < _HEADER.size:
                raise MediaError(f"{path} is damaged: delete it and start again")
            pts, duration, size, is_keyframe = _HEADER.unpack(header)
            content = file.read(size) if data else b""
            if not data:
                file.seek(size, os.SEEK_CUR)
            elif len(content) < size:
                raise MediaError(f"{path} is damaged: delete it and start again")
            yield StoredPacket(pts, duration, is_keyframe, content)


def end_of_presentation(path: Path, *, usual: Fraction) -> Fraction:
    """Return the tick at which the last frame of a packet file ends.

    Args:
        path: a file written by ``PacketWriter``.
        usual: duration in ticks to assume if the packet has none.
    """
    last = max(read_packets(path, data=False), key=lambda packet: packet.pts)
    return Fraction(last.pts) + (last.duration or usual)


def reordered(stamps: list[int]) -> int:
    """Return the reorder delay: by how many packets decoding must run ahead of presentation.

    Args:
        stamps: presentation times in decoding order.
    """
    place = {stamp: number for number, stamp in enumerate(sorted(stamps))}
    return max((number - place[stamp] for number, stamp in enumerate(stamps)), default=0)


def decoding_times(stamps: Iterable[int], *, delay: int) -> Iterator[int]:
    """Yield decoding times for packets whose presentation times are known.

    These are the presentation times in order, delayed by ``delay`` packets. The first ``delay``
    packets get times before the start of the stream, shifted back by the same delay. At a constant
    frame rate, encoders choose the same times. At a variable rate, the times that an encoder
    chooses for the start of a segment could precede the end of the previous segment.

    Args:
        stamps: all presentation times, increasing.
        delay: by how many packets decoding must run ahead, at least 0.
    """
    rest = iter(stamps)
    first = list(itertools.islice(rest, delay + 1))
    if first:
        lead = first[-1] - first[0]
        yield from (stamp - lead for stamp in first[:delay])
        yield from first
        yield from rest
