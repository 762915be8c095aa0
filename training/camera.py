"""A synthetic camera over photographs, whose optical flow is known."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.training.degradations import SCALE

__all__ = ["CameraPath", "camera_maps", "film", "true_flow"]

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class CameraPath:
    """How a synthetic clip was filmed."""

    maps: NDArray[np.float64]
    """(T, 2, 3): frame t shows at ground-truth pixel p = (x, y, 1) the photo at ``maps[t] @ p``."""
    crop: int
    """Height and width of the degraded frames."""

    def reordered(self, order: NDArray[np.int_]) -> CameraPath:
        """The path of the clip whose frame t is the frame ``order[t]`` of this one."""
        return CameraPath(maps=self.maps[order], crop=self.crop)


def camera_maps(
    rng: np.random.Generator, *, size: tuple[int, int], length: int, side: int, max_speed: float
) -> NDArray[np.float64]:
    """Draw a smooth path of similarity transforms that never leaves the photograph.

    Args:
        size: height and width of the photograph, at least ``side``.

    Returns:
        (T, 2, 3): frame t shows at output pixel p = (x, y, 1) the photograph at ``path[t] @ p``.
    """
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
    walk -= walk.mean(axis=0)  # the middle of the path has the drawn angle and zoom
    walk[:, 2] += rng.uniform(-0.2, 0.2)
    walk[:, 3] += rng.uniform(np.log(0.75), np.log(1.1))
    quarter = rng.integers(4) * (np.pi / 2.0)
    mirror = float(rng.choice([-1.0, 1.0]))
    place = rng.random(2)
    for strength in (1.0, 0.7, 0.5, 0.35, 0.2, 0.1, 0.0):  # 0 always fits
        path = _path_of(walk * strength, quarter=quarter, mirror=mirror, side=side)
        low, high = _extent(path, side=side)
        room = np.array([size[1] - 1.0, size[0] - 1.0]) - (high - low)
        if (room >= 0.0).all():
            break
    path[:, :, 2] += place * room.clip(0.0) - low
    return path


def _path_of(
    walk: NDArray[np.float64], *, quarter: float, mirror: float, side: int
) -> NDArray[np.float64]:
    """(T, 4) pan x, pan y, angle, log zoom -> (T, 2, 3); turns and zooms about the centre."""
    angle, zoom = walk[:, 2] + quarter, np.exp(walk[:, 3])
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    linear = np.stack((np.stack((cos * mirror, -sin), -1), np.stack((sin * mirror, cos), -1)), 1)
    centre = np.full(2, (side - 1) / 2.0)
    shift = walk[:, :2] - linear @ centre
    return np.concatenate((linear, shift[:, :, None]), axis=2)


def _extent(
    path: NDArray[np.float64], *, side: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest photograph coordinates (x, y) that the path shows."""
    last = side - 1.0
    corners = np.array([[0.0, 0.0, 1.0], [last, 0.0, 1.0], [0.0, last, 1.0], [last, last, 1.0]])
    seen = path @ corners.T  # (T, 2, 4)
    return seen.min(axis=(0, 2)), seen.max(axis=(0, 2))


def true_flow(
    path: CameraPath, *, reference: int, neighbour: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Flow between two frames of a synthetic clip, at the size of the degraded frames.

    Returns:
        (2, S, S) float32, degraded pixels, (dx, dy), with ``neighbour(x + flow) ~ reference(x)``;
        and (S, S) bool, where this is known.
    """
    crop, maps = path.crop, path.maps
    # Degraded pixel q is centred on ground-truth pixel 4 q + 1.5.
    ys, xs = np.mgrid[0:crop, 0:crop] * float(SCALE) + (SCALE - 1) / 2.0
    points = np.stack((xs.ravel(), ys.ravel()))
    scene = maps[reference, :, :2] @ points + maps[reference, :, 2:]
    found = np.linalg.solve(maps[neighbour, :, :2], scene - maps[neighbour, :, 2:])
    flow = ((found - points) / SCALE).reshape(2, crop, crop).astype(np.float32)
    inside = (found >= 0.0) & (found <= crop * SCALE - 1.0)
    return flow, inside.all(axis=0).reshape(crop, crop)


def film(
    photo: Frames, rng: np.random.Generator, *, length: int, crop: int, max_speed: float
) -> tuple[Frames, CameraPath]:
    """Film a photograph (H, W, 3) with a synthetic camera: (T, 4S, 4S, 3) uint8, and its path."""
    side = crop * SCALE
    size = (photo.shape[0], photo.shape[1])
    maps = camera_maps(rng, size=size, length=length, side=side, max_speed=max_speed)
    low, high = _extent(maps, side=side)
    # Only the part that is seen is read; 4 pixels more for the taps of the interpolation.
    x0, y0 = (int(v) for v in np.maximum(np.floor(low) - 4, 0))
    x1, y1 = (int(v) for v in np.ceil(high) + 5)
    part = np.ascontiguousarray(photo[y0:y1, x0:x1])
    shift = np.array([[0.0, 0.0, x0], [0.0, 0.0, y0]])
    frames = [
        cv2.warpAffine(
            part,
            matrix - shift,
            (side, side),
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        for matrix in maps
    ]
    return np.stack(frames), CameraPath(maps=maps, crop=crop)
