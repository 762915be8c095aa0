"""Finds what an image file holds after the end of its image, such as the video of a motion photo.

Decoders stop at the end of the image, so that nothing else would notice the rest.
"""

from __future__ import annotations

import re

from rbvsr_deploy.video.image_metadata import png_layout

__all__ = ["trailing_data"]

# A marker of a JPEG, other than those within the data of a scan.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)
_END = 0xD9
_MOST_MARKERS = 10_000  # an image has a few dozen, and at most 500 scans
_PADDING = b"\0\r\n\x1a "
# The first box of an MP4 file begins with its length.
_VIDEO = re.compile(rb"\0\0\0.ftyp", re.DOTALL)


def trailing_data(data: bytes, name: str, *, others: int = 0) -> str:
    """Describe what follows an image in its file; return "" for padding, or nothing.

    Args:
        data: the complete file.
        name: Pillow's name of its format. JPEG, PNG and WebP have an end; others are not searched.
        others: number of further images in the file, which are reported elsewhere: data between
            and after them is described only if it is a video.
    """
    rest = data[_end_of(data, name) :]
    if _VIDEO.search(rest):
        return "video after the image (motion photo)"
    count = 0 if others else len(rest.strip(_PADDING))
    return f"{count} bytes after the image" if count else ""


def _end_of(data: bytes, name: str) -> int:
    """Return where an image ends: at the end of the file if it is damaged or has no mark."""
    if name == "JPEG":
        return _end_of_jpeg(data)
    if name == "WEBP":
        return 8 + int.from_bytes(data[4:8], "little")  # the length of its RIFF chunk
    if name == "PNG":
        ends = (at + 12 + length for at, length, kind in png_layout(data) if kind == b"IEND")
        return next(ends, len(data))
    return len(data)


def _end_of_jpeg(data: bytes) -> int:
    at = 2
    for _ in range(_MOST_MARKERS):
        marker = _MARKER.search(data, at)
        if marker is None:
            break
        at = marker.end()
        if marker[1][0] == _END:
            return at
        # The data of a scan follows its header, up to the next marker.
        at += int.from_bytes(data[at : at + 2], "big")
    return len(data)
