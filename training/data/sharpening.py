"""The sharpened ground truth that the network is trained towards."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["sharpen"]

Frames = NDArray[np.uint8]


def sharpen(frames: Frames) -> Frames:
    """Unsharp mask of Real-ESRGAN (ICCV workshops 2021, section 3.4): half of what a Gaussian of 51
    pixels takes away is added, where that is more than 10 levels, softly delimited.

    Args:
        frames: (T, H, W, 3) uint8.

    Returns:
        The same shape and type.
    """
    return np.stack([_sharpen(frame) for frame in frames])


def _sharpen(frame: Frames) -> Frames:
    picture = frame.astype(np.float32) / np.float32(255.0)
    residual = picture - _blur(picture)
    mask = (np.abs(residual) > np.float32(10.0 / 255.0)).astype(np.float32)
    sharp = (picture + np.float32(0.5) * residual).clip(0.0, 1.0)
    mixed = picture + _blur(mask) * (sharp - picture)
    result: Frames = np.rint(mixed * np.float32(255.0)).astype(np.uint8)
    return result


def _blur(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sigma 0: OpenCV's rule gives 8 pixels for this size."""
    return cv2.GaussianBlur(picture, (51, 51), 0)  # type: ignore[return-value]
