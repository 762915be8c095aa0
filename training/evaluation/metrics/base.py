"""Defines the input and output of metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.errors import RbvsrError

__all__ = [
    "CroppedImage",
    "MetricUnavailableError",
    "ScoredFrame",
    "Scorer",
    "luma",
    "require_truth",
]

# MATLAB's rgb2ycbcr: ITU-R BT.601 in studio range, black at 16 and white at 235.
_WEIGHTS = np.array([65.481, 128.553, 24.966]) / 255.0
_BLACK = 16.0


class MetricUnavailableError(RbvsrError):
    """Raised when a metric lacks a package or its weights; the message says what to install."""


def luma(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute the luma of an image as MATLAB's ``rgb2ycbcr`` does, without rounding.

    Args:
        image: (H, W, 3) uint8, RGB.

    Returns:
        (H, W) float64, 16 to 235.
    """
    return np.asarray(image @ _WEIGHTS + _BLACK, dtype=np.float64)


class CroppedImage:
    """An image without its border, with derived images that several metrics share.

    Args:
        image: (H, W, 3) uint8, RGB.
        border: number of pixels to remove at each side.
    """

    def __init__(self, image: NDArray[np.uint8], *, border: int) -> None:
        height, width = image.shape[:2]
        self.rgb = image[border : height - border, border : width - border]
        """(H, W, 3) uint8."""

    @cached_property
    def y(self) -> NDArray[np.float64]:
        """Luma, (H, W) float64, 16 to 235, not rounded."""
        return luma(self.rgb)

    @cached_property
    def grey(self) -> NDArray[np.uint8]:
        """Luma rounded to (H, W) uint8, for OpenCV's optical flow."""
        return np.rint(self.y).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class ScoredFrame:
    """One frame to score, with the images it may be compared with."""

    image: CroppedImage
    truth: CroppedImage | None = None
    """Ground truth of the frame."""
    guide: CroppedImage | None = None
    """Image of this frame on which to estimate motion; ``None`` uses ``image``."""
    previous: ScoredFrame | None = None
    """Previous frame; ``None`` for the first one."""


Scorer: TypeAlias = Callable[[ScoredFrame], "float | None"]
"""Function that returns the score of a frame, ``None`` where it is undefined."""


def require_truth(frame: ScoredFrame) -> CroppedImage:
    """Return the ground truth of a frame.

    Raises:
        ValueError: the frame has none.
    """
    if frame.truth is None:
        raise ValueError("this metric needs a ground truth")
    return frame.truth
