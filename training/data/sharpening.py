"""Sharpens the ground truth; the network is trained towards the result."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["sharpen"]

Frames = NDArray[np.uint8]


def sharpen(frames: Frames) -> Frames:
    """Apply the unsharp mask of Real-ESRGAN (ICCV workshops 2021, section 3.4).

    Half of the residual of a 51-pixel Gaussian blur is added where the residual exceeds 10 levels;
    the mask has soft edges.

    Args:
        frames: (T, H, W, 3) uint8.

    Returns:
        Frames of the same shape and dtype.
    """
    return np.stack([_sharpen(frame) for frame in frames])


def _sharpen(frame: Frames) -> Frames:
    image = frame.astype(np.float32) / np.float32(255.0)
    residual = image - _blur(image)
    mask = (np.abs(residual) > np.float32(10.0 / 255.0)).astype(np.float32)
    sharp = (image + np.float32(0.5) * residual).clip(0.0, 1.0)
    mixed = image + _blur(mask) * (sharp - image)
    result: Frames = np.rint(mixed * np.float32(255.0)).astype(np.uint8)
    return result


def _blur(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blur with a Gaussian of 51 pixels; for sigma 0, OpenCV derives a sigma of 8 from the size."""
    return cv2.GaussianBlur(image, (51, 51), 0)  # type: ignore[return-value]
