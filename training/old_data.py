"""Goes when run.py and evaluate.py no longer need it.

Clips to train on: photographs under a synthetic camera, and pieces of real videos.

Everything drawn is a pure function of the generator passed in, and :meth:`TrainingSet.sample` makes
that generator from (seed, stream, index) alone, so that an interrupted run goes on with exactly the
data it would have seen.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.training.old_degradations import SCALE, degrade, draw_degradation

__all__ = [
    "Clip",
    "ClipSpec",
    "Sample",
    "TrainingSet",
    "camera_path",
    "load_photos",
    "load_videos",
    "photo_clip",
    "true_flow",
    "video_clip",
]

_PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi")
_MAX_VIDEO_FRAMES = 600

logger = logging.getLogger(__name__)

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class ClipSpec:
    """Size of the clips and strength of the synthetic motion."""

    length: int = 6
    crop: int = 48
    """Height and width of the degraded frames; ground truth is four times larger."""
    max_speed: float = 4.0
    """Fastest camera, degraded pixels per frame; speeds are drawn log-uniformly from 0.05 on."""

    @property
    def side(self) -> int:
        """Height and width of the ground truth."""
        return self.crop * SCALE


@dataclass(frozen=True)
class Clip:
    """Ground truth of one clip."""

    frames: Frames
    """(T, 4S, 4S, 3) uint8, RGB."""
    path: NDArray[np.float64] | None
    """(T, 2, 3) maps of :func:`camera_path`, or ``None`` for a real video."""


@dataclass(frozen=True)
class Sample:
    """What the training loop consumes."""

    degraded: Frames
    """(T, S, S, 3) uint8, RGB."""
    truth: Frames
    """(T, 4S, 4S, 3) uint8, RGB."""
    path: NDArray[np.float64] | None


# --------------------------------------------------------------------------------- synthetic camera


def camera_path(
    rng: np.random.Generator, *, size: tuple[int, int], spec: ClipSpec
) -> NDArray[np.float64]:
    """Draw a smooth path of similarity transforms that never leaves the photograph.

    Args:
        size: height and width of the photograph, at least ``spec.side``.

    Returns:
        (T, 2, 3): frame t shows at output pixel p = (x, y, 1) the photograph at ``path[t] @ p``.
    """
    pixels = np.exp(rng.uniform(np.log(0.05), np.log(spec.max_speed))) * SCALE
    direction = rng.uniform(-np.pi, np.pi)
    # Rotation and zoom move the corners about as fast as half the pan does.
    turn = 0.5 * pixels / (0.7 * spec.side)
    steady = np.array(
        [
            pixels * np.cos(direction),
            pixels * np.sin(direction),
            turn * rng.standard_normal(),
            turn * rng.standard_normal(),
        ]
    )
    shake = rng.choice([0.0, 0.15, 0.5]) * np.array([pixels, pixels, turn, turn])
    steps = steady + shake * np.cumsum(rng.standard_normal((spec.length - 1, 4)), axis=0) / 2.0
    walk = np.concatenate((np.zeros((1, 4)), np.cumsum(steps, axis=0)))
    walk -= walk.mean(axis=0)  # the middle of the path has the drawn angle and zoom
    walk[:, 2] += rng.uniform(-0.2, 0.2)
    walk[:, 3] += rng.uniform(np.log(0.75), np.log(1.1))
    quarter = rng.integers(4) * (np.pi / 2.0)
    mirror = float(rng.choice([-1.0, 1.0]))
    place = rng.random(2)
    for strength in (1.0, 0.7, 0.5, 0.35, 0.2, 0.1, 0.0):  # 0 always fits
        path = _path_of(walk * strength, quarter=quarter, mirror=mirror, side=spec.side)
        low, high = _extent(path, side=spec.side)
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
    path: NDArray[np.float64], *, reference: int, neighbour: int, crop: int
) -> NDArray[np.float32]:
    """Exact flow between two frames of a synthetic clip, at the size of the degraded frames.

    Returns:
        (2, S, S) float32, degraded pixels, (dx, dy), with ``neighbour(x + flow) ~ reference(x)``.
    """
    # Degraded pixel q is centred on ground-truth pixel 4 q + 1.5.
    ys, xs = np.mgrid[0:crop, 0:crop] * float(SCALE) + (SCALE - 1) / 2.0
    points = np.stack((xs.ravel(), ys.ravel()))
    scene = path[reference, :, :2] @ points + path[reference, :, 2:]
    found = np.linalg.solve(path[neighbour, :, :2], scene - path[neighbour, :, 2:])
    flow = (found - points) / SCALE
    return flow.reshape(2, crop, crop).astype(np.float32)  # type: ignore[no-any-return]


def photo_clip(photo: Frames, rng: np.random.Generator, spec: ClipSpec) -> Clip:
    """Film a photograph (H, W, 3) with a synthetic camera."""
    path = camera_path(rng, size=(photo.shape[0], photo.shape[1]), spec=spec)
    low, high = _extent(path, side=spec.side)
    # Only the part that is seen is read from the cache; 4 pixels more for the taps of the
    # interpolation.
    x0, y0 = (int(v) for v in np.maximum(np.floor(low) - 4, 0))
    x1, y1 = (int(v) for v in np.ceil(high) + 5)
    part = np.ascontiguousarray(photo[y0:y1, x0:x1])
    frames = []
    for matrix in path:
        local = matrix - np.array([[0.0, 0.0, x0], [0.0, 0.0, y0]])
        frames.append(
            cv2.warpAffine(
                part,
                local,
                (spec.side, spec.side),
                flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REFLECT_101,
            )
        )
    return Clip(frames=np.stack(frames), path=path)


def video_clip(video: Frames, rng: np.random.Generator, spec: ClipSpec) -> Clip:
    """Cut a clip out of a video (F, H, W, 3).

    Place, time step (1 or 2), direction of time and orientation are drawn.
    """
    step = 2 if rng.random() < 0.3 and video.shape[0] >= 2 * spec.length else 1
    start = int(rng.integers(video.shape[0] - step * (spec.length - 1)))
    y = int(rng.integers(video.shape[1] - spec.side + 1))
    x = int(rng.integers(video.shape[2] - spec.side + 1))
    times = slice(start, start + step * (spec.length - 1) + 1, step)
    frames = video[times, y : y + spec.side, x : x + spec.side]
    if rng.random() < 0.5:
        frames = frames[::-1]
    if rng.random() < 0.5:
        frames = frames[:, :, ::-1]
    if rng.random() < 0.5:
        frames = frames[:, ::-1]
    if rng.random() < 0.5:
        frames = frames.transpose(0, 2, 1, 3)
    return Clip(frames=np.ascontiguousarray(frames), path=None)


# -------------------------------------------------------------------------------------------- cache


def load_photos(folders: Iterable[Path], *, cache: Path, reduction: int) -> list[Frames]:
    """Decode photographs once, reduce them, map them from the cache: (H, W, 3) uint8, RGB, each."""

    def read(path: Path) -> Frames:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise MediaError(
                f"cannot read the photograph {path}: give JPEG, PNG, TIFF or WebP files"
            )
        return _reduce_by(image[..., ::-1], reduction)

    return _cached(_files(folders, _PHOTO_SUFFIXES), cache=cache, reduction=reduction, read=read)


def load_videos(folders: Iterable[Path], *, cache: Path, reduction: int) -> list[Frames]:
    """As :func:`load_photos`, the first 600 frames of each video: (F, H, W, 3) uint8, RGB, each."""

    def read(path: Path) -> Frames:
        with av.open(str(path)) as container:
            frames = []
            for frame in container.decode(video=0):
                frames.append(_reduce_by(frame.to_ndarray(format="rgb24"), reduction))
                if len(frames) == _MAX_VIDEO_FRAMES:
                    break
        if not frames:
            raise MediaError(f"no frame could be decoded from {path}")
        return np.stack(frames)

    return _cached(_files(folders, _VIDEO_SUFFIXES), cache=cache, reduction=reduction, read=read)


def _reduce_by(image: NDArray[Any], reduction: int) -> Frames:
    """Average blocks of pixels: removes the unsharpness of demosaicing and compression."""
    if reduction == 1:
        return np.ascontiguousarray(image)
    size = (image.shape[1] // reduction, image.shape[0] // reduction)
    image = np.ascontiguousarray(image[: size[1] * reduction, : size[0] * reduction])
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _files(folders: Iterable[Path], suffixes: Sequence[str]) -> list[Path]:
    """Files with these suffixes, sorted within each folder; a file given by itself is taken."""
    files: list[Path] = []
    for folder in folders:
        inside = (
            sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)
            if folder.is_dir()
            else [folder]
        )
        if not inside:
            raise MediaError(f"{folder} holds none of the files looked for ({', '.join(suffixes)})")
        files += inside
    return files


def _cached(
    files: Sequence[Path], *, cache: Path, reduction: int, read: Callable[[Path], Frames]
) -> list[Frames]:
    """One .npy per file, named after the file, its size and the reduction; opened as memory map."""
    cache.mkdir(parents=True, exist_ok=True)
    arrays = []
    for file in files:
        identity = json.dumps([str(file.resolve()), file.stat().st_size, reduction])
        target = cache / f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.npy"
        if not target.exists():
            part = target.with_suffix(".part.npy")
            np.save(part, read(file))
            part.replace(target)
        arrays.append(np.load(target, mmap_mode="r"))
    return arrays


# ------------------------------------------------------------------------------------- training set


class TrainingSet:
    """Degraded clips by number.

    Args:
        photos: (H, W, 3) uint8 each.
        videos: (F, H, W, 3) uint8 each.
        seed: of everything drawn.
        video_share: part of the clips that come from videos when there are both.

    Raises:
        ValueError: there is neither a photograph nor a video.
    """

    def __init__(
        self,
        photos: Sequence[Frames],
        *,
        videos: Sequence[Frames] = (),
        seed: int = 0,
        video_share: float = 0.35,
    ) -> None:
        if not photos and not videos:
            raise ValueError("a training set needs at least one photograph or video")
        self.photos, self.videos, self.seed = list(photos), list(videos), seed
        self.video_share = video_share if photos and videos else float(not photos)

    def check(self, spec: ClipSpec) -> None:
        """Raise ``MediaError`` if a source is smaller or shorter than the clips."""
        for array in (*self.photos, *self.videos):
            if min(array.shape[-3:-1]) < spec.side or (
                array.ndim == 4 and len(array) < spec.length
            ):
                raise MediaError(
                    f"a photograph or video of shape {array.shape} is too small for clips of "
                    f"{spec.length} frames of {spec.side}x{spec.side}: leave it out, or lower the "
                    "crop, the length or the reduction"
                )

    def sample(
        self, index: int, *, spec: ClipSpec, stream: int = 0, motion_only: bool = False
    ) -> Sample:
        """Clip number ``index`` of a stream; the same for the same seed, stream, index and spec.

        Args:
            stream: separates phases of training.
            motion_only: photographs only, so that the true flow is known.
        """
        rng = np.random.default_rng([self.seed, stream, index])
        if not motion_only and rng.random() < self.video_share:
            clip = video_clip(self.videos[rng.integers(len(self.videos))], rng, spec)
        else:
            clip = photo_clip(self.photos[rng.integers(len(self.photos))], rng, spec)
        return Sample(
            degraded=degrade(clip.frames, draw_degradation(rng)), truth=clip.frames, path=clip.path
        )
