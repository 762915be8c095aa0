"""Cuts clips from the three kinds of sources: folders of frames, videos and photographs."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from rbvsr_deploy.errors import MediaError
from rbvsr_deploy.training.data.cache import FrameCache
from rbvsr_deploy.training.data.camera import CameraPath, draw_motion, film
from rbvsr_deploy.training.data.footage import (
    DamagedSourceError,
    Footage,
    ImageFiles,
    Region,
    VideoFile,
)

__all__ = [
    "Clip",
    "ClipShape",
    "DamagedSourceError",
    "Source",
    "SourceConfig",
    "find_sources",
    "open_source",
]

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_VIDEOS = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".ts", ".mpg", ".mpeg")

logger = logging.getLogger(__name__)

Frames = NDArray[np.uint8]


class SourceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Describes a source of clips."""

    kind: Literal["frames", "videos", "photos"]
    """A folder of folders of frames (REDS), a folder of video files, or a folder of photographs."""
    path: str
    weight: Annotated[float, Meta(gt=0.0)] = 1.0
    """Share of the clips, relative to the other sources' weights."""
    reduction: Annotated[int, Meta(ge=1, le=256)] = 1
    """Factor by which frames are first reduced, by averaging."""


class ClipShape(Struct, frozen=True):
    """Describes the clips that a source is asked for."""

    frames: int
    """Number of different frames."""
    crop: int
    """Side of the degraded frames, in pixels."""
    side: int
    """Side of the ground truth, in pixels."""
    max_speed: float
    parallax: float


@dataclass(frozen=True)
class Clip:
    """Holds the ground truth of one clip."""

    frames: Frames
    """(T, 4S, 4S, 3) uint8, RGB."""
    path: CameraPath | None
    """Path of the synthetic camera; ``None`` for real footage."""
    name: str
    """File or folder the clip comes from."""


class Source(ABC):
    """A source of clips of one kind, in one place."""

    def __init__(self, config: SourceConfig, shape: ClipShape, *, cache: FrameCache | None) -> None:
        self.config, self.shape = config, shape
        self.footage: list[Footage] = []
        self.damaged: list[str] = []
        for name, files in self.files().items():
            try:
                self.footage.append(self.open(name, files))
            except DamagedSourceError as error:
                self.damaged.append(error.path)
                logger.warning("%s and will be skipped", error)
        usable = [f for f in self.footage if self.fits(f)]
        self.usable = usable if cache is None else [cache.admit(f) for f in usable]

    @abstractmethod
    def files(self) -> dict[str, list[Path]]:
        """Return the files of every piece of footage, by its name."""

    def open(self, name: str, files: list[Path]) -> Footage:
        return ImageFiles(name, files)

    @property
    def frames_needed(self) -> int:
        return self.shape.frames

    @property
    def side(self) -> int:
        """Side of the crops in pixels, before reduction."""
        return self.shape.side * self.config.reduction

    def fits(self, footage: Footage) -> bool:
        smaller = min(footage.height, footage.width)
        return footage.count >= self.frames_needed and smaller >= self.side

    def check(self) -> None:
        """Raise ``MediaError`` if no clip can be cut from this source."""
        path, needed, side = self.config.path, self.frames_needed, self.side
        if not self.footage:
            raise MediaError(f"no file in '{path}' can be decoded: repair or replace them")
        long_enough = [f for f in self.footage if f.count >= needed]
        if not long_enough:
            raise MediaError(
                f"the longest clip in '{path}' has {max(f.count for f in self.footage)} frames, "
                f"but {needed} are needed: lower the length, or use longer clips"
            )
        if not self.usable:
            largest = max(long_enough, key=lambda f: min(f.height, f.width))
            raise MediaError(
                f"the largest frames in '{path}' are {largest.width}x{largest.height}, too small "
                f"for crops of {side}x{side}: lower the crop or the reduction"
            )
        if len(self.usable) < len(self.footage):
            logger.warning(
                f"skipping {len(self.footage) - len(self.usable)} of {len(self.footage)} in "
                f"'{path}': too short or too small for clips of {needed} frames of {side}x{side}"
            )

    @abstractmethod
    def clip(self, rng: np.random.Generator) -> Clip:
        """Draw a clip.

        Raises:
            DamagedSourceError: the clip that was drawn cannot be decoded.
        """


