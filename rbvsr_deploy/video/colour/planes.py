"""Gives NumPy access to the samples of a frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rbvsr_deploy.video.colour.colour import depth_of

if TYPE_CHECKING:
    from av import VideoFrame
    from numpy.typing import NDArray

__all__ = ["planes_of"]


def planes_of(frame: VideoFrame) -> list[NDArray[Any]]:
    """Return views of the planes of a planar little-endian frame: (H, W) uint8 or uint16 each."""
    dtype = np.dtype(np.uint8 if depth_of(frame.format) == 8 else np.uint16)
    views = []
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)
        views.append(rows[:, : plane.width])
    return views
