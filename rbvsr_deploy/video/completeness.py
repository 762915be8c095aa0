"""Files that were cut off, by a download or a power failure: found before any work is done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rbvsr_deploy.errors import MediaError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_EBML_HEADER = 0x1A45DFA3
_SEGMENT = 0x18538067


def refuse_cut_off(container: InputContainer, *, video: VideoStream, path: Path) -> None:
    """Checks what the format tells of its own length against the file.

    MP4 tells where every frame lies, Matroska and WebM how long the file is. Other formats tell
    nothing reliable; of them, what is there is read.

    Raises:
        MediaError: the file ends too early; names how much of it can be read.
    """
    size = path.stat().st_size
    if indexed_frames(container, video):
        entries = list(video.index_entries)
        readable = sum(entry.pos + entry.size <= size for entry in entries)
        if readable < len(entries):
            raise cut_off(path, readable=readable, expected=len(entries))
    if "matroska" in container.format.name:
        expected = _matroska_size(path)
        if expected is not None and size < expected:
            raise MediaError(
                f"{path} is cut off: only {size} of its {expected} bytes are there; "
                "get the complete file, or save the readable part as a new one"
            )


def indexed_frames(container: InputContainer, video: VideoStream) -> int:
    """How many frames the file lists as far as it has been read; 0 where the format has no list.

    The fragments of an MP4 are listed as they are read.
    """
    return len(video.index_entries) if "mp4" in container.format.name.split(",") else 0


def cut_off(path: Path, *, readable: int, expected: int) -> MediaError:
    """The error for a file that lists more frames than it holds."""
    return MediaError(
        f"{path} is cut off: only {readable} of its {expected} frames can be read; "
        "get the complete file, or save the readable part as a new one"
    )


def _matroska_size(path: Path) -> int | None:
    """The length in bytes that a Matroska file gives itself, ``None`` where it does not."""
    with path.open("rb") as file:
        start = file.read(4096)
    header = _element(start, 0)
    if header is None or header[0] != _EBML_HEADER or header[2] is None:
        return None
    segment = _element(start, header[1] + header[2])
    if segment is None or segment[0] != _SEGMENT or segment[2] is None:
        return None
    return segment[1] + segment[2]


def _element(data: bytes, at: int) -> tuple[int, int, int | None] | None:
    """Reads an EBML element: its number, where its content starts, and how long that is.

    The length is ``None`` where it was not known when the file was begun, as in live streams;
    the whole is ``None`` where the data ends too early.
    """
    if at + 12 > len(data) or not data[at]:
        return None
    id_length = 9 - data[at].bit_length()
    first = data[at + id_length]
    if not first:
        return None
    size_length = 9 - first.bit_length()
    content = at + id_length + size_length
    number = int.from_bytes(data[at : at + id_length], "big")
    mask = (1 << 7 * size_length) - 1
    size = int.from_bytes(data[at + id_length : content], "big") & mask
    return number, content, None if size == mask else size
