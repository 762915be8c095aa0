"""Resizes images by bicubic interpolation like MATLAB's ``imresize``, the standard for scores.

OpenCV, FFmpeg and Pillow differ in the kernel, in antialiasing or at the borders.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["enlarge", "imresize"]

_Float = TypeVar("_Float", np.float32, np.float64)


def imresize(image: NDArray[_Float], scale: float) -> NDArray[_Float]:
    """Resize an image, with antialiasing when it becomes smaller.

    Keys, *Cubic convolution interpolation for digital image processing*, 1981, a = -1/2; the image
    is mirrored beyond its borders.

    Args:
        image: (H, W) or (H, W, C), float32 or float64.
        scale: ratio of the new size to the old size.

    Returns:
        ceil(scale * H) rows and ceil(scale * W) columns, neither clipped nor rounded.
    """
    for axis in (0, 1):
        places, weights = _contributions(image.shape[axis], scale)
        weights = weights.astype(image.dtype)
        parts = np.moveaxis(image, axis, 0)
        shape = (-1, *[1] * (image.ndim - 1))
        resized = sum(
            weights[:, tap].reshape(shape) * parts[places[:, tap]] for tap in range(len(places[0]))
        )
        image = np.moveaxis(np.asarray(resized), 0, axis)
    return image


def enlarge(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Enlarge an image, (H, W, 3) -> (scale H, scale W, 3) uint8, rounded and clipped."""
    large = imresize(image.astype(np.float32), scale)
    return np.asarray(np.clip(np.rint(large), 0, 255), dtype=np.uint8)


def _contributions(size: int, scale: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the old positions that contribute to each new one, and their weights, both as
    (new size, taps).
    """
    stretch = max(1.0, 1.0 / scale)
    centre = (np.arange(np.ceil(size * scale)) + 0.5) / scale - 0.5
    taps = int(np.ceil(4 * stretch)) + 2
    places = np.floor(centre - 2 * stretch).astype(np.intp)[:, None] + np.arange(taps)
    weights = _cubic((centre[:, None] - places) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    used = np.any(weights != 0, axis=0)
    mirrored = np.concatenate((np.arange(size), np.arange(size)[::-1]))
    return mirrored[places[:, used] % (2 * size)], weights[:, used]


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
