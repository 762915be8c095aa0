"""Films photographs with a synthetic camera, so that the optical flow is known.

A clip shows one to three layers, each a photograph on its own plane. The camera pans, rotates and
zooms; nearer layers move faster, and the layers further back show through their soft-edged holes.
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
"""Share of a layer from which a pixel counts as showing that layer alone."""

Frames = NDArray[np.uint8]
Maps = NDArray[np.float64]


@dataclass(frozen=True)
class CameraPath:
    """Describes how a synthetic clip was filmed; layers are ordered from farthest to nearest."""

    maps: Maps
    """(K, T, 2, 3): in frame t, the ground-truth pixel p = (x, y, 1) of layer k shows its
    photograph at ``maps[k, t] @ p``."""
    visible: NDArray[np.float32]
    """(K, T, S, S): share of each layer in every degraded pixel; sums to 1 over the layers."""

    def reordered(self, order: NDArray[np.intp]) -> CameraPath:
        """Return the path of the clip whose frame t is frame ``order[t]`` of this one."""
        return CameraPath(maps=self.maps[:, order], visible=self.visible[:, order])


def true_flow(
    path: CameraPath, *, reference: int, neighbour: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Compute the flow between two frames of a synthetic clip, at the size of the degraded frames.

    Returns:
        flow: (2, S, S) float32, (dx, dy) in degraded pixels, with
            ``neighbour(x + flow) ~ reference(x)``, for the dominant layer of each pixel.
        known: (S, S) bool; false where layers mix, and where the content of the pixel is hidden or
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
    """Film photographs, one per layer, ordered from farthest to nearest.

    Args:
        photos: (H, W, 3) each, at least as large as the ground truth.
        motion: motion of the nearest layer, from :func:`draw_motion`.
        crop: side S of the degraded frames, in pixels.

    Returns:
        The frames, (T, 4S, 4S, 3) uint8, and the camera path.
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
        # Read only the visible part, plus 4 pixels for the taps of the interpolation.
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
            frames = np.stack([_over(*images) for images in zip(seen, frames, alpha, strict=True)])
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
    """Compute the share of each layer that the layers in front of it leave visible."""
    left = np.ones_like(opacities[0])
    shares = []
    for opacity in reversed(opacities):
        shares.append(left * opacity)
        left = left * (1.0 - opacity)
    return np.stack(shares[::-1])


def _holes(rng: np.random.Generator, *, size: tuple[int, int], cell: float) -> NDArray[np.uint8]:
    """Draw the opacity of a layer, (H, W) uint8: blobs the size of a cell that cover about half of
    it, with edges a few pixels wide.
    """
    coarse = rng.random([int(np.ceil(length / cell)) + 2 for length in size], dtype=np.float32)
    smooth = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    edge = rng.uniform(1.5, 4.0)  # pixels; the noise rises by about 1 / cell per pixel
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
        length: number of frames T.
        crop: side of the degraded frames, in pixels.
        max_speed: degraded pixels per frame; speeds are drawn log-uniformly from 0.05 upwards.
    """
    side = crop * SCALE
    pixels = np.exp(rng.uniform(np.log(0.05), np.log(max_speed))) * SCALE
    direction = rng.uniform(-np.pi, np.pi)
    # Rotation and zoom move the corners about half as fast as the pan does.
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
    """Draw (T, 2, 3) similarities that stay inside the photograph, reducing the motion to fit."""
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
    """Compose the camera's motion, which all layers share, with the orientation of one layer."""
    linear = orientation @ _similarities(motion[:, 2], motion[:, 3])
    centre = (side - 1) / 2.0
    return np.concatenate((linear, linear @ (motion[:, :2] - centre)[:, :, None]), axis=2)


def _similarities(angles: NDArray[np.float64], log_zooms: NDArray[np.float64]) -> Maps:
    """Return (T, 2, 2) rotations with zoom."""
    cos, sin = np.exp(log_zooms) * np.cos(angles), np.exp(log_zooms) * np.sin(angles)
    return np.stack((np.stack((cos, -sin), axis=-1), np.stack((sin, cos), axis=-1)), axis=1)


def _extent(maps: Maps, *, side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the smallest and largest photograph coordinates (x, y) that are visible."""
    last = side - 1.0
    corners = np.array([[0.0, 0.0, 1.0], [last, 0.0, 1.0], [0.0, last, 1.0], [last, last, 1.0]])
    seen = maps @ corners.T  # (T, 2, 4)
    return seen.min(axis=(0, 2)), seen.max(axis=(0, 2))
