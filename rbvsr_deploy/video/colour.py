"""Colour and orientation: decoded frames to upright RGB, and RGB to frames for an encoder.

The numbers are those of ITU-T H.273, which FFmpeg and every container use.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av import VideoFrame
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

UNKNOWN = 2
RGB_MATRIX = 0
BT709 = 1
BT601 = 6
LIMITED = 1
FULL = 2

# swscale's flags for bicubic, accurate rounding and, both ways, a chroma sample for every pixel:
# without them it takes the nearest sample and rounds coarsely. PyAV names them from 18 on only.
_ACCURATE = 0x4 | 0x40000 | 0x2000 | 0x4000
# The matrices that swscale knows: BT.709, FCC, BT.601 twice, SMPTE 240M, BT.2020.
_SUPPORTED = frozenset({1, 4, 5, 6, 7, 9})

# Quarter turns counterclockwise to the signs of their display matrix.
_ROTATIONS = {1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}


@dataclass(frozen=True)
class Colour:
    """How the numbers of a video are to be read, as H.273 codes."""

    matrix: int
    """1: BT.709, 5 and 6: BT.601, 9: BT.2020; never unknown (2) and never RGB (0)."""
    range: int
    """1: limited (luma 16 to 235), 2: full."""
    primaries: int
    """Kept for the output only; 2: unknown."""
    transfer: int
    """Kept for the output only; 2: unknown."""


RGB_PICTURE = Colour(matrix=BT709, range=LIMITED, primaries=BT709, transfer=BT709)
"""What a video made of RGB pictures is written as."""


def colour_of(frame: VideoFrame, *, matrix_if_unknown: int | None = None) -> Colour:
    """Reads the colour description of a decoded frame and guesses what it does not tell.

    Args:
        frame: a decoded frame.
        matrix_if_unknown: the matrix of an untagged frame; ``None``: guessed from the height as
            players do, BT.709 from 720 lines on, BT.601 below.
    """
    matrix = frame.colorspace
    if frame.format.is_rgb:
        return RGB_PICTURE
    if matrix not in _SUPPORTED:
        guess = matrix_if_unknown or (BT709 if frame.height >= 720 else BT601)
        if matrix not in (UNKNOWN, RGB_MATRIX):
            logger.warning("colour matrix %d is not supported and read as %d", matrix, guess)
        matrix = guess
    # The yuvj formats are full range by definition, whatever the tag says.
    full = frame.color_range == FULL or frame.format.name.startswith("yuvj")
    return Colour(
        matrix=matrix,
        range=FULL if full else LIMITED,
        primaries=frame.color_primaries,
        transfer=frame.color_trc,
    )


def to_rgb(frame: VideoFrame, *, colour: Colour) -> NDArray[np.uint8]:
    """Converts a decoded frame to upright RGB.

    Args:
        frame: a decoded frame of any pixel format.
        colour: how its numbers are to be read.

    Returns:
        ``(H, W, 3)`` uint8 RGB, contiguous; H and W exchanged where the frame lies on its side.
    """
    return apply_orientation(_converted(frame, colour, "rgb24"), matrix=display_matrix(frame))


def to_rgba(frame: VideoFrame, *, colour: Colour) -> NDArray[np.uint8]:
    """As ``to_rgb`` with the opacity as fourth channel: ``(H, W, 4)`` uint8."""
    return apply_orientation(_converted(frame, colour, "rgba"), matrix=display_matrix(frame))


def from_rgb(image: NDArray[np.uint8], *, pix_fmt: str, colour: Colour) -> VideoFrame:
    """Converts RGB to a frame for an encoder.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        pix_fmt: FFmpeg's name of the encoder's pixel format.
        colour: the matrix and range to convert to, and the tags to set.
    """
    from av import VideoFrame

    frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    # The result inherits the tag; for RGB it means nothing.
    frame.colorspace = colour.matrix
    frame = frame.reformat(format=pix_fmt, dst_color_range=colour.range, interpolation=_ACCURATE)
    if not frame.format.is_rgb:
        frame.colorspace, frame.color_range = colour.matrix, colour.range
    frame.color_primaries, frame.color_trc = colour.primaries, colour.transfer
    return frame


def display_matrix(frame: VideoFrame) -> tuple[int, int, int, int] | None:
    """The signs ``(a, b, c, d)`` of the frame's display matrix, ``None`` where it is upright.

    A pixel at (x, y) is shown at (a x + c y, b x + d y). Angles that are no multiple of 90
    degrees are not applied.
    """
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV knows no name for some newer kinds of side data, EXIF among them, and gives up on
        # all of them; the angle still comes through, though not whether the frame is mirrored.
        return _ROTATIONS.get(round(frame.rotation / 90) % 4)
    if data is None:
        return None
    values = np.frombuffer(memoryview(data), np.int32)  # type: ignore[arg-type]
    a, b, c, d = (int(np.sign(values[i])) for i in (0, 1, 3, 4))
    if (abs(a), abs(b), abs(c), abs(d)) not in ((1, 0, 0, 1), (0, 1, 1, 0)):
        logger.warning("the rotation is no multiple of 90 degrees and is not applied")
        return None
    return None if (a, d) == (1, 1) else (a, b, c, d)


def apply_orientation(
    image: NDArray[np.uint8], *, matrix: tuple[int, int, int, int] | None
) -> NDArray[np.uint8]:
    """Turns and mirrors ``(H, W, C)`` as ``display_matrix`` says; the result is contiguous."""
    if matrix is not None:
        a, b, c, d = matrix
        if a == 0:
            image = image.transpose(1, 0, 2)
        across, down = (a, d) if a else (c, b)
        image = image[:: down or 1, :: across or 1]
    return np.ascontiguousarray(image)


def _converted(frame: VideoFrame, colour: Colour, pix_fmt: str) -> NDArray[np.uint8]:
    if not frame.format.is_rgb:
        frame.colorspace, frame.color_range = colour.matrix, colour.range
    rgb = frame.reformat(format=pix_fmt, interpolation=_ACCURATE)
    # A view that keeps the frame's buffer alive.
    return np.asarray(rgb.to_ndarray(), dtype=np.uint8)
