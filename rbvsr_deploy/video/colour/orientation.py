"""Reads the orientation of frames and images, and rotates and mirrors them upright."""

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
"""Signs ``(a, b, c, d)`` of a display matrix: a pixel at (x, y) is shown at
(a x + c y, b x + d y)."""

_Sample = TypeVar("_Sample", bound=np.generic)

UPRIGHT: Orientation = (1, 0, 0, 1)

# Keyed by the value of the EXIF orientation tag.
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
_EXIF_ORIENTATION = 274  # tag number
# Keyed by degrees counterclockwise.
_TURNS: dict[int, Orientation] = {0: UPRIGHT, 90: _EXIF[8], 180: _EXIF[3], 270: _EXIF[6]}


def orientation_of(frame: VideoFrame) -> Orientation | None:
    """Return the orientation of a video frame from its display matrix.

    Returns:
        The orientation; ``None`` if the rotation is not a multiple of 90 degrees.
    """
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV has no name for some newer kinds of side data, and then fails for all kinds. The
        # angle is still available, but not whether the frame is mirrored.
        return _TURNS.get(frame.rotation % 360)
    if data is None:
        return UPRIGHT
    matrix = np.frombuffer(memoryview(data), np.int32)[[0, 1, 3, 4]]  # type: ignore[arg-type]
    matrix = np.where(abs(matrix) > abs(matrix).max() / 100, np.sign(matrix), 0)
    signs = tuple(matrix.tolist())
    return signs if signs in _EXIF.values() else None


def exif_orientation(data: bytes) -> Orientation:
    """Return the orientation of an image from its EXIF data; upright if there is none.

    FFmpeg's decoders read it too, but PyAV does not expose the result.

    Args:
        data: a complete JPEG, PNG, WebP or TIFF file.
    """
    try:
        for exif in _exif_blocks(data):
            order = {b"II*\0": "<", b"MM\0*": ">"}[exif[:4]]
            (start,) = struct.unpack_from(f"{order}I", exif, 4)
            (count,) = struct.unpack_from(f"{order}H", exif, start)
            for entry in range(start + 2, start + 2 + 12 * count, 12):
                tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
                if tag == _EXIF_ORIENTATION:
                    size = {1: "B", 3: "H", 4: "I"}[kind]
                    return _EXIF[struct.unpack_from(f"{order}{size}", exif, entry + 8)[0]]
    except (struct.error, IndexError, KeyError):
        logger.debug("EXIF data is damaged: assuming that the image is upright")
    return UPRIGHT


def _exif_blocks(data: bytes) -> Iterator[bytes]:
    """Yield the EXIF blocks of an image file, each in TIFF format."""
    if data.startswith(b"\xff\xd8"):
        at = 2
        # Segments follow each other up to the compressed image data.
        while data[at : at + 1] == b"\xff" and data[at + 1] != 0xDA:
            (length,) = struct.unpack_from(">H", data, at + 2)
            if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                yield data[at + 10 : at + 2 + length]
            at += 2 + length
    elif data.startswith(b"\x89PNG"):
        at = 8
        while at < len(data):
            length, name = struct.unpack_from(">I4s", data, at)
            if name == b"eXIf":
                yield data[at + 8 : at + 8 + length]
            at += 12 + length
    elif data.startswith(b"RIFF"):
        at = 12
        while at < len(data):
            name, length = struct.unpack_from("<4sI", data, at)
            if name == b"EXIF":
                # Some encoders add the prefix that JPEG uses.
                yield data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0")
            at += 8 + length + length % 2
    else:
        yield data


def upright(image: NDArray[_Sample], orientation: Orientation | None) -> NDArray[_Sample]:
    """Rotate and mirror an image upright.

    Args:
        image: ``(H, W, C)``.
        orientation: how the image is stored; ``None`` leaves it unchanged.

    Returns:
        The upright image, contiguous.
    """
    a, b, c, d = orientation or UPRIGHT
    if a == 0:
        image = image.transpose(1, 0, 2)
    across, down = (a, d) if a else (c, b)
    return np.ascontiguousarray(image[::down, ::across])
