"""Pictures as numbers: 8 or 16 bits per sample on the host, floating point in the network."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "WHITE",
    "Image",
    "eight_bits",
    "enlarged",
    "network_input",
    "sixteen_bit_pictures",
    "sixteen_bits",
]

Image: TypeAlias = NDArray[np.uint8 | np.uint16]
"""(H, W, 3) RGB, of which the largest number of the dtype is 1."""

WHITE = 65535
"""1 as a number of 16 bits."""


def eight_bits(image: Image) -> NDArray[np.uint8]:
    """The picture in 8 bits per sample, rounded; itself if it is."""
    if image.dtype == np.uint8:
        return image  # type: ignore[return-value]
    import cv2

    reduced = cv2.convertScaleAbs(image, alpha=255 / WHITE)
    return np.asarray(reduced, dtype=np.uint8).reshape(image.shape)


def sixteen_bits(image: Image) -> NDArray[np.uint16]:
    """The picture in 16 bits per sample; itself if it is."""
    return image if image.dtype == np.uint16 else image * np.uint16(257)  # type: ignore[return-value]


def enlarged(channel: Image, *, scale: int) -> Image:
    """One channel by bicubic interpolation: (H, W, 1) to (scale H, scale W, 1)."""
    import cv2

    height, width, _ = channel.shape
    size = (scale * width, scale * height)
    made = cv2.resize(channel, size, interpolation=cv2.INTER_CUBIC)
    return np.asarray(made, dtype=channel.dtype)[..., None]


def network_input(images: Image, *, precision: str) -> NDArray[Any]:
    """What ``ingest`` makes of 8 bits, of 16: (N, H, W, 3) uint16 to (N, 3, H, W) in [0, 1]."""
    scaled = images.transpose(0, 3, 1, 2) / np.float32(WHITE)
    return np.ascontiguousarray(scaled, dtype=precision)


def sixteen_bit_pictures(pictures: NDArray[Any]) -> NDArray[np.uint16]:
    """What ``emit`` makes in 8 bits, in 16: (N, 3, H, W) to (N, H, W, 3), clipped and rounded."""
    import cv2

    count, _, height, width = pictures.shape
    images = np.empty((count, height, width, 3), np.uint16)
    for picture, image in zip(pictures, images, strict=True):
        # float16 ends at 65504.
        planes = [
            cv2.multiply(np.asarray(plane, np.float32), float(WHITE), dtype=cv2.CV_16U)  # type: ignore[call-overload]
            for plane in picture
        ]
        cv2.merge(planes, image)
    return images
