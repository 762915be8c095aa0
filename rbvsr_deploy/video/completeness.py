"""Files that were cut off, by a download or a power failure: found before any work is done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.video.matroska import segment_end

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream


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
        expected = segment_end(path)
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
