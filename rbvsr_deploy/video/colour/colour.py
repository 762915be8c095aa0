"""Describes the colour coding of a video: matrix, range, primaries and transfer.

Codes are those of ITU-T H.273, which FFmpeg and all containers use.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.format import VideoFormat

logger = logging.getLogger(__name__)

UNKNOWN = 2
RGB_MATRIX = 0
BT709 = 1
BT601 = 6
BT2020 = 9
LIMITED = 1
FULL = 2

# 576 lines are PAL; 1024 samples across are its widest form with square pixels.
_WIDEST_SD, _HIGHEST_SD = 1024, 576

LUMA_WEIGHTS = {
    BT709: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    BT601: (0.299, 0.114),
    7: (0.212, 0.087),
    BT2020: (0.2627, 0.0593),
}
"""Luma weights of red and blue for each supported matrix: BT.709, FCC, BT.601 (two codes),
SMPTE 240M and BT.2020."""


@dataclass(frozen=True)
class Colour:
    """Holds the colour description of a video as H.273 codes."""

    matrix: int
    """1: BT.709, 5 and 6: BT.601, 9: BT.2020; never unknown (2) or RGB (0)."""
    range: int
    """1: limited (luma 16 to 235), 2: full."""
    primaries: int
    """Passed through to the output only; 2: unknown."""
    transfer: int
    """Passed through to the output only; 2: unknown."""


RGB_COLOUR = Colour(matrix=BT709, range=LIMITED, primaries=BT709, transfer=BT709)
"""Colour description of a video encoded from RGB images."""


def colour_of(frame: VideoFrame, *, matrix_if_unknown: int | None = None) -> Colour:
    """Return the colour description of a decoded frame, with guesses for missing tags.

    Args:
        frame: a decoded frame.
        matrix_if_unknown: matrix to assume for an untagged frame; ``None`` guesses from the size as
            players do: BT.709 if it is more than 1024 wide or 576 high, otherwise BT.601.
    """
    matrix = frame.colorspace
    if frame.format.is_rgb:
        return RGB_COLOUR
    if matrix not in LUMA_WEIGHTS:
        guess = matrix_if_unknown or (BT709 if _is_hd(frame) else BT601)
        if matrix not in (UNKNOWN, RGB_MATRIX):
            logger.warning("colour matrix %d is not supported; using %d instead", matrix, guess)
        matrix = guess
    # The yuvj formats are full range by default, and so is grey. A decoder keeps its first format
    # when the range changes within a video.
    full = frame.color_range == FULL or (
        frame.color_range != LIMITED
        and (frame.format.name.startswith("yuvj") or is_grey(frame.format))
    )
    return Colour(
        matrix=matrix,
        range=FULL if full else LIMITED,
        primaries=frame.color_primaries,
        transfer=frame.color_trc,
    )


def untagged_colour(frame: VideoFrame, *, read_as: Colour) -> str | None:
    """Describe missing colour tags and the values assumed for them, for use after "<path> has".

    Args:
        frame: a decoded frame.
        read_as: the colour description in use, as ``colour_of`` returned it.

    Returns:
        The end of a sentence; ``None`` if matrix and range are both tagged.
    """
    if frame.format.is_rgb:
        return None
    missing, assumed = [], []
    if frame.colorspace not in LUMA_WEIGHTS and not is_grey(frame.format):
        missing.append("colour matrix")
        name = "BT.709" if read_as.matrix == BT709 else "BT.601"
        assumed.append(f"{name} (for {frame.width}x{frame.height})")
    if frame.color_range not in (LIMITED, FULL) and not frame.format.name.startswith("yuvj"):
        missing.append("range")
        assumed.append("full range" if read_as.range == FULL else "limited range")
    if not missing:
        return None
    return f"no {' or '.join(missing)} tag: assuming {' and '.join(assumed)}"


def _is_hd(frame: VideoFrame) -> bool:
    """Return whether a frame is larger than any of standard definition."""
    return frame.width > _WIDEST_SD or frame.height > _HIGHEST_SD


def is_grey(video_format: VideoFormat) -> bool:
    """Return whether a format has luma only, with or without alpha."""
    return video_format.name.startswith(("gray", "ya"))


def has_alpha(video_format: VideoFormat) -> bool:
    """Return whether a format has an alpha channel."""
    return any(part.is_alpha for part in video_format.components)


def depth_of(video_format: VideoFormat) -> int:
    """Return the bits per sample, at least 8; 16 for floating point."""
    bits = (part.bits for part in video_format.components if not part.is_alpha)
    return min(16, max(8, *bits))