class _RealFootage(Source):
    """Cuts clips from real footage, with random position, flips and transposition."""

    def clip(self, rng: np.random.Generator) -> Clip:
        starts = np.array([f.count - self.frames_needed + 1 for f in self.usable])
        footage = self.usable[int(rng.choice(len(starts), p=starts / starts.sum()))]
        start = int(rng.integers(footage.count - self.frames_needed + 1))
        region = Region(
            top=int(rng.integers(footage.height - self.side + 1)),
            left=int(rng.integers(footage.width - self.side + 1)),
            height=self.side,
            width=self.side,
        )
        frames = np.stack(
            [
                _reduced(footage.cut(planes, region), self.config.reduction)
                for planes in footage.decode(start, self.frames_needed)
            ]
        )
        flip_x, flip_y, transpose = rng.random(3) < 0.5
        if flip_x:
            frames = frames[:, :, ::-1]
        if flip_y:
            frames = frames[:, ::-1]
        if transpose:
            frames = frames.transpose(0, 2, 1, 3)
        return Clip(frames=np.ascontiguousarray(frames), path=None, name=footage.name)


class FrameFolders(_RealFootage):
    """A folder of folders of frames, or one folder of frames."""

    def files(self) -> dict[str, list[Path]]:
        root = Path(self.config.path)
        clips = {}
        for folder in [root, *sorted(p for p in root.iterdir() if p.is_dir())]:
            images = _files(folder, _IMAGES)
            if images:
                clips[str(folder)] = images
        return clips


class Videos(_RealFootage):
    """A folder of video files, or one file."""

    def files(self) -> dict[str, list[Path]]:
        return {str(file): [file] for file in _files(Path(self.config.path), _VIDEOS)}

    def open(self, name: str, files: list[Path]) -> Footage:
        return VideoFile(files[0])


class Photos(Source):
    """A folder of photographs, filmed with a synthetic camera."""

    def files(self) -> dict[str, list[Path]]:
        return {str(file): [file] for file in _files(Path(self.config.path), _IMAGES)}

    @property
    def frames_needed(self) -> int:
        return 1

    def clip(self, rng: np.random.Generator) -> Clip:
        shape = self.shape
        layers = int(rng.integers(2, 4)) if rng.random() < shape.parallax else 1
        chosen = [self.usable[int(i)] for i in rng.integers(len(self.usable), size=layers)]
        motion = draw_motion(rng, length=shape.frames, crop=shape.crop, max_speed=shape.max_speed)
        photos = [self._photo(footage) for footage in chosen]
        frames, path = film(photos, motion, rng, crop=shape.crop)
        return Clip(frames=frames, path=path, name=chosen[0].name)

    def _photo(self, footage: Footage) -> NDArray[np.uint8]:
        (planes,) = footage.decode(0, 1)
        photo = planes.reshape(footage.height, footage.width, 3)
        return _reduced(photo, self.config.reduction)


def _reduced(image: Frames, factor: int) -> Frames:
    """Reduce an image by averaging blocks of pixels."""
    if factor == 1:
        return image
    size = (image.shape[1] // factor, image.shape[0] // factor)
    whole = image[: size[1] * factor, : size[0] * factor]
    return cv2.resize(whole, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _files(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """List the files with these suffixes in a folder, sorted; a file counts as a list of one."""
    if not path.is_dir():
        return [path] if path.suffix.lower() in suffixes else []
    return sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and p.is_file())


_KINDS: dict[str, type[_RealFootage] | type[Photos]] = {
    "frames": FrameFolders,
    "videos": Videos,
    "photos": Photos,
}
_CONTENTS = {
    "frames": f"image folders ({', '.join(_IMAGES)})",
    "videos": f"videos ({', '.join(_VIDEOS)})",
    "photos": f"photographs ({', '.join(_IMAGES)})",
}


def open_source(
    config: SourceConfig, shape: ClipShape, *, cache: FrameCache | None = None
) -> Source:
    """Open a source and look through its files.

    Raises:
        MediaError: it does not exist, or contains nothing of its kind.
    """
    if not Path(config.path).exists():
        raise MediaError(f"'{config.path}' does not exist: choose a folder of {config.kind}")
    source: Source = _KINDS[config.kind](config, shape, cache=cache)
    if not source.footage and not source.damaged:
        raise MediaError(
            f"'{config.path}' contains no {_CONTENTS[config.kind]}: choose another folder"
        )
    return source


def find_sources(path: Path) -> list[SourceConfig]:
    """Find everything in a folder that clips can be cut from: videos, photographs, image folders.

    Raises:
        MediaError: the folder does not exist, or contains none of these.
    """
    if not path.exists():
        raise MediaError(
            f"'{path}' does not exist: choose a folder of videos, photographs or frames"
        )
    folders = [p for p in path.iterdir() if p.is_dir()] if path.is_dir() else []
    found: list[Literal["frames", "videos", "photos"]] = []
    if _files(path, _VIDEOS):
        found.append("videos")
    if _files(path, _IMAGES):
        found.append("photos")
    if any(_files(folder, _IMAGES) for folder in folders):
        found.append("frames")
    if not found:
        raise MediaError(
            f"'{path}' contains no videos, photographs or image folders: choose the folder that "
            "contains them"
        )
    return [SourceConfig(kind=kind, path=str(path)) for kind in found]
