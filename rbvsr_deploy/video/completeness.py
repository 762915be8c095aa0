"""Files that were cut off, by a download or a power failure: found before any work is done."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.matroska import segment_end
from rbvsr_deploy.video.options import ReadOptions
from rbvsr_deploy.video.pyav import media_errors, open_input

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Boxes of an MP4 that hold frames or tell where they are. What comes behind the last box may be
# anything, and is read as the length of another.
_MP4_BOXES = frozenset({b"mdat", b"moof", b"moov"})


@dataclass(frozen=True)
class _Readable:
    """What is there of a video that was cut off."""

    frames: int
    seconds: Fraction


def refuse_cut_off(
    container: InputContainer,
    *,
    video: VideoStream,
    rate: Fraction,
    path: Path,
    options: ReadOptions,
) -> None:
    """Checks what the format tells of its own length against the file.

    MP4 tells where every frame lies and how long its boxes are; Matroska, WebM and AVI how long the
    file is. Other formats tell nothing reliable; of them, what is there is read. Nothing is refused
    if an excerpt is asked for that lies within what is there.

    Args:
        container: of the file, newly opened.
        video: its video.
        rate: average frames per second.
        path: of the file.
        options: how it is read.

    Raises:
        MediaError: the file ends too early; names how much of it can be read.
    """
    size = path.stat().st_size
    entries = list(video.index_entries) if _is_mp4(container) else []
    if any(entry.pos + entry.size > size for entry in entries):
        there = [entry.timestamp for entry in entries if entry.pos + entry.size <= size]
        readable = _readable(there, time_base=video.time_base, rate=rate)
        expected = len(entries)
    elif size < _announced_size(container, path):
        readable = _readable(_stamps(path, video.index), time_base=video.time_base, rate=rate)
        expected = None
    else:
        return
    if not _suffices(readable, rate=rate, options=options):
        raise cut_off(path, readable=readable.frames, expected=expected)


def indexed_frames(container: InputContainer, video: VideoStream) -> int:
    """How many frames the file lists as far as it has been read; 0 where the format has no list.

    The fragments of an MP4 are listed as they are read.
    """
    return len(video.index_entries) if _is_mp4(container) else 0


def cut_off(path: Path, *, readable: int, expected: int | None = None) -> MediaError:
    """The error for a file that is to have more frames than it holds.

    Args:
        path: of the file.
        readable: how many frames it holds.
        expected: how many it is to have; ``None``: not known.
    """
    of_how_many = f"of its {expected} frames" if expected is not None else "of its frames"
    what_to_do = "get the complete file"
    if readable:
        what_to_do += f", or upscale what is there with --frames {readable}"
    return MediaError(f"{path} is cut off: only {readable} {of_how_many} can be read; {what_to_do}")


def _suffices(readable: _Readable, *, rate: Fraction, options: ReadOptions) -> bool:
    """Whether the excerpt that is asked for ends within what is there."""
    if options.frames is not None and not options.start and options.frames <= readable.frames:
        return True
    ends = [] if options.end is None else [options.end]
    if options.frames is not None:
        ends.append((options.start or 0) + options.frames / rate)
    return bool(ends) and min(ends) <= readable.seconds


def _readable(stamps: list[int], *, time_base: Fraction | None, rate: Fraction) -> _Readable:
    """Of frames whose decoding times are known, in ticks."""
    length = (max(stamps) - min(stamps)) * (time_base or 0) + 1 / rate if stamps else Fraction(0)
    return _Readable(frames=len(stamps), seconds=length)


def _stamps(path: Path, index: int) -> list[int]:
    """Times of all frames of a video that are there in full."""
    with media_errors(f"cannot read {path} any further"), open_input(path) as container:
        return [
            packet.dts
            for packet in container.demux(container.streams[index])
            if packet.size and packet.dts is not None and not packet.is_corrupt
        ]


def _announced_size(container: InputContainer, path: Path) -> int:
    """The length in bytes that a file gives itself; 0 where it does not."""
    if "matroska" in container.format.name:
        return segment_end(path) or 0
    if container.format.name == "avi":
        return _end_of_chunks(path)
    return _end_of_boxes(path) if _is_mp4(container) else 0


def _end_of_boxes(path: Path) -> int:
    """Where the last box of an MP4 is to end; 0 where that is not told."""
    at, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:  # it is too large for four bytes
                length = int.from_bytes(head[8:], "big")
            if length < 8:  # it goes up to the end of the file, or is none
                return 0
            at += length
    return at if at > size and head[4:8] in _MP4_BOXES else 0


def _end_of_chunks(path: Path) -> int:
    """Where the last chunk of an AVI is to end; 0 where that is not told."""
    at = 0
    with path.open("rb") as file:
        while (head := file.read(8))[:4] == b"RIFF" and len(head) == 8:
            length = int.from_bytes(head[4:], "little")
            if length in (0, 2**32 - 1):  # not known when the file was begun
                return 0
            at += 8 + length
            file.seek(at)
    return at


def _is_mp4(container: InputContainer) -> bool:
    return "mp4" in container.format.name.split(",")
