"""Colour: decoded frames to RGB, and RGB to frames for an encoder.

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
    """Converts a decoded frame to RGB, as it lies in the file.

    Args:
        frame: a decoded frame of any pixel format.
        colour: how its numbers are to be read.

    Returns:
        ``(H, W, 3)`` uint8 RGB, contiguous.
    """
    return np.ascontiguousarray(_converted(frame, colour, "rgb24"))


def to_rgba(frame: VideoFrame, *, colour: Colour) -> NDArray[np.uint8]:
    """As ``to_rgb`` with the opacity as fourth channel: ``(H, W, 4)`` uint8."""
    return np.ascontiguousarray(_converted(frame, colour, "rgba"))


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


def _converted(frame: VideoFrame, colour: Colour, pix_fmt: str) -> NDArray[np.uint8]:
    if not frame.format.is_rgb:
        frame.colorspace, frame.color_range = colour.matrix, colour.range
    rgb = frame.reformat(format=pix_fmt, interpolation=_ACCURATE)
    # A view that keeps the frame's buffer alive.
    return np.asarray(rgb.to_ndarray(), dtype=np.uint8)
