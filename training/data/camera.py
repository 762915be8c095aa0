"""A synthetic camera over photographs, whose optical flow is known.

A clip shows one to three layers, each a photograph on a plane of its own. The camera pans, turns
and zooms; nearer layers pass by faster, and let those behind them show through soft-edged holes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.graphs import SCALE

__all__ = ["CameraPath", "draw_motion", "film", "true_flow"]

_CLEAR = 0.98
"""A pixel shows one layer if that contributes as much as this."""

Frames = NDArray[np.uint8]
Maps = NDArray[np.float64]


@dataclass(frozen=True)
class CameraPath:
    """How a synthetic clip was filmed; layers from the farthest to the nearest."""

    maps: Maps
    """(K, T, 2, 3): layer k shows in frame t, at ground-truth pixel p = (x, y, 1), what its
    photograph has at ``maps[k, t] @ p``."""
    visible: NDArray[np.float32]
    """(K, T, S, S): how much of every degraded pixel each layer is; adds up to 1 over them."""

    def reordered(self, order: NDArray[np.intp]) -> CameraPath:
        """The path of the clip whose frame t is the frame ``order[t]`` of this one."""
        return CameraPath(maps=self.maps[:, order], visible=self.visible[:, order])


def true_flow(
    path: CameraPath, *, reference: int, neighbour: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Flow between two frames of a synthetic clip, at the size of the degraded frames.

    Returns:
        flow: (2, S, S) float32, degraded pixels, (dx, dy), with
            ``neighbour(x + flow) ~ reference(x)``; of the layer that most of the pixel is.
        known: (S, S) bool; false where layers mix, and where what the pixel shows is hidden or
            outside the frame in the neighbour.
    """
    crop = path.visible.shape[-1]
    # Degraded pixel q is centred on ground-truth pixel 4 q + 1.5.
    ys, xs = np.mgrid[0:crop, 0:crop].astype(np.float32)
    points = np.stack((xs.ravel(), ys.ravel())) * float(SCALE) + (SCALE - 1) / 2.0
    flow = np.zeros((2, crop, crop), np.float32)
    known = np.zeros((crop, crop), bool)
    foremost = path.visible[:, reference].argmax(axis=0)
    for layer, maps in enumerate(path.maps):
        scene = maps[reference, :, :2] @ points + maps[reference, :, 2:]
        found = np.linalg.solve(maps[neighbour, :, :2], scene - maps[neighbour, :, 2:])
        step = ((found - points) / SCALE).reshape(2, crop, crop).astype(np.float32)
        here = foremost == layer
        flow[:, here] = step[:, here]
        x, y = xs + step[0], ys + step[1]
        # Outside the frame nothing is visible.
        there = cv2.remap(path.visible[layer, neighbour], x, y, cv2.INTER_LINEAR)
        known |= here & (path.visible[layer, reference] >= _CLEAR) & (there >= _CLEAR)
    return flow, known


def film(
    photos: Sequence[Frames],
    motion: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    crop: int,
) -> tuple[Frames, CameraPath]:
    """Film photographs, each a layer, from the farthest to the nearest.

    Args:
        photos: (H, W, 3) each, at least as large as the ground truth.
        motion: of the nearest layer, from :func:`draw_motion`.

    Returns:
        (T, 4S, 4S, 3) uint8, and how it was filmed.
    """
    side = crop * SCALE
    frames: Frames = np.zeros((len(motion), side, side, 3), np.uint8)
    layers, opacities = [], []
    speeds = np.cumprod([1.0, *rng.uniform(0.3, 0.7, len(photos) - 1)])[::-1]
    for layer, (photo, speed) in enumerate(zip(photos, speeds, strict=True)):
        size = (photo.shape[0], photo.shape[1])
        slower = motion * np.array([speed, speed, 1.0, 1.0])
        maps = _place(slower, rng, size=size, side=side)
        low, high = _extent(maps, side=side)
        # Only the part that is seen is read; 4 pixels more for the taps of the interpolation.
        x0, y0 = (int(v) for v in np.maximum(np.floor(low) - 4, 0))
        x1, y1 = (int(v) for v in np.ceil(high) + 5)
        part = np.ascontiguousarray(photo[y0:y1, x0:x1])
        local = maps - np.array([[0.0, 0.0, x0], [0.0, 0.0, y0]])
        seen = np.stack([_warp(part, matrix, side=side) for matrix in local])
        layers.append(maps)
        if layer == 0:
            frames, opacity = seen, np.ones((len(maps), crop, crop), np.float32)
        else:
            mask = _holes(rng, size=(part.shape[0], part.shape[1]), cell=side / 2.0)
            alpha = np.stack([_warp(mask, matrix, side=side) for matrix in local])
            frames = np.stack(
                [_over(*pictures) for pictures in zip(seen, frames, alpha, strict=True)]
            )
            opacity = np.stack([_reduced(a, crop) for a in alpha])
        opacities.append(opacity)
    return frames, CameraPath(maps=np.stack(layers), visible=_visible(opacities))


