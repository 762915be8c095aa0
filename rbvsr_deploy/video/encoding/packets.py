"""Encoded packets on the disk between encoding and joining, and their decoding times."""

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

# Presentation time, duration, bytes that follow, whether a decoder can begin here.
_HEADER = struct.Struct("<qqI?")


@dataclass(frozen=True)
class StoredPacket:
    """A packet as the encoder gave it; times are ticks of the encoder's time base."""

    pts: int
    duration: int
    is_keyframe: bool
    data: bytes


class PacketWriter:
    """A new file of packets, written one after the other so that memory holds none of them.

    Raises:
        OSError: here and in all methods, where the disk refuses; the file is there already.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        handle = open_no_follow(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self._file = os.fdopen(handle, "wb")
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, packet: StoredPacket) -> None:
        """Adds a packet, in decoding order."""
        header = _HEADER.pack(packet.pts, packet.duration, len(packet.data), packet.is_keyframe)
        for block in (header, packet.data):
            self._file.write(block)
            self._digest.update(block)
            self._size += len(block)

    def finish(self) -> StoredFile:
        """Brings the file to the disk and closes it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return StoredFile(self._path.name, self._size, self._digest.hexdigest())

    def close(self) -> None:
        """Closes the file, whatever state it is in."""
        # What it still holds may not fit on the disk; the part is given up anyway.
        with contextlib.suppress(OSError):
            self._file.close()


def read_packets(path: Path, *, data: bool = True) -> Iterator[StoredPacket]:
    """Yields the packets of a file.

    Args:
        path: as ``PacketWriter`` wrote it.
        data: whether to read more than the times; without, ``StoredPacket.data`` is empty.

    Raises:
        OSError: the file cannot be read.
        MediaError: it ends too early.
    """
    with path.open("rb") as file:
        while header := file.read(_HEADER.size):
            if len(header) < _HEADER.size:
                raise MediaError(f"{path} is damaged: start again without it")
            pts, duration, size, is_keyframe = _HEADER.unpack(header)
            content = file.read(size) if data else b""
            if not data:
                file.seek(size, os.SEEK_CUR)
            elif len(content) < size:
                raise MediaError(f"{path} is damaged: start again without it")
            yield StoredPacket(pts, duration, is_keyframe, content)


def end_of_presentation(path: Path, *, usual: Fraction) -> Fraction:
    """The tick at which the last picture of a file of packets ends.

    Args:
        path: as ``PacketWriter`` wrote it.
        usual: how many ticks a picture lasts that does not tell.
    """
    last = max(read_packets(path, data=False), key=lambda packet: packet.pts)
    return Fraction(last.pts) + (last.duration or usual)


def reordered(stamps: list[int]) -> int:
    """By how many packets decoding has to run ahead of presentation.

    Args:
        stamps: presentation times in decoding order.
    """
    place = {stamp: number for number, stamp in enumerate(sorted(stamps))}
    return max((number - place[stamp] for number, stamp in enumerate(stamps)), default=0)


def decoding_times(stamps: Iterable[int], *, delay: int) -> Iterator[int]:
    """Decoding times for packets whose presentation times are known.

    They are the presentation times in order, ``delay`` packets late; the first ones, which have
    none before them, are as far before the start as the stream is late. At a constant rate that is
    what encoders themselves choose. At a varying one, what each encoder chooses for the start of
    its part could come before the end of the part before.

    Args:
        stamps: all presentation times, increasing.
        delay: by how many packets decoding has to run ahead, at least 0.
    """
    rest = iter(stamps)
    first = list(itertools.islice(rest, delay + 1))
    if first:
        lead = first[-1] - first[0]
        yield from (stamp - lead for stamp in first[:delay])
        yield from first
        yield from rest
