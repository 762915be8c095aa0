"""What metrics are given, and what they give back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.errors import RbvsrError

__all__ = ["MetricUnavailableError", "Picture", "Scorer", "Shown", "luma", "the_truth"]

# MATLAB's rgb2ycbcr: ITU-R BT.601 in studio range, black at 16 and white at 235.
_WEIGHTS = np.array([65.481, 128.553, 24.966]) / 255.0
_BLACK = 16.0


class MetricUnavailableError(RbvsrError):
    """A metric lacks a package or its weights; the sentence says what to install."""


def luma(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Y of a picture as MATLAB's ``rgb2ycbcr`` has it, not rounded.

    Args:
        image: (H, W, 3) uint8, RGB.

    Returns:
        (H, W), 16 to 235.
    """
    return np.asarray(image @ _WEIGHTS + _BLACK, dtype=np.float64)


class Picture:
    """The part of a picture that is scored, and what several metrics make of it.

    Args:
        image: (H, W, 3) uint8, RGB.
        border: pixels left out at each side.
    """

    def __init__(self, image: NDArray[np.uint8], *, border: int) -> None:
        height, width = image.shape[:2]
        self.rgb = image[border : height - border, border : width - border]
        """(H, W, 3) uint8."""

    @cached_property
    def y(self) -> NDArray[np.float64]:
        """(H, W) luma, 16 to 235, not rounded."""
        return luma(self.rgb)

    @cached_property
    def grey(self) -> NDArray[np.uint8]:
        """(H, W) luma in whole numbers, for OpenCV's optical flow."""
        return np.rint(self.y).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Shown:
    """One frame of what is scored, with what it may be held against."""

    picture: Picture
    truth: Picture | None = None
    guide: Picture | None = None
    """Which of the pictures at this time the motion is estimated on; ``None``: ``picture``."""
    before: Shown | None = None
    """The frame before; ``None`` at the first one."""


Scorer: TypeAlias = Callable[[Shown], "float | None"]
"""Gives the score of a frame, ``None`` where it is not defined."""


def the_truth(shown: Shown) -> Picture:
    """The truth of a frame, for metrics that are only made where there is one."""
    if shown.truth is None:
        raise ValueError("this metric needs the truth")
    return shown.truth
