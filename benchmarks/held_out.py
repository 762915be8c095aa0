"""Clips that training never saw, to measure a model with: ground truth and inputs as PNG files.

``moderate``: inputs degraded from the ground truth as in training, by a fixed seed; ``clean``: the
same ground truth, reduced by antialiased bicubic interpolation and nothing else; ``real``: clips as
they are, without ground truth.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy.graphs import SCALE
from rbvsr_deploy.pixels import eight_bits
from rbvsr_deploy.training.data.sources import SourceConfig
from rbvsr_deploy.training.data.training_set import DataConfig, TrainingSet
from rbvsr_deploy.training.degradations.config import CLEAN, MODERATE
from rbvsr_deploy.training.evaluation.degraded_inputs import degrade_items
from rbvsr_deploy.training.evaluation.metrics.resize import imresize
from rbvsr_deploy.training.evaluation.sequences import Item, find_sequences
from rbvsr_deploy.video import open_source
from rbvsr_deploy.video.images import write_image

Image = NDArray[np.uint8]

SEED = 2026


def write_frames(folder: Path, images: Iterable[Image]) -> Path:
    """A folder of numbered PNG files."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        write_image(folder / f"{number:08}.png", image=image)
    return folder


def read_frames(path: Path, *, count: int | None = None) -> Iterator[Image]:
    """The first frames of a video or folder."""
    with open_source(path) as source:
        for frame in itertools.islice(source, count):
            yield eight_bits(frame.image)


def middle(image: Image, size: tuple[int, int]) -> Image:
    """The middle of an image, at most as large as a width and height, sides multiples of 4."""
    sides = [
        min(s, most) // SCALE * SCALE for s, most in zip(image.shape[:2], size[::-1], strict=True)
    ]
    top, left = ((s - kept) // 2 for s, kept in zip(image.shape[:2], sides, strict=True))
    return np.ascontiguousarray(image[top : top + sides[0], left : left + sides[1]])


def cut(paths: Iterable[Path], folder: Path, *, count: int, size: tuple[int, int]) -> None:
    """The first frames of every clip at some paths, cut to a size."""
    for path in paths:
        for name, clip in find_sequences(path).items():
            write_frames(folder / name, (middle(i, size) for i in read_frames(clip, count=count)))


def film(photos: Path, folder: Path, *, clips: int, count: int, side: int) -> None:
    """Photographs under the synthetic camera of the training."""
    source = SourceConfig(kind="photos", path=str(photos), reduction=2)
    data = DataConfig(sources=(source,), length=count, crop=side // SCALE, stochastic=False)
    camera = TrainingSet(data, CLEAN, seed=SEED)
    for number in range(clips):
        write_frames(folder / f"photo_{number}", camera.sample(number).truth)


def reduced(image: Image) -> Image:
    """A quarter of the size, by antialiased bicubic interpolation."""
    small = imresize(image.astype(np.float32), 1 / SCALE)
    return np.asarray(small.round().clip(0, 255), np.uint8)


def make_sets(
    folder: Path,
    *,
    truth: tuple[Path, ...],
    photos: Path | None,
    photo_clips: int,
    real: tuple[Path, ...],
    count: int,
    size: tuple[int, int],
) -> None:
    """Truth and inputs of every set, in a folder that does not exist."""
    cut(truth, folder / "truth", count=count, size=size)
    if photos is not None:
        film(photos, folder / "truth", clips=photo_clips, count=count, side=min(size))
    items = [Item(path.name, None, truth=path) for path in sorted((folder / "truth").iterdir())]
    (folder / "moderate").mkdir()
    degrade_items(items, folder / "moderate", MODERATE, seed=SEED)
    for item in items:
        assert item.truth is not None
        write_frames(folder / "clean" / item.name, map(reduced, read_frames(item.truth)))
    cut(real, folder / "real", count=count, size=(size[0] // SCALE, size[1] // SCALE))
