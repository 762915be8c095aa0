"""How pictures have to be turned and mirrored to stand upright."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from av import VideoFrame
    from numpy.typing import NDArray

__all__ = ["Orientation", "orientation_of", "upright"]

logger = logging.getLogger(__name__)

Orientation = tuple[int, int, int, int]
"""The signs ``(a, b, c, d)`` of a display matrix: a pixel at (x, y) is shown at
(a x + c y, b x + d y)."""

_Sample = TypeVar("_Sample", bound=np.generic)

# Quarter turns counterclockwise.
_ROTATIONS: dict[int, Orientation] = {1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}


def orientation_of(frame: VideoFrame) -> Orientation | None:
    """Of a decoded frame; ``None`` where it is upright.

    Angles that are no multiple of 90 degrees are not applied.
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


def upright(image: NDArray[_Sample], orientation: Orientation | None) -> NDArray[_Sample]:
    """Turns and mirrors ``(H, W, C)``; the result is contiguous."""
    if orientation is not None:
        a, b, c, d = orientation
        if a == 0:
            image = image.transpose(1, 0, 2)
        across, down = (a, d) if a else (c, b)
        image = image[:: down or 1, :: across or 1]
    return np.ascontiguousarray(image)
