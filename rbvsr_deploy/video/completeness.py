"""Detects truncated files, such as incomplete downloads, before any work is done."""

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

# MP4 boxes that hold frames or their index. Trailing garbage after the last box may look like the
# header of another box.
_MP4_BOXES = frozenset({b"mdat", b"moof", b"moov"})


@dataclass(frozen=True)
class _Readable:
    """Holds the extent of the readable part of a truncated video."""

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
    """Compare the length that a file declares with its actual length.

    MP4 has the position of every frame and the length of its boxes; Matroska, WebM and AVI have the
    length of the file. Other formats have no reliable length and are read as far as possible. A
    truncated file is accepted if the requested excerpt lies within its readable part.

    Args:
        container: the file, newly opened.
        video: its video stream.
        rate: average frames per second.
        path: the path of the file.
        options: how the file is read.

    Raises:
        MediaError: the file is truncated; names how much of it can be read.
    """
    size = path.stat().st_size
    entries = list(video.index_entries) if _is_mp4(container) else []
    if any(entry.pos + entry.size > size for entry in entries):
        present = [entry.timestamp for entry in entries if entry.pos + entry.size <= size]
        readable = _readable(present, time_base=video.time_base, rate=rate)
        expected = len(entries)
    elif size < _declared_size(container, path):
        readable = _readable(_stamps(path, video.index), time_base=video.time_base, rate=rate)
        expected = None
    else:
        return
    if not _covers_excerpt(readable, rate=rate, options=options):
        raise cut_off(path, readable=readable.frames, expected=expected)


def indexed_frames(container: InputContainer, video: VideoStream) -> int:
    """Return the number of frames in the file's index so far; 0 if the format has no index.

    Fragments of an MP4 are added to the index as they are read.
    """
    return len(video.index_entries) if _is_mp4(container) else 0


def cut_off(path: Path, *, readable: int, expected: int | None = None) -> MediaError:
    """Return the error for a truncated file.

    Args:
        path: the path of the file.
        readable: number of frames that can be read.
        expected: number of frames in the complete file; ``None``: unknown.
    """
    total = f"of its {expected} frames" if expected is not None else "of its frames"
    advice = "get the complete file"
    if readable:
        advice += f", or limit the number of frames to {readable}"
    return MediaError(f"{path} is cut off: only {readable} {total} can be read; {advice}")


def _covers_excerpt(readable: _Readable, *, rate: Fraction, options: ReadOptions) -> bool:
    """Return whether the requested excerpt ends within the readable part."""
    if options.frames is not None and not options.start and options.frames <= readable.frames:
        return True
    ends = [] if options.end is None else [options.end]
    if options.frames is not None:
        ends.append((options.start or 0) + options.frames / rate)
    return bool(ends) and min(ends) <= readable.seconds


def _readable(stamps: list[int], *, time_base: Fraction | None, rate: Fraction) -> _Readable:
    """Return the extent of frames with these decoding times, in ticks."""
    length = (max(stamps) - min(stamps)) * (time_base or 0) + 1 / rate if stamps else Fraction(0)
    return _Readable(frames=len(stamps), seconds=length)


def _stamps(path: Path, index: int) -> list[int]:
    """Return the decoding times of all complete frames of a video stream."""
    with media_errors(f"cannot read {path} any further"), open_input(path) as container:
        return [
            packet.dts
            for packet in container.demux(container.streams[index])
            if packet.size and packet.dts is not None and not packet.is_corrupt
        ]


def _declared_size(container: InputContainer, path: Path) -> int:
    """Return the length in bytes that a file declares; 0 if it declares none."""
    if "matroska" in container.format.name:
        return segment_end(path) or 0
    if container.format.name == "avi":
        return _end_of_chunks(path)
    return _end_of_boxes(path) if _is_mp4(container) else 0


def _end_of_boxes(path: Path) -> int:
    """Return the position at which the last box of an MP4 must end; 0 if it is unknown."""
    at, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:  # the length does not fit in four bytes
                length = int.from_bytes(head[8:], "big")
            if length < 8:  # the box extends to the end of the file, or this is not a box
                return 0
            at += length
    return at if at > size and head[4:8] in _MP4_BOXES else 0


def _end_of_chunks(path: Path) -> int:
    """Return the position at which the last chunk of an AVI must end; 0 if it is unknown."""
    at = 0
    with path.open("rb") as file:
        while (head := file.read(8))[:4] == b"RIFF" and len(head) == 8:
            length = int.from_bytes(head[4:], "little")
            if length in (0, 2**32 - 1):  # the length was unknown when the header was written
                return 0
            at += 8 + length
            file.seek(at)
    return at


def _is_mp4(container: InputContainer) -> bool:
    return "mp4" in container.format.name.split(",")