def _over(near: Frames, far: Frames, alpha: NDArray[np.uint8]) -> Frames:
    share = cv2.cvtColor(alpha, cv2.COLOR_GRAY2RGB)
    return cv2.add(
        cv2.multiply(near, share, scale=1 / 255), cv2.multiply(far, 255 - share, scale=1 / 255)
    )  # type: ignore[return-value]


def _reduced(alpha: NDArray[np.uint8], crop: int) -> NDArray[np.float32]:
    small = cv2.resize(alpha, (crop, crop), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / np.float32(255.0)


def _visible(opacities: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """What of each layer those in front of it leave to be seen."""
    left = np.ones_like(opacities[0])
    shares = []
    for opacity in reversed(opacities):
        shares.append(left * opacity)
        left = left * (1.0 - opacity)
    return np.stack(shares[::-1])


def _holes(rng: np.random.Generator, *, size: tuple[int, int], cell: float) -> NDArray[np.uint8]:
    """Opacity of a layer, (H, W) uint8: about half of it, in blobs as large as a cell, with edges
    some pixels wide.
    """
    coarse = rng.random([int(np.ceil(length / cell)) + 2 for length in size], dtype=np.float32)
    smooth = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    edge = rng.uniform(1.5, 4.0)  # pixels; the noise rises by about 1 / cell in each
    opacity = ((smooth - 0.5) * (cell / edge) + 0.5).clip(0.0, 1.0)
    return np.rint(opacity * 255.0).astype(np.uint8)


def _warp(image: NDArray[np.uint8], matrix: Maps, *, side: int) -> NDArray[np.uint8]:
    return cv2.warpAffine(  # type: ignore[return-value]
        image,
        matrix,
        (side, side),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )


# ----------------------------------------------------------------------------------------- the path


def draw_motion(
    rng: np.random.Generator, *, length: int, crop: int, max_speed: float
) -> NDArray[np.float64]:
    """Draw a smooth motion: (T, 4) pan in x and y in ground-truth pixels, angle, log of the zoom.

    Args:
        max_speed: degraded pixels per frame; speeds are drawn log-uniformly from 0.05 on.
    """
    side = crop * SCALE
    pixels = np.exp(rng.uniform(np.log(0.05), np.log(max_speed))) * SCALE
    direction = rng.uniform(-np.pi, np.pi)
    # Rotation and zoom move the corners about as fast as half the pan does.
    turn = 0.5 * pixels / (0.7 * side)
    steady = np.array(
        [
            pixels * np.cos(direction),
            pixels * np.sin(direction),
            turn * rng.standard_normal(),
            turn * rng.standard_normal(),
        ]
    )
    shake = rng.choice([0.0, 0.15, 0.5]) * np.array([pixels, pixels, turn, turn])
    steps = steady + shake * np.cumsum(rng.standard_normal((length - 1, 4)), axis=0) / 2.0
    walk = np.concatenate((np.zeros((1, 4)), np.cumsum(steps, axis=0)))
    middle: NDArray[np.float64] = walk - walk.mean(axis=0)
    return middle


def _place(
    motion: NDArray[np.float64], rng: np.random.Generator, *, size: tuple[int, int], side: int
) -> Maps:
    """(T, 2, 3) similarities that never leave the photograph; motion that does is reduced."""
    quarter = rng.integers(4) * (np.pi / 2.0)
    mirror = float(rng.choice([-1.0, 1.0]))
    tilt, zoom = rng.uniform(-0.2, 0.2), rng.uniform(np.log(0.75), np.log(1.1))
    place = rng.random(2)
    for strength in (1.0, 0.7, 0.5, 0.35, 0.2, 0.1, 0.0):  # 0 always fits
        turn = np.array([quarter + strength * tilt])
        orientation = _similarities(turn, np.array([strength * zoom]))[0] * [mirror, 1.0]
        maps = _maps(motion * strength, orientation=orientation, side=side)
        low, high = _extent(maps, side=side)
        room = np.array([size[1] - 1.0, size[0] - 1.0]) - (high - low)
        if (room > -1e-6).all():
            break
    maps[:, :, 2] += place * room.clip(0.0) - low
    return maps


def _maps(motion: NDArray[np.float64], *, orientation: NDArray[np.float64], side: int) -> Maps:
    """The camera's motion, which all layers share, and then the layer's own orientation."""
    linear = orientation @ _similarities(motion[:, 2], motion[:, 3])
    centre = (side - 1) / 2.0
    return np.concatenate((linear, linear @ (motion[:, :2] - centre)[:, :, None]), axis=2)


def _similarities(angles: NDArray[np.float64], log_zooms: NDArray[np.float64]) -> Maps:
    """(T, 2, 2) rotations, enlarged."""
    cos, sin = np.exp(log_zooms) * np.cos(angles), np.exp(log_zooms) * np.sin(angles)
    return np.stack((np.stack((cos, -sin), axis=-1), np.stack((sin, cos), axis=-1)), axis=1)


def _extent(maps: Maps, *, side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest photograph coordinates (x, y) that are shown."""
    last = side - 1.0
    corners = np.array([[0.0, 0.0, 1.0], [last, 0.0, 1.0], [0.0, last, 1.0], [last, last, 1.0]])
    seen = maps @ corners.T  # (T, 2, 4)
    return seen.min(axis=(0, 2)), seen.max(axis=(0, 2))
