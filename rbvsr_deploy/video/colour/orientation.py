"""How pictures have to be turned and mirrored to stand upright."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from av import VideoFrame
    from numpy.typing import NDArray

__all__ = ["UPRIGHT", "Orientation", "exif_orientation", "orientation_of", "upright"]

logger = logging.getLogger(__name__)

Orientation = tuple[int, int, int, int]
"""The signs ``(a, b, c, d)`` of a display matrix: a pixel at (x, y) is shown at
(a x + c y, b x + d y)."""

_Sample = TypeVar("_Sample", bound=np.generic)

UPRIGHT: Orientation = (1, 0, 0, 1)

# By the number that EXIF gives them.
_EXIF: dict[int, Orientation] = {
    1: UPRIGHT,
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
_EXIF_ORIENTATION = 274  # number of its tag
# By degrees counterclockwise.
_TURNS: dict[int, Orientation] = {0: UPRIGHT, 90: _EXIF[8], 180: _EXIF[3], 270: _EXIF[6]}


def orientation_of(frame: VideoFrame) -> Orientation | None:
    """Of a frame of a video, by its display matrix; ``None``: at no multiple of 90 degrees."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV knows no name for some newer kinds of side data and gives up on all of them; the
        # angle still comes through, though not whether the frame is mirrored.
        return _TURNS.get(frame.rotation % 360)
    if data is None:
        return UPRIGHT
    matrix = np.frombuffer(memoryview(data), np.int32)[[0, 1, 3, 4]]  # type: ignore[arg-type]
    matrix = np.where(abs(matrix) > abs(matrix).max() / 100, np.sign(matrix), 0)
    signs = tuple(matrix.tolist())
    return signs if signs in _EXIF.values() else None


def exif_orientation(picture: bytes) -> Orientation:
    """Of a whole JPEG, PNG, WebP or TIFF, by its EXIF data, if any.

    FFmpeg's decoders read it too, but PyAV cannot tell what they found.
    """
    try:
        for exif in _exif_blocks(picture):
            order = {b"II*\0": "<", b"MM\0*": ">"}[exif[:4]]
            (start,) = struct.unpack_from(f"{order}I", exif, 4)
            (count,) = struct.unpack_from(f"{order}H", exif, start)
            for entry in range(start + 2, start + 2 + 12 * count, 12):
                tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
                if tag == _EXIF_ORIENTATION:
                    size = {1: "B", 3: "H", 4: "I"}[kind]
                    return _EXIF[struct.unpack_from(f"{order}{size}", exif, entry + 8)[0]]
    except (struct.error, IndexError, KeyError):
        logger.debug("EXIF data is damaged: the picture is taken for upright")
    return UPRIGHT


def _exif_blocks(picture: bytes) -> Iterator[bytes]:
    """EXIF data of a picture, each block in the form of a TIFF."""
    if picture.startswith(b"\xff\xd8"):
        at = 2
        # Segments follow each other until the compressed picture starts.
        while picture[at : at + 1] == b"\xff" and picture[at + 1] != 0xDA:
            (length,) = struct.unpack_from(">H", picture, at + 2)
            if picture[at + 1] == 0xE1 and picture[at + 4 : at + 10] == b"Exif\0\0":
                yield picture[at + 10 : at + 2 + length]
            at += 2 + length
    elif picture.startswith(b"\x89PNG"):
        at = 8
        while at < len(picture):
            length, name = struct.unpack_from(">I4s", picture, at)
            if name == b"eXIf":
                yield picture[at + 8 : at + 8 + length]
            at += 12 + length
    elif picture.startswith(b"RIFF"):
        at = 12
        while at < len(picture):
            name, length = struct.unpack_from("<4sI", picture, at)
            if name == b"EXIF":
                # Some writers begin it as JPEGs do.
                yield picture[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
            at += 8 + length + length % 2
    else:
        yield picture


def upright(image: NDArray[_Sample], orientation: Orientation | None) -> NDArray[_Sample]:
    """Turns and mirrors ``(H, W, C)``; the result is contiguous. ``None``: left as it is."""
    a, b, c, d = orientation or UPRIGHT
    if a == 0:
        image = image.transpose(1, 0, 2)
    across, down = (a, d) if a else (c, b)
    return np.ascontiguousarray(image[::down, ::across])
