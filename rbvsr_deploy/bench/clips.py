"""Provides the frames that are upscaled: a synthetic scene, or the beginning of a video."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.pixels import eight_bits

__all__ = ["synthetic_clip", "video_clip"]


def synthetic_clip(frames: int, *, width: int, height: int) -> NDArray[np.uint8]:
    """Return a scene without a cut, the same on every machine: (T, H, W, 3) uint8 RGB.

    Waves of several lengths drift by fractions of a pixel per frame, under noise that changes with
    every frame.
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    clip = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        for channel, (dx, dy) in enumerate(((0.7, 0.3), (-0.4, 0.6), (0.2, -0.8))):
            u, v = x + dx * t, y + dy * t
            waves = np.sin(u / 3) + np.cos(v / 5) + np.sin((u + v) / 17) + np.cos((u - v) / 53)
            noise = rng.standard_normal((height, width), np.float32)
            clip[t, ..., channel] = np.clip(127.5 + 25 * waves + 5 * noise, 0, 255)
    return clip


def video_clip(path: Path, frames: int) -> NDArray[np.uint8]:
    """Return the first frames of a video: (T, H, W, 3) uint8 RGB.

    Raises:
        MediaError: it cannot be read, or has fewer frames.
    """
    from rbvsr_deploy.video import open_source

    with open_source(path) as source:
        images = [eight_bits(frame.image) for frame in islice(source, frames)]
    if len(images) < frames:
        raise MediaError(
            f"'{path}' has {len(images)} frames, and {frames} are needed: use a longer video, or "
            "fewer frames",
            parameters=("frames",),
        )
    return np.stack(images)
