"""Reads clips, upscales them and describes the machine, for the programs in this folder."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from numpy.typing import NDArray

from rbvsr_deploy import __version__
from rbvsr_deploy.engines import Engine
from rbvsr_deploy.pixels import Image
from rbvsr_deploy.runtime.stream import Settings, Stream

Frames = list[Image]


def environment(engine: Engine | None = None) -> dict[str, Any]:
    """Describe the machine and the engine, for a program's JSON."""
    return {
        "machine": platform.processor() or platform.machine(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "rbvsr_deploy": __version__,
        "date": time.strftime("%Y-%m-%d"),
        **({} if engine is None else {"engine": str(engine.describe())}),
    }


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height of text such as "320x180"."""
    try:
        width, height = (int(part) for part in text.split("x"))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a size: use for example 320x180") from None
    return width, height


def parse_numbers(text: str) -> list[int]:
    """Return the distinct whole numbers in "0,1,2", in ascending order."""
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a list of whole numbers: use for example 0,1,2,4"
        ) from None


def read_clip(path: Path, *, frames: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read the first frames of a video, area-averaged to a width and height: (T, H, W, 3) RGB."""
    with av.open(str(path)) as container:
        images = [
            frame.reformat(
                width=size[0], height=size[1], format="rgb24", interpolation="AREA"
            ).to_ndarray()
            for frame, _ in zip(container.decode(video=0), range(frames), strict=False)
        ]
    if len(images) < frames:
        raise click.ClickException(
            f"{path} has {len(images)} frames, and {frames} are needed: give a longer clip"
        )
    return np.stack(images)


def upscale(
    engine: Engine, images: NDArray[np.uint8], settings: Settings, *, cuts: Iterable[int] = ()
) -> Frames:
    """Upscale a clip; a new scene begins at every frame whose number is among the cuts."""
    return list(upscaled_frames(engine, images, settings, cuts=cuts))


def upscaled_frames(
    engine: Engine, images: NDArray[np.uint8], settings: Settings, *, cuts: Iterable[int] = ()
) -> Iterator[Image]:
    """Yield the frames of :func:`upscale` as they are made."""
    starts = set(cuts)
    with Stream(engine, settings, size=images.shape[1:3]) as stream:
        for number, image in enumerate(images):
            for output in stream.push(image, cut=number in starts):
                yield output.image
        for output in stream.flush():
            yield output.image


def shortest(runs: list[dict[str, Any]], name: str) -> float:
    """Return the least of a figure that every run has."""
    return float(min(run[name] for run in runs))


def difference(one: Image, other: Image) -> NDArray[np.float32]:
    """Return the absolute difference of two images, in levels of 255."""
    return np.abs(one.astype(np.float32) - other.astype(np.float32))
