"""Converts images between 8 and 16 bits per sample, as on the host, and the floating point of the
network; and computes the peak signal-to-noise ratio.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "WHITE",
    "Image",
    "eight_bits",
    "enlarged",
    "network_input",
    "psnr_of",
    "sixteen_bit_images",
    "sixteen_bits",
]

Image: TypeAlias = NDArray[np.uint8 | np.uint16]
"""(H, W, 3) RGB; the largest number of the dtype stands for 1."""

WHITE = 65535
"""1 as a 16-bit number."""


def eight_bits(image: Image) -> NDArray[np.uint8]:
    """Return the image in 8 bits per sample, rounded; the same array if it already is."""
    if image.dtype == np.uint8:
        return image  # type: ignore[return-value]
    import cv2

    reduced = cv2.convertScaleAbs(image, alpha=255 / WHITE)
    return np.asarray(reduced, dtype=np.uint8).reshape(image.shape)


def sixteen_bits(image: Image) -> NDArray[np.uint16]:
    """Return the image in 16 bits per sample; the same array if it already is."""
    return image if image.dtype == np.uint16 else image * np.uint16(257)  # type: ignore[return-value]


def enlarged(channel: Image, *, scale: int) -> Image:
    """Enlarge one channel by bicubic interpolation: (H, W, 1) to (scale H, scale W, 1)."""
    import cv2

    height, width, _ = channel.shape
    size = (scale * width, scale * height)
    resized = cv2.resize(channel, size, interpolation=cv2.INTER_CUBIC)
    return np.asarray(resized, dtype=channel.dtype)[..., None]


def network_input(images: Image, *, precision: str) -> NDArray[Any]:
    """Convert 16-bit images to the network's input, as ``ingest`` does 8-bit ones: (N, H, W, 3)
    uint16 to (N, 3, H, W) in [0, 1].
    """
    scaled = images.transpose(0, 3, 1, 2) / np.float32(WHITE)
    return np.ascontiguousarray(scaled, dtype=precision)


def sixteen_bit_images(output: NDArray[Any]) -> NDArray[np.uint16]:
    """Convert the network's output to 16-bit images, as ``emit`` does to 8-bit ones: (N, 3, H, W)
    to (N, H, W, 3), clipped and rounded.
    """
    import cv2

    count, _, height, width = output.shape
    images = np.empty((count, height, width, 3), np.uint16)
    for channels, image in zip(output, images, strict=True):
        # In float32, as float16 ends at 65504.
        planes = [
            cv2.multiply(np.asarray(plane, np.float32), float(WHITE), dtype=cv2.CV_16U)  # type: ignore[call-overload]
            for plane in channels
        ]
        cv2.merge(planes, image)
    return images


def psnr_of(mean_square: float, *, peak: float, most: float) -> float:
    """Return the PSNR in dB: ten times the decimal logarithm of the squared peak divided by the
    mean squared difference.

    Args:
        mean_square: mean squared difference, in the square of the peak's unit.
        peak: the full signal.
        most: upper limit, also returned where there is no difference: JSON has no infinity.
    """
    return min(most, 10.0 * math.log10(peak**2 / mean_square)) if mean_square > 0 else most
